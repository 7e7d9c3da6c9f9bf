"""Which folder holds the weights when a user points at a run, a step, an actor or a model. Opens no weights.

Knows the layouts of verl 0.2 to 0.9 and of its neighbours by the names of files alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dist.errors import CheckpointError, StepIncomplete
from dist.plain_json import parse_json

SHARD_NAME = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
STEP_NAME = re.compile(r"global_step_(\d+)")
LATEST = "latest_checkpointed_iteration.txt"
INNER = ("actor", "policy")
ZIP_END, ZIP_END_BYTES = b"PK\x05\x06", 22
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

Kind = Literal["shards", "safetensors", "torch_bin", "dcp", "adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One `global_step_*` folder beside the others. `saved_at` is in seconds since the epoch."""

    number: int
    path: Path
    saved_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where the weights are. `folder` holds them; `step` and `steps` tell its place in the run, if it has one.

    `passed_over` are newer steps of the run that were not opened, each with the reason.
    """

    kind: Kind
    folder: Path
    step: int | None
    steps: tuple[Step, ...]
    passed_over: Mapping[str, str] = field(default_factory=dict)


def find_weights(path: Path) -> Found:
    """The weights that `path` stands for.

    A run root stands for the step its latest_checkpointed_iteration.txt names, else for the newest; a step for its
    `actor/`. Raises CheckpointError for what is no checkpoint, or of a kind that cannot be read here.
    """
    if not path.exists():
        raise _absent(path)
    start = path if path.is_dir() else path.parent
    for folder in _candidates(start):
        kind = _kind(folder)
        if kind is not None:
            steps, number = _steps(folder)
            opened_by_run = number is not None and any(step.path.parent == start.absolute() for step in steps)
            passed_over = _newer_steps(steps, number) if opened_by_run else {}
            return Found(kind=kind, folder=folder, step=number, steps=steps, passed_over=passed_over)
    raise _refusal(start)


def _absent(path: Path) -> CheckpointError:
    """Why there is nothing at `path`."""
    hint = "Give the folder of a run, of one global_step_*, or of a Hugging Face model."
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            return CheckpointError(
                f"{part} is a broken link.", f"It leads to {part.readlink()}, which does not exist.", hint
            )
    return CheckpointError(f"There is no {path}.", _nearest_existing(path), hint)


def _candidates(start: Path) -> Iterator[Path]:
    """Folders to look at, in order."""
    yield from _with_inner(start)
    if start.name == "huggingface":
        yield start.parent
    for step in _step_folders_by_preference(start):
        yield from _with_inner(step)


def _with_inner(folder: Path) -> list[Path]:
    inner = [folder / name for name in INNER]
    inner += sorted(folder.glob("pytorch_model_fsdp_*"))  # accelerate's distributed checkpoints
    # The weights that verl sharded come before a copy for Hugging Face.
    return [folder, *inner, folder / "huggingface", *(path / "huggingface" for path in inner)]


def _step_folders_by_preference(root: Path) -> list[Path]:
    """The step that the run stands for; raises StepIncomplete, with the newest complete one, if it lacks a part."""
    steps = run_steps(root)
    if not steps:
        return []
    named = latest_step(root)
    chosen = [step for step in steps if step.number == named] if named is not None else [steps[-1]]
    fault = step_fault(chosen[0].path) if chosen else "it is not there"
    complete = newest_complete(steps)
    if fault is None or complete is None:
        return [step.path for step in (*chosen, *reversed(steps))]
    by = f"{LATEST} names" if named is not None else "The newest step is"
    number = chosen[0].number if chosen else named
    raise StepIncomplete(
        f"{by} global_step_{number}, which cannot be opened: {root}.",
        f"{fault[0].upper()}{fault[1:]}. The newest complete step is global_step_{complete.number}.",
        f"Give {complete.path} to open that one.",
        complete=str(complete.path),
    )


def newest_complete(steps: Sequence[Step]) -> Step | None:
    """The newest of the steps (oldest first) whose files are all there."""
    return next((step for step in reversed(steps) if step_fault(step.path) is None), None)


def step_fault(step: Path) -> str | None:
    """What a step's folder lacks to be whole, judging by names and last bytes; None if nothing is missing."""
    for folder in _with_inner(step):
        kind = _kind(folder)
        if kind is None:
            continue
        shards: dict[int, list[Path]] = {}
        for child in folder.iterdir():
            match = SHARD_NAME.fullmatch(child.name)
            if match:
                shards.setdefault(int(match[1]), []).append(child)
        for world_size, paths in shards.items() if len(shards) == 1 else ():
            if len(paths) < world_size:
                return f"it is half written: {world_size - len(paths)} of {world_size} shards are missing"
            torn = next((path.name for path in paths if not _ends_like_an_archive(path)), None)
            if torn is not None:
                return f"it is half written: {torn} is cut short"
        return None
    return "it has no weights"


