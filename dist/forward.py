"""One forward of the model over a pass: with kept keys and values, or from scratch. Knows no rule and no rank.

Shape suffixes: L tokens fed, N choices, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dist.cache import SequenceCache
from dist.decoding import Candidates, Pass
from dist.sampling import choose
from dist.settings import GenerationSettings

CANDIDATES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the model chose in one pass; `candidates` where they were asked for."""

    token_ids: list[int]
    candidates: list[Candidates] | None


class PlainForward:
    """Reads the whole input in every pass. Slow, and right for every model: the reference."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters

    def prefill(self, step: Pass, chunk: int) -> Iterator[tuple[int, int]]:
        """Nothing to read ahead."""
        yield from ()

    def __call__(self, step: Pass, settings: GenerationSettings, *, trace: bool) -> Choices:
        return _choices(self._logits(step.token_ids, step.wanted), step, settings, trace)

    def _logits(self, token_ids: list[int], wanted: int, **cache: Any) -> torch.Tensor:
        """Logits [N, V] after each of the last `wanted` tokens."""
        device = next(self._module.parameters()).device
        ids_1L = torch.tensor([token_ids], dtype=torch.int64, device=device)
        keep = {"logits_to_keep": wanted} if self._keeps_logits else {}
        with torch.inference_mode():
            output = self._module(input_ids=ids_1L, **{"use_cache": False, **cache}, **keep)
        logits: torch.Tensor = output.logits[0, -wanted:]
        return logits


class CachedForward(PlainForward):
    """Reads only what the cache does not hold."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.cache = SequenceCache()

    def prefill(self, step: Pass, chunk: int) -> Iterator[tuple[int, int]]:
        """Read ahead, `chunk` tokens at a time, until one chunk or less is left; yields (read, total)."""
        rest = self.cache.rewind_to_shared(step.token_ids, step.wanted)
        while len(rest) - step.wanted > chunk:
            self._feed(rest[:chunk], 1)
            rest = rest[chunk:]
            yield len(self.cache.token_ids), len(step.token_ids)

    def __call__(self, step: Pass, settings: GenerationSettings, *, trace: bool) -> Choices:
        rest = self.cache.rewind_to_shared(step.token_ids, step.wanted)
        return _choices(self._feed(rest, step.wanted), step, settings, trace)

    def _feed(self, token_ids: list[int], wanted: int) -> torch.Tensor:
        cache, self.cache = self.cache, SequenceCache()
        logits = self._logits(token_ids, wanted, use_cache=True, past_key_values=cache.layers)
        # Put back only now: a pass that raised half-way leaves layers of different lengths.
        cache.note_fed(token_ids)
        self.cache = cache
        return logits


def _choices(logits_NV: torch.Tensor, step: Pass, settings: GenerationSettings, trace: bool) -> Choices:
    chosen_N = choose(logits_NV, step.positions, settings)
    return Choices(
        token_ids=chosen_N.tolist(),
        candidates=_most_likely(logits_NV) if trace else None,
    )


def _most_likely(logits_NV: torch.Tensor) -> list[Candidates]:
    """The top candidates of each row with their probabilities (before temperature and filters)."""
    top = logits_NV.float().softmax(dim=-1).topk(min(CANDIDATES, logits_NV.shape[-1]), dim=-1)
    return [tuple(zip(ids, probabilities)) for ids, probabilities in zip(top.indices.tolist(), top.values.tolist())]
