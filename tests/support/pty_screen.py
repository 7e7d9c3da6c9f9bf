"""A real pseudo-terminal with a screen model behind it: run a program, press keys, read the screen.

The model is pyte's; lines that scroll off are kept in order. Knows nothing of the program.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import pyte

CTRL_C, CTRL_D, CTRL_J, CTRL_Z, CTRL_BACKSLASH = "\x03", "\x04", "\x0a", "\x1a", "\x1c"
ENTER, TAB, ESCAPE, UP, DOWN = "\r", "\t", "\x1b", "\x1b[A", "\x1b[B"
ALT_ENTER = "\x1b\r"


def pasted(text: str) -> str:
    """`text` as a terminal sends a bracketed paste."""
    return f"\x1b[200~{text}\x1b[201~"


class PtyScreen:
    """A program on a terminal of `columns` x `rows`. A context manager; leaving it kills what is left.

    `own_session=False` gives the program the terminal as its streams only, as torchrun does with its ranks.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        controlling: bool = True,
        timeout: float = 15.0,
    ) -> None:
        self.timeout = timeout
        self.raw = b""
        self._screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._closing = False
        self.master, self.slave = pty.openpty()
        self._set_size(columns, rows)
        self.mode_before = termios.tcgetattr(self.slave)
        environ = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(env or {})}
        for name in ("NO_COLOR", "ACCESSIBLE", "TMUX", "COLUMNS", "LINES"):
            if not (env and name in env):
                environ.pop(name, None)
        self.process = subprocess.Popen(
            list(command),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environ,
            start_new_session=True,
            preexec_fn=_take_terminal if controlling else None,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> PtyScreen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal, as a window does."""
        # A read under way would keep the terminal alive.
        self._closing = True
        self._reader.join()
        for fd in (self.slave, self.master):
            if fd >= 0:
                os.close(fd)
        self.slave = self.master = -1

    def send(self, keys: str) -> None:
        """Press keys; all of them arrive in one read."""
        os.write(self.master, keys.encode())

    def type(self, keys: str) -> None:
        """Press keys one by one."""
        for key in keys:
            self.send(key)
            time.sleep(0.005)

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            self._screen.resize(rows, columns)
        self._set_size(columns, rows)

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without blanks at the ends of lines."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        """The screen without empty lines at its end."""
        return "\n".join(self.lines).rstrip("\n")

    @property
    def spans(self) -> list[list[tuple[int, str, pyte.screens.Char]]]:
        """Every line of the screen as (column, text, the style of its first cell), without blank ends."""
        with self._lock:
            return [
                _line_spans(self._screen.buffer[row], self._screen.columns) for row in range(self._screen.lines)
            ]

    @property
    def scrollback(self) -> list[str]:
        """Everything that scrolled off, then the screen."""
        with self._lock:
            gone = [_line_text(line, self._screen.columns) for line in self._screen.history.top]
        return [*gone, *self.lines]

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and row, from 0."""
        with self._lock:
            return self._screen.cursor.x, self._screen.cursor.y

    @property
    def mode(self) -> list[object]:
        """The terminal's attributes now."""
        return termios.tcgetattr(self.slave)

    def wait_for(
        self, wanted: str | re.Pattern[str] | Callable[[PtyScreen], bool], timeout: float | None = None
    ) -> None:
        """Wait until the screen shows a text, or a condition holds; fails with the screen otherwise."""
        if isinstance(wanted, re.Pattern):
            pattern = wanted
            self.wait_for(lambda screen: pattern.search(screen.text) is not None, timeout)
            return
        deadline = time.monotonic() + (timeout or self.timeout)
        while time.monotonic() < deadline:
            if wanted in self.text if isinstance(wanted, str) else wanted(self):
                return
            time.sleep(0.01)
        raise AssertionError(f"{wanted!r} did not come.\n{self.text}")

    def wait_end(self, timeout: float | None = None) -> int:
        """The exit status of the program, once all it wrote has been read."""
        status = self.process.wait(timeout or self.timeout)
        time.sleep(0.1)
        return status

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        while not self._closing:
            if not select.select([self.master], [], [], 0.02)[0]:
                continue
            try:
                chunk = os.read(self.master, 65536)
            except OSError as error:
                if error.errno == errno.EIO:
                    return
                raise
            if not chunk:
                return
            self.raw += chunk
            with self._lock:
                self._stream.feed(chunk)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _line_text(line: Mapping[int, pyte.screens.Char], columns: int) -> str:
    return "".join(line[at].data for at in range(columns)).rstrip()


def _line_spans(line: Mapping[int, pyte.screens.Char], columns: int) -> list[tuple[int, str, pyte.screens.Char]]:
    spans: list[tuple[int, str, pyte.screens.Char]] = []
    for at in range(len(_line_text(line, columns))):
        cell = line[at]
        if spans and cell[1:] == spans[-1][2][1:]:
            column, text, style = spans[-1]
            spans[-1] = column, text + cell.data, style
        else:
            spans.append((at, cell.data, cell))
    return spans
