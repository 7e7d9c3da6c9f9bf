"""The terminal's mode, Ctrl-Z included: set for the session, lent, given back. Knows no streams and no keys."""

from __future__ import annotations

import os
import signal
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

Attributes = list[Any]

POLL_S = 0.01


class BaseMode:
    """The terminal's mode for the whole session: keys arrive as bytes, Ctrl-C, Ctrl-Z and Ctrl-\\ included.

    A context manager: sets the mode on entering and restores what was there on leaving. With `lines` the
    kernel still edits and echoes lines, but Ctrl-C and Ctrl-Z end a line instead of sending a signal.
    Does nothing where `fd` is no terminal.
    """

    def __init__(self, fd: int, *, lines: bool = False) -> None:
        self.fd = fd
        self._lines = lines
        self.saved: Attributes | None = get_mode(fd)

    def __enter__(self) -> BaseMode:
        self.set_base()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def set_base(self) -> None:
        if self.saved is not None:
            set_mode(self.fd, line_mode(self.saved) if self._lines else key_mode(self.saved))

    def restore(self) -> None:
        if self.saved is not None:
            set_mode(self.fd, self.saved)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For a child program: the mode found at the start, but without keys that signal the whole job.

        The mode of before is set again on leaving.
        """
        now = get_mode(self.fd)
        if self.saved is not None:
            set_mode(self.fd, without_signals(self.saved))
        try:
            yield
        finally:
            if now is not None:
                set_mode(self.fd, now)

    def suspend(self) -> None:
        """Ctrl-Z: give the terminal back, stop the job, return when it is in the foreground again."""
        now = get_mode(self.fd)
        self.restore()
        try:
            stop_job(launcher_pid(os.environ))
        finally:
            if now is not None:
                set_mode(self.fd, now)


def get_mode(fd: int) -> Attributes | None:
    """The terminal attributes of `fd`; None if it is no terminal (termios.error is not an OSError)."""
    try:
        return termios.tcgetattr(fd)
    except (termios.error, OSError):
        return None


def set_mode(fd: int, mode: Attributes) -> None:
    """Set terminal attributes at once, keeping what was typed; a terminal that is gone is no error."""
    with suppress(termios.error, OSError):
        termios.tcsetattr(fd, termios.TCSANOW, mode)


def _changed(mode: Attributes, *, iflag_off: int = 0, lflag_off: int = 0) -> Attributes:
    changed = [*mode[:6], list(mode[6])]
    changed[0] &= ~iflag_off
    changed[3] &= ~lflag_off
    return changed


def key_mode(mode: Attributes) -> Attributes:
    """`mode` with -isig -icanon -echo -iexten -ixon -icrnl."""
    off = termios.ISIG | termios.ICANON | termios.ECHO | termios.IEXTEN
    changed = _changed(mode, iflag_off=termios.IXON | termios.ICRNL, lflag_off=off)
    changed[6][termios.VMIN] = 1
    changed[6][termios.VTIME] = 0
    return changed


def without_signals(mode: Attributes) -> Attributes:
    """`mode` with -isig."""
    return _changed(mode, lflag_off=termios.ISIG)


def line_mode(mode: Attributes) -> Attributes:
    """`mode` with -isig, Ctrl-C and Ctrl-Z being further ends of a line, so that they are read at once."""
    changed = without_signals(mode)
    changed[6][termios.VEOL] = b"\x03"
    changed[6][termios.VEOL2] = b"\x1a"
    return changed


def launcher_pid(environ: Mapping[str, str]) -> int:
    """The process whose job the shell knows: the start script, torchrun, or this process itself."""
    named = environ.get("DLLM_LAUNCHER_PID", "")
    if named.isdigit():
        return int(named)
    return os.getppid() if "TORCHELASTIC_RUN_ID" in environ else os.getpid()


def stop_job(pid: int) -> None:
    """Stop the process group of `pid` as Ctrl-Z would; return as soon as it runs in the foreground again.

    Under torchrun this process is in a session of its own: it is not stopped, it waits. Nor is torchrun stopped
    where a start script is there to be: the ranks of all hosts look in its store for signs of life.
    """
    try:
        group = os.getpgid(pid)
        if group == os.getpgrp():
            stop_own_group(group)
        else:
            signal_group(group, signal.SIGTSTP, but={os.getppid()} - {pid})
            # Not forever: a group without a shell above it ignores the signal.
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline and _job_state(pid) != "stopped":
                time.sleep(POLL_S)
    except (ProcessLookupError, PermissionError):
        return
    while _job_state(pid) in ("stopped", "background"):
        time.sleep(POLL_S)


def stop_own_group(group: int) -> None:
    """Stop the process group that this process is in; returns when it is continued.

    The others are stopped one by one, this process last and by a signal to the calling thread, which takes it
    before it goes on: until a signal to the whole group had arrived, nobody could say whether it was over.
    """
    signal_group(group, signal.SIGTSTP, but={os.getpid()})
    signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)


def signal_group(group: int, number: signal.Signals, but: set[int]) -> None:
    """Send a signal to every process of a group but some."""
    for pid in set(_group_members(group)) - but:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by Ctrl-Z."""
    try:
        return process_fields(pid)[0] in "Tt"
    except OSError:
        return False


def _group_members(group: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError):
                if process_fields(int(folder.name))[2] == str(group):
                    found.append(int(folder.name))
    return found


def _job_state(pid: int) -> str:
    """`stopped`, `background`, `foreground`, or `unknown` where the system does not tell."""
    try:
        state, _, group, _, terminal, foreground = process_fields(pid)[:6]
    except OSError:
        return "unknown"
    if state in "Tt":
        return "stopped"
    return "background" if terminal != "0" and group != foreground else "foreground"


def process_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the third field on (the second may hold blanks and brackets)."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
