"""Whose streams are whose, and the terminal for a whole session. Knows no keys and no text.

Imported before torch and free of third-party code, so that whatever a library prints lands in a log.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import stat
import sys
import termios
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from chat.files import state_folder
from chat.terminal.guard import start_guard
from chat.terminal.mode import BaseMode, process_fields

KEPT_LOG_FOLDERS = 20
CLEAR_LINE = "\r\x1b[K"


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """One rank's own streams. For followers `keyboard_fd` is /dev/null and the texts are their log.

    color     colour may be used
    ascii     only ASCII ornaments (the text of a reply may still hold anything)
    plain     committed lines only: no cursor movement, no redrawing
    progress  one line of notices may be drawn again and again while something lasts
    """

    rank: int
    run_dir: Path
    keyboard_fd: int
    replies: TextIO
    notices: TextIO
    color: bool
    ascii: bool
    plain: bool
    progress: bool


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
        notices=NoticeStream(notices_fd, encoding),
        environ=os.environ,
    )


def describe_streams(
    *, rank: int, run_dir: Path, keyboard_fd: int, replies: TextIO, notices: TextIO, environ: Mapping[str, str]
) -> Streams:
    """Streams with what they can show worked out from the environment and the kind of files they are."""
    terminal = os.isatty(keyboard_fd) and replies.isatty()
    dumb = environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    accessible = environ.get("ACCESSIBLE", "") not in ("", "0")
    locale = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    utf8 = locale not in ("C", "POSIX") and replies.encoding.lower().replace("-", "").replace("_", "") == "utf8"
    return Streams(
        rank=rank,
        run_dir=run_dir,
        keyboard_fd=keyboard_fd,
        replies=replies,
        notices=notices,
        color=replies.isatty() and not dumb and not environ.get("NO_COLOR"),
        ascii=accessible or dumb or not utf8,
        plain=accessible or dumb or not terminal,
        progress=notices.isatty() and not (dumb or accessible or environ.get("NO_COLOR")),
    )


class NoticeStream(io.TextIOWrapper):
    """Text on a descriptor that the user may have closed: what nobody can read is dropped without an error."""

    def __init__(self, fd: int, encoding: str) -> None:
        raw = io.BufferedWriter(io.FileIO(fd, "w"))
        super().__init__(raw, encoding=encoding, errors="replace", newline="", line_buffering=True)

    def write(self, text: str, /) -> int:
        with self._forgiving():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._forgiving():
            super().flush()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is still buffered goes there too: it would raise again when the stream is closed.
            _point_at_nothing(self.fileno())


def text_waits(fd: int) -> bool:
    """Whether a pipe or a file stands behind `fd` that holds something to read."""
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return status.st_size > os.lseek(fd, 0, os.SEEK_CUR)
        return stat.S_ISFIFO(status.st_mode) and bool(any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))))
    except OSError:
        return False


def columns_of(out: TextIO) -> int:
    """Columns of the terminal behind `out`; 80 where there is none or it does not know."""
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def is_command(line: str) -> bool:
    """Whether a line of a notice is a command to be copied, which is indented, and so kept whole."""
    return line.startswith("  ")


def say(streams: Streams, text: str) -> None:
    """A notice in lines of its own, wrapped at words on a terminal except commands; progress makes room for it."""
    if streams.progress:
        streams.notices.write(CLEAR_LINE)
    print(wrapped(text, streams.notices), file=streams.notices, flush=True)


def wrapped(text: str, out: TextIO) -> str:
    """`text` broken at words to the width of the terminal `out`, if it is one; commands stay whole."""
    if not out.isatty():
        return text
    width = columns_of(out) - 1
    lines = (
        [line] if is_command(line) else textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return "\n".join("\n".join(one) for one in lines)


def write_out(out: TextIO, text: str) -> bool:
    """Write `text` at once; False if nobody reads `out` any more, and from then on it goes nowhere."""
    try:
        out.write(text)
        out.flush()
    except BrokenPipeError:
        # What is still buffered would raise again when the stream is closed.
        _point_at_nothing(out.fileno())
        return False
    return True


def _point_at_nothing(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)


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
    # Ranks of one launcher agree on the launcher's id and start time; a lone process uses its own.
    pid = os.getppid() if "TORCHELASTIC_RUN_ID" in environ else os.getpid()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(_start_time(pid)))
    return state_folder(environ) / "logs" / f"{stamp}-{pid}"


def _start_time(pid: int) -> float:
    """When process `pid` started, in seconds since the epoch; now where the system does not tell."""
    try:
        ticks = int(process_fields(pid)[19])
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


@contextmanager
def session_mode(streams: Streams) -> Iterator[BaseMode]:
    """From "ready" on: the guard runs and the base mode is set. Puts everything back at the end."""
    guard = start_guard(streams.keyboard_fd)
    try:
        with BaseMode(streams.keyboard_fd, lines=streams.plain) as mode:
            yield mode
    finally:
        guard.close()
