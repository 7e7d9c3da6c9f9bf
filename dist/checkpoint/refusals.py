"""Refuses critics and quantized weights by the names and dtypes of their tensors. Opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist.checkpoint.boxes import SavedTensor
from dist.errors import CheckpointError

QUANTIZED_NAMES = (
    "weight_scale_inv",
    ".weight_scale",
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".absmax",
    ".quant_map",
    ".SCB",
)
QUANTIZED_DTYPES = ("float8_e4m3fn", "float8_e5m2", "uint8", "int8")
CRITIC_NAMES = ("score.weight", "v_head.", "value_head.", "classifier.")


def refuse_critics(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, SavedTensor]) -> None:
    heads = [name for name in tensors if name.startswith(CRITIC_NAMES) or ".v_head." in name]
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not heads and not any("Classification" in name or "Reward" in name for name in architectures):
        return
    sign = f"it has {heads[0]}" if heads else f"its architecture is {architectures[0]}"
    actor = folder.parent / "actor"
    raise CheckpointError(
        f"{folder} holds a critic or reward model.",
        f"It outputs values, not text: {sign}.",
        f"Give {actor}." if actor.is_dir() and actor != folder else "Give the folder of an actor.",
    )


def refuse_quantized(config_file: Path, config: Mapping[str, Any], tensors: Mapping[str, SavedTensor]) -> None:
    """Raise CheckpointError for weights in a quantized form, which would be taken for plain numbers."""
    packed = next((name for name in tensors if name.endswith(QUANTIZED_NAMES)), None)
    packed = packed or next(
        (name for name, one in tensors.items() if one.dtype in QUANTIZED_DTYPES and not name.endswith("attn.bias")),
        None,
    )
    if packed is None:
        return
    method = (config.get("quantization_config") or {}).get("quant_method") or "config.json does not say how"
    raise CheckpointError(
        f"The weights are quantized ({method}): {config_file.parent}.",
        f"{packed} is {tensors[packed].dtype}.",
        "Give the weights before quantization, or dequantize them with transformers and save them in bfloat16.",
    )
