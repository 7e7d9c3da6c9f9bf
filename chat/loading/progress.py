"""One line of progress before the program is ready. Knows no model and no conversation."""

from __future__ import annotations

import time
from collections.abc import Callable

from chat.loading.facts import reading
from chat.terminal.streams import CLEAR_LINE, Streams

REDRAW_S = 0.1

# Bytes done, of how many.
OnBytes = Callable[[int, int], None]


def paced(what: str, show: Callable[[str], None]) -> OnBytes:
    """Shows how far reading has come, a few times a second, and its end."""
    began = shown = 0.0

    def on_bytes(done: int, total: int) -> None:
        nonlocal began, shown
        now = time.monotonic()
        if not began or now - shown >= REDRAW_S or done == total:
            began, shown = began or now, now
            show(reading(what, done, total, now - began))

    return on_bytes


class Status:
    """One line of progress while loading, where it can be drawn again."""

    def __init__(self, streams: Streams) -> None:
        self._out = streams.notices
        self._draws = streams.progress
        self._paced: dict[str, OnBytes] = {}

    def show(self, text: str) -> None:
        if self._draws:
            self._out.write(f"{CLEAR_LINE}{text}")
            self._out.flush()

    def loading(self, done: int, total: int) -> None:
        """Bytes that all ranks together have read, of how many."""
        self.reading("Loading", done, total)

    def reading(self, what: str, done: int, total: int) -> None:
        """Bytes done, of how many, and how fast."""
        if what not in self._paced:
            self._paced[what] = paced(what, self.show)
        self._paced[what](done, total)

    def clear(self) -> None:
        self.show("")

    def say(self, text: str) -> None:
        """A line that stays; what is read after it is timed from there."""
        self._paced.clear()
        self.clear()
        print(text, file=self._out, flush=True)
