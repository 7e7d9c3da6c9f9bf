"""One line of progress before the program is ready. Knows no model and no conversation."""

from __future__ import annotations

import time
from collections.abc import Callable

from chat.loading.facts import reading
from chat.terminal.progress_line import REDRAW_S, ProgressLine
from chat.terminal.streams import Streams, wrapped

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
        self._line = ProgressLine(streams.notices, draws=streams.progress)
        self._paced: dict[str, OnBytes] = {}
        self.show, self.clear = self._line.show, self._line.clear

    def loading(self, done: int, total: int) -> None:
        """Bytes that all ranks together have read, of how many."""
        self.reading("Loading", done, total)

    def reading(self, what: str, done: int, total: int) -> None:
        """Bytes done, of how many, and how fast."""
        if what not in self._paced:
            self._paced[what] = paced(what, self.show)
        self._paced[what](done, total)

    def say(self, text: str) -> None:
        """Lines that stay; what is read after them is timed from there."""
        self._paced.clear()
        self.clear()
        self._line.say(wrapped(text, self._out))
