"""Several sequences of different lengths in one forward, each with its own place. Knows no decoding rule.

Storage is [rows, heads, slots, head size]. A row's token at position p lies in slot p + 1, whatever the other rows
do, so that rows rewind and grow by themselves; slot 0 takes what padding writes. In a pass every row feeds the same
number of tokens, ending at its own last one: rows with less to say repeat tokens that are stored already, and rows
shorter than that are padded in front. The mask is explicit: a token sees the slots up to its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from dist.cache import shared_prefix
from dist.decoding import Pass
from dist.forward import FORWARD_ERRORS, UNBOUNDED, Choices, choices_of, logits_agree, logits_to_keep
from dist.head import Head

FIRST_SLOTS = 256
PROBE_PROMPTS = ((3, 5, 7, 4, 6), (9, 8))


def storage_slots(used: int) -> int:
    """How many slots a row has when `used` of them are needed: room to grow."""
    return max(FIRST_SLOTS, 1 << (used - 1).bit_length())


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One pass over some rows: which they are [R], the slots written [R, L], how many slots are in use."""

    rows: torch.Tensor
    slots: torch.Tensor
    used: int
    all_rows: bool


class RaggedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's storage. `feed` is set before each pass."""

    is_initialized: bool
    feed: Feed
    row_count: int

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [R, heads, L, size] to the feed's slots; returns the rows' slots in use."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = self._room(key_states, None), self._room(value_states, None)
            self.is_initialized = True
        if self.feed.used > self.keys.shape[-2]:
            self.keys, self.values = self._room(key_states, self.keys), self._room(value_states, self.values)
        return self._put(self.keys, key_states), self._put(self.values, value_states)

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all other rows."""
        self.row_count = len(rows)
        if self.is_initialized:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def copy(self, source: int, target: int, slots: int) -> None:
        """Give one row another's first slots."""
        for storage in (self.keys, self.values):
            storage[target, :, :slots] = storage[source, :, :slots]

    def _put(self, storage: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        storage[self.feed.rows.unsqueeze(-1), :, self.feed.slots] = states.transpose(1, 2)
        rows = storage if self.feed.all_rows else storage[self.feed.rows]
        return rows[:, :, : self.feed.used]

    def _room(self, states: torch.Tensor, old: torch.Tensor | None) -> torch.Tensor:
        slots = storage_slots(self.feed.used)
        # Zeros: what is masked must still be finite.
        storage = states.new_zeros((self.row_count, states.shape[1], slots, states.shape[3]))
        if old is not None:
            storage[:, :, : old.shape[-2]] = old
        return storage


class RaggedForward:
    """Forwards over the rows of one turn. Rows are numbered as they were at the start."""

    capacity = UNBOUNDED

    def __init__(self, module: Any, rows: int, head: Head) -> None:
        self._module = module
        self._head = head
        self._device = next(module.parameters()).device
        self._dtype = next(module.parameters()).dtype
        self._stored: dict[int, list[int]] = {row: [] for row in range(rows)}
        self._cache = Cache(layer_class_to_replicate=RaggedLayer)
        layers = module.config.get_text_config().num_hidden_layers
        self._cache.layers = [RaggedLayer() for _ in range(layers)]
        for layer in self._cache.layers:
            layer.row_count = rows

    def prefill(self, row: int, step: Pass, chunk: int) -> Iterator[tuple[int, int]]:
        """Read ahead in one row until only the wanted tokens are left; yields (read, total)."""
        head = step.token_ids[: len(step.token_ids) - step.wanted]
        self._copy_shared(row, head)
        stored = self._stored[row]
        while len(stored) < len(head):
            part = head[: len(stored) + chunk]
            self._pass([row], [part], len(part) - len(stored), 1)
            yield len(part), len(step.token_ids)
            stored = self._stored[row]

    def __call__(self, rows: Sequence[int], steps: Sequence[Pass], *, trace: bool) -> list[Choices]:
        """The choices of every row's pass, in one forward."""
        self._drop_others(rows)
        inputs = [step.token_ids for step in steps]
        fed = max(
            len(ids) - min(shared_prefix(self._stored[row], ids), len(ids) - step.wanted)
            for row, ids, step in zip(rows, inputs, steps)
        )
        logits = self._pass(rows, inputs, fed, max(step.wanted for step in steps))
        return choices_of([logits[i, -step.wanted :] for i, step in enumerate(steps)], steps, trace, self._head)

    @torch.inference_mode()
    def _copy_shared(self, row: int, head: list[int]) -> None:
        """What another row has read of the same beginning (a system prompt, say) need not be read again."""
        lengths = {other: shared_prefix(stored, head) for other, stored in self._stored.items()}
        other = max(lengths, key=lambda one: lengths[one])
        if lengths[other] > lengths[row]:
            places = {row: place for place, row in enumerate(self._stored)}
            for layer in self._cache.layers:
                layer.copy(places[other], places[row], lengths[other] + 1)
            self._stored[row] = head[: lengths[other]]

    def _drop_others(self, rows: Sequence[int]) -> None:
        if len(rows) < len(self._stored):
            places = {row: place for place, row in enumerate(self._stored)}
            keep = torch.tensor([places[row] for row in rows], device=self._device)
            for layer in self._cache.layers:
                layer.keep(keep)
            self._stored = {row: self._stored[row] for row in rows}

    @torch.inference_mode()
    def _pass(self, rows: Sequence[int], inputs: Sequence[list[int]], fed: int, wanted: int) -> torch.Tensor:
        """Feed the last `fed` tokens of each input; this rank's logits [R, wanted, V] after the last ones."""
        places = {row: place for place, row in enumerate(self._stored)}
        padded = [[0] * (fed - len(ids)) + ids[-fed:] for ids in inputs]
        ends = torch.tensor([len(ids) for ids in inputs], device=self._device).unsqueeze(-1)
        slots = (ends - fed + 1 + torch.arange(fed, device=self._device)).clamp_min(0)
        feed = Feed(
            rows=torch.tensor([places[row] for row in rows], device=self._device),
            slots=slots,
            used=max(map(len, inputs)) + 1,
            all_rows=len(rows) == len(self._stored),
        )
        for layer in self._cache.layers:
            layer.feed = feed
        output = self._module(
            input_ids=torch.tensor(padded, device=self._device),
            position_ids=(slots - 1).clamp_min(0),
            attention_mask=attention_masks(self._module.config, slots, feed.used, self._dtype),
            past_key_values=self._cache,
            use_cache=True,
            **logits_to_keep(self._module, wanted),
        )
        for row, ids in zip(rows, inputs):
            self._stored[row] = list(ids)
        logits: torch.Tensor = output.logits[:, -wanted:]
        return logits


def attention_masks(config: Any, slots: torch.Tensor, used: int, dtype: torch.dtype) -> Any:
    """Additive masks [R, 1, L, slots] as the model's forward takes them: one, or one for each kind of layer.

    A token sees slots 1 to its own; with a sliding window only the last ones of these. Padding sees slot 0.
    """
    config = config.get_text_config()
    slot = torch.arange(used, device=slots.device)
    own = slots.unsqueeze(-1)
    seen = ((slot <= own) & (slot > 0)) | ((own == 0) & (slot == 0))
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    full = _additive(seen, dtype)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return full
    near = _additive(seen & (slot > own - window), dtype)
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


@torch.inference_mode()
def decodes_together(module: Any, head: Head) -> bool:
    """Does this model give the same logits for rows in one pass as for each alone? A few small passes."""
    try:
        together = RaggedForward(module, len(PROBE_PROMPTS), head)
        rows = [list(prompt) for prompt in PROBE_PROMPTS]
        together._pass([0, 1], [row[:2] for row in rows], 2, 1)
        logits = together._pass([0, 1], rows, 3, 1)
    except FORWARD_ERRORS:
        return False
    last = head.whole(logits[:, -1])
    for place, row in enumerate(rows):
        output = module(input_ids=torch.tensor([row], device=logits.device), use_cache=False)
        if not logits_agree(last[place], head.whole(output.logits[0, -1])):
            return False
    return True
