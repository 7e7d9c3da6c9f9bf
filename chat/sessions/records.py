"""The records of a session's journal, one frozen value for each kind. Knows no file and no tree.

FORMAT.md says what each holds, journal.schema.json what is valid. A record is one JSON object; what it does not
name has its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

VERSION = 2
MOST_ID = 2**31 - 1
LATEST = 1e11  # the year 5138

Plain = Mapping[str, Any]
Ids = tuple[int, ...]
# Why the head moved. `undo` and `clear` can be taken back by `redo`.
By = Literal["undo", "clear", "redo", "branch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What every record is; `kind` is its name in the journal."""

    @property
    def kind(self) -> str:
        return NAMES[type(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord(Record):
    """The first record of a journal. `origin` says what it was made of, if it was not begun by talking."""

    version: int
    id: str
    time: float
    program: str
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord(Record):
    """What answers from here on: at the start, after `/load`, at every resume, around a reply that another made.

    `digest` is that of the checkpoint, `whole` that of its every byte if they were all read, `tokenizer` and
    `template` those of the tokenizer and the chat template ("" where it is not used); `world_size` counts the
    processes that answer; `facts` is whatever else is known.
    """

    time: float
    path: str
    step: int | None = None
    digest: str = ""
    whole: str = ""
    tokenizer: str = ""
    template: str = ""
    world_size: int = 1
    dtype: str = ""
    parallel: str = ""
    stop_ids: Ids = ()
    facts: Plain = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRecord(Record):
    """A node: the system prompt from here on, none if `text` is empty. The head moves to it.

    `kept` says that the head had moved back and this only keeps the prompt that was in force.
    """

    id: int
    parent: int
    text: str
    time: float
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord(Record):
    """A reply is begun, node `id`, to the user's message `message`. The head moves to that message.

    With `text` the message is a new node below `parent`; without it (a retry) it is there already.
    `settings` are all those in force, `seed` the one that is sampled with. `left_out` counts the oldest exchanges
    that the prompt has no room for. `prompt_len` and `prompt` are its length and the digest of its ids.
    `back` is where the head returns to if nothing of the reply gets finished; None: it stays.
    The first `begun` tokens are not the model's, or an earlier reply's: what it was begun with. `continues` is the
    reply that it goes on from, where that was not whole.
    """

    id: int
    message: int
    time: float
    settings: Plain
    parent: int | None = None
    text: str | None = None
    seed: int | None = None
    left_out: int = 0
    prompt_len: int = 0
    prompt: str = ""
    back: int | None = None
    begun: int = 0
    continues: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensRecord(Record):
    """Tokens of a reply that are finished, and the text that became certain with them."""

    turn: int
    ids: Ids
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRecord(Record):
    """A setting that is another one from a reply's token `at` on.

    With 0 it was decided before the first one, by what a trial of the model showed.
    """

    turn: int
    at: int
    name: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRecord(Record):
    """A reply has ended. `text` is the whole of it. The head moves to it."""

    turn: int
    finish: str
    text: str
    time: float
    stats: Plain = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRecord(Record):
    """The conversation goes on from another node."""

    node: int
    by: By


@dataclass(frozen=True, slots=True, kw_only=True)
class TitleRecord(Record):
    """The name that the user gave."""

    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRecord(Record):
    """What the user should know later."""

    text: str
    time: float


KINDS: dict[str, type[Record]] = {
    "session": SessionRecord,
    "checkpoint": CheckpointRecord,
    "system": SystemRecord,
    "turn": TurnRecord,
    "tokens": TokensRecord,
    "setting": SettingRecord,
    "reply": ReplyRecord,
    "head": HeadRecord,
    "title": TitleRecord,
    "note": NoteRecord,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def to_plain(record: Record) -> dict[str, Any]:
    """The record as a JSON object: its kind, and what is not at its default."""
    plain: dict[str, Any] = {"kind": record.kind}
    for row in dataclasses.fields(record):
        value = getattr(record, row.name)
        default = row.default_factory() if row.default_factory is not dataclasses.MISSING else row.default
        if default is dataclasses.MISSING or value != default:
            plain[row.name] = list(value) if isinstance(value, tuple) else value
    return plain


def from_plain(plain: object) -> Record:
    """The record that a JSON object holds; names that this version does not know are passed over.

    Raises ValueError for what is no record.
    """
    if not isinstance(plain, dict) or not _text(plain.get("kind")) or plain["kind"] not in KINDS:
        raise ValueError("no record")
    made = KINDS[plain["kind"]]
    values: dict[str, Any] = {}
    for row in dataclasses.fields(made):
        if row.name in plain:
            value = plain[row.name]
            if not CHECKS[str(row.type)](value):
                raise ValueError(f"{plain['kind']}: {row.name} cannot be {value!r}")
            values[row.name] = tuple(value) if row.type == "Ids" else value
    try:
        return made(**values)
    except TypeError as error:
        raise ValueError(f"{plain['kind']}: {error}") from None


def are_ids(value: object) -> bool:
    """Whether a value can be the ids of tokens."""
    return isinstance(value, (list, tuple)) and all(_whole(one) and 0 <= one <= MOST_ID for one in value)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _number(value: object) -> bool:
    # Times, all of them: one that no calendar has, or no number, would be found out too late.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LATEST


# What a field may hold, by its annotation.
CHECKS: dict[str, Callable[[object], bool]] = {
    "int": _whole,
    "int | None": lambda value: value is None or _whole(value),
    "float": _number,
    "str": _text,
    "str | None": lambda value: value is None or _text(value),
    "bool": lambda value: isinstance(value, bool),
    "Plain": lambda value: isinstance(value, dict),
    "Ids": are_ids,
    "By": lambda value: value in ("undo", "clear", "redo", "branch"),
    "Any": lambda value: True,
}
