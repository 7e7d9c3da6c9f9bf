"""A journal's file put in order when its session is opened again. Knows no conversation."""

from __future__ import annotations

from chat.files import write_whole
from chat.sessions.journal import Journal, as_line, read_journal
from chat.sessions.records import VERSION
from chat.sessions.tree import Tree
from dist.counted import counted
from dist.errors import ChatError


def put_in_order(journal: Journal, data: bytes, name: str) -> tuple[Tree, tuple[str, ...], tuple[str, ...]]:
    """Returns the tree that `data` holds, notices about the journal's file, and those of them to record in it.

    A damaged end is cut off; version 1 is rewritten, its old file kept beside it. Raises ChatError for a version
    that is not known yet, with nothing changed, and OSError.
    """
    reading = read_journal(data)
    tree = reading.tree
    if tree.session is not None and tree.session.version > VERSION:
        raise ChatError(
            f"The session {name} was written by a newer version of this program.",
            f"Its format is {tree.session.version}; this program knows formats up to {VERSION}.",
        )
    if reading.legacy:
        path = journal.path
        write_whole(path.with_name(path.name + ".v1"), data)
        journal.replace(b"".join(map(as_line, tree.records)), len(tree.records))
        return tree, (f"The session was in the format of version 1; that file is kept as {path.name}.v1.",), ()
    said: list[str] = []
    lost = len(data) - reading.sound
    kept = journal.keep(reading.sound, len(tree.records))
    if lost:
        where = "" if kept is None else f", kept in {kept}"
        said.append(f"The end of the journal was damaged: dropped {counted(lost, 'unreadable byte')}{where}.")
    if reading.skipped:
        lines = "line is" if reading.skipped == 1 else "lines are"
        said.append(f"{reading.skipped} {lines} damaged in the middle of the journal; the rest was read.")
    return tree, tuple(said), tuple(said)
