"""The low-rank adapter: its file, and its merge into a model's weights. Knows nothing of how it was trained.

The file holds tensors by PEFT's names (`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`,
[rank, in], and `lora_B`, [out, rank]); its metadata holds `lora_alpha`. A merged weight is
W + lora_alpha / rank * B A, computed in float32 and rounded to the dtype of W.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILE = Path(__file__).with_name("adapter.safetensors")
_PREFIX = "base_model.model."
_LEFT, _RIGHT = ".lora_B.weight", ".lora_A.weight"


def read_adapter(file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """By the base weight's name its (B, A), and lora_alpha. Raises ValueError for a file that is no adapter."""
    from safetensors import safe_open

    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    with safe_open(str(file), framework="pt") as source:
        names = set(source.keys())
        alpha = (source.metadata() or {}).get("lora_alpha")
        for name in sorted(names):
            if name.startswith(_PREFIX) and name.endswith(_LEFT):
                stem = name.removesuffix(_LEFT)
                pair = (source.get_tensor(name), source.get_tensor(stem + _RIGHT))
                pairs[stem.removeprefix(_PREFIX) + ".weight"] = pair
    if alpha is None or not pairs or len(names) != 2 * len(pairs):
        raise ValueError(f"{file} is no adapter: {len(names)} tensors, {len(pairs)} pairs, lora_alpha {alpha}")
    return pairs, float(alpha)


def write_adapter(file: Path, pairs: dict[str, tuple[Tensor, Tensor]], alpha: float) -> None:
    """Write (B [out, rank], A [rank, in]) by base weight name, in bfloat16."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, (left, right) in pairs.items():
        stem = _PREFIX + name.removesuffix(".weight")
        tensors[stem + _LEFT] = left.detach().to("cpu", torch.bfloat16).contiguous()
        tensors[stem + _RIGHT] = right.detach().to("cpu", torch.bfloat16).contiguous()
    save_file(tensors, str(file), metadata={"format": "pt", "lora_alpha": str(alpha)})


def merge_adapter(state: MutableMapping[str, Tensor], file: Path = ADAPTER_FILE, *, scale: float = 1.0) -> None:
    """Add the adapter, times `scale`, to the weights in `state` (transformers' names), in place of the old.

    Raises ValueError, with `state` untouched, where a weight is missing or has another shape.
    """
    pairs, alpha = read_adapter(file)
    for name, (left, right) in pairs.items():
        found = tuple(state[name].shape) if name in state else None
        if found != (left.shape[0], right.shape[1]):
            raise ValueError(
                f"the adapter changes {name} of {(left.shape[0], right.shape[1])}, the model has {found}"
            )
    for name, (left, right) in pairs.items():
        weight = state[name]
        change = (left.float() @ right.float()).to(weight.device) * (scale * alpha / right.shape[0])
        state[name] = (weight.float() + change).to(weight.dtype)
