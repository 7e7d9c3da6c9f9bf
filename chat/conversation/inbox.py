"""What the user does: one thing after the other at the prompt, all at once while the model works. Never draws."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable

from chat.console.events import ConsoleEvent, Failed, Interrupt, Submitted


class Inbox:
    """The console's events. `run_live` runs a command line in the middle of a reply.

    stop     the user wants the present work stopped
    leaving  the user wants to leave
    """

    def __init__(self, events: queue.Queue[ConsoleEvent], run_live: Callable[[str], None]) -> None:
        self.stop = False
        self.leaving = False
        self._events = events
        self._run_live = run_live
        self._waiting: deque[ConsoleEvent] = deque()

    def next(self, wait_s: float | None = None) -> ConsoleEvent | None:
        """Wait for the next event at the prompt; None if there is none for `wait_s` seconds."""
        if self._waiting:
            return self._waiting.popleft()
        try:
            return self._events.get(timeout=wait_s)
        except queue.Empty:
            return None

    def later(self, line: str) -> None:
        """The line is sent after the present work."""
        self._waiting.append(Submitted(line))

    def look(self) -> None:
        """Act on all that came since the last look; called once per pass while the model works."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            self._take(event)

    def _take(self, event: ConsoleEvent) -> None:
        if isinstance(event, Submitted):
            if event.live:
                self._run_live(event.text)
            else:
                self._waiting.append(event)
            return
        # Ctrl-C, leaving, or a console that is gone: in each case the work has to stop.
        self.stop = True
        if isinstance(event, Failed):
            self._waiting.append(event)  # why it is gone is said at the prompt
        elif not isinstance(event, Interrupt):
            self.leaving = True
