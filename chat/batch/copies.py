"""Prompts answered by several copies of the model side by side, handed out as copies become free. Knows no text.

Rank 0 leads its own copy and answers prompts itself; between two of its passes it hears what the others have made
and gives new work to those that have none. Each other copy is led by its first rank, which does what it is sent.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from chat.batch.rows import Batch
from chat.batch.workers import NextBatch, Outcome, Poll, TurnAnswerer, rehearse
from dist.errors import ChatError, CheckpointError, PromptError, RankError, UsageError
from dist.group.copies import Box, Flag, Store
from dist.group.wire import event_from_fields, event_to_fields, order_from_bytes, order_to_bytes
from dist.protocol import BlockUpdate, Control, Load, Order, Reply, Shutdown, Turn

# How often rank 0 looks for messages, and the others for the word that the run is to end.
LOOK_S = 0.005
STOP_LOOK_S = 0.1
ERRORS: dict[str, type[ChatError]] = {
    kind.__name__: kind for kind in (ChatError, CheckpointError, PromptError, RankError, UsageError)
}
STOP = "stop"
LOADED = {"loaded": True}
REHEARSAL = "rehearsal"


class LedEngine(TurnAnswerer, Protocol):
    """An engine whose followers, if it has any, wait for orders."""

    def take_over(self, order: Load) -> None: ...

    def shutdown(self) -> None: ...


class Copies:
    """Rank 0's engine and those of `count` - 1 other copies, of so many `ranks` each, reached over `store`."""

    def __init__(self, engine: TurnAnswerer, store: Store, count: int, ranks: int = 1) -> None:
        self.names = [_ranks(copy * ranks, ranks) for copy in range(count)]
        self._engine = engine
        self._work = {copy: Box(store, f"work/{copy}") for copy in range(1, count)}
        self._made = {copy: Box(store, f"made/{copy}") for copy in range(1, count)}
        self._stop = Flag(store, STOP)
        self._stopped = False
        # What each copy that is ready is working on; how many loads and rehearsals each has yet to report.
        self._at: dict[int, Batch | None] = {}
        self._loading = dict.fromkeys(self._work, 1)
        self._looked = 0.0

    def rehearse(self, turn: Turn) -> None:
        """All copies at the same time; the others get no work until they are through with it."""
        for copy, box in self._work.items():
            self._loading[copy] += 1
            box.put({**_order(turn), REHEARSAL: True})
        rehearse(self._engine, turn)

    def work(self, next_batch: NextBatch, poll: Poll) -> Iterator[tuple[Batch, Outcome]]:
        """Answer batches until there are none and all copies are done."""
        while True:
            yield from self._hear(next_batch)
            own = next_batch(0)
            if own is not None:
                yield from self._answer(own, next_batch, poll)
            elif any(self._at.values()):
                if poll().cancel:
                    self._end_early()
                time.sleep(LOOK_S)
            else:
                return

    def load(self, order: Load) -> None:
        """Have the other copies load other weights, once all batches are answered; until then they get no work.

        What one cannot is raised by the next `work`.
        """
        self._at.clear()
        for copy, box in self._work.items():
            self._loading[copy] += 1
            box.put(_order(order))

    def let_go(self) -> None:
        """Nothing more is to come."""
        for box in self._work.values():
            box.put(_order(Shutdown()))

    def _answer(self, batch: Batch, next_batch: NextBatch, poll: Poll) -> Iterator[tuple[Batch, Outcome]]:
        def ask() -> Control:
            control = poll()
            if control.cancel:
                self._end_early()
            return control

        try:
            for event in self._engine.answer(batch.turn, ask):
                yield batch, event
                yield from self._hear(next_batch)
        except PromptError as error:
            yield batch, error
        else:
            yield batch, None

    def _hear(self, next_batch: NextBatch) -> Iterator[tuple[Batch, Outcome]]:
        """What the others have made since; those that are free get more to do."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        for copy, box in self._made.items():
            while (message := box.take()) is not None:
                if message == LOADED:
                    self._loading[copy] -= 1
                    if not self._loading[copy]:
                        self._at[copy] = None
                    continue
                batch, outcome = self._at.get(copy), self._outcome(message)
                if not isinstance(outcome, (BlockUpdate, Reply)):
                    self._at[copy] = None
                if batch is not None:
                    yield batch, outcome
            if copy in self._at and self._at[copy] is None and (batch := next_batch(copy)) is not None:
                self._at[copy] = batch
                self._work[copy].put(_order(batch.turn))

    def _outcome(self, message: dict[str, Any]) -> Outcome:
        """None where a copy is free. Raises ChatError if a copy has failed."""
        if "event" in message:
            return event_from_fields(message)
        if "error" in message:
            error = ERRORS[message["error"]](*message["words"])
            if isinstance(error, PromptError):
                return error
            raise error
        return None

    def _end_early(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._stop.raise_it()


def serve(engine: LedEngine, store: Store, copy: int) -> None:
    """The first rank of any copy but rank 0's: answer what is sent, until it is let go. Raises RankError."""
    work, made, stop = Box(store, f"work/{copy}"), Box(store, f"made/{copy}"), _Stop(store)
    made.put(LOADED)
    while True:
        message = work.wait()
        order = order_from_bytes(message["order"].encode())
        if isinstance(order, Shutdown):
            engine.shutdown()
            return
        try:
            if isinstance(order, Load):
                engine.take_over(order)
                made.put(LOADED)
                continue
            if REHEARSAL in message:
                rehearse(engine, order)
                made.put(LOADED)
                continue
            for event in engine.answer(order, partial(_control, order, stop)):
                if isinstance(event, Reply) or (isinstance(event, BlockUpdate) and order.trace):
                    made.put(event_to_fields(event))
        except (PromptError, CheckpointError) as error:
            made.put(failure(error))
        else:
            made.put({"free": True})


def tell_failure(store: Store, copy: int, error: ChatError) -> None:
    """A copy that cannot load."""
    Box(store, f"made/{copy}").put(failure(error))


def failure(error: ChatError) -> dict[str, Any]:
    kind = next(name for name in (one.__name__ for one in type(error).__mro__) if name in ERRORS)
    return {"error": kind, "words": [error.what, error.why, error.hint]}


def _control(turn: Turn, stop: _Stop) -> Control:
    return Control(settings=turn.settings, cancel=stop())


class _Stop:
    """Whether the run is to end; asked for after each pass, looked for now and then."""

    def __init__(self, store: Store) -> None:
        self._flag = Flag(store, STOP)
        self._looked = 0.0
        self._up = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._up and now - self._looked > STOP_LOOK_S:
            self._looked, self._up = now, self._flag.is_up()
        return self._up


def _ranks(first: int, count: int) -> str:
    return f"rank {first}" if count == 1 else f"ranks {first} to {first + count - 1}"


def _order(order: Order) -> dict[str, Any]:
    return {"order": order_to_bytes(order).decode()}
