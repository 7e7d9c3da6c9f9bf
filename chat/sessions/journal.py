"""What a session's journal says, read from its bytes. Knows no folder and writes nothing.

A journal cut at any byte gives what its whole lines say; a line that is not understood is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chat.text.transcript import USER, Message, Transcript, message_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """The conversation, and what was known of the checkpoint."""

    transcript: Transcript
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One line of `/sessions`. `changed` is in seconds since the epoch, `opening` the first message's text."""

    name: str
    changed: float
    exchanges: int
    opening: str


def describe(path: Path) -> SessionInfo:
    """A few words on a journal. Raises OSError."""
    transcript = read_journal(path.read_bytes()).transcript
    opening = next((message.content for message in transcript.messages if message.role == USER), "")
    return SessionInfo(
        name=path.stem, changed=path.stat().st_mtime, exchanges=len(transcript.exchanges), opening=opening
    )


def read_journal(data: bytes) -> Restored:
    """Everything that the whole lines of a journal say.

    A reply that was being made when the journal ends is given with its finished blocks, as stopped; a message
    without a finished block is marked unanswered, and a retry or an edit without one counts for nothing.
    """
    reader = _Reader()
    for record in _records(data):
        reader.take(record)
    reader.end_turn()
    return Restored(transcript=reader.transcript, facts=reader.facts)


def _records(data: bytes) -> Iterator[Mapping[str, Any]]:
    *lines, _unfinished = data.split(b"\n")
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


class _Reader:
    """The state of the conversation after the records taken so far."""

    def __init__(self) -> None:
        self.transcript = Transcript()
        self.facts: Mapping[str, Any] = {}
        self._ids: tuple[int, ...] = ()
        self._text = ""
        self._before: Transcript | None = None  # what holds again unless this turn finishes a block

    def take(self, record: Mapping[str, Any]) -> None:
        """Add what one record says; one that lacks something is passed over."""
        try:
            self._take(record)
        except (KeyError, TypeError, ValueError):
            return

    def _take(self, record: Mapping[str, Any]) -> None:
        match record.get("kind"):
            case "start":
                self.facts = dict(record["facts"])
                self.transcript = Transcript(tuple(map(message_from, record["messages"])))
            case "turn":
                message = message_from(record["message"])
                start = tuple(map(message_from, record["messages"])) if "messages" in record else None
                self.end_turn()
                if start is not None:
                    self._before, self.transcript = self.transcript, Transcript(start)
                self.transcript = Transcript((*self.transcript.messages, message))
            case "block":
                self._ids += tuple(record["token_ids"])
                self._text = self._text[: record["keep"]] + record["text"]
            case "reply":
                self._answer(message_from(record["message"]))
            case "transcript":
                self._forget_blocks()
                self.transcript = Transcript(tuple(map(message_from, record["messages"])))
            case "facts":
                self.facts = dict(record["facts"])

    def end_turn(self) -> None:
        """The program ended here, or went on without a word on how the reply ended."""
        if self._ids:
            self.transcript = self.transcript.with_reply(self._text, self._ids, stopped=True)
        elif self._before is not None:
            self.transcript = self._before
        self.transcript = self.transcript.mark_unanswered()
        self._forget_blocks()

    def _answer(self, reply: Message) -> None:
        answered = self.transcript.with_reply(reply.content).messages[:-1]
        self.transcript = Transcript((*answered, reply))
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        self._ids, self._text, self._before = (), "", None
