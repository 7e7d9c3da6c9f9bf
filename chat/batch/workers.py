"""Engines that answer the batches of a run: what is needed of them, and this process's own. Knows no text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from chat.batch.rows import Batch
from dist.errors import PromptError
from dist.protocol import Control, Event, Turn
from dist.settings import GenerationSettings

Poll = Callable[[], Control]
# What comes of a batch: an event, the engine's refusal of the whole of it, or None once it is answered.
Outcome = Event | PromptError | None
# What a free worker, by its number, is to answer next.
NextBatch = Callable[[int], "Batch | None"]
# Of all prompts of a rehearsal but one.
REHEARSED_TOKENS = 25


class TurnAnswerer(Protocol):
    """What is needed of the engine."""

    max_positions: int | None

    @property
    def slow_notice(self) -> str | None: ...

    @property
    def captures(self) -> bool: ...

    def answer(self, turn: Turn, poll: Poll) -> Iterator[Event]: ...

    def rows_that_fit(self, tokens: int, block: int) -> int: ...


class Workers(Protocol):
    """Engines that answer batches side by side, by the names of their ranks."""

    @property
    def names(self) -> Sequence[str]: ...

    def rehearse(self, turn: Turn) -> None:
        """Have all of them answer a turn of no meaning before the first batch."""
        ...

    def work(self, next_batch: NextBatch, poll: Poll) -> Iterator[tuple[Batch, Outcome]]:
        """Answer batches until `next_batch` gives none any more; each batch's last outcome is a refusal or None."""
        ...


class OneWorker:
    """This process's engine: one batch after the other."""

    names = ("all ranks",)

    def __init__(self, engine: TurnAnswerer) -> None:
        self._engine = engine

    def rehearse(self, turn: Turn) -> None:
        rehearse(self._engine, turn)

    def work(self, next_batch: NextBatch, poll: Poll) -> Iterator[tuple[Batch, Outcome]]:
        while (batch := next_batch(0)) is not None:
            try:
                for event in self._engine.answer(batch.turn, poll):
                    yield batch, event
            except PromptError as error:
                yield batch, error
            else:
                yield batch, None


def rehearsal(settings: GenerationSettings, placeholder: int, together: int, tokens: int) -> Turn:
    """`together` prompts under such settings, of which the longest with its reply has so many tokens.

    It needs the storage and the passes of a batch like it, and makes two blocks.
    """
    new = min(2 * (settings.add_eos_length + 1), tokens - 1)
    rounds = settings.refine_iter if settings.refine_iter == "auto" else min(2, settings.refine_iter)
    short = replace(settings, max_new_tokens=new, refine_iter=rounds, stop=(), logprobs=None, prefill="")
    lengths = [tokens - new, *[min(REHEARSED_TOKENS, tokens - new)] * (together - 1)]
    # Each of another token: what prompts share is not read again.
    prompts = tuple((token,) * length for token, length in enumerate(lengths, start=1))
    return Turn(prompts=prompts, settings=short, placeholder=placeholder, stop_ids=(), together=together)


def rehearse(engine: TurnAnswerer, turn: Turn) -> None:
    """Answer a turn of no meaning, as long as passes can be captured. Real prompts' results say what is wrong."""
    try:
        for _ in engine.answer(turn, lambda: Control(settings=turn.settings, cancel=not engine.captures)):
            pass
    except PromptError:
        pass
