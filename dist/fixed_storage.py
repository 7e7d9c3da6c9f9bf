"""Keys and values in storage that never moves, written at slots that are named on the device. Knows no model.

A captured CUDA graph holds addresses, so the storage is made once, for as many tokens as a reply may ever need.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from dist.cache import SequenceCache


class FixedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's storage, [1, heads, slots, size]. `slots` says where the next pass writes, int64 [L]."""

    is_initialized: bool
    slots: torch.Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [1, heads, L, size]; returns the whole storage."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = self._room(key_states), self._room(value_states)
            self.is_initialized = True
        if key_states.is_cuda and key_states.shape == value_states.shape:
            from dist.attention_kernels import store_rows

            store_rows(self.keys[0], self.values[0], key_states[0], value_states[0], self.slots)
        else:
            self.keys.index_copy_(2, self.slots, key_states)
            self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values

    def get_seq_length(self, *args: Any) -> int:
        """Positions and slots are given with every pass, so nobody need know."""
        return 0

    def rewind(self, length: int) -> None:
        """What lies behind is overwritten before it is read."""

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros((*states.shape[:2], self._capacity, states.shape[3]))


class FixedCache(SequenceCache):
    """The cache of one sequence of at most `capacity` tokens, in a model of so many layers."""

    def __init__(self, layer_count: int, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.layers = Cache(layers=[FixedLayer(capacity) for _ in range(layer_count)])

    def write_at(self, slots: torch.Tensor) -> None:
        """The next pass's keys and values belong into these slots."""
        for layer in self.layers.layers:
            layer.slots = slots
