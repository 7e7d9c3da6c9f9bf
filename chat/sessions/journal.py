"""The file that a session's records are written to, only ever appended to. Knows no conversation.

One record a line, each line written whole or not at all. Once it is open nothing raises: what the disk refuses
waits in memory and is written when that works again.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chat.files import append_whole, open_locked, write_whole
from chat.sessions.legacy import is_legacy, records_of
from chat.sessions.records import Record, from_plain, to_plain
from chat.sessions.tree import Tree
from dist.plain_json import parse_json

# Tokens are synced at most this often; a turn's start and end always are.
SYNC_S = 1.0
# What file systems without hard links say.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a journal's bytes say.

    sound    how many bytes at its beginning to keep; the rest is its damaged tail
    skipped  lines before that which are no records, or fit nowhere
    legacy   whether it is in the form of version 1
    """

    tree: Tree
    sound: int
    skipped: int
    legacy: bool


def read_journal(data: bytes) -> Reading:
    """All that a journal says, cut at any byte. A reply that was being made at its end is marked as cut."""
    tree = Tree()
    *lines, _unfinished = data.split(b"\n")
    plain = [_json(line) for line in lines]
    if is_legacy(plain):
        for record in records_of(plain):
            with suppress(ValueError):  # it fits nowhere, since what it belongs to could not be read
                tree.take(record)
        return Reading(tree=tree, sound=data.rfind(b"\n") + 1, skipped=plain.count(None), legacy=True)
    sound = end = skipped = unknown = 0
    for line, value in zip(lines, plain, strict=True):
        end += len(line) + 1
        try:
            tree.take(from_plain(value))
        except ValueError:
            unknown += 1
            continue
        sound, skipped = end, unknown
    tree.end_turn()
    return Reading(tree=tree, sound=sound, skipped=skipped, legacy=False)


def _json(line: bytes) -> object:
    try:
        return parse_json(line)
    except ValueError:
        return None


def as_line(record: Record) -> bytes:
    """The record as a line of a journal."""
    text = json.dumps(to_plain(record), ensure_ascii=False, separators=(",", ":"), default=str) + "\n"
    # Names of folders that are no UTF-8 come with halves of characters.
    return text.encode(errors="replace")


class Journal:
    """A session's file. `fault` says why not all is on disk, or is "".

    It is handed all records of the session each time and writes those that it has not written yet. A file that
    was deleted meanwhile is made again, with everything in it.
    """

    def __init__(self, path: Path) -> None:
        """A journal that does not exist yet; it comes into being with the first `write`."""
        self.path = path
        self.fault = ""
        self.written = 0
        self._file: int | None = None
        self._synced = 0.0

    @classmethod
    def open(cls, path: Path) -> tuple[Journal, bytes]:
        """An existing journal, locked, and what it holds. Raises OSError, files.Locked."""
        journal = cls(path)
        journal._file = open_locked(path)
        return journal, path.read_bytes()

    def keep(self, size: int, records: int) -> str | None:
        """Cut the file after its first `size` bytes, which hold `records` records. Raises OSError.

        More than a torn last line is kept beside it, in the file whose name is returned: it may be another kind of
        file.
        """
        assert self._file is not None
        with self.path.open("rb") as file:
            file.seek(size)
            cut = file.read()
        kept = f"{self.path.name}.cut" if b"\n" in cut else None
        if kept is not None:
            write_whole(self.path.with_name(kept), cut, mode=0o600)
        os.ftruncate(self._file, size)
        self.written = records
        return kept

    @property
    def exists(self) -> bool:
        """Whether there is a file, so that the session can be resumed."""
        return self.written > 0

    def write(self, records: Sequence[Record], *, sync: bool) -> None:
        """Write what of the session's records is not on disk yet. Without `sync` it may reach the disk later."""
        try:
            if self._file is None or os.fstat(self._file).st_nlink == 0:
                self._make()
            assert self._file is not None
            append_whole(self._file, b"".join(map(as_line, records[self.written :])))
            self.written = len(records)
            if sync or time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
            self.fault = ""
        except OSError as error:
            self.fault = f"{self.path}: {error.strerror or error}."

    def _make(self) -> None:
        self.close()
        self.written = 0
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = open_locked(self.path, create=True, exclusive=True)
        with suppress(OSError):  # the name itself is to outlive a power failure; not every file system can
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def rename(self, target: Path) -> None:
        """Move the file. Raises OSError, FileExistsError if there is one of that name."""
        if self.exists:
            try:
                os.link(self.path, target)
                self.path.unlink()
            except (FileNotFoundError, NotADirectoryError):  # gone: it is made again, under its new name
                pass
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                self.path.rename(target)
        self.path = target

    def replace(self, data: bytes, records: int) -> None:
        """Put `data`, which holds `records` records, in the place of what the file holds. Raises OSError."""
        write_whole(self.path, data)
        before, self._file = self._file, open_locked(self.path)
        if before is not None:
            os.close(before)
        self.written = records

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
