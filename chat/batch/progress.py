"""One line on a terminal that tells how far a run over prompts is. Knows no engine and no file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

REDRAW_S = 0.1


class Progress:
    """How many of the replies are done, how fast tokens are made, how long it takes. Silent unless it `shows`."""

    def __init__(
        self,
        out: TextIO,
        total: int,
        done: int,
        *,
        shows: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._shows = total > 1 and shows
        self._total = total
        self._first = self._done = done
        self._tokens = 0
        self._clock = clock
        self._began = clock()
        self._drawn = float("-inf")
        self._width = 0

    def start(self) -> None:
        """Show the line for the first time."""
        self._draw(self.text(0))

    def step(self, failed: int) -> None:
        """One more reply is done."""
        self._done += 1
        self._redraw(failed)

    def tokens(self, count: int, failed: int) -> None:
        """So many more tokens are made."""
        self._tokens += count
        self._redraw(failed)

    def text(self, failed: int) -> str:
        """The line itself."""
        made, seconds = self._done - self._first, self._clock() - self._began
        parts = [f"{self._done}/{self._total} replies"]
        if self._tokens and seconds > 0:
            parts.append(f"{self._tokens / seconds:,.0f} tokens/s")
        if made and seconds > 0:
            parts.append(f"{_time((self._total - self._done) * seconds / made)} left")
        if failed:
            parts.append(f"{failed} failed")
        return ", ".join(parts)

    def clear(self) -> None:
        """Take the line away before something else is printed."""
        if self._width:
            self._draw("")
            self._width = 0

    def _redraw(self, failed: int) -> None:
        if self._shows and (self._clock() - self._drawn >= REDRAW_S or self._done == self._total):
            self._draw(self.text(failed))

    def _draw(self, text: str) -> None:
        if self._shows:
            self._drawn = self._clock()
            end = "" if text else "\r"
            self._out.write("\r" + text.ljust(self._width) + end)
            self._out.flush()
            self._width = len(text)


def _time(seconds: float) -> str:
    """1:02:03, or 2:03 where there are no hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
