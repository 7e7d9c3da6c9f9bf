"""What sending a line, Ctrl-C and Ctrl-D mean at this moment, for every console. Knows no keys and no screen."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence

from chat.console.events import Abort, CommandInfo, ConsoleEvent, Interrupt, Leave, Submitted, command_word

ABORT_SECONDS = 2.0
HOW_TO_LEAVE = "Ctrl-D or /quit leaves."
NOTHING_CHANGED = "Nothing was changed."
LEAVES = "Leaves when this is done (Ctrl-C stops a reply); typing cancels that."
STAYS = "The program stays open after this."
STOPPING = "The reply stops after this pass. Ctrl-C three times in a row ends the program."
NOT_STOPPABLE = "This cannot be stopped halfway. Ctrl-C three times in a row ends the program."


class LineState:
    """Busy from a line that is sent until `set_busy(False)`; methods return what is to be said, "" for nothing.

    busy       what was sent is being worked on
    stoppable  that is a reply, which Ctrl-C stops
    editing    the line takes the place of an earlier message
    leaving    Ctrl-D came meanwhile: as in a shell, it counts when this is done
    doing      what the last line asks for, in words, and `since` when
    `on_abort` is called with every Abort event: the main thread may be stuck. `waits` is said of a message that
    has to wait.
    """

    def __init__(
        self,
        events: queue.Queue[ConsoleEvent],
        *,
        waits: str,
        commands: Sequence[CommandInfo] = (),
        on_abort: Callable[[], None] | None = None,
    ) -> None:
        self.busy = False
        self.stoppable = False
        self.editing = False
        self.leaving = False
        self.doing = ""
        self.since = 0.0
        self._events = events
        self._waits = waits
        self._commands = {command.name.lstrip("/"): command for command in commands}
        self._on_abort = on_abort
        self._interrupts: deque[float] = deque(maxlen=3)

    def set_busy(self, busy: bool) -> None:
        self.busy = busy
        self.stoppable = False
        self._interrupts.clear()
        if self.leaving and not busy:
            self.leaving = False
            self._events.put(Leave())

    def submit(self, text: str) -> str:
        """Hand a line over; if it has to wait, that is returned, and nothing has changed."""
        word = command_word(text)
        live = self.busy
        if live and word is None:
            return self._waits
        if live and word in self._commands and not self._commands[word].live:
            return f"/{word} has to wait until this is done."
        if not live:
            self.doing, self.since = f"/{word}" if word is not None else "reading the message", time.monotonic()
        self.busy = True
        edited, self.editing = self.editing, False
        self._events.put(Submitted(text, live, edited))
        return ""

    def interrupt(self, *, draft: bool) -> str:
        """Ctrl-C: stop the reply, for the third time in a row the program; at the prompt give up the `draft`."""
        if not self.busy:
            editing, self.editing = self.editing, False
            return NOTHING_CHANGED if editing else "" if draft else HOW_TO_LEAVE
        self._interrupts.append(time.monotonic())
        if len(self._interrupts) == 3 and self._interrupts[-1] - self._interrupts[0] <= ABORT_SECONDS:
            self.abort()
        else:
            self._events.put(Interrupt())
        return STOPPING if self.stoppable else NOT_STOPPABLE

    def abort(self) -> str:
        """End the program hard, if it is at work."""
        if not self.busy:
            return HOW_TO_LEAVE
        self._events.put(Abort())
        if self._on_abort is not None:
            self._on_abort()
        return ""

    def leave(self) -> str:
        """Ctrl-D on an empty line."""
        self.leaving = self.busy
        if self.busy:
            return LEAVES
        self._events.put(Leave())
        return ""

    def typed(self) -> str:
        """Something is typed: whoever wanted to leave when this is done stays."""
        was, self.leaving = self.leaving, False
        return STAYS if was else ""
