"""Checks every byte of a checkpoint that carries a checksum. Knows no torch, and nothing of what the bytes mean.

torch.save keeps a CRC-32 of all that is in an archive: a shard, a `.bin` file, each item of a `.distcp` file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from dist.checkpoint.open import Checkpoint
from dist.checkpoint.torch_archive import ARCHIVE_ERRORS, Archive, Window
from dist.errors import CheckpointError

BLOCK_BYTES = 4 << 20
AGAIN = "Copy the file again from where training wrote it."

OnBytes = Callable[[int], None]
OnProgress = Callable[[int, int], None]


def verify(checkpoint: Checkpoint, progress: OnProgress | None = None) -> str:
    """Compare all checksums in the weight files with the bytes; returns what was checked, in words.

    `progress(done, total)` counts bytes. Raises CheckpointError naming the first file that does not match, and the
    item in it.
    """
    sizes = {path: _size(path) for path in checkpoint.files}
    places = {path: place for place, path in enumerate(_paths(checkpoint.archives), start=1)}
    total = sum(sizes[one.path] if one.length is None else one.length for one in checkpoint.archives)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    for archive in checkpoint.archives:
        check_sums(archive, f"File {places[archive.path]} of {len(places)}", count)
    return _checked(checkpoint, sum(sizes[path] for path in places) - total)


def check_sums(archive: Archive, label: str, on_bytes: OnBytes | None = None) -> None:
    """Compare the CRC-32 of every entry of one archive with its bytes.

    `label` names the file in errors, such as "File 3 of 4". `on_bytes(n)` is called with the
    progress: in all, as many bytes as the archive has. Raises CheckpointError naming the first damaged entry.
    """
    reported = 0
    try:
        with archive.path.open("rb") as file:
            size = archive.path.stat().st_size if archive.length is None else archive.length
            with zipfile.ZipFile(Window(file, archive.start, size)) as entries:
                for entry in entries.infolist():
                    with entries.open(entry) as content:
                        while block := content.read(BLOCK_BYTES):
                            reported += len(block)
                            if on_bytes is not None:
                                on_bytes(len(block))
    except (*ARCHIVE_ERRORS, OSError) as problem:
        whose = f"The bytes of {archive.holds}" if archive.holds else "Its bytes"
        raise CheckpointError(
            f"{label} is damaged: {archive.path}.", f"{whose} do not match their checksums ({problem}).", AGAIN
        ) from problem
    if on_bytes is not None:
        on_bytes(size - reported)  # the directory and the bytes between entries


def _checked(checkpoint: Checkpoint, passed_over: int) -> str:
    """What was checked. `passed_over`: bytes of the files that lie in none of the archives."""
    paths = _paths(checkpoint.archives)
    bare = [path for path in checkpoint.files if path not in paths]
    without = f"{'s, '.join(sorted({path.suffix for path in bare}))} files carry no checksums"
    if not paths:
        return f"nothing: {without}" if bare else "nothing: there are no files"
    items = sum(bool(archive.holds) for archive in checkpoint.archives)
    what = f"the {items:,} items of the model in {_files(len(paths))}" if items else _files(len(paths))
    said = [f"every byte of {what} matches its CRC-32"]
    if passed_over:
        said.append(f"{passed_over:,} bytes beside them hold no weights of the model and were passed over")
    if bare:
        said.append(f"{_files(len(bare))} passed over: {without}")
    return "; ".join(said)


def _paths(archives: Sequence[Archive]) -> list[Path]:
    return list(dict.fromkeys(archive.path for archive in archives))


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read.", f"{problem.strerror}.", AGAIN) from problem
