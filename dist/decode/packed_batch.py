"""One forward pass over a packed (varlen) batch: segments of several sequences, end to end. Knows no decoding rule.

To the model it is a single sequence whose positions start again at 0 (varlen, packed sequences); only the storage
and the attention know which token belongs to which sequence. Nothing need be padded, and all that differs from
forward to forward of the same sizes is one array of numbers, which a captured CUDA graph copies to the device
itself.

Shape suffixes: T tokens of the forward, S segments, K logits kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from dist.decode.forward import knows_logits_to_keep
from dist.decode.static_cache import FixedCache
from dist.kernels.attention import Segments, fixed_storage_attention
from dist.kernels.rotary import FusedRotary
from dist.model.fused_modules import is_exact

Order = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one row from position `start` on; logits are kept after `kept` of them, from the `first` one on."""

    row: int
    start: int
    token_ids: list[int]
    first: int
    kept: int


def order_of(segments: Sequence[Segment], capacity: int, limit: int | None) -> Order:
    """The input of a forward, as one int64 array: T ids, T positions, T slots, K places, S x 4 for `Segments`.

    `capacity` is how many slots a row has, `limit` how many positions the model has: only what nobody reads ever
    stands past them.
    """
    table_S4 = np.array(
        [(0, len(one.token_ids), one.start, one.row * capacity) for one in segments], dtype=np.int64
    )
    lengths, starts, bases = table_S4[:, 1], table_S4[:, 2], table_S4[:, 3]
    firsts = table_S4[:, 0] = lengths.cumsum() - lengths
    positions = np.arange(lengths.sum()) + (starts - firsts).repeat(lengths)
    kept = np.array([one.kept for one in segments])
    kept_from = firsts + np.array([one.first for one in segments])
    places = np.arange(kept.sum()) + (kept_from - (kept.cumsum() - kept)).repeat(kept)
    ids = np.fromiter(chain.from_iterable(one.token_ids for one in segments), dtype=np.int64, count=len(positions))
    shown = positions if limit is None else np.minimum(positions, limit - 1)
    return np.concatenate([ids, shown, positions + bases.repeat(lengths), places, table_S4.ravel()])


class FlatForward:
    """A model's forward passes over a static KV cache."""

    def __init__(self, module: Any, cache: FixedCache) -> None:
        self._module = module
        self._cache = cache
        self._rotary = FusedRotary(module)
        self._known = knows_logits_to_keep(module)
        self._most_keys = cache.capacity if is_exact(module) else None

    def __call__(self, order: torch.Tensor, *, tokens: int, segments: int, kept: int, longest: int) -> torch.Tensor:
        """The pass that `order`, on the device, describes; logits [K, V]. `longest`: of the longest segment."""
        ids_T, positions_T, slots_T, places_K, table = torch.split(
            order, [tokens, tokens, tokens, kept, 4 * segments]
        )
        self._cache.write_at(slots_T)
        with fixed_storage_attention(self._module), self._rotary.used():
            output = self._module(
                input_ids=ids_T.unsqueeze(0),
                position_ids=positions_T.unsqueeze(0),
                past_key_values=self._cache.layers,
                use_cache=True,
                segments=Segments(table.view(segments, 4), longest, self._most_keys),
                **({"logits_to_keep": places_K} if self._known else {}),
            )
        logits: torch.Tensor = output.logits[0]
        return logits if self._known else logits.index_select(0, places_K)
