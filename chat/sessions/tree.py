"""A conversation as a tree: what its records come to. Pure; knows no file, no clock and no model.

Every message is a node with a parent. Records only add nodes and move the head, so nothing said is ever lost;
the conversation is the path from the root to the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from chat.sessions.nodes import CUT, ROOT, Change, Made, Node, as_message
from chat.sessions.records import (
    CheckpointRecord,
    HeadRecord,
    NoteRecord,
    Record,
    ReplyRecord,
    SessionRecord,
    SettingRecord,
    SystemRecord,
    TitleRecord,
    TokensRecord,
    TurnRecord,
)
from chat.text.transcript import ASSISTANT, SYSTEM, USER, Message, Transcript


class _Open:
    """A reply that is being made."""

    def __init__(self, turn: TurnRecord, checkpoint: CheckpointRecord | None) -> None:
        self.turn = turn
        self.checkpoint = checkpoint
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.changes: list[Change] = []

    def change(self, record: SettingRecord) -> None:
        """A setting is another from a place on; from the first one on it is as if the turn had begun with it."""
        if record.at == 0:
            self.turn = replace(self.turn, settings={**self.turn.settings, record.name: record.value})
        else:
            self.changes.append(Change(at=record.at, name=record.name, value=record.value))

    def node(self, end: ReplyRecord | None = None) -> Node:
        made = Made(
            turn=self.turn,
            checkpoint=self.checkpoint,
            finish=end.finish if end else CUT,
            token_ids=tuple(self.ids),
            changes=tuple(self.changes),
            stats=end.stats if end else {},
            time=end.time if end else None,
        )
        text = "".join(self.texts) if end is None else end.text
        return Node(
            id=self.turn.id,
            parent=self.turn.message,
            role=ASSISTANT,
            text=text,
            time=self.turn.time,
            made=made,
        )


class Tree:
    """All that a journal's records say, taken one after the other.

    session      the first record
    checkpoints  what answered, in the order of time
    records      all that were taken
    undone       heads that `redo` goes back to, the newest last
    """

    def __init__(self) -> None:
        self.session: SessionRecord | None = None
        self.title = ""
        self.checkpoints: list[CheckpointRecord] = []
        self.notes: list[NoteRecord] = []
        self.records: list[Record] = []
        self.undone: list[int] = []
        self._nodes: dict[int, Node] = {}
        self._head = ROOT
        self._last = ROOT
        self._open: _Open | None = None
        self._transcript: tuple[int, Transcript] | None = None

    # Reading it.

    @property
    def head(self) -> int:
        """The node that the conversation goes on from: the reply in the making, once there is something of it."""
        return self._open.turn.id if self._open and self._open.ids else self._head

    @property
    def finished(self) -> int:
        """How many tokens of the reply in the making are finished."""
        return len(self._open.ids) if self._open else 0

    @property
    def next_id(self) -> int:
        """A number that no node has, nor a reply that came to nothing."""
        return self._last + 1

    def node(self, number: int) -> Node:
        """A node by its number. Raises KeyError."""
        if self._open is not None and number == self._open.turn.id and self._open.ids:
            return self._open.node()
        return self._nodes[number]

    def nodes(self) -> Iterator[Node]:
        """All nodes in the order they were begun."""
        yield from self._nodes.values()
        if self._open is not None and self._open.ids:
            yield self._open.node()

    def path(self, number: int | None = None) -> list[Node]:
        """The nodes from the first one to node `number`, by default the head."""
        number = self.head if number is None else number
        way: list[Node] = []
        while number != ROOT:
            node = self.node(number)
            way.append(node)
            number = node.parent
        return way[::-1]

    def transcript(self, number: int | None = None) -> Transcript:
        """The conversation up to a node, by default the head: the system prompt in force, then what was said."""
        number = self.head if number is None else number
        if self._transcript is None or self._transcript[0] != number or self._open is not None:
            self._transcript = number, _transcript(self.path(number))
        return self._transcript[1]

    def system(self, number: int | None = None) -> str:
        """The system prompt in force at a node, by default at the head; "" for none."""
        return next((node.text for node in reversed(self.path(number)) if node.role == SYSTEM), "")

    def questions(self) -> list[Node]:
        """The user's messages of the present conversation, the last one first."""
        return [node for node in reversed(self.path()) if node.role == USER]

    def leaves(self) -> list[Node]:
        """The nodes that nothing follows, oldest first: the ends of all branches in which something was said.

        A reply that another one holds, which went on from it, is none.
        """
        parents = {node.parent for node in self.nodes()}
        parents |= {before.id for node in self.nodes() if (before := self._continued(node)) is not None}
        ends = (node for node in self.nodes() if node.id not in parents)
        return [node for node in ends if node.role != SYSTEM or (not node.kept and self._is_said(node))]

    def _continued(self, node: Node) -> Node | None:
        """The reply that `node` goes on from, if all of it is there."""
        if node.made is None or node.made.turn.continues is None:
            return None
        before = self.node(node.made.turn.continues)
        ids = before.made.token_ids if before.made is not None else ()
        return before if before.parent == node.parent and node.made.token_ids[: len(ids)] == ids else None

    def _is_said(self, node: Node) -> bool:
        """Whether anything but system prompts was said up to this node."""
        while node.role == SYSTEM and node.parent != ROOT:
            node = self.node(node.parent)
        return node.role != SYSTEM

    # Growing it.

    def take(self, record: Record) -> None:
        """Add what one record says. Raises ValueError, with nothing changed, for one that fits nowhere."""
        self._transcript = None
        match record:
            case SessionRecord():
                self.session = record
            case CheckpointRecord():
                self.checkpoints.append(record)
            case SystemRecord():
                self._take_system(record)
            case TurnRecord():
                self._take_turn(record)
            case TokensRecord():
                self._opened(record.turn).ids += record.ids
                self._opened(record.turn).texts.append(record.text)
            case SettingRecord():
                self._opened(record.turn).change(record)
            case ReplyRecord():
                self._add(self._opened(record.turn).node(record))
                self._open, self._head = None, record.turn
            case HeadRecord():
                self._take_head(record)
            case TitleRecord():
                self.title = record.title
            case NoteRecord():
                self.notes.append(record)
        self.records.append(record)

    def end_turn(self) -> None:
        """The reply in the making goes no further: what is finished of it stays, marked as cut."""
        if self._open is None:
            return
        ended, self._open, self._transcript = self._open, None, None
        if ended.ids:
            self._add(ended.node())
            self._head = ended.turn.id
        elif ended.turn.back is not None:
            self._head = ended.turn.back

    def _take_system(self, record: SystemRecord) -> None:
        self._check_new(record.id, record.parent)
        self.end_turn()
        self._add(
            Node(
                id=record.id,
                parent=record.parent,
                role=SYSTEM,
                text=record.text,
                time=record.time,
                kept=record.kept,
            )
        )
        self._head = record.id
        if not record.kept:
            self.undone.clear()

    def _take_turn(self, record: TurnRecord) -> None:
        new = record.text is not None and record.parent is not None
        if new:
            self._check_new(record.message, record.parent)
        elif record.message not in self._nodes:
            raise ValueError(f"there is no message {record.message}")
        if record.id == record.message or record.id in self._nodes:
            raise ValueError(f"there is a node {record.id} already")
        if (
            record.back is not None
            and record.back != ROOT
            and record.back not in self._nodes
            and record.back != self.head
        ):
            raise ValueError(f"there is no node {record.back}")
        if record.continues is not None:
            self._check_there(record.continues)
        self.end_turn()
        if record.text is not None and record.parent is not None:
            self._add(Node(id=record.message, parent=record.parent, role=USER, text=record.text, time=record.time))
        self._head, self._last = record.message, max(self._last, record.id)
        self._open = _Open(record, self.checkpoints[-1] if self.checkpoints else None)
        self.undone.clear()

    def _take_head(self, record: HeadRecord) -> None:
        self._check_there(record.node)
        self.end_turn()
        match record.by:
            case "undo" | "clear":
                self.undone.append(self._head)
            case "redo":
                if self.undone:
                    self.undone.pop()
            case "branch":
                self.undone.clear()
        self._head = record.node

    def _opened(self, turn: int) -> _Open:
        if self._open is None or self._open.turn.id != turn:
            raise ValueError(f"no reply {turn} is being made")
        return self._open

    def _check_there(self, number: int | None) -> None:
        # What is finished of the reply in the making becomes a node as soon as anything follows it.
        if number != ROOT and number not in self._nodes and (number is None or number != self.head):
            raise ValueError(f"there is no node {number}")

    def _check_new(self, number: int, parent: int | None) -> None:
        self._check_there(parent)
        if number <= ROOT or number in self._nodes or (self._open is not None and number == self._open.turn.id):
            raise ValueError(f"there is a node {number} already")

    def _add(self, node: Node) -> None:
        self._nodes[node.id] = node
        self._last = max(self._last, node.id)


def _transcript(path: list[Node]) -> Transcript:
    system: str | None = None
    messages: list[Message] = []
    for node in reversed(path):
        if node.role != SYSTEM:
            answered = bool(messages) and messages[-1].role == ASSISTANT
            messages.append(as_message(node, answered=answered))
        elif system is None:
            system = node.text
    first = (Message(SYSTEM, system),) if system else ()
    return Transcript((*first, *reversed(messages)))
