"""What a session records of the model and the prompt that a reply was made with. Pure; knows no file."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chat.loading.facts import CheckpointFacts
from chat.sessions.records import CheckpointRecord
from chat.text.tokenizer import ChatTokenizer
from dist.errors import UsageError
from dist.settings import SETTINGS, parse_setting

HEX_DIGITS = 16


def prompt_digest(token_ids: Sequence[int]) -> str:
    """What tells one prompt from another: the digest of its ids as little-endian 32-bit words."""
    words = array("I", token_ids)
    if words.itemsize != 4 or array("H", [1]).tobytes() != b"\1\0":
        return hashlib.sha256(b"".join(one.to_bytes(4, "little") for one in token_ids)).hexdigest()[:HEX_DIGITS]
    return hashlib.sha256(words.tobytes()).hexdigest()[:HEX_DIGITS]


def checkpoint_record(facts: CheckpointFacts, tokenizer: ChatTokenizer, *, use_template: bool) -> CheckpointRecord:
    """What answers now, for the journal."""
    named = ("checkpoint", "step", "digest", "tokenizer_digest", "processes", "dtype", "parallel")
    template = tokenizer.template.template.text if use_template and tokenizer.template is not None else ""
    return CheckpointRecord(
        time=round(time.time(), 3),
        path=facts.checkpoint,
        step=facts.step,
        digest=facts.digest,
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


def differences(before: CheckpointRecord, now: CheckpointRecord) -> Iterator[str]:
    """What answers now otherwise than before, a sentence each."""
    if before.digest and now.digest and before.digest != now.digest:
        yield f"Other weights answer now: {_named(now)}; the last reply was made by {_named(before)}."
    elif not (before.digest and now.digest) and before.path != now.path:
        yield f"Another checkpoint answers now: {_named(now)}; the last reply was made by {_named(before)}."
    if before.tokenizer and now.tokenizer and before.tokenizer != now.tokenizer:
        yield "The tokenizer is another one: earlier replies are tokenized again for the prompt."
    for what, was, is_now in (
        ("dtype", before.dtype, now.dtype),
        ("way the model is spread", before.parallel, now.parallel),
        ("number of processes", before.world_size, now.world_size),
        ("chat template", before.template, now.template),
        ("set of stop tokens", before.stop_ids, now.stop_ids),
    ):
        if was and was != is_now:
            shown = "" if what in ("chat template", "set of stop tokens") else f": {is_now}, before {was}"
            yield f"The {what} is another one{shown}."


def _named(checkpoint: CheckpointRecord) -> str:
    return checkpoint.path if checkpoint.step is None else f"step {checkpoint.step} of {checkpoint.path}"
