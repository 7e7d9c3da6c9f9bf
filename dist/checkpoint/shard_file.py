"""What one `model_world_size_{W}_rank_{r}.pt` holds: each tensor's box and where its bytes stand. Runs no code.

Reads the archive's directory and its pickle only, no weights. Knows no torch, no other shard and no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist.checkpoint.boxes import Box, Numbers, Piece, SavedTensor, local_box, row_major
from dist.checkpoint.inert_pickle import Inert, PickleProblem, StoredTensor, WrappedTensor
from dist.checkpoint.torch_archive import ARCHIVE_ERRORS, Entries, TorchArchive, check_beginning, damaged
from dist.errors import CheckpointError

# {id of a mesh's record: its sizes and torch family}: all tensors of a file share one record, or a few.
Meshes = dict[int, tuple[Numbers, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """The index of one shard file.

    tensors       what this rank saved, by name; shapes are those of the full tensors
    kind          "DTensor", "ShardedTensor" or "plain"
    rank          the rank that the file says it was saved by, or None where it does not say
    world_size    how many ranks the file says there were, or None
    mesh          sizes of the device mesh, () if there is none
    torch_family  the torch versions that write this form, such as "2.5-2.9", or None if unknown
    """

    path: Path
    tensors: dict[str, SavedTensor]
    kind: str
    rank: int | None
    world_size: int | None
    mesh: Numbers
    torch_family: str | None


@dataclass(frozen=True, slots=True)
class _Local:
    """One tensor as one rank holds it, with what its wrapper says about the ranks."""

    tensor: SavedTensor
    kind: str = "plain"
    rank: int | None = None
    world_size: int | None = None
    mesh: Numbers = ()
    torch_family: str | None = None


def read_shard_file(path: Path, label: str) -> ShardFile:
    """The index of the file at `path`. `label` names it in errors, such as "Shard 3 of 4".

    Raises CheckpointError if the file is not a whole torch archive or holds what cannot be read here.
    """
    try:
        with path.open("rb") as file:
            check_beginning(file, path, label)
            with Entries(file) as archive:
                return _index(TorchArchive(archive, file, path), path)
    except PickleProblem as problem:
        raise CheckpointError(
            f"{label} cannot be read: {path}.",
            f"Its index is not one that torch.save writes for model weights ({problem}).",
            "Copy the file again; if that does not help, the checkpoint must be saved again.",
        ) from problem
    except ARCHIVE_ERRORS as problem:
        raise damaged(path, label, problem) from problem
    except OSError as problem:
        raise CheckpointError(
            f"{label} cannot be read: {path}.", f"{problem.strerror}.", "Check the disk and the permissions."
        ) from problem


def _index(archive: TorchArchive, path: Path) -> ShardFile:
    values = archive.value()
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise PickleProblem("it holds no dictionary of named tensors")
    try:
        meshes: Meshes = {}
        local = {name: _local(archive, name, value, meshes) for name, value in values.items()}
    except (AttributeError, KeyError, IndexError, TypeError) as problem:
        raise PickleProblem(f"a tensor's record lacks a part: {problem}") from problem
    said = [one for one in local.values() if one.kind != "plain"]
    return ShardFile(
        path=path,
        tensors={name: one.tensor for name, one in local.items()},
        kind=said[0].kind if said else "plain",
        rank=_only("rank", [one.rank for one in said]),
        world_size=_only("world size", [one.world_size for one in said]),
        mesh=max((one.mesh for one in said), key=len, default=()),
        torch_family=said[0].torch_family if said else None,
    )


def _local(archive: TorchArchive, name: str, value: Any, meshes: Meshes) -> _Local:
    if isinstance(value, StoredTensor):
        whole = Box.whole(value.sizes)
        return _Local(SavedTensor(value.sizes, value.dtype, archive.pieces(name, value, whole)))
    if isinstance(value, WrappedTensor) and value.kind == "DTensor":
        return _dtensor(archive, name, value, meshes)
    if isinstance(value, WrappedTensor) and value.kind == "ShardedTensor":
        return _sharded_tensor(archive, name, value)
    kind = value.kind if isinstance(value, WrappedTensor) else type(value).__name__
    raise PickleProblem(f"{name} is a {kind}, not a tensor")


def _dtensor(archive: TorchArchive, name: str, value: WrappedTensor, meshes: Meshes) -> _Local:
    state = value.state[1] if isinstance(value.state, tuple) and len(value.state) == 2 else value.state
    stored, spec = state.get("_local_tensor"), state.get("_spec")
    if not isinstance(stored, StoredTensor) or not isinstance(spec, Inert):
        raise PickleProblem(f"{name} is a DTensor without its parts")
    mesh = spec.get("mesh")
    sizes, family = meshes.get(id(mesh)) or meshes.setdefault(id(mesh), _mesh_sizes(mesh, value.module))
    coordinate = mesh.get("_coordinate_on_dim")
    if coordinate is None or len(coordinate) != len(sizes):
        raise PickleProblem(f"{name}: its device mesh has no coordinate of this rank")
    if not all(0 <= place < size for place, size in zip(coordinate, sizes)):
        raise PickleProblem(f"{name}: rank {list(coordinate)} is not in a mesh of {list(sizes)}")
    box = local_box(value.shape, _splits(name, spec.get("placements"), sizes, coordinate))
    if stored.sizes != box.sizes and math.prod(stored.sizes) + box.elements:
        raise PickleProblem(f"{name}: the local part is {stored.sizes} where {box.sizes} is due")
    rank = mesh.get("_rank")
    return _Local(
        SavedTensor(value.shape, stored.dtype, archive.pieces(name, stored, box)),
        kind="DTensor",
        rank=rank if isinstance(rank, int) else _row_major_rank(sizes, coordinate),
        world_size=math.prod(sizes),
        mesh=sizes,
        torch_family=family,
    )


def _sharded_tensor(archive: TorchArchive, name: str, value: WrappedTensor) -> _Local:
    state = value.state
    if not isinstance(state, tuple) or len(state) < 3 or not isinstance(state[2], Inert):
        raise PickleProblem(f"{name} is a ShardedTensor without its parts")
    pieces: list[Piece] = []
    dtype = value.dtype
    for shard in state[0]:
        stored, about = shard.get("tensor"), shard.get("metadata")
        if not isinstance(stored, StoredTensor) or not isinstance(about, Inert):
            raise PickleProblem(f"{name} is a ShardedTensor without its parts")
        box = Box(tuple(about.get("shard_offsets")), tuple(about.get("shard_sizes")))
        if stored.sizes != box.sizes or box.overlap(Box.whole(value.shape)) not in (box, None):
            raise PickleProblem(f"{name}: the local part is {stored.sizes} where {box.sizes} is due")
        dtype = stored.dtype
        pieces += archive.pieces(name, stored, box)
    return _Local(
        SavedTensor(value.shape, dtype, tuple(pieces)),
        kind="ShardedTensor",
        rank=state[2].get("global_rank"),
        world_size=state[2].get("global_world_size"),
    )


def _mesh_sizes(mesh: Any, module: str) -> tuple[Numbers, str]:
    """Sizes of a device mesh and the torch versions that pickle it in this way."""
    if not isinstance(mesh, Inert):
        raise PickleProblem("a DTensor without a device mesh")
    ranks, layout = mesh.get("mesh"), mesh.get("_layout")
    if isinstance(ranks, StoredTensor):
        return ranks.sizes, "2.4" if module.endswith("._tensor.api") else "2.5-2.9"
    if isinstance(layout, Inert):
        if isinstance(layout.get("shape"), tuple):
            return _flat(layout.get("shape")), "2.10-2.12"
        axes = layout.get("axes")
        if isinstance(axes, tuple):
            return tuple(math.prod(_flat(axis.get("shape"))) for axis in axes), "2.13 or newer"
    raise PickleProblem("a device mesh of a form that is not known here, perhaps of a newer torch")


def _flat(sizes: Any) -> Numbers:
    if isinstance(sizes, int):
        return (sizes,)
    if not isinstance(sizes, tuple):
        raise PickleProblem("a device mesh without sizes")
    return tuple(math.prod(_flat(size)) for size in sizes)


def _row_major_rank(sizes: Numbers, coordinate: Any) -> int:
    return sum(place * stride for place, stride in zip(coordinate, row_major(sizes)))


def _splits(name: str, placements: Any, sizes: Numbers, coordinate: Any) -> list[tuple[int, int, int]]:
    """(dimension, parts, which part) of every mesh dimension that splits the tensor."""
    splits = []
    for placement, parts, part in zip(placements, sizes, coordinate, strict=True):
        kind = type(placement).__name__
        if kind == "Shard":
            splits.append((int(placement.get("dim")), parts, int(part)))
        elif kind != "Replicate":
            raise PickleProblem(f"{name} is placed as {kind}, which FSDP alone does not write")
    return splits


def _only(what: str, values: list[Any]) -> Any:
    """The value that all tensors of a file agree on."""
    distinct = set(values)
    if len(distinct) > 1:
        raise PickleProblem(f"its tensors disagree about the {what}: {sorted(map(str, distinct))}")
    return distinct.pop() if distinct else None
