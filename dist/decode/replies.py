"""The replies to one turn's prompts, made together on all ranks. Knows no order, no loading and no text.

Every rank runs the same loop over the same tokens. After each pass rank 0's verdict (its tokens, whether to stop,
the settings of the next block) is what counts everywhere, so that no rank can leave the loop alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice

from dist.decode.forward import Choices, Forward
from dist.decode.rule import Refinement
from dist.decode.stats import Clock
from dist.errors import PromptError
from dist.group.wire import Poll, Verdict
from dist.model.head import NOT_A_NUMBER
from dist.protocol import EndsAt, Event, Group, PrefillUpdate, Reply, Turn

# Of so many places one free one is filled at once; of twice as many, two together.
PLACES_A_REFILL = 16


class Replies:
    """As many at once as the forward has places; a free one is filled again. `events` makes them.

    `begin` gives a row's refinement. `poll`, on rank 0, is asked once per pass what the user wants; `ends`, on the
    rank that leads, finds stop texts. Prompts are read `chunk` tokens at a time.
    """

    def __init__(
        self,
        turn: Turn,
        forward: Forward,
        begin: Callable[[int], Refinement],
        group: Group,
        *,
        poll: Poll | None,
        ends: EndsAt | None,
        chunk: int,
    ) -> None:
        self._turn = turn
        self._forward = forward
        self._begin = begin
        self._group = group
        self._poll = poll
        self._ends = ends
        self._chunk = chunk
        self._waiting = deque(range(len(turn.prompts)))
        self._free = list(range(min(forward.rows, turn.together or forward.rows)))
        # A short prompt alone is read hardly faster than a few of them, and an empty place or two cost less.
        self._refilled = max(1, len(self._free) // PLACES_A_REFILL)
        # Those that are being made, by place.
        self._active: dict[int, _Reply] = {}
        self._cancelled = False
        self._held = False

    def events(self) -> Iterator[Event]:
        """All that happens until every prompt has its reply or the user stops the turn."""
        while (self._waiting or self._active) and not self._cancelled:
            yield from self._fill_places()
            if self._active and not self._cancelled:
                yield from self._pass()
        # What was cancelled keeps what is finished.
        for reply in (*self._active.values(), *map(self._reply, self._waiting)):
            reply.refinement.cancel()
            yield reply.ended()

    def _fill_places(self) -> Iterator[Event]:
        """Begin replies where there is room: read their prompts, but for what their first pass reads anyway."""
        if self._active and not self._is_time_to_fill():
            return
        new = {}
        while self._free and self._waiting:
            new[self._free.pop(0)] = self._reply(self._waiting.popleft())
        self._active |= new
        for place, reply in list(new.items()):
            if reply.refinement.finish is not None:  # its beginning is all that it may hold
                del new[place]
                yield self._ended(place)
        if new:
            yield from self._read(new)

    def _is_time_to_fill(self) -> bool:
        """Whether enough places are free. Waits a pass for the others to begin their blocks: passes that some begin
        and some go on with are as wide as those that all begin.
        """
        if not self._waiting or len(self._free) < min(self._refilled, len(self._waiting)):
            return False
        self._held = not self._held and any(reply.refinement.within_block for reply in self._active.values())
        return not self._held

    def _read(self, new: dict[int, _Reply]) -> Generator[Event, None, None]:
        """Prefill the prompts of `new` replies, by place."""
        first_passes = [reply.refinement.next_pass() for reply in new.values()]
        for places, done, total in self._forward.prefill(list(new), first_passes, self._chunk):
            for place in places:
                new[place].clock.prefill_forwards += 1
            self._cancelled = self._agree(Verdict.of(self._poll, self._turn.settings, [], [])).cancel
            if self._cancelled:
                return
            yield PrefillUpdate(done=done, total=total)

    def _pass(self) -> Iterator[Event]:
        """One pass over all that are being made."""
        turn, replies = self._turn, list(self._active.values())
        steps = [reply.refinement.next_pass() for reply in replies]
        for reply in replies:
            reply.clock.pass_begins()
        choices = self._forward(list(self._active), steps, trace=turn.trace)
        mine = [number for choice in choices for number in choice.numbers]
        ends = [self._end(reply.refinement, choice) for reply, choice in zip(replies, choices)]
        verdict = self._agree(Verdict.of(self._poll, turn.settings, mine, ends))
        self._cancelled = verdict.cancel
        numbers = iter(verdict.token_ids)
        for (place, reply), step, choice, end in zip(list(self._active.items()), steps, choices, verdict.ends):
            agreed = list(islice(numbers, step.wanted))
            sure = None if choice.sure is None else list(islice(numbers, step.wanted))
            settings = turn.settings_of(reply.row, verdict.settings)
            update = reply.refinement.accept(agreed, settings, sure=sure, candidates=choice.candidates, end=end)
            reply.clock.pass_ended(update)
            yield update
            if reply.refinement.finish is not None:
                yield self._ended(place)

    def _reply(self, row: int) -> _Reply:
        return _Reply(row, self._begin(row), Clock())

    def _ended(self, place: int) -> Reply:
        """Take a reply that has ended from its place."""
        self._free.append(place)
        return self._active.pop(place).ended()

    def _end(self, refinement: Refinement, choice: Choices) -> int | None:
        """Where a stop text ends a reply with its next tokens, if this rank leads."""
        stops = refinement.settings.stop
        if self._ends is None or not stops or NOT_A_NUMBER in choice.token_ids:
            return None
        reply, new = refinement.reply_with(choice.token_ids, choice.sure)
        return self._ends(reply, new, stops) if new else None

    def _agree(self, mine: Verdict) -> Verdict:
        """Rank 0's verdict, on all ranks; raises PromptError everywhere if the model's output is not a number."""
        verdict = mine
        if self._group.size > 1:
            agreed = self._group.agree(mine.packed())
            if self._group.rank > 0:
                verdict = Verdict.unpacked(agreed, len(mine.ends))
        if NOT_A_NUMBER in verdict.token_ids:
            raise PromptError(
                "The model's output is not a number (NaN).",
                "Its weights hold NaN or overflow in this dtype.",
                "Try an earlier step, or --dtype float32.",
            )
        return verdict


@dataclass(frozen=True, slots=True)
class _Reply:
    """A reply that is being made, to prompt `row` of its turn."""

    row: int
    refinement: Refinement
    clock: Clock

    def ended(self) -> Reply:
        return self.clock.reply(self.row, self.refinement)
