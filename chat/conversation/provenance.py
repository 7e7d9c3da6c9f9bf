"""What a session records of the model and the prompt that a reply was made with. Pure; knows no file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from chat.loading.facts import CheckpointFacts
from chat.sessions.records import CheckpointRecord
from chat.sessions.tree import Tree
from chat.text.tokenizer import ChatTokenizer
from dist.errors import UsageError
from dist.settings import SETTINGS, parse_setting

HEX_DIGITS = 16


def checkpoint_record(facts: CheckpointFacts, tokenizer: ChatTokenizer, *, use_template: bool) -> CheckpointRecord:
    """What answers now, for the journal."""
    named = ("checkpoint", "step", "digest", "whole_digest", "tokenizer_digest", "processes", "dtype", "parallel")
    template = tokenizer.template.template.text if use_template and tokenizer.template is not None else ""
    return CheckpointRecord(
        time=round(time.time(), 3),
        path=facts.checkpoint,
        step=facts.step,
        digest=facts.digest,
        whole=facts.whole_digest,
        tokenizer=facts.tokenizer_digest,
        template=hashlib.sha256(template.encode()).hexdigest()[:HEX_DIGITS] if template else "",
        world_size=facts.processes,
        dtype=facts.model.dtype,
        parallel=facts.model.parallel,
        stop_ids=tokenizer.stop_ids,
        facts={name: value for name, value in facts.as_dict().items() if name not in named},
    )


def settings_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings that this version knows and can still take, by name."""
    values: dict[str, Any] = {}
    for name in SETTINGS.keys() & recorded.keys():
        try:
            values[name] = parse_setting(name, recorded[name])
        except UsageError:
            continue
    return values


def unknown_settings(recorded: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The recorded settings that this version cannot take, with their values."""
    known = settings_of(recorded)
    return [(name, value) for name, value in recorded.items() if name not in known]


def differences(before: CheckpointRecord, now: CheckpointRecord) -> Iterator[str]:
    """What answers now otherwise than before, a sentence each."""
    if before.digest and now.digest and is_other(before, now):
        yield f"Other weights answer now: {named(now)}; the last reply was made by {named(before)}."
    elif is_other(before, now):
        yield f"Another checkpoint answers now: {named(now)}; the last reply was made by {named(before)}."
    if before.tokenizer and now.tokenizer and before.tokenizer != now.tokenizer:
        yield "The tokenizer is another one: earlier replies are tokenized again for the prompt."
    for what, was, is_now in (
        ("dtype", before.dtype, now.dtype),
        ("layout over the ranks", _layout(before.parallel), _layout(now.parallel)),
        ("number of processes", before.world_size, now.world_size),
        ("chat template", before.template, now.template),
        ("set of stop tokens", before.stop_ids, now.stop_ids),
    ):
        if was and was != is_now:
            shown = "" if what in ("chat template", "set of stop tokens") else f": {is_now}, before: {was}"
            yield f"The {what} differs{shown}."


def promise(tree: Tree, now: CheckpointRecord, *, own: bool) -> str:
    """What to know of a replay on `now`: that others made the replies, or that nothing promises the same tokens.

    `own`: each was decoded by what made it.
    """
    makers = [node.made.checkpoint for node in tree.nodes() if node.made and node.made.checkpoint]
    others = sorted({named(one) for one in makers if is_other(one, now)})
    if others and not own:
        return f"Made by {', '.join(others)}; replayed on {named(now)}."
    if now.dtype != "float32" and any(one.dtype != "float32" for one in makers):
        return f"In {now.dtype} near-ties can differ; float32 guarantees the same tokens."
    if any(one.world_size != now.world_size for one in makers):
        return f"Made on a different number of ranks (this run has {now.world_size}); near-ties can differ."
    return ""


def _layout(parallel: str) -> str:
    """How the model is laid out over the ranks, without the reason, which has figures of the moment."""
    return parallel.partition(": ")[0]


def is_other(before: CheckpointRecord, now: CheckpointRecord) -> bool:
    """Whether two records are of different content, as far as their digests can tell."""
    if before.whole and now.whole:
        return before.whole != now.whole
    if before.digest and now.digest:
        return before.digest != now.digest
    return before.path != now.path


def named(checkpoint: CheckpointRecord) -> str:
    """A checkpoint in words."""
    return checkpoint.path if checkpoint.step is None else f"step {checkpoint.step} of {checkpoint.path}"
