"""Replies of a run without a conversation, on stdout and stderr. Knows no engine and no results file.

stdout holds replies only. Progress is drawn on stderr, and only where it is a terminal that can take it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from chat.terminal.streams import write_out
from chat.text.cells import escaped, visible


class ReplyStreams(Protocol):
    """What is needed of the program's streams."""

    @property
    def replies(self) -> TextIO: ...

    @property
    def notices(self) -> TextIO: ...


class ReplyPrinter:
    """Prints replies as text, or as one JSON object a line. `gone` once nobody reads them any more.

    A text on its own (`alone`) is printed block by block while it is made, if it `streams`.
    """

    def __init__(self, out: TextIO, *, as_json: bool, alone: bool, streams: bool) -> None:
        self.gone = False
        self.as_json = as_json
        self.streams = streams and alone and not as_json
        self._out = out
        self._alone = alone
        self._shown = ""
        self._clean: Callable[[str], str] = visible if out.isatty() else str

    def so_far(self, text: str) -> None:
        """The text of a reply up to the end of its last finished block."""
        # What ends in U+FFFD may be the first bytes of a character; they come whole with the next block.
        whole = text.rstrip("\ufffd")
        if self.streams and whole.startswith(self._shown):
            self._print(self._clean(whole[len(self._shown) :]))
            self._shown = whole

    def reply(self, record: Mapping[str, Any]) -> None:
        """A finished reply."""
        if self.as_json:
            line = json.dumps(record, ensure_ascii=False, default=str)
            self._print((escaped(line) if self._out.isatty() else line) + "\n")
        else:
            text: str = record["response"]
            rest = text[len(self._shown) :] if text.startswith(self._shown) else "\n" + text
            failed = self._alone and record["finish_reason"] == "error"
            self._print("" if failed else self._clean(rest) + "\n")
        self._shown = ""

    def _print(self, text: str) -> None:
        if text and not self.gone:
            self.gone = not write_out(self._out, text)


class Progress:
    """One line on a terminal: how many of the jobs are done, how fast, how long it takes. Silent elsewhere."""

    def __init__(
        self,
        out: TextIO,
        total: int,
        done: int,
        *,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        dumb = environ.get("TERM", "dumb") in ("dumb", "unknown", "")
        unwanted = environ.get("ACCESSIBLE", "") not in ("", "0") or bool(environ.get("NO_COLOR"))
        self._shows = total > 1 and out.isatty() and not (dumb or unwanted)
        self._total = total
        self._first = self._done = done
        self._clock = clock
        self._began = clock()
        self._width = 0

    def start(self) -> None:
        """Show the line for the first time."""
        self._draw(self.text(0))

    def step(self, failed: int) -> None:
        """One more job is done."""
        self._done += 1
        self._draw(self.text(failed))

    def text(self, failed: int) -> str:
        """The line itself."""
        made, seconds = self._done - self._first, self._clock() - self._began
        parts = [f"{self._done}/{self._total} replies"]
        if made and seconds > 0:
            left = (self._total - self._done) * seconds / made
            parts += [f"{made / seconds:.2f} a second", f"{int(left) // 60}:{int(left) % 60:02d} left"]
        if failed:
            parts.append(f"{failed} failed")
        return ", ".join(parts)

    def clear(self) -> None:
        """Take the line away before something else is printed."""
        if self._width:
            self._draw("")
            self._width = 0

    def _draw(self, text: str) -> None:
        if self._shows:
            end = "" if text else "\r"
            self._out.write("\r" + text.ljust(self._width) + end)
            self._out.flush()
            self._width = len(text)
