"""All shard files of a checkpoint as one set of tensors, checked against each other. Opens no weights.

Knows no config, no tokenizer and no torch.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dist.checkpoint.boxes import SavedTensor, distinct, first_gap
from dist.checkpoint.folder import SHARD_NAME, read_json
from dist.checkpoint.shard_file import ShardFile, read_shard_file
from dist.counted import counted
from dist.errors import CheckpointError

SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """What the shard files hold together. `files` are in rank order."""

    files: tuple[Path, ...]
    tensors: Mapping[str, SavedTensor]
    layout: str
    torch_family: str | None


def shard_label(rank: int, world_size: int) -> str:
    """How errors name one shard."""
    return f"Shard {rank} of {world_size}"


def read_shards(folder: Path) -> ShardSet:
    """The shards in `folder`: all there, whole, each of its own rank, of one model and without gaps.

    Raises CheckpointError naming the file and the rank of the first fault.
    """
    paths = shard_paths(folder)
    world_size = len(paths)
    with _no_cycles_sought():
        files = [read_shard_file(path, shard_label(rank, world_size)) for rank, path in enumerate(paths)]
    for rank, file in enumerate(files):
        _check_place(file, rank, world_size)
        _check_kinship(file, rank, files[0], world_size)
    tensors = {}
    for name, first in files[0].tensors.items():
        pieces = distinct(piece for file in files for piece in file.tensors[name].pieces)
        gap = first_gap(first.shape, [piece.box for piece in pieces])
        if gap is not None:
            raise CheckpointError(
                f"The shards do not hold all of {name}: {folder}.",
                f"Its shape is {list(first.shape)}; element {list(gap)} is in none of the {world_size} shards.",
                "The files are not all of one save. Copy all of them again.",
            )
        tensors[name] = SavedTensor(first.shape, first.dtype, pieces)
    return ShardSet(
        files=tuple(paths), tensors=tensors, layout=_layout(folder, files), torch_family=files[0].torch_family
    )


@contextmanager
def _no_cycles_sought() -> Iterator[None]:
    """Without garbage collection: indexes are many small objects in no cycles, all of which are kept.

    Walking them again and again took a third of the time for 128 files.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def shard_paths(folder: Path) -> list[Path]:
    """The shard files in rank order; raises CheckpointError if one is missing or there are several sets."""
    found: dict[int, set[int]] = {}
    for child in folder.iterdir():
        match = SHARD_NAME.fullmatch(child.name)
        if match:
            found.setdefault(int(match[1]), set()).add(int(match[2]))
    world_size = _world_size(folder, found)
    missing = sorted(set(range(world_size)) - found.get(world_size, set()))
    if missing:
        raise _missing(folder, missing, world_size)
    return [folder / f"model_world_size_{world_size}_rank_{rank}.pt" for rank in range(world_size)]


def _world_size(folder: Path, found: Mapping[int, set[int]]) -> int:
    said = read_json(folder / "fsdp_config.json").get("world_size")
    if isinstance(said, int) and said > 0 and (said in found or len(found) > 1):
        return said
    if len(found) == 1:
        return next(iter(found))
    sets = ", ".join(f"world size {size} ({counted(len(ranks), 'file')})" for size, ranks in sorted(found.items()))
    raise CheckpointError(
        f"There are several sets of shards: {folder}.",
        f"Found {sets}, and no fsdp_config.json that says which one counts.",
        "Move the files of the other sets elsewhere.",
    )


def _missing(folder: Path, missing: list[int], world_size: int) -> CheckpointError:
    if len(missing) == 1:
        path = folder / f"model_world_size_{world_size}_rank_{missing[0]}.pt"
        what = f"{shard_label(missing[0], world_size)} is missing: {path}."
    else:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        what = f"{len(missing)} of {world_size} shards are missing: ranks {shown} in {folder}."
    return CheckpointError(what, "", f"Copy all {world_size} shard files.")


def _check_place(file: ShardFile, rank: int, world_size: int) -> None:
    label = shard_label(rank, world_size)
    if file.world_size is not None and file.world_size != world_size:
        mesh = " x ".join(map(str, file.mesh))
        raise CheckpointError(
            f"{label} was saved by a mesh of {counted(file.world_size, 'rank')}: {file.path}.",
            f"The mesh {mesh} does not span the {world_size} ranks that the file's name gives, "
            "as with expert or tensor parallelism.",
            "Save the model with FSDP alone, or merge the checkpoint with verl's model_merger first.",
        )
    if file.rank is not None and file.rank != rank:
        raise CheckpointError(
            f"{label} holds what rank {file.rank} saved: {file.path}.",
            f"Its name says rank {rank}: shard files were swapped or renamed.",
            "Give the files their own names again, or copy all of them again.",
        )


def _check_kinship(file: ShardFile, rank: int, first: ShardFile, world_size: int) -> None:
    label = shard_label(rank, world_size)
    hint = "The files are of different saves. Copy all of them again from one step."
    if file.tensors.keys() != first.tensors.keys():
        apart = sorted(file.tensors.keys() ^ first.tensors.keys())
        raise CheckpointError(
            f"{label} is not of the same model as shard 0: {file.path}.",
            f"{len(apart)} names are in only one of the two: {', '.join(apart[:SHOWN])}.",
            hint,
        )
    for name, tensor in file.tensors.items():
        other = first.tensors[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            here, there = (f"{list(one.shape)} {one.dtype}" for one in (tensor, other))
            raise CheckpointError(
                f"{label} is not of the same model as shard 0: {file.path}.",
                f"{name} is {here} in it and {there} in shard 0.",
                hint,
            )


def _layout(folder: Path, files: list[ShardFile]) -> str:
    """The layout in words: "FSDP2", "FSDP1, HSDP 2 x 2", "FSDP1 without mesh"."""
    kind, mesh = files[0].kind, files[0].mesh
    version = read_json(folder / "fsdp_config.json").get("FSDP_version")
    name = f"FSDP{version}" if version in (1, 2) else "FSDP"
    if len(mesh) > 1:
        return f"{name}, HSDP {' x '.join(map(str, mesh))}"
    if kind == "ShardedTensor":
        return f"{name} without mesh"
    if kind == "plain" and len(files) > 1:
        return f"{name}, not sharded"
    return name


def parameter_count(tensors: Mapping[str, SavedTensor]) -> int:
    """Elements of all floating-point tensors."""
    return sum(math.prod(t.shape) for t in tensors.values() if "float" in t.dtype)
