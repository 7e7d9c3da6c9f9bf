"""One line on a terminal that tells how far a run over prompts is. Knows no engine and no file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from chat.terminal.progress_line import ProgressLine


class Progress:
    """How many of the replies are done, how fast tokens are made, how long it takes. Silent unless it `shows`.

    `more` is said too, where it has anything to say.
    """

    def __init__(
        self,
        out: TextIO,
        total: int,
        done: int,
        *,
        shows: bool,
        more: Callable[[], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = ProgressLine(out, draws=total > 1 and shows, clock=clock)
        self._total = total
        self._first = self._done = done
        self._tokens = 0
        self._more = more
        self._clock = clock
        self._began = clock()

    def begin(self) -> None:
        """Count seconds from now on."""
        self._began = self._clock()

    def start(self) -> None:
        """Show the line for the first time."""
        self._line.show(self.text(0))

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
        if more := self._more():
            parts.append(more)
        return ", ".join(parts)

    def clear(self) -> None:
        """Take the line away."""
        self._line.clear()

    def say(self, text: str) -> None:
        """Print lines that stay above it."""
        self._line.say(text)

    def _redraw(self, failed: int) -> None:
        if self._line.due or self._done == self._total:
            self._line.show(self.text(failed))


def _time(seconds: float) -> str:
    """1:02:03, or 2:03 where there are no hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
