"""Opens a checkpoint folder: finds its parts, checks them, says what is wrong with them. Imports no torch.

Nothing in the files runs code, and nothing is asked of a hub. Reading the weights is checkpoint_read's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist.checkpoint_folder import TOKENIZER_FILES, Found, Step, find_weights, read_json, side_folders
from dist.checkpoint_shards import parameter_count, read_shards
from dist.errors import CheckpointError
from dist.saved_whole import read_safetensors, read_torch_bin
from dist.shard_plan import SavedTensor

CRITIC_NAMES = ("score.weight", "v_head.", "value_head.", "classifier.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that has been found, indexed and checked; no weight has been read yet.

    path               the folder that holds the weight files
    files              the weight files
    step, steps        its number in the run and all steps of the run, oldest first; None and () outside a run
    world_size         ranks that saved it, 1 for whole files
    layout             in words, such as "FSDP2" or "safetensors"
    torch_family       the torch versions that write this form, or None if it cannot be told
    dtype              the dtype that most of the weights are saved in
    parameters         number of weights; tied ones count once
    config             config.json as it is
    config_dir         the folder it lies in
    tokenizer_dir      the folder with the tokenizer's files
    generation_config  generation_config.json as it is, {} if there is none
    tensors            everything that was saved, by name
    """

    path: Path
    files: tuple[Path, ...]
    step: int | None
    steps: tuple[Step, ...]
    world_size: int
    layout: str
    torch_family: str | None
    dtype: str
    parameters: int
    config: Mapping[str, Any]
    config_dir: Path
    tokenizer_dir: Path
    generation_config: Mapping[str, Any]
    tensors: Mapping[str, SavedTensor]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint that `path` stands for: a run, a step, the folder of the shards, or a Hugging Face model.

    Raises CheckpointError naming the first thing that is missing or wrong.
    """
    found = find_weights(Path(path).expanduser())
    config_dir = _config_dir(found)
    config = read_json(config_dir / "config.json")
    files, tensors, world_size, layout, family = _read_index(found)
    _refuse_critics(found.folder, config, tensors)
    return Checkpoint(
        path=found.folder,
        files=files,
        step=found.step,
        steps=found.steps,
        world_size=world_size,
        layout=layout,
        torch_family=family,
        dtype=_main_dtype(tensors),
        parameters=_parameters(config, tensors),
        config=config,
        config_dir=config_dir,
        tokenizer_dir=_tokenizer_dir(found),
        generation_config=read_json(config_dir / "generation_config.json"),
        tensors=tensors,
    )


def _read_index(found: Found) -> tuple[tuple[Path, ...], Mapping[str, SavedTensor], int, str, str | None]:
    if found.kind == "shards":
        shards = read_shards(found.folder)
        return shards.files, shards.tensors, len(shards.files), shards.layout, shards.torch_family
    if found.kind == "torch_bin":
        whole = read_torch_bin(found.folder)
        return whole.files, whole.tensors, 1, "pytorch_model.bin", None
    whole = read_safetensors(found.folder)
    return whole.files, whole.tensors, 1, "safetensors", None


def _config_dir(found: Found) -> Path:
    folder = found.folder
    for place in side_folders(found):
        if (place / "config.json").is_file():
            return place
    raise CheckpointError(
        f"There is no config.json for the weights in {folder}.",
        f"It is in neither {folder / 'huggingface'} nor {folder}; verl 0.3 saved it only with hf_model.",
        "Copy the base model's config.json and tokenizer files into that huggingface folder.",
    )


def _tokenizer_dir(found: Found) -> Path:
    folder = found.folder
    for place in side_folders(found):
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return place
    raise CheckpointError(
        f"There is no tokenizer for the weights in {folder}.",
        f"None of {', '.join(TOKENIZER_FILES)} is in {folder / 'huggingface'} or {folder}.",
        "Copy the base model's tokenizer files into that huggingface folder.",
    )


def _refuse_critics(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, SavedTensor]) -> None:
    heads = [name for name in tensors if name.startswith(CRITIC_NAMES) or ".v_head." in name]
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not heads and not any("Classification" in name or "Reward" in name for name in architectures):
        return
    sign = f"it has {heads[0]}" if heads else f"its architecture is {architectures[0]}"
    actor = folder.parent / "actor"
    raise CheckpointError(
        f"{folder} holds a critic or reward model.",
        f"It gives values, not words: {sign}.",
        f"Give {actor}." if actor.is_dir() and actor != folder else "Give the folder of an actor.",
    )


def _main_dtype(tensors: Mapping[str, SavedTensor]) -> str:
    elements: Counter[str] = Counter()
    for tensor in tensors.values():
        elements[tensor.dtype] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "none"


def _parameters(config: Mapping[str, Any], tensors: Mapping[str, SavedTensor]) -> int:
    tied = config.get("tie_word_embeddings") and any(name.endswith("embed_tokens.weight") for name in tensors)
    return parameter_count({name: t for name, t in tensors.items() if not (tied and name == "lm_head.weight")})
