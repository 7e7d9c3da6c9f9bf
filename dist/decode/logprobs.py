"""Log-probabilities of a reply's tokens, from passes whose input is the text itself. Knows no rule and no rank.

Whatever made the reply, each token is judged by what really stands before it, as one forward over prompt and reply
would; it is done in chunks, with a KV cache of its own.

Shape suffixes: N rows, V vocabulary, K best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dist.decode.cache import SequenceCache
from dist.decode.forward import logits_after
from dist.model.head import Head
from dist.protocol import TokenScore


def score(
    module: Any, head: Head, prompt: Sequence[int], reply: Sequence[int], best: int, chunk: int | None
) -> tuple[TokenScore, ...]:
    """All ranks: for each token of the reply its log-probability, and the `best` likeliest with theirs.

    `chunk`: tokens that are read at once; None for a model that keeps no cache that we can use: all of them.
    """
    text, begins = [*prompt, *reply[:-1]], len(prompt) - 1
    if chunk is None:
        found = _scores(head.whole(logits_after(module, text, len(reply), use_cache=False)), reply, best)
    else:
        found = [
            one
            for first, logits_NV in _logits(module, text, begins, chunk)
            for one in _scores(head.whole(logits_NV), reply[first : first + len(logits_NV)], best)
        ]
    return tuple(found)


def _logits(module: Any, text: list[int], begins: int, chunk: int) -> Iterator[tuple[int, torch.Tensor]]:
    """This rank's logits after each token from place `begins` on, with how many of them came before."""
    cache = SequenceCache()
    # What stands before is only read, so parts end at `begins` and the next one begins there.
    for part in (range(begins), range(begins, len(text))):
        for start in range(part.start, part.stop, chunk):
            piece = text[start : min(start + chunk, part.stop)]
            wanted = len(piece) if start >= begins else 1
            logits_NV = logits_after(module, piece, wanted, use_cache=True, past_key_values=cache.layers)
            if start >= begins:
                yield start - begins, logits_NV


def _scores(logits_NV: torch.Tensor, chosen: Sequence[int], best: int) -> list[TokenScore]:
    log_NV = logits_NV.float().log_softmax(dim=-1)
    ids_N1 = torch.tensor(chosen, dtype=torch.int64, device=log_NV.device).unsqueeze(-1)
    own = log_NV.gather(-1, ids_N1).squeeze(-1).tolist()
    top_NK = log_NV.topk(min(best, log_NV.shape[-1]), dim=-1)
    pairs = (tuple(zip(ids, values)) for ids, values in zip(top_NK.indices.tolist(), top_NK.values.tolist()))
    return list(zip(own, pairs, strict=True))
