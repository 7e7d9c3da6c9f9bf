"""Experts in the form that a model wants them in, made of the form that they were saved in. Opens nothing.

Versions of transformers name and lay out experts in different ways: one by one or fused into three dimensions.
Both directions are a matter of which box comes from where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dist.checkpoint.box_views import add_dim, drop_dim, join, narrow, swap_dims
from dist.checkpoint.boxes import Numbers, SavedTensor
from dist.errors import CheckpointError

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
GATE, UP, DOWN = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")


def single_or_fused(saved: Mapping[str, SavedTensor], name: str, shape: Numbers) -> SavedTensor | None:
    """A fused tensor made of single experts, or a single expert out of a fused tensor."""
    fused, single = FUSED.fullmatch(name), EXPERT.fullmatch(name)
    if fused:
        return _fuse(saved, fused[1], fused[2], shape)
    if single:
        return _single(saved, single[1], int(single[2]), single[3], shape)
    return None


def fused_updates(name: str) -> CheckpointError:
    """Adapters on an expert that is saved in another form than the model holds it in."""
    return CheckpointError(
        "Adapters on experts cannot be merged here.",
        f"{name} has one, and this version of transformers keeps experts in another form.",
        "Merge them with peft's merge_and_unload, then give the folder of the result.",
    )


def _fuse(saved: Mapping[str, SavedTensor], experts: str, which: str, shape: Numbers) -> SavedTensor | None:
    kinds = (GATE, UP) if which == "gate_up_proj" else (DOWN,)
    rows = []
    for number in range(shape[0]):
        parts = [_first(saved, [f"{experts}.{number}.{kind}.weight" for kind in names]) for names in kinds]
        found = [part for part in parts if part is not None]
        if len(found) < len(kinds):
            return None
        if any(part.update for part in found):
            raise fused_updates(f"{experts}.{number}")
        rows.append(add_dim(join(found, 0)))
    tensor = join(rows, 0)
    return tensor if tensor.shape == shape else _turned(tensor, shape)


def _single(
    saved: Mapping[str, SavedTensor], experts: str, number: int, kind: str, shape: Numbers
) -> SavedTensor | None:
    tensor = saved.get(f"{experts}.{'down_proj' if kind in DOWN else 'gate_up_proj'}")
    if tensor is None or len(tensor.shape) != 3 or number >= tensor.shape[0]:
        return None
    if tensor.update:
        raise fused_updates(experts)
    one = drop_dim(narrow(tensor, 0, number, 1), 0)
    rows = shape[0] if kind in DOWN else 2 * shape[0]
    if one.shape != (rows, shape[1]):
        one = _turned(one, (rows, shape[1]))
    if kind in DOWN:
        return one
    return narrow(one, 0, 0 if kind in GATE else shape[0], shape[0])


def _turned(tensor: SavedTensor, shape: Numbers) -> SavedTensor:
    """With the last two dimensions swapped if that gives `shape`, else as it is."""
    turned = swap_dims(tensor, -2, -1)
    return turned if turned.shape == shape else tensor


def _first(saved: Mapping[str, SavedTensor], names: Sequence[str]) -> SavedTensor | None:
    return next((saved[name] for name in names if name in saved), None)


def is_used(name: str, chosen: Mapping[str, SavedTensor]) -> bool:
    """Whether the experts of this name have been fused or split into wanted tensors."""
    single, fused = EXPERT.fullmatch(name), FUSED.fullmatch(name)
    if single:
        return f"{single[1]}.{'down_proj' if single[3] in DOWN else 'gate_up_proj'}" in chosen
    return bool(fused) and any(other.startswith(f"{name.rpartition('.')[0]}.0.") for other in chosen)
