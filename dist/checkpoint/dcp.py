"""torch's distributed checkpoints (DCP): `.metadata` and the `.distcp` files it describes. Runs no code from them.

Each item of a `.distcp` file is a small torch archive of one tensor. Knows no torch and no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dist.checkpoint.boxes import Box, Numbers, Piece, SavedTensor, distinct, first_gap
from dist.checkpoint.inert_pickle import Inert, PickleProblem, StoredTensor, read_pickle
from dist.checkpoint.torch_archive import ARCHIVE_ERRORS, Archive, Entries, TorchArchive, Window
from dist.checkpoint.whole_files import WholeSet
from dist.errors import CheckpointError

# What a model's own names are known by, whatever a trainer put before them.
ANCHORS = ("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight")
AGAIN = "Copy the folder again from where training wrote it."


def read_dcp(folder: Path) -> WholeSet:
    """The model's tensors in `folder`; optimizer states and counters are left alone.

    Raises CheckpointError if a file is missing or damaged, or if elements of a tensor are in no file.
    """
    try:
        metadata = read_pickle((folder / ".metadata").read_bytes())
        shapes = _shapes(metadata)
        pieces, items = _pieces(folder, metadata, shapes)
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
    items.sort(key=lambda item: (item.path, item.start))
    return WholeSet(files=tuple(dict.fromkeys(item.path for item in items)), tensors=tensors, archives=tuple(items))


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
) -> tuple[dict[str, tuple[str, list[Piece]]], list[Archive]]:
    """{name: (dtype, pieces)} and the items of the files that they lie in."""
    pieces: dict[str, tuple[str, list[Piece]]] = {name: ("float32", []) for name in shapes}
    files: dict[Path, BinaryIO] = {}
    items = []
    try:
        for index, where in metadata.get("storage_data").items():
            name = index.get("fqn")
            if name not in shapes:
                continue
            path = folder / str(where.get("relative_path"))
            if path.parent != folder or where.get("transform_descriptors"):
                raise PickleProblem(f"{name} is stored in a way that is not known here")
            file = files.get(path) or files.setdefault(path, path.open("rb"))
            items.append(Archive(path, int(where.get("offset")), int(where.get("length")), _item_name(index)))
            stored, found = _item(file, items[-1], index)
            pieces[name][1].extend(found)
            pieces[name] = (stored.dtype, pieces[name][1])
    finally:
        for file in files.values():
            file.close()
    return pieces, items


def _item(file: BinaryIO, item: Archive, index: Inert) -> tuple[StoredTensor, list[Piece]]:
    """The tensor in one item of a file."""
    name = str(index.get("fqn"))
    try:
        with Entries(Window(file, item.start, item.length or 0)) as archive:
            reader = TorchArchive(archive, file, item.path, item.start)
            stored = reader.value()
            if not isinstance(stored, StoredTensor):
                raise PickleProblem("it is no tensor")
            offsets = index.get("offset") or (0,) * len(stored.sizes)
            return stored, list(reader.pieces(name, stored, Box(tuple(offsets), stored.sizes)))
    except ARCHIVE_ERRORS as problem:
        raise CheckpointError(
            f"The distributed checkpoint is damaged: {item.path}.",
            f"{item.holds} is not at byte {item.start:,} of it, where .metadata says ({problem}).",
            AGAIN,
        ) from problem


def _item_name(index: Inert) -> str:
    """How errors name an item: its tensor, and the element that it begins with."""
    offsets = index.get("offset")
    return f"{index.get('fqn')} from {list(offsets)} on" if offsets else str(index.get("fqn"))
