"""The zip archive that torch.save writes: its pickle as inert records, and where each tensor's bytes stand.

Also names what people find in place of one: nothing, half a file, a web page. Knows no ranks and no torch.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dist.checkpoint.boxes import ITEM_BYTES, Box, Piece, Read, row_major
from dist.checkpoint.inert_pickle import PickleProblem, StoredTensor, read_pickle
from dist.errors import CheckpointError

# What zipfile raises for archives whose bytes have changed (ValueError: names that are no UTF-8).
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)
LOCAL_HEADER = struct.Struct("<26xHH")
MOST_PICKLE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of torch.save: a whole file, or `length` bytes of one from byte `start` on.

    `holds` says what is in it where it is a part of a file; "" for a whole file.
    """

    path: Path
    start: int = 0
    length: int | None = None
    holds: str = ""


class Window(io.RawIOBase):
    """Some bytes of an open file, as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        data = os.pread(self._file.fileno(), left if size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data


class Entries(zipfile.ZipFile):
    """The entries of an archive of torch.save. `has_sums`: whether it keeps their checksums.

    `torch.serialization.set_crc32_options(False)` writes zeros in their place, which are compared with nothing.
    """

    def __init__(self, file: BinaryIO | Window) -> None:
        super().__init__(cast("BinaryIO", file))
        self.has_sums = any(entry.CRC for entry in self.infolist())
        if not self.has_sums:
            for entry in self.infolist():
                del entry.CRC


class TorchArchive:
    """One open archive of torch.save: its pickle, and the boxes and byte positions of the tensors in it.

    `origin` is the byte of `file` at which the archive begins. Raises PickleProblem for other archives.
    """

    def __init__(self, archive: Entries, file: BinaryIO, path: Path, origin: int = 0) -> None:
        self._archive = archive
        self._file = file
        self._name = str(path)
        self._origin = origin
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleProblem(f"it has {len(pickles)} entries called data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        self._size = os.fstat(file.fileno()).st_size
        self._starts: dict[str, int] = {}

    def value(self) -> Any:
        """What the pickle holds, as inert records."""
        byte_order = self._root + "byteorder"
        if byte_order in self._entries and self._archive.read(byte_order) != b"little":
            raise PickleProblem("its numbers are big-endian")
        if self._entries[self._root + "data.pkl"].file_size > MOST_PICKLE_BYTES:
            raise PickleProblem("its data.pkl is longer than 1 GiB")
        return read_pickle(self._archive.read(self._root + "data.pkl"))

    def pieces(self, name: str, stored: StoredTensor, box: Box) -> tuple[Piece, ...]:
        """The one piece that holds `box`, none if it is empty; checks that its bytes are in the archive."""
        if not box.elements:
            return ()
        if len(stored.strides) != len(stored.sizes):
            raise PickleProblem(f"{name} has {len(stored.sizes)} sizes and {len(stored.strides)} strides")
        sizes, strides = stored.sizes, stored.strides
        if 1 in sizes:
            strides = tuple(step if n == 1 else stride for n, stride, step in zip(sizes, strides, row_major(sizes)))
        entry = self._entries.get(f"{self._root}data/{stored.storage.key}")
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise PickleProblem(f"the bytes of {name} are not in the archive as they should be")
        item = ITEM_BYTES[stored.dtype]
        end = (stored.offset + Read("", 0, sizes, strides, ()).extent) * item
        if end > entry.file_size:
            raise PickleProblem(f"{name} needs {end} bytes of an entry that has {entry.file_size}")
        start = self._entry_start(entry) + stored.offset * item
        return (Piece(self._name, start, box, strides),)

    def _entry_start(self, entry: zipfile.ZipInfo) -> int:
        """The byte of the file at which an entry's content begins."""
        start = self._starts.get(entry.filename)
        if start is None:
            start = content_start(self._file, entry, self._origin)
            if start + entry.file_size > self._size:
                raise zipfile.BadZipFile(f"no entry where {entry.filename} should be")
            self._starts[entry.filename] = start
        return start


def content_start(file: BinaryIO, entry: zipfile.ZipInfo, origin: int = 0) -> int:
    """The byte of `file` at which an entry's content begins, of an archive that begins at byte `origin`."""
    header = os.pread(file.fileno(), LOCAL_HEADER.size, origin + entry.header_offset)
    if not header.startswith(b"PK\3\4"):
        raise zipfile.BadZipFile(f"no entry where {entry.filename} should be")
    name_bytes, extra_bytes = LOCAL_HEADER.unpack(header)
    return origin + entry.header_offset + LOCAL_HEADER.size + int(name_bytes) + int(extra_bytes)


def check_beginning(file: BinaryIO, path: Path, label: str) -> None:
    """Name the usual things that stand where a shard should: nothing, a web page, a Git LFS pointer."""
    head, size = file.read(512), os.fstat(file.fileno()).st_size
    again = "Copy the file again from where training wrote it."
    if not size:
        raise CheckpointError(f"{label} is empty: {path}.", "It has 0 bytes.", again)
    if head.startswith(b"PK\3\4"):
        return
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{label} is a web page, not weights: {path}.",
            f"It begins with {head.lstrip().splitlines()[0][:40].decode(errors='replace')!r}: "
            "a download saved an error or login page.",
            "Download the file itself again.",
        )
    if head.startswith(b"version https://git-lfs"):
        real = next((line.split()[1] for line in head.splitlines() if line.startswith(b"size ")), b"?")
        raise CheckpointError(
            f"{label} is a Git LFS pointer, not weights: {path}.",
            f"It has {size} bytes and stands for a file of {real.decode(errors='replace')} bytes.",
            "Fetch the file itself with `git lfs pull`.",
        )
    if not head.strip(b"\0"):
        raise CheckpointError(
            f"{label} is incomplete: {path}.", "It begins with zero bytes: the copy never wrote them.", again
        )
    raise CheckpointError(
        f"{label} is not a torch file: {path}.",
        f"It begins with {head[:8]!r}, a file of torch.save with b'PK\\x03\\x04'.",
        again,
    )


def damaged(path: Path, label: str, problem: Exception) -> CheckpointError:
    """The error for a file that begins like an archive and is none."""
    size = path.stat().st_size
    if "File is not a zip file" in str(problem):
        return CheckpointError(
            f"{label} is incomplete: {path}.",
            f"It ends after {size:,} bytes, before the directory that closes a torch file.",
            "Saving or copying was interrupted. Copy the file again from where training wrote it.",
        )
    return CheckpointError(
        f"{label} is damaged: {path}.",
        f"Its index does not match its checksum or its directory ({problem}).",
        "Copy the file again from where training wrote it.",
    )
