"""Journals of version 1, and other lists of messages, as records. Knows no file; nothing is written in that form.

Version 1 wrote down the whole conversation whenever it changed otherwise than by a turn. What those states share
becomes one path here and what they don't becomes branches, so all of it can be reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chat.sessions.nodes import ROOT
from chat.sessions.records import (
    LATEST,
    VERSION,
    CheckpointRecord,
    HeadRecord,
    Record,
    ReplyRecord,
    SessionRecord,
    SystemRecord,
    TokensRecord,
    TurnRecord,
    are_ids,
)
from chat.text.transcript import ASSISTANT, SYSTEM, USER, Message, Transcript, message_from


def is_legacy(lines: Sequence[object]) -> bool:
    """Whether the lines of a journal are of version 1."""
    first = next((line for line in lines if isinstance(line, dict)), {})
    return first.get("kind") == "start"


def records_of(lines: Sequence[object]) -> Iterator[Record]:
    """The records that say the same as the lines of a version-1 journal. A line that lacks something is skipped."""
    reader = _Reader()
    for line in lines:
        if isinstance(line, dict):
            try:
                yield from reader.take(line)
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
    yield from reader.end_turn()


def records_of_messages(
    messages: Sequence[Message], session: str, time: float, program: str, origin: str
) -> Iterator[Record]:
    """A session that holds these messages and nothing else."""
    yield SessionRecord(version=VERSION, id=session, time=time, program=program, origin=origin)
    builder = _Builder(time)
    yield from builder.reach(Transcript(tuple(messages)), {})


class _Builder:
    """Grows a tree by whole conversations: what one shares with earlier ones is there already."""

    def __init__(self, time: float) -> None:
        self.time = time
        self._head = ROOT
        self._last = ROOT
        self._places: dict[tuple[int, str, str, tuple[int, ...]], int] = {}

    def reach(self, transcript: Transcript, settings: Mapping[str, Any]) -> Iterator[Record]:
        """The records that make this the present conversation."""
        at = ROOT
        grown = False
        for message in transcript.messages:
            key = (at, message.role, message.content, message.token_ids)
            known = self._places.get(key)
            if known is None:
                grown = True
                known = self._places[key] = self._new()
                yield from self._records(known, at, message, settings)
            at = known
        if not grown and at != self._head:
            yield HeadRecord(node=at, by="branch")
        self._head = at

    def _records(self, node: int, parent: int, message: Message, settings: Mapping[str, Any]) -> Iterator[Record]:
        if message.role == SYSTEM:
            yield SystemRecord(id=node, parent=parent, text=message.content, time=self.time)
        elif message.role == USER:
            # The reply's own number stays free if there was none.
            yield TurnRecord(
                id=self._new(),
                message=node,
                parent=parent,
                text=message.content,
                time=self.time,
                settings=dict(settings),
            )
        elif message.role == ASSISTANT and parent != ROOT:
            yield TurnRecord(
                id=node, message=parent, time=self.time, settings=dict(settings), left_out=message.left_out
            )
            yield TokensRecord(turn=node, ids=message.token_ids, text=message.content)
            finish = "cancelled" if message.stopped else "stop"
            yield ReplyRecord(turn=node, finish=finish, text=message.content, time=self.time)

    def _new(self) -> int:
        self._last += 1
        return self._last


class _Reader:
    """The state of a version-1 conversation after the lines taken so far."""

    def __init__(self) -> None:
        self._builder = _Builder(0.0)
        self._transcript = Transcript()
        self._settings: Mapping[str, Any] = {}
        self._ids: tuple[int, ...] = ()
        self._text = ""
        self._before: Transcript | None = None  # what holds again unless this turn finishes a block

    def take(self, line: Mapping[str, Any]) -> Iterator[Record]:
        match line.get("kind"):
            case "start":
                self._builder.time = _time(line.get("time", 0.0))
                yield SessionRecord(version=VERSION, id="", time=self._builder.time, program="", origin="version 1")
                yield self._checkpoint(line["facts"])
                self._transcript = _messages(line)
            case "facts":
                yield self._checkpoint(line["facts"])
            case "turn":
                message = _message(line["message"])
                yield from self.end_turn()
                if "messages" in line:
                    self._before, self._transcript = self._transcript, _messages(line)
                self._settings = dict(line.get("settings", {}))
                self._transcript = Transcript((*self._transcript.messages, message))
            case "block":
                self._ids += _ids(line["token_ids"])
                self._text = self._text[: line["keep"]] + str(line["text"])
            case "reply":
                reply = _message(line["message"])
                asked = self._transcript.with_reply(reply.content).messages[:-1]
                self._transcript = Transcript((*asked, reply))
                yield from self._reached()
            case "transcript":
                self._transcript = _messages(line)
                yield from self._reached()

    def end_turn(self) -> Iterator[Record]:
        """The program ended here, or went on without a word on how the reply ended."""
        if self._ids and self._transcript.messages:
            self._transcript = self._transcript.with_reply(self._text, self._ids, stopped=True)
        elif self._before is not None:
            self._transcript = self._before
        yield from self._reached()

    def _reached(self) -> Iterator[Record]:
        self._ids, self._text, self._before = (), "", None
        return self._builder.reach(self._transcript, self._settings)

    def _checkpoint(self, facts: Mapping[str, Any]) -> Record:
        if not isinstance(facts, dict):
            raise ValueError("facts are an object")
        step = facts.get("step")
        known = {name: value for name, value in facts.items() if name not in ("checkpoint", "step", "processes")}
        return CheckpointRecord(
            time=self._builder.time,
            path=str(facts.get("checkpoint", "")),
            step=step if isinstance(step, int) else None,
            world_size=int(facts.get("processes", 1)),
            dtype=str(facts.get("dtype", "")),
            parallel=str(facts.get("parallel", "")),
            facts=known,
        )


def _messages(line: Mapping[str, Any]) -> Transcript:
    return Transcript(tuple(map(_message, line["messages"])))


def _message(plain: Mapping[str, Any]) -> Message:
    message = message_from(plain)
    if not isinstance(message.left_out, int):
        raise ValueError("what was left out is a number")
    _ids(message.token_ids)
    return message


def _ids(value: Any) -> tuple[int, ...]:
    if not are_ids(value):
        raise ValueError("these are no ids of tokens")
    return tuple(value)


def _time(value: Any) -> float:
    time = float(value)
    return time if abs(time) < LATEST else 0.0
