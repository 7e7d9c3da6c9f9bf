"""The KV cache of one sequence, kept between passes and turns. Knows no decoding rule.

Keys and values at a position are a function of the tokens read up to it. So the cache remembers which tokens it
was fed, and what a new input shares with them from the start is exact; everything after is dropped. No other
bookkeeping of what is stale is needed: after a block of p .. p + N that last changed at its k-th token, the
shared part ends at p + k by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

FIRST_CAPACITY = 256


class RewindableLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, [1, heads, length, head size], in storage that doubles when it is full.

    transformers' DynamicLayer concatenates, which copies all of the storage in every pass. Sliding-window layers
    are stored whole too, since a window can't be rewound; the model's own mask keeps to the window.
    """

    is_initialized: bool
    _key_storage: torch.Tensor
    _value_storage: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return everything stored."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._key_storage = self._value_storage = key_states.new_empty(0)
            self.is_initialized = True
        if self._key_storage.numel() == 0 or end > self._key_storage.shape[-2]:
            self._key_storage = self._grown(key_states, start, end, self.keys)
            self._value_storage = self._grown(value_states, start, end, self.values)
        self._key_storage[..., start:end, :] = key_states
        self._value_storage[..., start:end, :] = value_states
        self.rewind(end)
        return self.keys, self.values

    def rewind(self, length: int) -> None:
        """Show the first `length` positions only; storage stays."""
        self.keys = self._key_storage[..., :length, :]
        self.values = self._value_storage[..., :length, :]

    def _grown(self, states: torch.Tensor, start: int, end: int, old: torch.Tensor | None) -> torch.Tensor:
        capacity = max(FIRST_CAPACITY, 1 << (end - 1).bit_length())
        storage = states.new_empty((*states.shape[:-2], capacity, states.shape[-1]))
        if start and old is not None:
            storage[..., :start, :] = old
        return storage


class SequenceCache:
    """The cache of one sequence. `token_ids` are the tokens whose keys and values it holds."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.layers = Cache(layer_class_to_replicate=RewindableLayer)

    def rewind_to_shared(self, token_ids: list[int], wanted: int) -> list[int]:
        """Keep what `token_ids` shares with the cache; returns the rest, which must be fed.

        At least the last `wanted` tokens are left to feed, since their logits are asked for.
        """
        length = min(shared_prefix(self.token_ids, token_ids), len(token_ids) - wanted)
        self.truncate(length)
        return token_ids[length:]

    def note_fed(self, token_ids: list[int]) -> None:
        """The model has just read these tokens through `layers`."""
        self.token_ids += token_ids

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if length < len(self.token_ids):
            del self.token_ids[length:]
            for layer in self.layers.layers:
                layer.rewind(length)


def shared_prefix(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix, by comparing slices (which runs in C): ever longer ones, then halves."""
    low, high, stretch = 0, min(len(a), len(b)), 16
    while low < high and a[low : low + stretch] == b[low : low + stretch]:
        low, stretch = low + stretch, 2 * stretch
    # They part behind `low`, and within the last slice.
    low, high = min(low, high), min(low + stretch, high)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
