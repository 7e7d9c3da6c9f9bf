"""One line of progress before the program is ready. Knows no model and no conversation."""

from __future__ import annotations

import time

from chat.loading.facts import reading
from chat.terminal.streams import Streams

REDRAW_S = 0.1


class Status:
    """One line of progress while loading, where it can be drawn again."""

    def __init__(self, streams: Streams) -> None:
        self._out = streams.notices
        self._draws = streams.progress
        self._began = self._drawn = 0.0

    def show(self, text: str) -> None:
        if self._draws:
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()

    def loading(self, done: int, total: int) -> None:
        """Bytes that all ranks together have read, of how many."""
        self.reading("Loading", done, total)

    def reading(self, what: str, done: int, total: int) -> None:
        """Bytes done, of how many, and how fast."""
        now = time.monotonic()
        self._began = self._began or now
        if now - self._drawn >= REDRAW_S or done == total:
            self._drawn = now
            self.show(reading(what, done, total, now - self._began))

    def clear(self) -> None:
        self.show("")

    def say(self, text: str) -> None:
        """A line that stays; what is read after it is timed anew."""
        self._began = 0.0
        self.clear()
        print(text, file=self._out, flush=True)