def _ends_like_an_archive(path: Path) -> bool:
    """Whether a zip's end record, which torch.save writes last, stands at the end of the file."""
    try:
        with path.open("rb") as file:
            file.seek(-ZIP_END_BYTES, 2)
            return file.read(4) == ZIP_END
    except OSError:
        return False


def _newer_steps(steps: Sequence[Step], opened: int | None) -> dict[str, str]:
    """The steps after the one that a run's folder stood for, each with the reason why it was not opened."""
    return {
        step.path.name: step_fault(step.path) or f"{LATEST} does not name it"
        for step in steps
        if opened is not None and step.number > opened
    }


def latest_step(root: Path) -> int | None:
    """The step that the run's latest_checkpointed_iteration.txt names now, or None."""
    file = root / LATEST
    named = file.read_text(errors="replace").strip() if file.is_file() else ""
    return int(named) if named.isdecimal() else None


def run_steps(root: Path) -> tuple[Step, ...]:
    """The `global_step_*` folders that are in a run's folder now, in the order of their numbers."""
    steps = []
    for child in root.iterdir() if root.is_dir() else ():
        match = STEP_NAME.fullmatch(child.name)
        with suppress(FileNotFoundError):  # training removes old steps, perhaps in this moment
            if match and child.is_dir():
                steps.append(Step(number=int(match[1]), path=child, saved_at=child.stat().st_mtime))
    return tuple(sorted(steps, key=lambda step: step.number))


def _steps(folder: Path) -> tuple[tuple[Step, ...], int | None]:
    """All steps of the run that `folder` belongs to, oldest first, and its own step's number."""
    for place in (folder, *list(folder.absolute().parents)[:2]):
        match = STEP_NAME.fullmatch(place.name)
        if match:
            return run_steps(place.absolute().parent), int(match[1])
    return (), None


def _kind(folder: Path) -> Kind | None:
    if not folder.is_dir():
        return None
    names = [child.name for child in folder.iterdir()]
    if any(SHARD_NAME.fullmatch(name) for name in names):
        return "shards"
    if "adapter_config.json" in names:
        return "adapter"
    if any(name.endswith(".safetensors") for name in names):
        return "safetensors"
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        return "dcp"
    if "config.json" in names and any(re.fullmatch(r"pytorch_model.*\.bin", name) for name in names):
        return "torch_bin"
    return None


def _refusal(folder: Path) -> CheckpointError:
    """Why nothing in `folder` can be read, as helpfully as its file names allow."""
    names = {child.name for child in folder.iterdir()}
    inside = {name for inner in INNER if (folder / inner).is_dir() for name in _names(folder / inner)} | names
    if "zero_to_fp32.py" in inside or any(name.endswith("_optim_states.pt") for name in inside):
        return CheckpointError(
            f"{folder} is a DeepSpeed checkpoint.",
            "Its shards are not FSDP's.",
            "Convert it with the zero_to_fp32.py that lies in it; give the folder of the result, with config.json.",
        )
    if "dist_ckpt" in inside or any(name.startswith("mp_rank_") for name in inside):
        return CheckpointError(
            f"{folder} is a Megatron checkpoint.",
            "Its shards are cut by tensor and pipeline parallelism.",
            "Merge it with `python -m verl.model_merger merge --backend megatron`, then give the merged folder.",
        )
    steps = sorted(STEP_NAME.fullmatch(name) is not None for name in names).count(True)
    held = f"It holds {steps} global_step_* folders, none of which has weights." if steps else _contents(names)
    return CheckpointError(
        f"{folder} is not a checkpoint.",
        f"Neither it nor its actor/ has model_world_size_*_rank_*.pt or *.safetensors. {held}",
        "Give the folder of a run, of one global_step_*, or of a Hugging Face model.",
    )


def _names(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir()]


def _contents(names: set[str]) -> str:
    if not names:
        return "It is empty."
    shown = ", ".join(sorted(names)[:4])
    return f"It holds {shown}{' and more' if len(names) > 4 else ''}."


def _nearest_existing(path: Path) -> str:
    """The part of the path that does exist, and what lies there."""
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if parent == parent.parent:
        return "No folder on the way there exists."
    if parent.is_dir():
        return f"{parent} exists. {_contents(set(_names(parent)))}"
    return f"{parent} is a file."


def side_folders(found: Found) -> list[Path]:
    """Where the config and the tokenizer of the weights may lie, in order."""
    here = [found.folder / "huggingface", found.folder]
    above = [found.folder.parent / "huggingface", found.folder.parent]
    return {"shards": here + above[:1], "dcp": here + above}.get(found.kind, here)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is no such file; raises CheckpointError if it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path} cannot be read.", f"{problem}.", "Copy the file again.") from problem
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} cannot be read.", "It holds no JSON object.", "Copy the file again.")
    return value
