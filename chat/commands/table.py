"""The slash commands, one row each: help, completion, dispatch and "did you mean" all read `COMMANDS`.

What they do stands in the other modules of this folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from chat.commands import branches, files, settings, talk
from chat.commands.row import Command, command
from dist.errors import UsageError
from dist.settings import SETTINGS

if TYPE_CHECKING:
    from chat.conversation.repl import Repl


@command("help", "/help [COMMAND]", "this list, or one command explained", live=True)
def help_(repl: Repl, argument: str) -> None:
    if not argument:
        repl.page.table([(row.usage, row.help) for row in COMMANDS.values()])
        live = ", ".join(f"/{row.name}" for row in COMMANDS.values() if row.live)
        repl.note(f"Live commands work in the middle of a reply: {live}")
        return
    name = argument.lstrip("/")
    row = COMMANDS.get(name)
    if row is None:
        raise UsageError(f"There is no command /{name}.", _did_you_mean(name))
    repl.page.table([(row.usage, row.help)])
    if name in SETTINGS:
        repl.note(f"{name} takes {SETTINGS[name].allowed}.")


@command("quit", "/quit", "leave (as does Ctrl-D on an empty line)")
def quit_(repl: Repl, argument: str) -> None:
    repl.leave()


COMMANDS: dict[str, Command] = {
    row.name: row
    for row in (
        help_,
        settings.set_,
        *settings.SHORTHANDS,
        settings.overflow,
        settings.settings,
        settings.trace,
        branches.system,
        branches.clear,
        branches.undo,
        branches.redo,
        branches.retry,
        branches.edit,
        branches.branches,
        branches.history,
        talk.compare,
        talk.copy,
        files.read,
        talk.context,
        talk.stats,
        files.model,
        files.steps,
        files.load,
        files.export,
        files.save,
        files.resume,
        files.sessions,
        files.find,
        quit_,
    )
}


def dispatch(repl: Repl, line: str, *, live: bool = False) -> None:
    """Run the command line `line`, which begins with a slash. Raises UsageError for what cannot be."""
    name, _, argument = line[1:].partition(" ")
    name = name.strip()
    row = COMMANDS.get(name)
    if row is None:
        meant = _did_you_mean(name)
        raise UsageError(f"Unknown command: /{name}", meant, "" if meant else "/help lists the commands.")
    if live and not row.live:
        raise UsageError(f"/{name} has to wait until the reply is done.", "", "Ctrl-C stops the reply.")
    row.run(repl, argument.strip())


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"Did you mean /{near[0]}?" if near else ""


def complete(repl: Repl, before: str) -> Iterator[tuple[str, str, int]]:
    """Completions of the text before the cursor: (text, a line about it, start relative to the cursor)."""
    if not before.startswith("/") or "\n" in before:
        return
    head, space, word = before.rpartition(" ")
    if not space:
        for row in COMMANDS.values():
            if row.name.startswith(before[1:]):
                yield f"/{row.name}", row.help, -len(before)
        return
    name, *words = head[1:].split() or [""]
    if name in COMMANDS:
        for text, about in COMMANDS[name].values(repl, tuple(words), word):
            if text.startswith(word):
                yield text, about, -len(word)
