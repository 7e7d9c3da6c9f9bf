"""The console where nothing can be redrawn: read lines, print lines. Knows no cursor, no colour and no keys.

For TERM=dumb and ACCESSIBLE=1; the same methods as `console.Console`.
"""

from __future__ import annotations

import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from chat.console.draft import Draft
from chat.console.events import ConsoleEvent, Failed, Line, command_word
from chat.console.state import NOTHING_CHANGED, LineState
from chat.terminal.mode import BaseMode
from chat.terminal.streams import Streams, columns_of
from chat.text.cells import visible

WAITS = "Not sent: send it again when this is done (Ctrl-C stops a reply)."
# Seconds of silence before a line says what is being done: the first time, and each time after that.
SIGN_SECONDS, SIGNS_SECONDS = 3.0, 15.0
LONGEST_LINE = 4096  # bytes that a terminal gathers of one line, its end included; it drops the rest in silence
CUT_LINE = "Not sent: a terminal passes on 4,095 bytes of a line, and this one has more. /read takes a file."
SHOWN_CHARACTERS = 2000  # of a message that is to be changed
END_SECONDS = 0.1  # between two looks whether more comes after an end of input
INTERRUPT, SUSPEND = b"\x03", b"\x1a"


class PlainLines:
    """A line loop on a terminal. Replies go to `streams.replies`, everything else to `streams.notices`.

    The owner calls `set_busy(False)` whenever it is ready for the next line. In the line mode of
    `terminal.BaseMode` Ctrl-C is an event as in the console. A last line without a newline counts; the end of
    input is `Leave`. What takes long says so in a line now and then; in `drafts` a refused message is kept.
    """

    def __init__(
        self,
        streams: Streams,
        *,
        mode: BaseMode | None = None,
        on_abort: Callable[[], None] | None = None,
        drafts: Path | None = None,
        prompt: str = "> ",
    ) -> None:
        self.events: queue.Queue[ConsoleEvent] = queue.Queue()
        self.height = 24
        self._streams = streams
        self._mode = mode
        self._prompt = prompt
        self._state = LineState(self.events, waits=WAITS, on_abort=on_abort)
        self._state.set_busy(True)  # until the owner is ready for the first line
        self._draft = Draft(drafts) if drafts is not None else None
        self._inserted = ""
        self._status = ""
        self._spoke = time.monotonic()
        self._patience = SIGN_SECONDS
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="lines", daemon=True)
        self._signs = threading.Thread(target=self._give_signs, name="signs", daemon=True)

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return columns_of(self._streams.replies)

    def start(self) -> None:
        if self._draft is not None and self._draft.take_over():
            self.note(f"A message was not sent last time. {self._where(self._draft)}")
        self._thread.start()
        self._signs.start()

    def close(self) -> None:
        self._closed.set()
        if self._signs.is_alive():
            self._signs.join(1)
        self.flush()

    def commit(self, text: str) -> None:
        self._print(self._streams.replies, text)

    def note(self, text: str) -> None:
        self._print(self._streams.notices, text)

    def echo(self, text: str) -> None:
        """What was typed needs no repetition here."""

    def show_live(self, lines: Sequence[Line] | Callable[[], Sequence[Line]]) -> None:
        """Nothing is redrawn here."""

    def clear_live(self) -> None:
        """Nothing is redrawn here."""

    def set_status(self, text: str) -> None:
        """Said when nothing else has been for a while."""
        self._status = text

    def set_toolbar(self, text: str) -> None:
        """Nothing is redrawn here."""

    def edit(self, text: str) -> None:
        """Show `text`; the next line takes its place and is marked as edited, unless Ctrl-C comes first."""
        more = "" if len(text) <= SHOWN_CHARACTERS else f" ... ({len(text):,} characters)"
        self.note(visible(text[:SHOWN_CHARACTERS]) + more)
        self._state.editing = True

    def set_stoppable(self, stoppable: bool) -> None:
        self._state.stoppable = stoppable

    def cut_live(self) -> None:
        """Nothing is live here."""

    def insert(self, text: str, label: str) -> None:
        """Put `text` in front of the next message, unless Ctrl-C comes first."""
        self._inserted += f"{text}\n"

    def put_back(self, text: str) -> None:
        """Keep a line that could not be used in a file: it cannot be put into the line here."""
        if self._draft is not None and self._draft.save(text):
            self.note(f"The message is not lost. {self._where(self._draft)}")

    def send(self, code: str) -> bool:
        """No codes are sent here."""
        return False

    def set_busy(self, busy: bool) -> None:
        was = self._state.busy
        self._state.set_busy(busy)
        if was and not busy:
            self._ask()

    def flush(self) -> None:
        self._streams.replies.flush()
        self._streams.notices.flush()

    def _ask(self) -> None:
        self._streams.notices.write(self._prompt)
        self._streams.notices.flush()

    def _read(self) -> None:
        try:
            while True:
                for line in split_lines(self._streams.keyboard_fd):
                    self._take(line)
                # Ctrl-D. While a reply is made Ctrl-C can still come.
                if not self._state.leaving and (said := self._state.leave()):
                    self.note(said)
                if not self._state.leaving:
                    return
                time.sleep(END_SECONDS)
        except OSError as error:
            self.events.put(Failed(error))

    def _take(self, line: bytes) -> None:
        if line.endswith(INTERRUPT):
            self._interrupt()
        elif line.endswith(SUSPEND):
            if self._mode is not None:
                self._mode.suspend()
            if not self._state.busy:
                self._ask()
        else:
            text = line.decode("utf-8", errors="replace").rstrip("\r\n")
            if len(line) >= LONGEST_LINE and os.isatty(self._streams.keyboard_fd):
                self.note(CUT_LINE)
                text = ""
            if text.strip():
                if said := self._state.typed():
                    self.note(said)
                self._submit(text)
            elif not self._state.busy:
                self._ask()

    def _submit(self, text: str) -> None:
        if not self._state.busy and command_word(text) is None:
            # A line that begins with a slash would be a command.
            lead = "\n" if self._inserted.startswith("/") else ""
            text, self._inserted = lead + self._inserted + text, ""
            if self._draft is not None:
                self._draft.save("")
        if not self._state.busy:
            self._patience, self._spoke = SIGN_SECONDS, time.monotonic()
        if waits := self._state.submit(text):
            self.note(waits)

    def _give_signs(self) -> None:
        while not self._closed.wait(SIGN_SECONDS / 10):
            doing = self._status or self._state.doing
            if self._state.busy and doing and time.monotonic() - self._spoke > self._patience:
                self.note(f"({doing})")

    @staticmethod
    def _where(draft: Draft) -> str:
        return f"It is kept in a file: change it there, then\n  /read {shlex.quote(str(draft.path))}"

    def _print(self, stream: TextIO, text: str) -> None:
        if text:
            print(text, end="" if text.endswith("\n") else "\n", file=stream, flush=True)
            self._patience, self._spoke = SIGNS_SECONDS, time.monotonic()

    def _interrupt(self) -> None:
        inserted, self._inserted = self._inserted, self._inserted if self._state.busy else ""
        said = self._state.interrupt(draft=bool(inserted)) or NOTHING_CHANGED
        self.note(f"\n{said}")
        if not self._state.busy:
            self._ask()


def split_lines(fd: int) -> Iterator[bytes]:
    """The lines read from `fd`, each with what ended it: a newline, Ctrl-C, Ctrl-Z or, at last, nothing."""
    held = b""
    while chunk := os.read(fd, 65536):
        held += chunk
        start = 0
        for at, byte in enumerate(held):
            if byte in b"\n\x03\x1a":
                yield held[start : at + 1]
                start = at + 1
        held = held[start:]
    if held:
        yield held
