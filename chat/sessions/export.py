"""A conversation written to a file, in a format that its extension names. Knows no model and asks nothing."""

from __future__ import annotations

import re
from pathlib import Path

from chat.files import expand, write_whole
from chat.sessions.exported import Conversation
from chat.sessions.formats import FORMATS
from chat.sessions.nodes import Node
from chat.sessions.tree import Tree
from chat.text.transcript import SYSTEM, USER
from dist.counted import counted
from dist.errors import ChatError, UsageError, either

ARGUMENT = re.compile(r"(?P<name>.*?)(?:(?:^|\s+)(?P<first>\d+)-(?P<last>\d*))?", re.DOTALL)


class Target:
    """What follows `/export`: a file, perhaps a range of exchanges, perhaps ` !` to replace the file."""

    def __init__(self, argument: str) -> None:
        """Raises UsageError for a range that cannot be."""
        text = argument.strip()
        self.force = text.endswith(" !")
        found = ARGUMENT.fullmatch(text[:-2].rstrip() if self.force else text)
        assert found is not None
        self.name = found["name"].strip()
        self.first = int(found["first"]) if found["first"] else 1
        self.last = int(found["last"]) if found["last"] else None
        if self.first < 1 or (self.last is not None and self.last < self.first):
            raise UsageError(
                f"/export cannot take the exchanges {found['first']}-{found['last']}.",
                "They are numbered from 1, the first one before the last one.",
                "/history shows them.",
            )


def conversation_of(tree: Tree, name: str, target: Target) -> Conversation:
    """What is to be exported of a session. Raises UsageError if there is nothing in the range."""
    path = tree.path()
    questions = [at for at, node in enumerate(path) if node.role == USER]
    if not questions or target.first > len(questions):
        there = counted(len(questions), "exchange") if questions else "no messages yet"
        raise UsageError("There is nothing to export.", f"The conversation has {there}.")
    last = len(questions) if target.last is None else min(target.last, len(questions))
    begin = questions[target.first - 1]
    end = questions[last] if last < len(questions) else len(path)
    whole = target.first == 1 and last == len(questions)
    return Conversation(
        name=name,
        title=tree.title or name,
        system=tree.system(),
        nodes=tuple(node for node in path[begin:end] if node.role != SYSTEM),
        tree=tree if whole else None,
    )


def suffix_of(name: str) -> str:
    """The known suffix of a file's name; "" if it has none."""
    return next((suffix for suffix in FORMATS if name.lower().endswith(suffix)), "")


def export(target: Target, conversation: Conversation) -> Path:
    """Write the conversation to the file of `target`, whole or not at all, for its owner only; gives its path.

    Raises UsageError for an unknown suffix and for a file that exists (unless it may be replaced), ChatError if the
    disk refuses.
    """
    path = expand(target.name)
    suffix = suffix_of(path.name)
    if not suffix:
        raise UsageError(
            f"Cannot tell the format of {target.name!r} from its extension.",
            f"It takes {either(FORMATS)}.",
        )
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder.", hint="Name a file.")
        if path.exists() and not target.force:
            raise UsageError(f"{path} exists already.", hint=f"To replace it: /export {target.name} !")
        write_whole(path, FORMATS[suffix][0](conversation), mode=0o600)
    except OSError as error:
        there = path.parent.is_dir()
        why = f"{error.strerror}." if there else f"There is no folder {path.parent}."
        raise ChatError(f"{path} cannot be written.", why) from error
    return path


def unanswered(conversation: Conversation) -> list[Node]:
    """Messages that got no reply: training data leaves them out."""
    replied = {node.parent for node in conversation.nodes}
    return [node for node in conversation.nodes if node.role == USER and node.id not in replied]
