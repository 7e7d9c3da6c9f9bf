"""The model's forward passes: over a KV cache, or from scratch. Knows no rule and no rank.

Shape suffixes: L tokens fed, N choices, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch

from dist.decode.cache import SequenceCache
from dist.decode.passes import Pass
from dist.decode.sampling import choose, sampling_of, sure_of
from dist.model.head import Head
from dist.protocol import Candidates

CANDIDATES = 3
UNBOUNDED = 1 << 30
# After each step: the rows read in, tokens held, of how many.
Prefill = Iterator[tuple[Sequence[int], int, int]]
# What a model's forward raises when it does not take a cache or a mask of ours.
FORWARD_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the model chose in one pass; `candidates` where they were asked for.

    `sure`: of which ones it is sure, where the setting `accept` asks for that.
    """

    token_ids: list[int]
    candidates: list[Candidates] | None
    sure: list[bool] | None

    @property
    def numbers(self) -> list[int]:
        """What the ranks have to agree on."""
        return [*self.token_ids, *(self.sure or ())]


class Forward(Protocol):
    """The model, as the engine sees it: over at most `rows` sequences of at most `capacity` tokens, by number."""

    @property
    def rows(self) -> int: ...

    @property
    def capacity(self) -> int: ...

    def prefill(self, rows: Sequence[int], steps: Sequence[Pass], chunk: int) -> Prefill:
        """Read ahead, at most `chunk` tokens at a time."""
        ...

    def __call__(self, rows: Sequence[int], steps: Sequence[Pass], *, trace: bool) -> list[Choices]:
        """Make the pass of every row."""
        ...


class PlainForward:
    """Reads the whole input in every pass. Slow, and right for every model: the reference."""

    rows = 1
    capacity = UNBOUNDED

    def __init__(self, module: Any, head: Head) -> None:
        self._module = module
        self._head = head

    def prefill(self, rows: Sequence[int], steps: Sequence[Pass], chunk: int) -> Prefill:
        yield from ()

    def __call__(self, rows: Sequence[int], steps: Sequence[Pass], *, trace: bool) -> list[Choices]:
        logits = [logits_after(self._module, step.token_ids, step.wanted, use_cache=False) for step in steps]
        return choices_of(logits, steps, trace, self._head)


class CachedForward:
    """Reads only what the cache of its one sequence does not hold."""

    rows = 1
    capacity = UNBOUNDED

    def __init__(self, module: Any, head: Head) -> None:
        self._module = module
        self._head = head
        self.cache = SequenceCache()

    def prefill(self, rows: Sequence[int], steps: Sequence[Pass], chunk: int) -> Prefill:
        """Leaves the last chunk to the pass itself."""
        (step,) = steps
        rest = self.cache.rewind_to_shared(step.token_ids, step.wanted)
        while len(rest) - step.wanted > chunk:
            self._feed(rest[:chunk], 1)
            rest = rest[chunk:]
            yield rows, len(self.cache.token_ids), len(step.token_ids)

    def __call__(self, rows: Sequence[int], steps: Sequence[Pass], *, trace: bool) -> list[Choices]:
        (step,) = steps
        rest = self.cache.rewind_to_shared(step.token_ids, step.wanted)
        return choices_of([self._feed(rest, step.wanted)], steps, trace, self._head)

    def _feed(self, token_ids: list[int], wanted: int) -> torch.Tensor:
        cache, self.cache = self.cache, SequenceCache()
        logits = logits_after(self._module, token_ids, wanted, use_cache=True, past_key_values=cache.layers)
        # Put back only now: a pass that raised half-way leaves layers of different lengths.
        cache.note_fed(token_ids)
        self.cache = cache
        return logits


@torch.inference_mode()
def logits_after(module: Any, token_ids: list[int], wanted: int, **cache: Any) -> torch.Tensor:
    """This rank's logits [N, V] after each of the last `wanted` tokens."""
    device = next(module.parameters()).device
    ids_1L = torch.tensor([token_ids], dtype=torch.int64, device=device)
    output = module(input_ids=ids_1L, **cache, **logits_to_keep(module, wanted))
    logits: torch.Tensor = output.logits[0, -wanted:]
    return logits


def logits_to_keep(module: Any, wanted: int) -> dict[str, int]:
    """The argument that spares all logits but the last `wanted`, where the model knows it."""
    return {"logits_to_keep": wanted} if knows_logits_to_keep(module) else {}


def knows_logits_to_keep(module: Any) -> bool:
    """Whether the model computes only the logits that it is asked for."""
    return "logits_to_keep" in inspect.signature(module.forward).parameters


def choices_of(logits: Sequence[torch.Tensor], steps: Sequence[Pass], trace: bool, head: Head) -> list[Choices]:
    """Every pass's choices from its logits [N, V]; the host waits for the device once."""
    joined_NV = torch.cat(list(logits)) if len(logits) > 1 else logits[0]
    # The same on all ranks, which need not know the other settings.
    if len({sampling_of(step.settings) for step in steps}) == 1:
        positions = [position for step in steps for position in step.positions]
        chosen_N = choose(joined_NV, positions, steps[0].settings, head)
    else:
        chosen_N = torch.cat(
            [choose(logits_NV, step.positions, step.settings, head) for logits_NV, step in zip(logits, steps)]
        )
    ends = list(accumulate(step.wanted for step in steps))
    places = [slice(end - step.wanted, end) for end, step in zip(ends, steps)]
    return choices_at(places, chosen_N.tolist(), joined_NV, steps, trace, head)


def choices_at(
    places: Sequence[slice],
    chosen: list[int],
    logits_NV: torch.Tensor,
    steps: Sequence[Pass],
    trace: bool,
    head: Head,
) -> list[Choices]:
    """Every pass's choices, where all of them and their logits stand end to end."""
    candidates = most_likely(head.whole(logits_NV)) if trace else None
    result: list[Choices] = []
    for place, step in zip(places, steps):
        least = step.settings.accept
        sure = None if least is None else sure_of(logits_NV[place], chosen[place], least, head)
        candidates_here = candidates[place] if candidates else None
        result.append(Choices(token_ids=chosen[place], candidates=candidates_here, sure=sure))
    return result


def most_likely(logits_NV: torch.Tensor) -> list[Candidates]:
    """The top candidates of each row with their probabilities (before temperature and filters)."""
    top = logits_NV.float().softmax(dim=-1).topk(min(CANDIDATES, logits_NV.shape[-1]), dim=-1)
    return [tuple(zip(ids, probabilities)) for ids, probabilities in zip(top.indices.tolist(), top.values.tolist())]
