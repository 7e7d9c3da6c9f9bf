"""Packed (varlen) passes over sequences of different lengths, over a static KV cache. Knows no decoding rule.

What prompts share (a system prompt, or all of it where one is answered several times) is read once and copied.

Shape suffixes: K logits kept, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from dist.decode.cache import shared_prefix
from dist.decode.forward import Choices, Prefill, choices_of, logits_after
from dist.decode.packed_batch import FlatForward, Segment, order_of
from dist.decode.passes import Pass
from dist.decode.static_cache import FixedCache
from dist.kernels.closeness import logits_agree
from dist.model.build import position_limit
from dist.model.head import Head

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
PROBE_TOKENS, PROBE_START = 12, 7
# Waiting until another prompt of the same beginning is read costs a forward.
WORTH_WAITING = 16


class VarlenForward:
    """Forwards over `rows` sequences of at most `capacity` tokens; the model's causality is taken for granted."""

    def __init__(self, module: Any, head: Head, rows: int, capacity: int) -> None:
        self._module = module
        self._head = head
        self._limit = position_limit(module.config)
        self._device = next(module.parameters()).device
        self.cache = FixedCache(module.config.get_text_config().num_hidden_layers, rows, capacity)
        self._forward = FlatForward(module, self.cache)

    @property
    def rows(self) -> int:
        return self.cache.rows

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    def prefill(self, rows: Sequence[int], steps: Sequence[Pass], chunk: int) -> Prefill:
        """Leaves to the first pass what fits into the widest one."""
        total = sum(len(step.token_ids) for step in steps)
        waiting = dict(zip(rows, steps))
        begun: deque[torch.cuda.Event] = deque()
        while waiting:
            ahead = []
            for row, rest in self._turn_of(waiting).items():
                step = waiting.pop(row)
                if len(rest) > self._most_unread(step):
                    ahead.append((row, len(step.token_ids) - len(rest), rest[: -step.wanted]))
            for segments in _forwards(ahead, chunk):
                self._feed(segments)
                if self._device.type == "cuda":
                    # The host is not to run ahead: whoever leads hears of others, and of Ctrl-C, in between.
                    begun.append(torch.cuda.current_stream().record_event())
                    if len(begun) > 1:
                        begun.popleft().synchronize()
                yield [segment.row for segment in segments], sum(len(self.cache.stored[row]) for row in rows), total

    def __call__(self, rows: Sequence[int], steps: Sequence[Pass], *, trace: bool) -> list[Choices]:
        return self._choices([self._segment(row, step) for row, step in zip(rows, steps)], steps, trace)

    def _choices(self, segments: Sequence[Segment], steps: Sequence[Pass], trace: bool) -> list[Choices]:
        logits_KV = self._feed(segments)
        return choices_of(torch.split(logits_KV, [step.wanted for step in steps]), steps, trace, self._head)

    def agrees(self) -> bool:
        """Whether rows get the logits that the model gives each with its own attention."""
        vocabulary = self._module.get_input_embeddings().weight.shape[0]
        ids = [token % vocabulary for token in range(17, 17 + 7919 * PROBE_TOKENS, 7919)]
        # The second one is shorter, and both begin in the middle of what their rows hold.
        inputs = [ids, ids[:0:-1]][: self.rows]
        wanted = len(ids) - PROBE_START - 1
        self._feed([Segment(row, 0, one[:PROBE_START], PROBE_START - 1, 1) for row, one in enumerate(inputs)])
        logits = self._probe(
            [
                Segment(row, PROBE_START, one[PROBE_START:], len(one) - PROBE_START - wanted, wanted)
                for row, one in enumerate(inputs)
            ]
        )
        expected = torch.cat([logits_after(self._module, one, wanted, use_cache=False) for one in inputs])
        self.cache.truncate(0)
        # Weights that give NaN are reported when they answer; others may be loaded.
        judged = ~expected.isnan().any(dim=-1)
        return logits_agree(logits[judged], expected[judged])

    def _probe(self, segments: Sequence[Segment]) -> torch.Tensor:
        return self._feed(segments)

    def _most_unread(self, step: Pass) -> int:
        """How much of the text is left to the pass itself, its draft included: no more than two blocks."""
        return 2 * step.wanted - 1

    def _segment(self, row: int, step: Pass) -> Segment:
        """What a pass still has to read."""
        rest = self.cache.rest(row, step.token_ids, step.wanted)
        return Segment(row, len(self.cache.stored[row]), rest, len(rest) - step.wanted, step.wanted)

    def _turn_of(self, waiting: dict[int, Pass]) -> dict[int, list[int]]:
        """What is left to read of those rows that need not wait for another one, which begins in the same way."""
        heads = {row: step.token_ids[: -step.wanted] for row, step in waiting.items()}
        chosen: dict[int, list[int]] = {}
        # The longest first: it may hold all of the others.
        for row in sorted(waiting, key=lambda one: -len(heads[one])):
            step = waiting[row]
            coming = max((shared_prefix(heads[one], heads[row]) for one in chosen), default=0)
            held = self.cache.shared(heads[row])
            most = max(held)
            if coming < most + WORTH_WAITING:
                if held[row] < most:
                    self.cache.copy(held.index(most), row, most)
                chosen[row] = self.cache.rest(row, step.token_ids, step.wanted)
        return chosen

    @torch.inference_mode()
    def _feed(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Read the segments as they are; logits [K, V]."""
        order = torch.from_numpy(order_of(segments, self.capacity, self._limit))
        lengths = [len(segment.token_ids) for segment in segments]
        logits_KV = self._forward(
            order.to(self._device),
            tokens=sum(lengths),
            segments=len(segments),
            kept=sum(segment.kept for segment in segments),
            longest=max(lengths),
        )
        self._note(segments)
        return logits_KV

    def _note(self, segments: Iterable[Segment]) -> None:
        """These have been read."""
        for segment in segments:
            self.cache.stored[segment.row] += segment.token_ids


def other_attention(module: Any) -> str | None:
    """What kind of attention the model's layers have if it is none that a static KV cache serves, else None."""
    config = module.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if others or getattr(config, "attention_chunk_size", None):
        return ", ".join(sorted(others)) or "chunked"
    return None


def _forwards(ahead: Iterable[tuple[int, int, list[int]]], chunk: int) -> Iterator[list[Segment]]:
    """(row, start, tokens) as segments, cut so that every forward but the last reads `chunk` tokens."""
    segments: list[Segment] = []
    room = chunk
    for row, start, tokens in ahead:
        while tokens:
            part, tokens = tokens[:room], tokens[room:]
            segments.append(Segment(row, start, part, len(part) - 1, 1))
            start, room = start + len(part), room - len(part)
            if room == 0:
                yield segments
                segments, room = [], chunk
    if segments:
        yield segments
