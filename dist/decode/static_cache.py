"""A static KV cache of several sequences: its storage never moves. Knows no model and no decoding rule.

A captured CUDA graph holds addresses, so the storage is made once, for as many tokens as a sequence may ever need.
The sequences ("rows") lie end to end. As in dist/decode/cache.py, a row's keys and values are exact as
far as the tokens that were read agree with those that are wanted; what lies behind is overwritten before it is
read.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from dist.decode.cache import shared_prefix


class FixedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's storage, [1, heads, slots, size]. `slots` says where the next forward writes, int64 [T]."""

    is_initialized: bool
    slots: torch.Tensor

    def __init__(self, slot_count: int) -> None:
        super().__init__()
        self._slot_count = slot_count

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [1, heads, T, size]; returns the whole storage."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = self._room(key_states), self._room(value_states)
            self.is_initialized = True
        if key_states.is_cuda and key_states.shape == value_states.shape:
            from dist.kernels.split_kv import store_rows

            store_rows(self.keys[0], self.values[0], key_states[0], value_states[0], self.slots)
        else:
            self.keys.index_copy_(2, self.slots, key_states)
            self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values

    def get_seq_length(self, *args: Any) -> int:
        """Positions and slots are given with every forward, so nobody need know."""
        return 0

    def copy(self, source: int, target: int, count: int) -> None:
        """Give so many slots from `target` on what those from `source` on hold; they do not overlap."""
        for storage in (self.keys, self.values):
            storage[:, :, target : target + count] = storage[:, :, source : source + count]

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros((*states.shape[:2], self._slot_count, states.shape[3]))


class FixedCache:
    """The cache of `rows` sequences of at most `capacity` tokens, in a model of so many layers.

    `stored[row]` are the tokens whose keys and values a row holds.
    """

    def __init__(self, layer_count: int, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.stored: list[list[int]] = [[] for _ in range(rows)]
        self.layers = Cache(layers=[FixedLayer(rows * capacity) for _ in range(layer_count)])

    @property
    def token_ids(self) -> list[int]:
        """What the first row holds, which is a conversation's."""
        return self.stored[0]

    def rest(self, row: int, token_ids: list[int], wanted: int) -> list[int]:
        """Keep what `token_ids` shares with a row; returns the rest, which must be read.

        At least the last `wanted` tokens are left to read, since their logits are asked for.
        """
        length = min(shared_prefix(self.stored[row], token_ids), len(token_ids) - wanted)
        del self.stored[row][length:]
        return token_ids[length:]

    def shared(self, token_ids: list[int]) -> list[int]:
        """How many tokens from the start each row holds."""
        return [shared_prefix(stored, token_ids) for stored in self.stored]

    @torch.inference_mode()
    def copy(self, source: int, target: int, count: int) -> None:
        """Give one row another's first tokens."""
        # Not held until all of it is there.
        self.stored[target].clear()
        for layer in self.layers.layers:
            layer.copy(source * self.capacity, target * self.capacity, count)
        self.stored[target] = self.stored[source][:count]

    def write_at(self, slots: torch.Tensor) -> None:
        """The next forward's keys and values belong into these slots."""
        for layer in self.layers.layers:
            layer.slots = slots

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every row."""
        for stored in self.stored:
            del stored[length:]
