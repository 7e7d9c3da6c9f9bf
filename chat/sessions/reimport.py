"""Sessions from exported files, or from messages of elsewhere. Reads one file, writes a new session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chat.files import expand
from chat.sessions.folder import NAME, SUFFIX, find_session
from chat.sessions.journal import read_journal
from chat.sessions.legacy import records_of_messages
from chat.sessions.records import Record, are_ids, from_plain
from chat.sessions.session import Session
from chat.sessions.tree import Tree
from chat.text.transcript import ASSISTANT, SYSTEM, USER, Message
from dist.errors import ChatError, UsageError
from dist.plain_json import parse_json

EXTENSION = ".json"


def is_file_to_import(name: str) -> bool:
    """Whether what is to be resumed is a file, not a session's name."""
    return name.lower().endswith(EXTENSION) and expand(name).is_file()


def import_session(folder: Path, name: str, program: str) -> tuple[Session, tuple[str, ...]]:
    """A new session that holds what the file `name` does, and what there is to say about it.

    A whole export gives the same session with all its branches; any file with `messages` gives these. Raises
    UsageError for a file that holds neither, ChatError if it cannot be read or the session cannot be written.
    """
    path = expand(name)
    try:
        plain = parse_json(path.read_bytes())
    except OSError as error:
        raise ChatError(f"{path} cannot be read.", f"{error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON.", f"{error}.") from None
    if not isinstance(plain, dict):
        raise _no_session(path)
    records = list(_journal(plain, path) or _linear(plain, path, program))
    session = Session.of_records(folder, _free_name(folder, plain.get("name"), path), records)
    if session.fault:
        session.close()
        raise ChatError(f"{path} cannot be resumed from: the session cannot be saved.", session.fault)
    return session, (f"{path} is now the session {session.name}.",)


def tree_of(folder: Path, name: str) -> Tree:
    """What a session says, by its name, its journal or a whole export; nothing is written.

    Raises UsageError if there is none, ChatError if it cannot be read.
    """
    path = expand(name)
    if not path.is_file():
        path = find_session(folder, name)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ChatError(f"{path} cannot be read.", f"{error.strerror}.") from error
    if path.suffix.lower() != EXTENSION:
        return read_journal(data).tree
    try:
        plain = parse_json(data)
    except ValueError as error:
        raise UsageError(f"{path} is not JSON.", f"{error}.") from None
    tree = Tree()
    for record in _journal(plain if isinstance(plain, dict) else {}, path):
        tree.take(record)
    tree.end_turn()
    return tree


def _journal(plain: dict[str, Any], path: Path) -> list[Record]:
    """The records of a whole export; none for other files."""
    lines = plain.get("journal", [])
    tree = Tree()
    try:
        for line in lines:
            tree.take(from_plain(line))
    except (ValueError, TypeError) as error:
        raise UsageError(f"The journal in {path} is damaged.", f"{error}.", "Export the session again.") from None
    return tree.records


def _linear(plain: dict[str, Any], path: Path, program: str) -> Iterator[Record]:
    messages = plain.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _no_session(path)
    taken: list[Message] = []
    for one in messages:
        role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
        if role not in (SYSTEM, USER, ASSISTANT) or not isinstance(content, str):
            raise UsageError(
                f"{path} holds messages that cannot be resumed from.",
                "Each needs a role (system, user or assistant) and a text as content.",
            )
        ids = one.get("token_ids", [])
        stopped = one.get("finish") in ("cancelled", "error", "cut")
        taken.append(Message(role, content, tuple(ids) if are_ids(ids) else (), stopped=stopped))
    return records_of_messages(taken, "", round(time.time(), 3), program, f"messages of {path.name}")


def _free_name(folder: Path, wanted: object, path: Path) -> str:
    """The name that the file gives, or one like it that no session has."""
    stem = wanted if isinstance(wanted, str) and NAME.fullmatch(wanted) else path.stem
    stem = stem if NAME.fullmatch(stem) else "imported"
    numbered = (stem if n == 1 else f"{stem}-{n}" for n in range(1, 10_000))
    return next(name for name in numbered if not (folder / (name + SUFFIX)).exists())


def _no_session(path: Path) -> UsageError:
    return UsageError(
        f"{path} holds no session.",
        "It has neither a journal nor messages.",
        "/export NAME.json writes a file to resume from.",
    )
