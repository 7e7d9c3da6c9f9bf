"""Finds, for every tensor that a model wants, the saved tensor that feeds it. Moves boxes only; opens nothing.

Versions of transformers name and lay out experts in different ways: one by one or fused into three dimensions.
Both directions are a matter of which box comes from where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dist.checkpoint.box_views import add_dim, drop_dim, join, narrow, swap_dims
from dist.checkpoint.boxes import Numbers, SavedTensor
from dist.errors import CheckpointError

SHOWN = 3
# Not weights: what older versions saved, and can be computed.
NOT_NEEDED = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "attn.masked_bias",
    "attn.bias",
)
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
GATE, UP, DOWN = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")


def match_names(
    tensors: Mapping[str, SavedTensor], wanted: Mapping[str, Numbers], tied: Mapping[str, str], config_file: Path
) -> dict[str, SavedTensor]:
    """The saved tensor for every name of `wanted` ({name: shape}).

    `tied` maps further names of a wanted tensor to its name. Raises CheckpointError with the first names and shapes
    that differ, and what that suggests.
    """
    saved = _with_known_names(tensors, wanted)
    chosen: dict[str, SavedTensor] = {}
    for name in wanted:
        aliases = [name, *(other for other, first in tied.items() if first == name)]
        tensor = next((saved[alias] for alias in aliases if alias in saved), None)
        tensor = tensor or _experts(saved, name, wanted[name])
        if tensor is not None:
            chosen[name] = tensor
    _check(saved, chosen, wanted, tied, config_file)
    return chosen


def _with_known_names(tensors: Mapping[str, SavedTensor], wanted: Mapping[str, Numbers]) -> dict[str, SavedTensor]:
    """The saved tensors under the names that this version of transformers gives them."""
    old, new = ".block_sparse_moe.", ".mlp."  # Mixtral's, before and since transformers 5
    saved_old, wanted_old = (any(old in name for name in names) for names in (tensors, wanted))
    if saved_old == wanted_old:
        return dict(tensors)
    before, after = (old, new) if saved_old else (new, old)
    return {name.replace(before, after): tensor for name, tensor in tensors.items()}


def _experts(saved: Mapping[str, SavedTensor], name: str, shape: Numbers) -> SavedTensor | None:
    """A fused tensor made of single experts, or a single expert out of a fused tensor."""
    fused, single = FUSED.fullmatch(name), EXPERT.fullmatch(name)
    if fused:
        return _fuse(saved, fused[1], fused[2], shape)
    if single:
        return _single(saved, single[1], int(single[2]), single[3], shape)
    return None


def _fused_updates(name: str) -> CheckpointError:
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
            raise _fused_updates(f"{experts}.{number}")
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
        raise _fused_updates(experts)
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


def _check(
    saved: Mapping[str, SavedTensor],
    chosen: Mapping[str, SavedTensor],
    wanted: Mapping[str, Numbers],
    tied: Mapping[str, str],
    config_file: Path,
) -> None:
    missing = [name for name in wanted if name not in chosen]
    differing = [name for name, tensor in chosen.items() if tensor.shape != wanted[name]]
    known = wanted.keys() | tied.keys()
    extra = [
        name for name in saved if name not in known and not name.endswith(NOT_NEEDED) and not _used(name, chosen)
    ]
    if not (missing or differing or extra):
        return
    lines = [
        *(
            f"{name} is {list(chosen[name].shape)} in the file, {list(wanted[name])} by the config"
            for name in differing
        ),
        *(f"{name} is not in the file" for name in missing),
        *(f"{name} is not in the config's model" for name in extra),
    ]
    shown = "; ".join(lines[:SHOWN])
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    raise CheckpointError(
        f"The weights are not those of the model that {config_file} describes.",
        f"{shown}{more}. {_likely(saved, missing, differing, extra)}",
        "Put the config.json of the trained model there.",
    )


def _used(name: str, chosen: Mapping[str, SavedTensor]) -> bool:
    """Whether the experts of this name have been fused or split into wanted tensors."""
    single, fused = EXPERT.fullmatch(name), FUSED.fullmatch(name)
    if single:
        return f"{single[1]}.{'down_proj' if single[3] in DOWN else 'gate_up_proj'}" in chosen
    return bool(fused) and any(other.startswith(f"{name.rpartition('.')[0]}.0.") for other in chosen)


def _likely(saved: Mapping[str, SavedTensor], missing: list[str], differing: list[str], extra: list[str]) -> str:
    """What the differences suggest."""
    if len(missing) + len(differing) + len(extra) == 1 and any("embed_tokens" in name for name in differing):
        return "The vocabulary was resized after config.json was written."
    layers = [_layers(names) for names in (saved, [name for name in saved if name not in extra] + missing)]
    if layers[0] != layers[1]:
        return f"The file has {layers[0]} layers, the config {layers[1]}."
    if differing and not missing and not extra:
        return "The names agree and the sizes do not: config.json is of another size of the same model."
    return "config.json is of another architecture."


def _layers(names: Mapping[str, SavedTensor] | Sequence[str]) -> int:
    numbers = [int(match[1]) for name in names if (match := re.search(r"\.layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
