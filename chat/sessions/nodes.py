"""What a conversation's tree consists of: messages, and how replies were made. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chat.sessions.records import CheckpointRecord, Plain, TurnRecord
from chat.text.transcript import USER, Message

ROOT = 0
# The end of a reply whose end is not in the journal: the program ended first.
CUT = "cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting changed in the middle of a reply: in force from its token `at` on."""

    at: int
    name: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a reply was made. `turn` is the record that began it, `checkpoint` what answered.

    `finish` is stop, length or cancelled as the engine says, `error`, or `cut` where nothing is known of its end.
    `time` is when it ended, None for a cut one.
    """

    turn: TurnRecord
    checkpoint: CheckpointRecord | None
    finish: str = CUT
    token_ids: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()
    stats: Plain = field(default_factory=dict)
    time: float | None = None

    @property
    def stopped(self) -> bool:
        """Whether the reply would have gone on."""
        return self.finish in ("cancelled", "error", CUT)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings at its end."""
        return {**self.turn.settings, **{change.name: change.value for change in self.changes}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One message. `made` is there for replies only; `kept` for a system prompt that was only kept in force."""

    id: int
    parent: int
    role: str
    text: str
    time: float
    made: Made | None = None
    kept: bool = False


def as_message(node: Node, *, answered: bool = True) -> Message:
    """A node as the transcript holds it."""
    if node.made is None:
        return Message(node.role, node.text, unanswered=node.role == USER and not answered)
    made = node.made
    return Message(node.role, node.text, made.token_ids, stopped=made.stopped, left_out=made.turn.left_out)
