"""The model at work on one turn: progress is shown, the user heard once per pass. Knows no transcript."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from chat.conversation.inbox import Inbox
from chat.conversation.page import Page
from dist.counted import counted
from dist.errors import ChatError
from dist.protocol import BlockUpdate, Control, PrefillUpdate, Reply, Turn
from dist.settings import GenerationSettings

if TYPE_CHECKING:
    from dist.decode.engine import Engine

QUIET_S = 5.0


class Made:
    """How far a reply has come, counted from its updates."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._passes = 0
        self._settled = self._exact = 0  # tokens of the reply, and of the block or window at work

    def take(self, update: BlockUpdate) -> None:
        self._passes += 1
        self._settled += update.settled
        self._exact = max(0, update.exact - update.settled)

    def words(self, now: float) -> list[str]:
        """Pass, tokens that stand, tokens a second, seconds."""
        tokens, seconds = self._settled + self._exact, now - self._began
        rate = [f"{tokens / seconds:.0f} tok/s"] if tokens and seconds > 0 else []
        return [f"pass {self._passes:,}", counted(tokens, "token"), *rate, f"{seconds:.0f} s"]


class Work:
    """Runs turns on the engine, one at a time; `busy` from a turn's start until its owner calls `rest`, when its
    drawing is over too.
    """

    def __init__(self, engine: Engine, inbox: Inbox, page: Page) -> None:
        self.busy = False
        self._answering = False
        self._engine = engine
        self._inbox = inbox
        self._page = page
        self._began = self._last_event = 0.0

    @property
    def auto_length(self) -> int:
        """How many placeholders pay at `auto` here."""
        return self._engine.auto_length

    def reply(
        self,
        turn: Turn,
        settings: Callable[[], GenerationSettings],
        on_pass: Callable[[BlockUpdate], None],
        doing: str = "",
    ) -> Reply:
        """The reply to the turn's one prompt. `settings` gives those of the next block, once per pass.

        `on_pass` is handed every update, `doing` stands in front of what the status line says. Raises ChatError.
        """

        def poll() -> Control:
            self._inbox.look()
            return Control(settings=settings(), cancel=self._inbox.stop)

        if not self.busy:  # replies that are compared are one piece of work
            self.begin()
        now = self._last_event = time.monotonic()
        self._answering = True
        self._page.status(f"{doing}thinking")
        made = Made(now)
        try:
            for event in self._engine.answer(turn, poll):
                self._last_event = time.monotonic()
                if isinstance(event, Reply):
                    return event
                if isinstance(event, PrefillUpdate):
                    self._page.status(f"{doing}reading the prompt: {event.done:,} of {event.total:,} tokens")
                else:
                    on_pass(event)
                    made.take(event)
                    self._page.status(doing + self._page.joined([*made.words(self._last_event), "Ctrl-C stops"]))
        except ChatError:
            self._page.console.cut_live()  # what was seen is not erased
            raise
        finally:
            self._answering = False
        raise AssertionError("the engine ended a turn without a reply")

    def begin(self) -> None:
        """Work that several replies may be made for begins."""
        self._inbox.stop = False
        self._began = time.monotonic()
        self.busy = True
        self._page.console.set_stoppable(True)

    @property
    def to_stop(self) -> bool:
        """Whether the user wanted the last reply stopped, be it finished or not."""
        return self._inbox.stop

    def heard_stop(self) -> bool:
        """Between two replies: whether the user wants the work stopped by now."""
        self._inbox.look()
        return self._inbox.stop

    def rest(self) -> None:
        """Nothing is made any more: clear what showed it."""
        if self.busy:
            self._page.ring(time.monotonic() - self._began, "The reply is finished.")
        self.busy = False
        self._page.console.set_stoppable(False)
        self._page.console.clear_live()
        self._page.status("")

    def watch_quiet(self) -> None:
        """Say so if no pass has ended for some seconds. May be called from any thread."""
        quiet = time.monotonic() - self._last_event
        if self._answering and quiet > QUIET_S:
            self._page.status(f"no answer from the model for {quiet:.0f} s")
