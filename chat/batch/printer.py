"""Replies of a run without a conversation, on stdout, which holds nothing else. Knows no engine and no file."""

from __future__ import annotations

import json
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

    @property
    def progress(self) -> bool: ...


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
