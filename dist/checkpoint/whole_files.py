"""Weights that lie whole in files: safetensors, and torch archives of plain tensors. Opens no weights.

Knows no shards, no config and no torch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist.checkpoint.boxes import ITEM_BYTES, Box, Piece, SavedTensor, row_major
from dist.checkpoint.folder import read_json
from dist.checkpoint.shard_file import read_shard_file
from dist.checkpoint.torch_archive import Archive
from dist.counted import counted
from dist.errors import CheckpointError
from dist.plain_json import parse_json

SAFE_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
MOST_HEADER_BYTES = 100 << 20
AGAIN = "Copy or download the file again."


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeSet:
    """The files, the tensors that lie in them, and what of the files are archives of torch.save."""

    files: tuple[Path, ...]
    tensors: Mapping[str, SavedTensor]
    archives: tuple[Archive, ...] = ()


def read_safetensors(folder: Path, stem: str = "model") -> WholeSet:
    """The tensors of `{stem}.safetensors`, or of the files that its index names."""
    paths = _files(folder, f"{stem}.safetensors", "*.safetensors")
    tensors: dict[str, SavedTensor] = {}
    for path in paths:
        _add(tensors, _safetensors_file(path), path)
    return WholeSet(files=tuple(paths), tensors=tensors)


def read_torch_bin(folder: Path) -> WholeSet:
    """The tensors of `pytorch_model.bin`, or of the files that its index names, by the restricted reader."""
    paths = _files(folder, "pytorch_model.bin", "pytorch_model*.bin")
    tensors: dict[str, SavedTensor] = {}
    for path in paths:
        _add(tensors, read_shard_file(path, "The weights file").tensors, path)
    return WholeSet(files=tuple(paths), tensors=tensors, archives=tuple(map(Archive, paths)))


def _add(tensors: dict[str, SavedTensor], more: Mapping[str, SavedTensor], path: Path) -> None:
    """Raise CheckpointError for a tensor that two files hold: nothing says which one counts."""
    twice = next((name for name in more if name in tensors), None)
    if twice is not None:
        raise CheckpointError(
            f"Two weights files hold {twice}: {path.parent}.",
            f"One of them is {path.name}; the folder has no index that says which counts.",
            "Move the files of the other save elsewhere.",
        )
    tensors.update(more)


def read_adapter(folder: Path) -> WholeSet:
    """The tensors of a PEFT adapter folder; raises CheckpointError if it has none."""
    if (folder / "adapter_model.safetensors").is_file():
        return read_safetensors(folder, "adapter_model")
    path = folder / "adapter_model.bin"
    if not path.is_file():
        raise CheckpointError(
            f"There are no weights beside {folder / 'adapter_config.json'}.",
            "Neither adapter_model.safetensors nor adapter_model.bin is there.",
            "Copy the whole adapter folder.",
        )
    tensors = read_shard_file(path, "The adapter file").tensors
    return WholeSet(files=(path,), tensors=tensors, archives=(Archive(path),))


def _files(folder: Path, single: str, pattern: str) -> list[Path]:
    """The weight files of a Hugging Face folder; raises CheckpointError if the index names one that is missing."""
    index = read_json(folder / f"{single}.index.json").get("weight_map")
    if not isinstance(index, dict):
        return [folder / single] if (folder / single).is_file() else sorted(folder.glob(pattern))
    names = sorted({str(name) for name in index.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{missing[0]} is missing: {folder / missing[0]}.",
            f"{single}.index.json names {counted(len(names), 'file')}; {len(missing)} of them are not there.",
            f"Copy {'all ' * (len(names) > 1)}{counted(len(names), 'file')}.",
        )
    return [folder / name for name in names]


def _safetensors_file(path: Path) -> dict[str, SavedTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            text = file.read(length) if 0 < length <= min(MOST_HEADER_BYTES, size - 8) else b""
        header = parse_json(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _entry(path, name, entry, 8 + length, size) for name, entry in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as problem:
        raise CheckpointError(
            f"The weights file cannot be read: {path}.",
            f"It is not a safetensors file ({_looks_like(head)}).",
            AGAIN,
        ) from problem
    except OSError as problem:
        raise CheckpointError(
            f"The weights file cannot be read: {path}.",
            f"{problem.strerror}.",
            "Check the disk and the permissions.",
        ) from problem


def _entry(path: Path, name: str, entry: Mapping[str, Any], origin: int, size: int) -> SavedTensor:
    start, end = (int(offset) for offset in entry["data_offsets"])
    shape, dtype = tuple(int(length) for length in entry["shape"]), SAFE_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CheckpointError(
            f"The weights file cannot be read: {path}.",
            f"{name} has dtype {entry['dtype']}, which is not known here.",
            f"Save the model in one of {', '.join(SAFE_DTYPES)}.",
        )
    if origin + end > size:
        raise CheckpointError(
            f"The weights file is incomplete: {path}.",
            f"It has {size:,} bytes; {name} ends at byte {origin + end:,}.",
            "Saving or copying was interrupted. " + AGAIN,
        )
    if start < 0 or end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes")
    piece = Piece(str(path), origin + start, Box.whole(shape), row_major(shape))
    return SavedTensor(shape, dtype, (piece,) if math.prod(shape) else ())


def _looks_like(head: bytes) -> str:
    if not head:
        return "it has 0 bytes"
    if head.startswith(b"version "):
        return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    return f"it begins with {head!r}"
