"""Reads every byte of a checkpoint: compares what carries a checksum, takes all into a digest. Knows no torch.

torch.save keeps a CRC-32 of all that is in an archive (a shard, a `.bin` file, each item of a `.distcp` file),
unless this is switched off; other files keep none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from dist.checkpoint.digest import HEX_DIGITS, bare_files, beside
from dist.checkpoint.folder import SHARD_NAME
from dist.checkpoint.open import Checkpoint
from dist.checkpoint.shards import shard_label
from dist.checkpoint.torch_archive import ARCHIVE_ERRORS, Archive, Entries, Window
from dist.counted import counted
from dist.errors import CheckpointError

BLOCK_BYTES = 4 << 20
AGAIN = "Copy the file again from where training wrote it."

OnBlock = Callable[[bytes], None]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What reading everything gave. `digest`: SHA-256 over every byte that counts, whose first digits are shown."""

    words: str
    digest: str

    def __str__(self) -> str:
        return f"{self.words}. Digest of every byte: {self.digest}"


def verify(checkpoint: Checkpoint, progress: OnProgress | None = None) -> Verified:
    """Compare all checksums in the weight files with the bytes, and take every byte into a digest.

    `progress(done, total)` counts bytes. Raises CheckpointError naming the first file that does not match, and the
    item in it.
    """
    sizes = {path: _size(path) for path in checkpoint.files}
    places = {path: place for place, path in enumerate(_paths(checkpoint.archives), start=1)}
    bare = bare_files(checkpoint)
    in_archives = sum(sizes[one.path] if one.length is None else one.length for one in checkpoint.archives)
    total = in_archives + sum(sizes[path] for path in bare)
    content, done = hashlib.sha256(), 0
    for piece in beside(checkpoint):
        content.update(piece)

    def take(block: bytes) -> None:
        content.update(block)
        count(len(block))

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    without: set[Archive] = set()
    for archive in sorted(checkpoint.archives, key=lambda one: (places[one.path], one.start)):
        before = done
        label = _label(archive.path, places[archive.path], len(places))
        content.update(f"{archive.path.name} {archive.holds}\n".encode())
        if not check_sums(archive, label, take):
            without.add(archive)
        # The directory and the bytes between entries.
        count((sizes[archive.path] if archive.length is None else archive.length) - (done - before))
    for path in bare:
        content.update(f"{path.name} {sizes[path]}\n".encode())
        _read(path, take)
    words = _checked(checkpoint, without, sum(sizes[path] for path in places) - in_archives)
    return Verified(words=words, digest=content.hexdigest()[:HEX_DIGITS])


def _label(path: Path, place: int, of: int) -> str:
    """How errors name a file: a shard by its rank, as they do wherever else it is read."""
    shard = SHARD_NAME.fullmatch(path.name)
    return shard_label(int(shard[2]), int(shard[1])) if shard else f"File {place} of {of}"


def check_sums(archive: Archive, label: str, on_block: OnBlock | None = None) -> bool:
    """Compare the CRC-32 of every entry of one archive with its bytes; whether there were any.

    `label` names the file in errors, such as "File 3 of 4". `on_block` is handed the entries' bytes in their order.
    Raises CheckpointError naming the first damaged entry.
    """
    try:
        with archive.path.open("rb") as file:
            size = archive.path.stat().st_size if archive.length is None else archive.length
            with Entries(Window(file, archive.start, size)) as entries:
                for entry in entries.infolist():
                    with entries.open(entry) as content:
                        while block := content.read(BLOCK_BYTES):
                            if on_block is not None:
                                on_block(block)
                return entries.has_sums
    except (*ARCHIVE_ERRORS, OSError) as problem:
        whose = f"The bytes of {archive.holds}" if archive.holds else "Its bytes"
        raise CheckpointError(
            f"{label} is damaged: {archive.path}.", f"{whose} do not match their checksums ({problem}).", AGAIN
        ) from problem


def _read(path: Path, take: OnBlock) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                take(block)
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read.", f"{problem.strerror}.", AGAIN) from problem


def _checked(checkpoint: Checkpoint, without: Set[Archive], passed_over: int) -> str:
    """What was compared. `without`: archives that keep no sums; `passed_over`: bytes that lie in no archive."""
    paths = _paths([archive for archive in checkpoint.archives if archive not in without])
    said = []
    if paths:
        items = sum(bool(archive.holds) for archive in checkpoint.archives if archive not in without)
        files = counted(len(paths), "file")
        what = f"the {items:,} items of the model in {files}" if items else files
        said.append(f"every byte of {what} matches its CRC-32")
    if passed_over:
        said.append(f"{passed_over:,} bytes beside them hold no weights of the model and were passed over")
    bare = [path for path in (*bare_files(checkpoint), *sorted(_paths(without))) if path not in paths]
    if bare:
        suffixes = ", ".join(sorted({path.suffix for path in bare}))
        said.append(f"{counted(len(bare), 'file')} without checksums ({suffixes}) read, but not compared")
    return "; ".join(said) or "there are no files"


def _paths(archives: Iterable[Archive]) -> list[Path]:
    return list(dict.fromkeys(archive.path for archive in archives))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read.", f"{problem.strerror}.", AGAIN) from problem
