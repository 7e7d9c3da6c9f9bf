"""Does the fast way of decoding hold for this model? A few small passes and a look at its config.

Block refinement with a KV cache needs that earlier logits do not move when later tokens change or the
input grows, and that keys and values can be rewound. Knows no rank: every rank asks the same and gets the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dist.decode.cache import SequenceCache
from dist.decode.forward import FORWARD_ERRORS
from dist.kernels.closeness import logits_agree
from dist.model.head import Head

SHORT, LONG, KEPT = 16, 24, 12
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class Causality:
    """What holds for a model's logits and cache.

    problem      why every pass must read everything again, or None
    causal       whether earlier logits stay as they are when the input grows
    holds_up_to  total length from which rotary scaling depends on the length of the input; None: never
    """

    problem: str | None = None
    causal: bool = True
    holds_up_to: int | None = None


@torch.inference_mode()
def probe_causality(module: Any, head: Head) -> Causality:
    """Probe a causal LM with pseudo-random tokens."""
    limit = _length_dependent_from(module.config)
    parameter = next(module.parameters())
    vocabulary = module.get_input_embeddings().weight.shape[0]
    ids = torch.arange(13, 13 + 7919 * (LONG + KEPT), 7919, device=parameter.device) % vocabulary

    changed = ids[:LONG].clone()
    changed[SHORT:] = ids[LONG : 2 * LONG - SHORT]
    whole, other = _logits(module, head, torch.stack([ids[:LONG], changed]), use_cache=False)
    (short,) = _logits(module, head, ids[None, :SHORT], use_cache=False)
    if whole.isnan().any():
        # Nothing follows from it; the first reply says what is wrong.
        return Causality(holds_up_to=limit)
    if not logits_agree(whole[:SHORT], other[:SHORT]):
        return Causality(problem="its attention looks ahead (it is not causal)", causal=False)
    if not logits_agree(whole[:SHORT], short):
        return Causality(problem="its logits depend on the length of the input", causal=False)
    try:
        again = _rewound_logits(module, head, ids)
    except FORWARD_ERRORS:
        return Causality(problem="its cache cannot be rewound", holds_up_to=limit)
    if not logits_agree(whole[KEPT:], again):
        return Causality(problem="its cache gives other results after being rewound", holds_up_to=limit)
    return Causality(holds_up_to=limit)


def _logits(module: Any, head: Head, ids: torch.Tensor, **cache: Any) -> torch.Tensor:
    """Logits over the whole vocabulary, so that all ranks judge alike."""
    logits: torch.Tensor = module(input_ids=ids, **cache).logits
    return head.whole(logits)


def _rewound_logits(module: Any, head: Head, ids: torch.Tensor) -> torch.Tensor:
    """Logits of tokens KEPT .. LONG, read after other tokens were read there and rewound."""
    cache = SequenceCache()
    for part, keep in ((ids[:KEPT], None), (ids[LONG:], KEPT), (ids[KEPT:LONG], None)):
        logits = _logits(module, head, part[None], use_cache=True, past_key_values=cache.layers)[0]
        cache.note_fed(part.tolist())
        if keep is not None:
            cache.truncate(keep)
    return logits


def _length_dependent_from(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in LENGTH_DEPENDENT_ROPE:
        return None
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return int(original or config.max_position_embeddings)
