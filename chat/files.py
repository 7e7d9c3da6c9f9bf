"""Where the user's files are, reading one as text, and writing one whole or not at all. Knows no conversation."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dist.errors import ChatError, UsageError

PROGRAM = "dllm-chat"
MOST_BYTES = 32 << 20  # of a file whose text goes into a message


def config_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the user's settings; it need not exist."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of sessions, history and logs; it need not exist."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of what the program made for itself, the embedded model say; it need not exist."""
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    # The XDG rules say that a relative path in such a variable is to be ignored.
    named = Path(environ.get(variable, ""))
    return (named if named.is_absolute() else home(environ) / fallback) / PROGRAM


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's home folder."""
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def expand(text: str) -> Path:
    """The path that a user typed, with `~` filled in. Raises UsageError for what no system takes as a name."""
    if "\0" in text:
        raise UsageError("A file's name cannot hold a NUL character.")
    path = Path(text)
    try:
        return path.expanduser()
    except RuntimeError:  # ~nobody: no such person, so it is a file's name
        return path


def read_text(name: str) -> str:
    """The text of the file `name`: line ends are newlines, with none at its end.

    Raises UsageError for what is no text in UTF-8 or no regular file, for an empty file and for more than 32 MiB;
    ChatError if the disk refuses.
    """
    path = expand(name)
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder.", hint="Name a file.")
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise UsageError(f"{path} is not a regular file.", hint="Name a file on disk.")
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no file {path}.") from None
    except OSError as error:
        raise ChatError(f"{path} cannot be read.", f"{error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} is too large for a message.", f"It has more than {MOST_BYTES >> 20} MiB.")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8.", f"Byte {error.start:,} cannot be read: {error.reason}."
        ) from None
    if not text.strip():
        raise UsageError(f"{path} is empty.")
    return text


def write_whole(path: Path, data: bytes | Iterable[bytes], mode: int = 0o666) -> None:
    """Put `data`, or its parts, at `path`: a reader finds the old file or the new one whole. Raises OSError.

    `mode` is that of a new file, as far as the user's mask allows; one that is there keeps its own.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            for part in (data,) if isinstance(data, bytes) else data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            beside.chmod(path.stat().st_mode & 0o777)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class Locked(Exception):
    """Another program has the file open and locked."""


def open_locked(
    path: Path,
    *,
    create: bool = False,
    exclusive: bool = False,
    mode: int = 0o600,
    wait: Callable[[], None] | None = None,
) -> int:
    """The file at `path`, open to be appended to and locked. What it holds is to be read after this, not before.

    `create` makes it if it is missing, `exclusive` refuses it if it is not. `wait` is called before waiting for
    another program that has it; without it, Locked is raised. Raises OSError.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0) | (os.O_EXCL if exclusive else 0)
    while True:
        file = os.open(path, flags, mode)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise Locked(str(path)) from None
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            # The one who had it may have moved or removed it meanwhile: then the lock is on another file.
            if _is_at(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        there, mine = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def append_whole(file: int, data: bytes) -> None:
    """Append to a file opened with O_APPEND: all of it, by one write, or nothing. Raises OSError."""
    before = os.fstat(file).st_size
    try:
        if os.write(file, data) == len(data):
            return
    except OSError:
        if os.fstat(file).st_size > before:
            os.ftruncate(file, before)
        raise
    os.ftruncate(file, before)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_line(file: int, record: Mapping[str, Any]) -> None:
    """Append one JSON line to a file opened with O_APPEND: all of it, by one write, or nothing. Raises OSError."""
    append_whole(file, (json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())


def has_lone_surrogates(text: str) -> bool:
    """Whether `text` holds halves of UTF-16 pairs, which no UTF-8 file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
