"""A conversation and its journal: what changes the one is written to the other. Knows no model."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chat.files import Locked
from chat.sessions.folder import SUFFIX, check_name, find_session
from chat.sessions.journal import Journal
from chat.sessions.nodes import ROOT
from chat.sessions.records import (
    VERSION,
    By,
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
from chat.sessions.repair import put_in_order
from chat.sessions.tree import Tree
from chat.text.transcript import Transcript
from dist.errors import ChatError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the journal says of a reply before it is made.

    `settings` are those in force, `seed` the one that is sampled with, `left_out` how many exchanges the prompt
    lacks, `prompt_len` and `prompt` its length and the digest of its ids. The reply begins with `begun` tokens,
    which may be those of the reply `continues`.
    """

    settings: Mapping[str, Any]
    seed: int | None = None
    left_out: int = 0
    prompt_len: int = 0
    prompt: str = ""
    begun: int = 0
    continues: int | None = None


class Session:
    """One conversation, as a tree of messages (`tree`) and as a file.

    The file comes into being with the first turn or with `save`, so unused sessions leave nothing behind. If the
    disk refuses, `fault` says so and the conversation goes on; what is missing is written as soon as it can be.
    """

    def __init__(self, folder: Path, *, name: str = "", system: str = "", program: str = "") -> None:
        """A new session, begun by that version of the program. Raises UsageError for a bad name."""
        if name:
            check_name(name)
        self.name = name or f"{time.strftime('%Y-%m-%d-%H%M%S')}-{secrets.token_hex(2)}"
        self.tree = Tree()
        self._folder = folder
        self._journal = Journal(folder / (self.name + SUFFIX))
        self._begun = False
        self._turn_id = ROOT
        self.tree.take(SessionRecord(version=VERSION, id=secrets.token_hex(8), time=_now(), program=program))
        if system:
            self.tree.take(self._system(ROOT, system))

    @classmethod
    def resume(cls, folder: Path, name: str = "") -> tuple[Session, tuple[str, ...]]:
        """Go on with the named session, or the latest one; and what there is to say about its file.

        A damaged end is cut off; a session of version 1 is rewritten, its old file kept beside it. Raises
        UsageError if there is no such session or another program has it open, ChatError if it cannot be read.
        """
        path = find_session(folder, name)
        name = path.name.removesuffix(SUFFIX)
        try:
            journal, data = Journal.open(path)
        except Locked:
            raise UsageError(
                f"The session {name} is open in another program.",
                "Two programs cannot write the same session.",
                "Quit that program, or name another session.",
            ) from None
        except OSError as error:
            raise ChatError(f"The session {name} cannot be opened.", f"{error.strerror}.") from error
        session = cls(folder)
        session.name, session._journal = name, journal
        try:
            session.tree, said, notes = put_in_order(journal, data, name)
            session._begun = True
        except OSError as error:
            raise ChatError(f"The session {name} cannot be opened.", f"{error.strerror}.") from error
        finally:
            if not session._begun:
                journal.close()
        for text in notes:
            session.note(text)
        return session, said

    @classmethod
    def of_records(cls, folder: Path, name: str, records: Sequence[Record]) -> Session:
        """A new session that begins with these records, written at once. Raises UsageError for a taken name."""
        check_name(name)
        session = cls(folder, name=name)
        if session.path.exists():
            raise UsageError(f"A session named {name} exists already.", hint="Choose another name.")
        session.tree = Tree()
        for record in records:
            session.tree.take(record)
        session.tree.end_turn()
        session._begun = True
        session._save(sync=True)
        return session

    # What it is.

    @property
    def path(self) -> Path:
        """Where the journal is, or will be."""
        return self._journal.path

    @property
    def transcript(self) -> Transcript:
        """The present conversation."""
        return self.tree.transcript()

    @property
    def fault(self) -> str:
        """Why not everything is on disk, or ""."""
        return self._journal.fault

    @property
    def unsaved(self) -> int:
        """How many records are not on disk, of a session that is to be."""
        return len(self.tree.records) - self._journal.written if self._begun else 0

    @property
    def on_disk(self) -> bool:
        """Whether there is something to resume."""
        return self._journal.exists

    # A turn.

    def say(self, text: str, asked: Asked, *, instead_of: int | None = None) -> None:
        """A message of the user's after the head, before its reply is made.

        `instead_of`: it takes the place of that message of the conversation, as soon as a token of its reply is
        finished and not before.
        """
        parent, back = self.tree.head, None
        if instead_of is not None:
            parent, back = self.tree.node(instead_of).parent, parent
            parent = self._keeping_system(parent)
        message = self.tree.next_id
        self._turn(message, asked, parent=parent, text=text, back=back)

    def ask_again(self, asked: Asked) -> None:
        """Another reply to the last message of the user's, in the place of the present one if there is one."""
        message = self.tree.questions()[0]
        if self.tree.system(message.id) != self.tree.system():
            self.say(message.text, asked, instead_of=message.id)  # asked under another system prompt
        else:
            self._turn(message.id, asked, back=None if self.tree.head == message.id else self.tree.head)

    def _turn(
        self,
        message: int,
        asked: Asked,
        *,
        parent: int | None = None,
        text: str | None = None,
        back: int | None = None,
    ) -> None:
        record = TurnRecord(
            id=max(self.tree.next_id, message + 1),
            message=message,
            time=_now(),
            settings=dict(asked.settings),
            parent=parent,
            text=text,
            seed=asked.seed,
            left_out=asked.left_out,
            prompt_len=asked.prompt_len,
            prompt=asked.prompt,
            back=back,
            begun=asked.begun,
            continues=asked.continues,
        )
        self._turn_id = record.id
        self._begun = True
        self._write(record, sync=True)

    def tokens(self, ids: Sequence[int], text: str) -> None:
        """Tokens of the reply that are finished, and the text that became certain with them."""
        self._write(TokensRecord(turn=self._turn_id, ids=tuple(ids), text=text))

    def setting(self, name: str, value: Any) -> None:
        """A setting was changed in the middle of the reply."""
        self._write(SettingRecord(turn=self._turn_id, at=self.tree.finished, name=name, value=value))

    def reply(self, finish: str, text: str, stats: Mapping[str, Any]) -> None:
        """The reply has ended, with something finished."""
        self._write(
            ReplyRecord(turn=self._turn_id, finish=finish, text=text, time=_now(), stats=dict(stats)), sync=True
        )

    def no_reply(self) -> None:
        """The reply ended with nothing finished, or nobody knows how: what is finished of it stays."""
        self.tree.end_turn()

    # Moving about.

    def go(self, node: int, by: By) -> None:
        """Go on from another node; the system prompt in force stays, unless it is another branch's."""
        if node == self.tree.head:
            return
        records: list[Record] = [HeadRecord(node=node, by=by)]
        if by in ("undo", "clear") and self.tree.system(node) != self.tree.system():
            records.append(self._system(node, self.tree.system(), kept=True))
        self._write(*records, sync=True)

    def set_system(self, text: str) -> None:
        """Another system prompt from here on, none if it is empty."""
        if text != self.tree.system():
            self._write(self._system(self.tree.head, text), sync=True)

    def _keeping_system(self, parent: int) -> int:
        """A node below `parent` where the system prompt in force now is in force; `parent` if it is there."""
        system = self.tree.system()
        if self.tree.system(parent) == system:
            return parent
        record = self._system(parent, system, kept=True)
        self.tree.take(record)  # it is written together with the turn
        return record.id

    def _system(self, parent: int, text: str, *, kept: bool = False) -> SystemRecord:
        return SystemRecord(id=self.tree.next_id, parent=parent, text=text, time=_now(), kept=kept)

    # The rest.

    def checkpoint(self, record: CheckpointRecord) -> None:
        """What answers from here on."""
        self._write(record)

    def note(self, text: str) -> None:
        """What the user should know later."""
        self._write(NoteRecord(text=text, time=_now()))

    def save(self, name: str = "") -> None:
        """Put the session on disk, under a name if one is given. Raises UsageError for a bad or taken one."""
        if name and name != self.name:
            check_name(name)
            target = self._folder / (name + SUFFIX)
            if target.exists():
                raise UsageError(f"A session named {name} exists already.", hint="Choose another name.")
            try:
                self._journal.rename(target)
            except OSError as error:
                raise ChatError(f"The session cannot be named {name}.", f"{error.strerror}.") from error
            self.name = name
        self._begun = True
        if name and name != self.tree.title:
            self.tree.take(TitleRecord(title=name))
        self._save(sync=True)

    def save_again(self) -> None:
        """Try to write what the disk refused before."""
        if self.fault:
            self._save(sync=True)

    def close(self) -> None:
        """Write what is missing and let go of the file."""
        if self._begun and self.unsaved:
            self._save(sync=True)
        self._journal.close()

    def _write(self, *records: Record, sync: bool = False) -> None:
        for record in records:
            self.tree.take(record)
        if self._begun:
            self._save(sync=sync)

    def _save(self, *, sync: bool) -> None:
        self._journal.write(self.tree.records, sync=sync)


def _now() -> float:
    return round(time.time(), 3)
