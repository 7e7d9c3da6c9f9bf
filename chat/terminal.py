"""The terminal itself: whose streams are whose, its mode, and putting it back. Knows no keys and no text.

Imported before torch and free of third-party code, so that whatever a library prints lands in a log.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from chat.guard import start_guard

KEPT_LOG_FOLDERS = 20

Attributes = list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """One rank's own streams. For followers `keyboard_fd` is /dev/null and the texts are their log.

    is_terminal  keyboard and replies are a terminal that can be drawn on
    color        colour may be used
    ascii        only ASCII ornaments (the text of a reply may still hold anything)
    plain        committed lines only: no cursor movement, no redrawing
    """

    rank: int
    run_dir: Path
    keyboard_fd: int
    replies: TextIO
    notices: TextIO
    is_terminal: bool
    color: bool
    ascii: bool
    plain: bool


def open_streams() -> Streams:
    """Take the terminal for the program's own use and point file descriptors 1 and 2 at a log.

    To be called first thing by every rank, before torch is imported. Rank 0 keeps its keyboard, replies go to
    its original stdout and notices to its original stderr (or the path in DLLM_STDERR). Logs lie in the
    folder named by DLLM_RUN_DIR, else in a fresh one of the user's state folder; raises OSError if that
    cannot be written.
    """
    rank = int(os.environ.get("RANK", "0"))
    run_dir = _run_dir(os.environ)
    run_dir.mkdir(parents=True, exist_ok=True)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    log_fd = os.open(run_dir / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if rank == 0:
        keyboard_fd, replies_fd, notices_fd = _dup(0), _dup(1), _notices_fd(os.environ)
    else:
        keyboard_fd = os.open(os.devnull, os.O_RDONLY)
        os.dup2(keyboard_fd, 0)
        replies_fd, notices_fd = os.dup(log_fd), os.dup(log_fd)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    if rank == 0 and "DLLM_RUN_DIR" not in os.environ:
        _drop_old_logs(run_dir.parent)
    return describe_streams(
        rank=rank,
        run_dir=run_dir,
        keyboard_fd=keyboard_fd,
        replies=_text(replies_fd, encoding),
        notices=_text(notices_fd, encoding),
        environ=os.environ,
    )


def describe_streams(
    *, rank: int, run_dir: Path, keyboard_fd: int, replies: TextIO, notices: TextIO, environ: Mapping[str, str]
) -> Streams:
    """Streams with what they can show worked out from the environment and the kind of files they are."""
    terminal = os.isatty(keyboard_fd) and replies.isatty()
    dumb = environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    accessible = environ.get("ACCESSIBLE", "") not in ("", "0")
    utf8 = replies.encoding.lower().replace("-", "").replace("_", "") == "utf8"
    return Streams(
        rank=rank,
        run_dir=run_dir,
        keyboard_fd=keyboard_fd,
        replies=replies,
        notices=notices,
        is_terminal=terminal and not dumb,
        color=replies.isatty() and not dumb and not environ.get("NO_COLOR"),
        ascii=accessible or not utf8,
        plain=accessible or dumb or not terminal,
    )


def _text(fd: int, encoding: str) -> TextIO:
    # newline="" keeps "\r\n" of the console as it is written.
    return open(fd, "w", encoding=encoding, errors="replace", newline="", buffering=1)


def _dup(fd: int) -> int:
    """A copy of `fd` that children do not inherit; /dev/null where it is closed."""
    try:
        return os.dup(fd)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


def _notices_fd(environ: Mapping[str, str]) -> int:
    path = environ.get("DLLM_STDERR")
    if path:
        # O_NOCTTY: rank 0 leads a session of its own under torchrun and must not adopt the terminal by accident.
        with suppress(OSError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o600)
    return _dup(2)


def _run_dir(environ: Mapping[str, str]) -> Path:
    """The folder for this run's logs, the same on all ranks that one torchrun started."""
    named = environ.get("DLLM_RUN_DIR")
    if named:
        return Path(named)
    state = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    # Ranks of one launcher agree on the launcher's id and start time; a lone process uses its own.
    pid = os.getppid() if "TORCHELASTIC_RUN_ID" in environ else os.getpid()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(_start_time(pid)))
    return state / "dllm-chat" / "logs" / f"{stamp}-{pid}"


def _start_time(pid: int) -> float:
    """When process `pid` started, in seconds since the epoch; now where the system does not tell."""
    try:
        ticks = int(_stat_fields(pid)[19])
        boot = next(
            line for line in Path("/proc/stat").read_text(encoding="ascii").splitlines() if line.startswith("btime")
        )
    except (OSError, StopIteration):
        return time.time()
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")


def _drop_old_logs(logs: Path) -> None:
    folders = sorted(path for path in logs.iterdir() if path.is_dir())
    for folder in folders[:-KEPT_LOG_FOLDERS]:
        shutil.rmtree(folder, ignore_errors=True)


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
    """Stop the process group of `pid` as Ctrl-Z would; return when it runs in the foreground again.

    Under torchrun this process is in a session of its own: it is not stopped, it waits.
    """
    try:
        os.killpg(os.getpgid(pid), signal.SIGTSTP)
    except (ProcessLookupError, PermissionError):
        return
    own = os.getpgid(pid) == os.getpgrp()
    # Our own stop happens somewhere in this sleep; that of another group is waited for, but not forever: a
    # group without a shell above it ignores the signal.
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline and (own or _job_state(pid) != "stopped"):
        time.sleep(0.02)
    while _job_state(pid) in ("stopped", "background"):
        time.sleep(0.05)


def _job_state(pid: int) -> str:
    """`stopped`, `background`, `foreground`, or `unknown` where the system does not tell."""
    try:
        state, _, group, _, terminal, foreground = _stat_fields(pid)[:6]
    except OSError:
        return "unknown"
    if state in "Tt":
        return "stopped"
    return "background" if terminal != "0" and group != foreground else "foreground"


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the third field on (the second may hold blanks and brackets)."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


@contextmanager
def session_mode(streams: Streams) -> Iterator[BaseMode]:
    """From "ready" on: the guard runs and the base mode is set. Puts everything back at the end."""
    guard = start_guard(streams.keyboard_fd)
    try:
        with BaseMode(streams.keyboard_fd, lines=streams.plain) as mode:
            yield mode
    finally:
        guard.close()
