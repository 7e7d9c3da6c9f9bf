"""Adapters beside their base weights: which low-rank pair belongs to which weight, and how strongly it counts.

Nothing is merged here: a weight's SavedTensor is given the update that the reader adds while it reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist.checkpoint.box_views import swap_dims
from dist.checkpoint.boxes import LowRank, SavedTensor
from dist.checkpoint.folder import read_json
from dist.errors import CheckpointError

PREFIX = "base_model.model."
PART = re.compile(r"(.*)\.lora_(embedding_)?(A|B)(?:\.(?!weight$)([^.]+))?(?:\.weight)?")
SAVED_WHOLE = re.compile(r"(.*)\.modules_to_save\.(?:[^.]+)\.(.*)")
UNKNOWN_PARTS = ("lora_magnitude_vector", "lora_B.bias", "token_adapter", "vera_", "ia3_", "prompt_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How strongly adapters count: alpha / r of each, or alpha / sqrt(r). `source` tells where alpha was found."""

    alpha: float
    source: str
    root_of_rank: bool = False
    alpha_by_module: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """What multiplies up @ down for the module of this name."""
        alpha = next(
            (value for name, value in self.alpha_by_module.items() if re.search(rf"(^|\.){name}$", module)),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.root_of_rank else rank)


def has_adapters(tensors: Mapping[str, SavedTensor]) -> bool:
    """Whether any of the tensors belongs to an adapter."""
    return any(".lora_" in name for name in tensors)


def base_tensors(tensors: Mapping[str, SavedTensor]) -> dict[str, SavedTensor]:
    """The base weights among adapted ones, under the names that they have without adapters."""
    plain: dict[str, SavedTensor] = {}
    for name, tensor in tensors.items():
        clean = name.removeprefix(PREFIX)
        whole = SAVED_WHOLE.fullmatch(clean)
        if whole:
            # A module that was trained whole replaces the original, which is kept beside it.
            plain[f"{whole[1]}.{whole[2]}"] = tensor
        elif ".lora_" not in clean:
            plain.setdefault(clean.replace(".base_layer.", ".").replace(".original_module.", "."), tensor)
    return plain


def merge_adapters(
    base: Mapping[str, SavedTensor], adapted: Mapping[str, SavedTensor], strength: Strength, folder: Path
) -> dict[str, SavedTensor]:
    """`base` with the adapters among `adapted` added to it.

    Raises CheckpointError for adapters that are not plain LoRA or do not fit the base.
    """
    unknown = [name for name in adapted if any(part in name for part in UNKNOWN_PARTS)]
    if unknown:
        raise CheckpointError(
            f"The adapters in {folder} are not plain LoRA.",
            f"{unknown[0]} cannot be merged here.",
            "Merge them with peft's merge_and_unload, then give the folder of the result.",
        )
    merged = dict(base)
    for module, parts in _pairs(adapted).items():
        name = f"{module}.weight"
        if name not in base:
            raise _misfit(folder, f"They change {name}, which the base does not have.")
        down, up = parts.get("A"), parts.get("B")
        if down is None or up is None:
            raise _misfit(folder, f"One half of the adapter of {name} is missing.")
        if "embedding" in parts:
            down, up = swap_dims(up, 0, 1), swap_dims(down, 0, 1)
        if (up.shape[0], down.shape[-1], up.shape[-1]) != (*base[name].shape, down.shape[0]):
            shapes = f"{list(up.shape)} x {list(down.shape)}"
            raise _misfit(folder, f"The weight {name} is {list(base[name].shape)} and its adapter {shapes}.")
        update = LowRank(up, down, strength.scale(module, down.shape[0]))
        merged[name] = replace(base[name], update=update)
    return merged


def _pairs(adapted: Mapping[str, SavedTensor]) -> dict[str, dict[str, SavedTensor]]:
    """{module: {"A": tensor, "B": tensor}}, with an entry "embedding" for embeddings."""
    pairs: dict[str, dict[str, SavedTensor]] = {}
    for name, tensor in adapted.items():
        match = PART.fullmatch(name.removeprefix(PREFIX))
        if match:
            parts = pairs.setdefault(match[1], {})
            parts[match[3]] = tensor
            if match[2]:
                parts["embedding"] = tensor
    return pairs


def _misfit(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The adapters in {folder} do not fit their base model.",
        why,
        "Give the model that they were trained on with --base_model.",
    )


def find_strength(folder: Path, asked: float | None) -> Strength:
    """How strongly the adapters in `folder` count: as asked, else as recorded beside them.

    Raises CheckpointError if alpha is recorded nowhere.
    """
    places = (folder / "lora_adapter", folder, folder / "huggingface")
    for place in places:
        config = read_json(place / "adapter_config.json")
        if config:
            return _from_config(config, asked, place / "adapter_config.json")
    recorded = read_json(folder / "lora_train_meta.json").get("lora_alpha")
    if asked is not None:
        return Strength(alpha=asked, source="--lora_alpha")
    if recorded is not None:
        return Strength(alpha=float(recorded), source="lora_train_meta.json")
    raise CheckpointError(
        f"The strength of the adapters in {folder} is not recorded.",
        "There is neither lora_adapter/adapter_config.json nor lora_train_meta.json; the shards do not hold it.",
        "Give the lora_alpha of the training run with --lora_alpha.",
    )


def _from_config(config: Mapping[str, Any], asked: float | None, path: Path) -> Strength:
    if config.get("use_dora") or config.get("fan_in_fan_out"):
        raise CheckpointError(
            f"The adapters of {path} are not plain LoRA.",
            "They use DoRA or transposed weights.",
            "Merge them with peft's merge_and_unload, then give the folder of the result.",
        )
    recorded = config.get("lora_alpha", config.get("r", 8))
    return Strength(
        alpha=float(recorded) if asked is None else asked,
        source=path.name if asked is None else "--lora_alpha",
        root_of_rank=bool(config.get("use_rslora")),
        alpha_by_module=dict(config.get("alpha_pattern") or {}) if asked is None else {},
    )
