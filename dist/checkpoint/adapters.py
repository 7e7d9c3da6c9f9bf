"""Adapters beside their base weights: which low-rank pair belongs to which weight, and how strongly it counts.

Nothing is merged here: a weight's SavedTensor is given the update that the reader adds while it reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist.checkpoint.box_views import swap_dims
from dist.checkpoint.boxes import LowRank, SavedTensor
from dist.checkpoint.folder import read_json
from dist.checkpoint.ledger import Entry, short
from dist.errors import CheckpointError

PREFIX = "base_model.model."
PART = re.compile(r"(.*)\.lora_(embedding_)?(A|B)(?:\.(?!weight$|bias$)([^.]+))?(?:\.weight)?")
SAVED_WHOLE = re.compile(r"(.*)\.modules_to_save\.(?:[^.]+)\.(.*)")
# Parts of adapters of other kinds than LoRA; a name with `lora_` that is none of LoRA's two halves is refused too.
UNKNOWN_PARTS = ("lora_magnitude_vector", "token_adapter", "trainable_tokens", "vera_", "ia3_", "prompt_embeddings")
MERGE_HINT = "Merge them with peft's merge_and_unload, then give the folder of the result."

# adapter_config.json: what is read, what the tensors themselves tell, what has no effect on replies, and what does
# unless it is off. Anything else that is not off is refused: a newer peft's, most likely.
READ_KEYS = {
    "lora_alpha": "the strength of the adapters",
    "use_rslora": "the strength of the adapters",
    "alpha_pattern": "the strength of the adapters",
    "peft_type": "LORA is merged, others are refused",
    "fan_in_fan_out": "true is refused",
    "use_dora": "true is refused",
    "base_model_name_or_path": "where the base model is, for adapters saved alone",
}
TOLD_BY_TENSORS = (
    "r",
    "rank_pattern",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "lora_bias",
)
NO_EFFECT_KEYS = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "lora_ga_config",
    "runtime_config",
    "qalora_group_size",
    "ensure_weight_tying",
)
# How the adapters began; others than these changed the base weights before training.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
OFF: tuple[Any, ...] = (None, False, "", "none", [], {})


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
            (value for name, value in self.alpha_by_module.items() if re.match(rf"(.*\.)?({name})$", module)),
            self.alpha,
        )
        return alpha / (math.sqrt(rank) if self.root_of_rank else rank)


def has_adapters(tensors: Mapping[str, SavedTensor]) -> bool:
    """Whether any of the tensors belongs to an adapter."""
    return any("lora_" in name for name in tensors)


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


def with_head(kept: Mapping[str, SavedTensor], before: Mapping[str, SavedTensor]) -> dict[str, SavedTensor]:
    """`kept` with a head of its own, where it has none: the embeddings of the base model, `before`.

    A head that is tied to the embeddings keeps the base model's values, whatever adapters do to the embeddings; an
    adapter of its own is added to them. Where neither changes, both stay the same, and so tied.
    """
    head = next((name for name in kept if name.endswith("lm_head.weight")), None)
    embeddings = [name for name in before if name.endswith("embed_tokens.weight")]
    if head is not None or len(embeddings) != 1:
        return dict(kept)
    return {**kept, "lm_head.weight": before[embeddings[0]]}


def merge_adapters(
    base: Mapping[str, SavedTensor], adapted: Mapping[str, SavedTensor], strength: Strength, folder: Path
) -> dict[str, SavedTensor]:
    """`base` with the adapters among `adapted` added to it.

    Raises CheckpointError for adapters that are not plain LoRA or do not fit the base.
    """
    _refuse_other_kinds(adapted, folder)
    merged = dict(base)
    for module, parts in _pairs(adapted).items():
        name = f"{module}.weight"
        if name not in base:
            raise _misfit(folder, f"They change {name}, which the base does not have.")
        if base[name].update is not None:
            raise _misfit(folder, f"Their base model has adapters of its own on {name}.")
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


def _refuse_other_kinds(adapted: Mapping[str, SavedTensor], folder: Path) -> None:
    """Raise CheckpointError for a tensor of an adapter that is no half of a LoRA pair, and for several adapters."""
    names: set[str] = set()
    for name in adapted:
        match = PART.fullmatch(name.removeprefix(PREFIX))
        if any(part in name for part in UNKNOWN_PARTS) or ("lora_" in name and match is None):
            raise CheckpointError(
                f"The adapters in {folder} are not plain LoRA.", f"{name} cannot be merged here.", MERGE_HINT
            )
        if match:
            names.add(match[4] or "default")
    if len(names) > 1:
        raise CheckpointError(
            f"There are several adapters in {folder}.", f"They are called {', '.join(sorted(names))}.", MERGE_HINT
        )


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


def find_strength(folder: Path, asked: float | None) -> tuple[Strength, tuple[Entry, ...]]:
    """How strongly the adapters in `folder` count: as asked, else as recorded beside them; what the records hold.

    Raises CheckpointError if alpha is recorded nowhere, or as 0, which verl's merger writes where it does not know.
    """
    places = (folder / "lora_adapter", folder, folder / "huggingface")
    for place in places:
        config = read_json(place / "adapter_config.json")
        if config:
            return _from_config(config, asked, place / "adapter_config.json")
    recorded = read_json(folder / "lora_train_meta.json").get("lora_alpha")
    if asked is not None:
        return Strength(alpha=asked, source="--lora_alpha"), ()
    if recorded:
        return Strength(alpha=float(recorded), source="lora_train_meta.json"), ()
    why = (
        "lora_train_meta.json gives 0, which would switch them off."
        if recorded is not None
        else "Neither lora_adapter/adapter_config.json nor lora_train_meta.json is there; the shards do not say."
    )
    raise _no_strength(folder, why)


def _no_strength(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The strength of the adapters in {folder} is not recorded.",
        why,
        "Give the lora_alpha of the training run with --lora_alpha.",
    )


def _from_config(config: Mapping[str, Any], asked: float | None, path: Path) -> tuple[Strength, tuple[Entry, ...]]:
    entries = tuple(_config_entries(config, path))
    recorded = config.get("lora_alpha")
    if asked is None and not recorded:
        given = "gives no lora_alpha" if recorded is None else "gives 0, as verl's merger writes for an unknown one"
        raise _no_strength(path.parent, f"{path.name} {given}.")
    strength = Strength(
        alpha=float(recorded or 0) if asked is None else asked,
        source=path.name if asked is None else "--lora_alpha",
        root_of_rank=bool(config.get("use_rslora")),
        alpha_by_module=dict(config.get("alpha_pattern") or {}) if asked is None else {},
    )
    return strength, entries


def _config_entries(config: Mapping[str, Any], path: Path) -> Iterator[Entry]:
    """What each key of adapter_config.json is good for. Raises CheckpointError for one that cannot be followed."""
    for key, value in config.items():
        if key in READ_KEYS:
            if key == "peft_type" and str(value).upper() != "LORA":
                raise _not_plain(path, f"peft_type is {value}.")
            if key in ("fan_in_fan_out", "use_dora") and value:
                raise _not_plain(path, f"{key} is true.")
            yield Entry(path.name, key, True, READ_KEYS[key], short(value))
        elif key in TOLD_BY_TENSORS:
            yield Entry(path.name, key, True, "the adapter's tensors tell", short(value))
        elif key == "init_lora_weights":
            if value not in PLAIN_STARTS:
                raise _not_plain(path, f"{key} is {value}: training began with changed base weights.")
            yield Entry(path.name, key, False, "training only", short(value))
        elif key in NO_EFFECT_KEYS or value in OFF:
            yield Entry(path.name, key, False, "no effect on replies", short(value))
        else:
            raise _not_plain(path, f"{key} is {short(value)}, which is not known here.")


def _not_plain(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"The adapters of {path} are not plain LoRA.", why, MERGE_HINT)
