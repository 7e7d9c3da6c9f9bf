"""Finds, for every tensor that a model wants, the saved tensor that feeds it, by its name. Opens nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist.checkpoint.boxes import Numbers, SavedTensor
from dist.checkpoint.experts import is_used, single_or_fused
from dist.checkpoint.ledger import TENSORS, WEIGHTS, Entry
from dist.counted import counted
from dist.errors import CheckpointError

SHOWN = 3
# Not weights: what older versions saved, and can be computed.
COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", "attn.masked_bias")
MASKS = ("attn.bias", "attention.bias")
OTHER_PARTS = re.compile(
    r"(.*\.)?(visual|vision\w*|multi_modal_projector|mm_\w+|image_newline|embed_vision|audio\w*|embed_audio"
    r"|connector|aligner|\w*projector|perceiver\w*|patch_\w+)\..*|(.*\.)?image_newline"
)
BY_RULES = "names read by transformers' own rules"
# What wrappers of modules put into names, anywhere.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
HEAD = re.compile(r"lm_head|embed_out")
VOCABULARY = re.compile(r"embed_tokens|embed_in|wte|word_embeddings|lm_head|embed_out")


Convert = Callable[[Mapping[str, SavedTensor], Mapping[str, Numbers]], "dict[str, SavedTensor] | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a model needs: shapes by name, {further name: name} of tied ones, and what it passes over.

    `harmless`: patterns of names that transformers passes over for this model. `text_part`: the checkpoint holds
    more than this model, for images say. `file`: the config that it was built from, for messages.
    """

    shapes: Mapping[str, Numbers]
    tied: Mapping[str, str]
    file: Path
    harmless: Sequence[str] = ()
    text_part: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The saved tensor for every name that is wanted.

    `tied_too` are tensors saved besides under further names of tied ones. `entries` has each saved tensor.
    """

    sources: Mapping[str, SavedTensor]
    tied_too: Mapping[str, SavedTensor]
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """How well one way to read the saved names fits."""

    saved: Mapping[str, SavedTensor]
    chosen: Mapping[str, SavedTensor]
    missing: list[str]
    differing: list[str]
    extra: list[str]
    passed_over: Mapping[str, str]

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.differing) + len(self.extra)


def match_names(tensors: Mapping[str, SavedTensor], wanted: Wanted, convert: Convert | None = None) -> Matched:
    """The saved tensor for every name of `wanted`.

    Names are tried as they are, then by `convert` (transformers' own rules), then with one prefix that fits all
    taken off or put on. Raises CheckpointError with the first names and shapes that differ, what that suggests, and
    the file's own names where none of them fits.
    """
    readers: dict[str, Callable[[Mapping[str, SavedTensor]], Mapping[str, SavedTensor] | None]] = {
        "": lambda names: names,
        BY_RULES: lambda names: None if convert is None else convert(names, wanted.shapes),
        "blocks of Mixtral's renamed": lambda names: _mixtral_names(names, wanted.shapes),
    }
    best: _Attempt | None = None
    for note, names in _prefix_readings(tensors, wanted):
        for manner, read in readers.items():
            saved = read(names)
            attempt = None if saved is None else _attempt(saved, wanted)
            if attempt is not None and not attempt.faults:
                return _matched(tensors, attempt, wanted, "; ".join(filter(None, (note, manner))))
            if attempt is not None and (best is None or attempt.faults < best.faults):
                best = attempt
    assert best is not None
    raise _misfit(tensors, best, wanted)


def _prefix_readings(
    tensors: Mapping[str, SavedTensor], wanted: Wanted
) -> Iterator[tuple[str, Mapping[str, SavedTensor]]]:
    """(what was changed, tensors by changed names): as they are, unwrapped, with each prefix that may fit."""
    yield "", tensors
    bare = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    gone = [mark for mark in WRAPPERS if any(mark in name for name in tensors)]
    note = f"{', '.join(gone)} taken out of names" if gone else ""
    if len(bare) < len(tensors):
        return  # two names became one
    if gone:
        yield note, bare
    for old, new in _prefixes(bare, wanted.shapes):
        changed: dict[str, SavedTensor] = {}
        for name, tensor in bare.items():
            changed.setdefault(_replaced(name, old, new, wanted), tensor)
        if len(changed) == len(bare):
            words = f"{old} read as {new} in names" if old and new else f"{old} taken off names"
            words = words if old else f"{new} put before names"
            yield "; ".join(filter(None, (note, words))), changed


def _unwrapped(name: str) -> str:
    for mark in WRAPPERS:
        name = name.replace(mark, "")
    return name


def _prefixes(names: Mapping[str, SavedTensor], shapes: Mapping[str, Numbers]) -> list[tuple[str, str]]:
    """(saved prefix, wanted prefix) that would make a saved name the first wanted one, the longest match first."""
    first = next(iter(shapes)).split(".")
    found: dict[tuple[str, str], int] = {}
    for name in names:
        parts = name.split(".")
        common = 0
        while common < min(len(parts), len(first)) and parts[-1 - common] == first[-1 - common]:
            common += 1
        if common >= 2:
            pair = tuple("".join(f"{part}." for part in one[: len(one) - common]) for one in (parts, first))
            found[pair[0], pair[1]] = common
    return sorted((pair for pair in found if pair[0] != pair[1]), key=lambda pair: -found[pair])


def _replaced(name: str, old: str, new: str, wanted: Wanted) -> str:
    """`name` with the prefix `new` for `old`; a name that does not begin so may lack or have a part of it."""
    known = wanted.shapes.keys() | wanted.tied.keys()
    if name.startswith(old) and new + name[len(old) :] in known:
        return new + name[len(old) :]
    if name in known:
        return name
    if name.startswith(old) and not wanted.text_part:
        name = new + name[len(old) :]
    # What stands beside the body, such as the head, has the part of the prefix that comes before the body's.
    pieces = old.split(".")
    for count in range(len(pieces) - 1, 0, -1):
        lead = ".".join(pieces[:count]) + "."
        if name.startswith(lead) and name[len(lead) :] in known:
            return name[len(lead) :]
    return name


def _matched(tensors: Mapping[str, SavedTensor], attempt: _Attempt, wanted: Wanted, note: str) -> Matched:
    passed_over = {id(attempt.saved[name]): why for name, why in attempt.passed_over.items()}
    entries = []
    for name, tensor in tensors.items():
        why = passed_over.get(id(tensor))
        entries.append(Entry(TENSORS, name, why is None, why or note or WEIGHTS))
    too = {
        other: attempt.saved[other]
        for other, first in wanted.tied.items()
        if other in attempt.saved and first in attempt.saved
    }
    return Matched(sources=attempt.chosen, tied_too=too, entries=tuple(entries))


def _attempt(saved: Mapping[str, SavedTensor], wanted: Wanted) -> _Attempt:
    chosen: dict[str, SavedTensor] = {}
    for name, shape in wanted.shapes.items():
        aliases = [name, *(other for other, first in wanted.tied.items() if first == name)]
        tensor = next((saved[alias] for alias in aliases if alias in saved), None)
        tensor = tensor or single_or_fused(saved, name, shape)
        if tensor is not None:
            chosen[name] = tensor
    known = wanted.shapes.keys() | wanted.tied.keys()
    rest = {name: _harmless(name, tensor, wanted) for name, tensor in saved.items() if name not in known}
    return _Attempt(
        saved=saved,
        chosen=chosen,
        missing=[name for name in wanted.shapes if name not in chosen],
        differing=[name for name, tensor in chosen.items() if tensor.shape != wanted.shapes[name]],
        extra=[name for name, why in rest.items() if why is None and not is_used(name, chosen)],
        passed_over={name: why for name, why in rest.items() if why is not None},
    )


def _harmless(name: str, tensor: SavedTensor, wanted: Wanted) -> str | None:
    """Why a tensor that no parameter takes may be passed over, or None."""
    if name.endswith(COMPUTED):
        return "computed from the config"
    if name.endswith(MASKS) and (tensor.dtype in ("bool", "uint8") or len(tensor.shape) == 4):
        return "an attention mask, computed"
    if any(re.search(pattern, name) for pattern in wanted.harmless):
        return "transformers does not use it in this model"
    if wanted.text_part and OTHER_PARTS.fullmatch(name):
        return "only the text part answers"
    return None


def _mixtral_names(
    tensors: Mapping[str, SavedTensor], shapes: Mapping[str, Numbers]
) -> dict[str, SavedTensor] | None:
    """Mixtral's blocks under the names that they have before or since transformers 5, whichever is wanted."""
    old, new = ".block_sparse_moe.", ".mlp."
    saved_old, wanted_old = (any(old in name for name in names) for names in (tensors, shapes))
    if saved_old == wanted_old:
        return None
    before, after = (old, new) if saved_old else (new, old)
    return {name.replace(before, after): tensor for name, tensor in tensors.items()}


def _misfit(tensors: Mapping[str, SavedTensor], attempt: _Attempt, wanted: Wanted) -> CheckpointError:
    """What differs most closely read, and why that may be."""
    chosen, shapes = attempt.chosen, wanted.shapes
    lines = [
        *(
            f"{name} is {list(chosen[name].shape)} in the file, {list(shapes[name])} by the config"
            for name in attempt.differing
        ),
        *(f"{name} is not in the file" for name in attempt.missing),
        *(f"{name} is not in the config's model" for name in attempt.extra),
    ]
    shown = "; ".join(lines[:SHOWN])
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    names = ""
    if not any(name in shapes for name in attempt.saved):
        own, due = (", ".join(list(names)[:SHOWN]) for names in (tensors, shapes))
        names = f" The file's names begin {own}; wanted are {due}."
    return CheckpointError(
        f"The weights are not those of the model that {wanted.file} describes.",
        f"{shown}{more}. {_likely(attempt)}{names}",
        "Put the config.json of the trained model there.",
    )


def _likely(attempt: _Attempt) -> str:
    """What the differences suggest."""
    saved, missing, differing, extra = attempt.saved, attempt.missing, attempt.differing, attempt.extra
    if differing and not missing and not extra and all(VOCABULARY.search(name) for name in differing):
        return "The vocabulary was resized after config.json was written: its vocab_size is not the file's."
    layers = [_layers(names) for names in (saved, [name for name in saved if name not in extra] + missing)]
    if layers[0] != layers[1]:
        return f"The file has {counted(layers[0], 'layer')}, the config {layers[1]}."
    if differing and not missing and not extra:
        return "The names agree and the sizes do not: config.json is of another size of the same model."
    if missing and not extra and not differing:
        if all(HEAD.search(name) for name in missing):
            return "Heads tied to the embeddings are not saved, but config.json says that this one is not tied."
        return "The file is incomplete, or config.json describes another architecture."
    if extra and not missing and not differing:
        return (
            "No parameter takes them, and replies would be made without them: "
            "config.json is of another architecture."
        )
    return "config.json is of another architecture."


def _layers(names: Mapping[str, SavedTensor] | Sequence[str]) -> int:
    numbers = [int(match[1]) for name in names if (match := re.search(r"\.layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
