"""Saved tensors under the names of the installed transformers, by its own conversion tables. Moves boxes only.

transformers 5 renames, fuses and splits weights of older versions while it loads them; the same rules are followed
here on where the bytes lie. Version 4 has no such tables: then nothing is converted. Reads no weight.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from dist.checkpoint.box_views import add_dim, join, narrow, swap_dims
from dist.checkpoint.boxes import Numbers, SavedTensor
from dist.checkpoint.experts import fused_updates

Collected = dict[str, list[SavedTensor]]


def convert_names(
    module: Any, tensors: Mapping[str, SavedTensor], wanted: Mapping[str, Numbers]
) -> dict[str, SavedTensor] | None:
    """`tensors` as transformers would load them into `module`; None if it has no rules for this model.

    Names that no rule turns into wanted ones stay as they are. Raises CheckpointError for adapters on what would be
    fused.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # transformers 4
        return None
    rules = get_model_conversion_mapping(module)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    of_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    renamed: dict[str, SavedTensor] = {}
    groups: dict[str, tuple[Any, Collected, list[str]]] = {}
    for name in sorted(tensors, key=_natural):
        target, pattern = rename_source_key(name, renamings, converters, module.base_model_prefix, wanted)
        if target not in wanted and (pattern is None or not _makes_wanted(of_pattern[pattern], target, wanted)):
            renamed[name] = tensors[name]
        elif pattern is None:
            renamed[target] = tensors[name]
        else:
            _, collected, sources = groups.setdefault(target, (of_pattern[pattern], {}, []))
            collected.setdefault(pattern, []).append(tensors[name])
            sources.append(name)
    for target, (rule, collected, sources) in groups.items():
        made = _apply(rule, target, collected, wanted)
        if made is None:
            renamed.update({name: tensors[name] for name in sources})
            continue
        if any(tensors[name].update is not None for name in sources):
            raise fused_updates(sources[0])
        renamed.update(made)
    return renamed


def _makes_wanted(rule: Any, target: str, wanted: Collection[str]) -> bool:
    first = rule.target_patterns[0]
    return any(target.replace(first, other) in wanted for other in rule.target_patterns)


def _apply(
    rule: Any, target: str, collected: Collected, wanted: Mapping[str, Numbers]
) -> dict[str, SavedTensor] | None:
    """What one rule makes of the tensors that it collected, by full names; None if it cannot be followed here."""
    if len(collected) < len(rule.source_patterns):
        return None
    state = collected
    for operation in rule.operations:
        step = _STEPS.get(type(operation).__name__)
        following = None if step is None else step(operation, state, rule, wanted.get(target))
        if following is None:
            return None
        state = following
    first = rule.target_patterns[0]
    return {target.replace(first, pattern, 1): one for pattern, (one,) in state.items()}


def _merge(operation: Any, state: Collected, rule: Any, shape: Numbers | None) -> Collected | None:
    """Tensors of a list of modules, stacked."""
    if operation.dim != 0:
        return None
    names = rule.target_patterns if len(state) == 1 else list(state)
    return {name: [join([add_dim(one) for one in tensors], 0)] for name, tensors in zip(names, state.values())}


def _concatenate(operation: Any, state: Collected, rule: Any, shape: Numbers | None) -> Collected | None:
    parts = [one for pattern in rule.source_patterns for one in state.get(pattern, ())]
    return {rule.target_patterns[0]: [join(parts, operation.dim)]}


def _chunk(operation: Any, state: Collected, rule: Any, shape: Numbers | None) -> Collected | None:
    (tensors,) = state.values()
    whole, dim, parts = tensors[0], operation.dim, rule.target_patterns
    length, rest = divmod(whole.shape[dim], len(parts))
    if rest:
        return None
    return {name: [narrow(whole, dim, place * length, length)] for place, name in enumerate(parts)}


def _transpose(operation: Any, state: Collected, rule: Any, shape: Numbers | None) -> Collected | None:
    ((pattern, tensors),) = state.items()
    name = rule.target_patterns[0] if len(rule.target_patterns) == 1 else pattern
    if operation.check_dims and tensors[0].shape == shape:
        return {name: tensors}
    return {name: [swap_dims(tensors[0], operation.dim0, operation.dim1)]}


def _split_and_fuse(operation: Any, state: Collected, rule: Any, shape: Numbers | None) -> Collected | None:
    """Each list of modules is cut into one part a target; parts of the same target are fused."""
    targets = rule.target_patterns
    fused: dict[str, list[SavedTensor]] = {name: [] for name in targets}
    for pattern in rule.source_patterns:
        tensors = state[pattern]
        size = math.ceil(len(tensors) / len(targets))
        for place, name in enumerate(targets):
            part = tensors[place * size : (place + 1) * size]
            if not part or operation.stack_dim != 0:
                return None
            fused[name].append(join([add_dim(one) for one in part], 0))
    return {name: [join(parts, operation.concat_dim)] for name, parts in fused.items()}


_STEPS = {
    "MergeModulelist": _merge,
    "Concatenate": _concatenate,
    "Chunk": _chunk,
    "Transpose": _transpose,
    "ErnieFuseAndSplitTextVisionExperts": _split_and_fuse,
}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Layer 10 after layer 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
