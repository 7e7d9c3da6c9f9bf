"""torch's distributed checkpoints (DCP): `.metadata` and the `.distcp` files it describes. Runs no code from them.

Each item of a `.distcp` file is a small torch archive of one tensor. Knows no torch and no model.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dist.errors import CheckpointError
from dist.saved_whole import WholeSet
from dist.shard_archive import ARCHIVE_ERRORS, TorchArchive
from dist.shard_pickle import Inert, PickleProblem, StoredTensor, read_pickle
from dist.shard_plan import Box, Numbers, Piece, SavedTensor, distinct, first_gap

# What a model's own names are told by, whatever a trainer put before them.
ANCHORS = ("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight")
AGAIN = "Copy the folder again from where training wrote it."


def read_dcp(folder: Path) -> WholeSet:
    """The model's tensors in `folder`; optimizer states and counters are left alone.

    Raises CheckpointError if a file is missing or damaged, or if elements of a tensor are in no file.
    """
    try:
        metadata = read_pickle((folder / ".metadata").read_bytes())
        shapes = _shapes(metadata)
        pieces, files = _pieces(folder, metadata, shapes)
    except (*ARCHIVE_ERRORS, AttributeError, KeyError, TypeError) as problem:
        raise CheckpointError(
            f"The distributed checkpoint cannot be read: {folder}.", f"Its files are damaged ({problem}).", AGAIN
        ) from problem
    except OSError as problem:
        raise CheckpointError(
            f"The distributed checkpoint is incomplete: {folder}.",
            f"{problem.filename}: {problem.strerror}.",
            AGAIN,
        ) from problem
    prefix = _prefix(shapes)
    tensors = {}
    for name, shape in shapes.items():
        gap = first_gap(shape, [piece.box for piece in pieces[name][1]])
        if gap is not None:
            raise CheckpointError(
                f"The distributed checkpoint is incomplete: {folder}.",
                f"Element {list(gap)} of {name} is in none of its files.",
                AGAIN,
            )
        tensors[name.removeprefix(prefix)] = SavedTensor(shape, pieces[name][0], distinct(pieces[name][1]))
    return WholeSet(files=tuple(sorted(files)), tensors=tensors)


def _shapes(metadata: Any) -> dict[str, Numbers]:
    """{name: shape} of the model's tensors."""
    shapes = {}
    for name, about in metadata.get("state_dict_metadata").items():
        if type(about).__name__ == "TensorStorageMetadata":
            shapes[str(name)] = tuple(int(size) for size in about.get("size"))
    prefix = _prefix(shapes)
    return {name: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _prefix(names: Mapping[str, Any]) -> str:
    """What the trainer put before the model's own names, such as "model."."""
    for anchor in ANCHORS:
        found = sorted((name for name in names if name.endswith(anchor) and "optim" not in name), key=len)
        if found:
            return found[0].removesuffix(anchor)
    raise PickleProblem("it holds no language model: none of " + ", ".join(ANCHORS))


def _pieces(
    folder: Path, metadata: Any, shapes: Mapping[str, Numbers]
) -> tuple[dict[str, tuple[str, list[Piece]]], set[Path]]:
    """{name: (dtype, pieces)} and the files they lie in."""
    pieces: dict[str, tuple[str, list[Piece]]] = {name: ("float32", []) for name in shapes}
    files: dict[Path, BinaryIO] = {}
    try:
        for index, where in metadata.get("storage_data").items():
            name = index.get("fqn")
            if name not in shapes:
                continue
            path = folder / str(where.get("relative_path"))
            if path.parent != folder or where.get("transform_descriptors"):
                raise PickleProblem(f"{name} is stored in a way that is not known here")
            file = files.get(path) or files.setdefault(path, path.open("rb"))
            stored, found = _item(file, path, int(where.get("offset")), int(where.get("length")), index)
            pieces[name][1].extend(found)
            pieces[name] = (stored.dtype, pieces[name][1])
    finally:
        for file in files.values():
            file.close()
    return pieces, set(files)


def _item(file: BinaryIO, path: Path, start: int, length: int, index: Inert) -> tuple[StoredTensor, list[Piece]]:
    """The tensor in one item of a file."""
    with zipfile.ZipFile(Window(file, start, length)) as archive:
        reader = TorchArchive(archive, file, path, start)
        stored = reader.value()
        if not isinstance(stored, StoredTensor):
            raise PickleProblem(f"{index.get('fqn')} is no tensor")
        offsets = index.get("offset") or (0,) * len(stored.sizes)
        return stored, list(reader.pieces(str(index.get("fqn")), stored, Box(tuple(offsets), stored.sizes)))


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
