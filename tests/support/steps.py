"""Runs with several steps: copies of a step with other weights, and files that spoil in the middle of a load."""

from __future__ import annotations

import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

LOCAL_HEADER = struct.Struct("<26xHH")


def add_step(run: Path, source: int, number: int) -> Path:
    """A step beside `source` whose weights are those of `source` in reverse order, tensor by tensor (float32)."""
    step = run / f"global_step_{number}"
    shutil.copytree(run / f"global_step_{source}", step)
    for path in step.rglob("model_world_size_*.pt"):
        reverse_weights(path)
    (run / "latest_checkpointed_iteration.txt").write_text(str(number))
    return step


def reverse_weights(path: Path) -> None:
    """Reverse every stored tensor of float32 where it lies; the sums in the zip no longer match."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if "/data/" in entry.filename]
    with path.open("r+b") as file:
        for entry in entries:
            file.seek(entry.header_offset)
            name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            start = entry.header_offset + LOCAL_HEADER.size + name + extra
            file.seek(start)
            data = file.read(entry.file_size)
            words = [data[at : at + 4] for at in range(0, len(data), 4)]
            file.seek(start)
            file.write(b"".join(reversed(words)))


def cut_in_half(folder: Path) -> None:
    """Cut the last rank's shard below `folder`, as a disk that fills up does."""
    path = sorted(folder.rglob("model_world_size_*.pt"))[-1]
    os.truncate(path, path.stat().st_size // 2)


def right_sums(step: Path) -> None:
    """Make the sums in the zips of a step those of its bytes again."""
    for path in step.rglob("model_world_size_*.pt"):
        with zipfile.ZipFile(path) as archive, path.open("r+b") as file:
            at = archive.start_dir
            for entry in archive.infolist():
                del entry.CRC  # read without comparing
                crc = zlib.crc32(archive.read(entry))
                file.seek(at)
                header = file.read(46)
                file.seek(at + 16)
                file.write(struct.pack("<I", crc))
                at += 46 + sum(struct.unpack_from("<HHH", header, 28))
