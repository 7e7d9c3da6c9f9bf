"""A progress line, redrawn in place while work lasts. Knows nothing about the work."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable
from typing import TextIO

from chat.terminal.streams import CLEAR_LINE, columns_of

REDRAW_S = 0.1


class ProgressLine:
    """A line on the terminal `out`, cut to its width; silent unless `draws`."""

    def __init__(self, out: TextIO, *, draws: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._draws = draws
        self._clock = clock
        self._drawn = float("-inf")
        self._text = ""

    @property
    def due(self) -> bool:
        """Whether it is seen and was not drawn just now: cheap enough to ask at each of a million steps."""
        return self._draws and self._clock() - self._drawn >= REDRAW_S

    def show(self, text: str) -> None:
        """Draw it, now."""
        if self._draws:
            self._drawn, self._text = self._clock(), text
            self._draw()

    def clear(self) -> None:
        """Take it away."""
        if self._text:
            self.show("")

    def say(self, text: str) -> None:
        """Print lines that stay, and the present one again below them."""
        shown = self._text
        self.clear()
        print(text, file=self._out, flush=True)
        if shown:
            self.show(shown)

    def _draw(self) -> None:
        self._out.write(CLEAR_LINE + _cut(self._text, columns_of(self._out) - 1))
        self._out.flush()


def _cut(text: str, columns: int) -> str:
    """As much of `text` as fits: a line that wraps could not be drawn again in its place."""
    used = 0
    for at, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > columns:
            return text[:at]
    return text
