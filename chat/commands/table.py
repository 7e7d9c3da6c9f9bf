"""The slash commands, one row each: help, completion, dispatch and "did you mean" all read `COMMANDS`.

What they do stands in the other modules of this folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from chat.commands import branches, files, settings, talk
from chat.commands.row import Command, command, first_word
from dist.errors import UsageError
from dist.settings import SETTINGS

if TYPE_CHECKING:
    from chat.conversation.repl import Repl


KEYS_PAGE = "keys"


def _help_topics(repl: Repl, word: str) -> Iterator[tuple[str, str]]:
    yield KEYS_PAGE, "which key does what"
    yield from ((row.name, row.help) for row in COMMANDS.values())


@command(
    "help",
    "/help [COMMAND|keys]",
    "this list, one command explained, or the keys",
    live=True,
    values=first_word(_help_topics),
    example="/help compare",
)
def help_(repl: Repl, argument: str) -> None:
    name = argument.lstrip("/")
    if not name:
        for title, rows in GROUPS.items():
            repl.page.title(title)
            repl.page.table([(_usage(row), row.help) for row in rows])
        repl.note("* works in the middle of a reply too. /help COMMAND has an example, /help keys the keys.")
    elif name == KEYS_PAGE:
        repl.page.table(KEYS)
    else:
        _explain(repl, _find(name, f"/{name} does not exist."))


def _usage(row: Command) -> str:
    return f"{row.usage} *" if row.live else row.usage


def _explain(repl: Repl, row: Command) -> None:
    also = f" Also: {', '.join(f'/{one}' for one in row.aliases)}." if row.aliases else ""
    repl.page.table([(_usage(row), row.help + also)])
    if row.name in SETTINGS:
        repl.note(f"{row.name} takes {SETTINGS[row.name].allowed}.")
    repl.note(f"For example: {row.example or row.usage}")


KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, Shift-Enter, Ctrl-J", "new line; so does a backslash at the end of a line"),
    ("Tab", "complete a command or a value; again: the next one"),
    ("Up, Down", "earlier messages; Ctrl-R searches them, Right takes a suggestion"),
    (
        "Ctrl-C",
        "stop the reply, clear the line; three times: end the program if a reply does not stop",
    ),
    ("Ctrl-D", "leave, on an empty line; while a reply is made: leave when it is done"),
    ("Ctrl-Z", "suspend; fg resumes (a reply is still generated meanwhile)"),
    ("Ctrl-O", "show what a pasted block holds"),
    ("Ctrl-X Ctrl-E", "write in your editor ($EDITOR); in vi mode: Escape v"),
    ("Ctrl-L", "an empty screen; the scrollback stays"),
    ("Ctrl-\\", "end the program at once, while a reply is made"),
)


@command("quit", "/quit", "leave (as does Ctrl-D on an empty line)", live=True, aliases=("exit", "bye", "q"))
def quit_(repl: Repl, argument: str) -> None:
    if repl.answering.busy:
        repl.note("The program ends when this reply does. Ctrl-C stops the reply.")
    repl.leave()


GROUPS: dict[str, tuple[Command, ...]] = {
    "Conversation": (
        branches.retry,
        branches.continue_,
        branches.edit,
        branches.prefill,
        branches.undo,
        branches.redo,
        branches.clear,
        branches.system,
        branches.history,
        branches.branches,
        talk.copy,
        files.read,
    ),
    "Looking closer": (
        talk.compare,
        talk.replay,
        settings.trace,
        settings.think,
        talk.why,
        talk.stats,
        talk.show_context,
        talk.prompt,
    ),
    "Settings": (
        settings.settings,
        settings.set_,
        *settings.SHORTHANDS,
        settings.overflow,
    ),
    "Checkpoints": (
        files.model,
        files.steps,
        files.load,
        files.watch,
    ),
    "Sessions and files": (
        files.save,
        files.resume,
        files.sessions,
        files.find,
        files.export,
    ),
    "Help and leaving": (
        help_,
        quit_,
    ),
}
COMMANDS: dict[str, Command] = {row.name: row for rows in GROUPS.values() for row in rows}
ALIASES = {alias: row for row in COMMANDS.values() for alias in row.aliases}

# What other programs call things.
ELSEWHERE = {
    "stop": "Ctrl-C stops a reply; /set stop TEXT ends replies at a text.",
    "cancel": "Ctrl-C stops a reply.",
    "new": "Did you mean /clear?",
    "reset": "Did you mean /clear?",
    "regenerate": "Did you mean /retry?",
    "config": "Did you mean /settings?",
    "options": "Did you mean /settings?",
    "commands": "Did you mean /help?",
    "h": "Did you mean /help?",
    "?": "Did you mean /help?",
}


def dispatch(repl: Repl, line: str, *, live: bool = False) -> None:
    """Run the command line `line`, which begins with a slash. Raises UsageError for what cannot be."""
    name, *rest = line[1:].split(None, 1) or [""]
    row = _find(name, f"Unknown command: /{name}")
    if live and not row.live:
        raise UsageError(f"/{name} has to wait until the reply is done.", "", "Ctrl-C stops the reply.")
    row.run(repl, rest[0].strip() if rest else "")


def _find(name: str, unknown: str) -> Command:
    """The command of that name; raises UsageError, saying `unknown` and what could be meant."""
    row = COMMANDS.get(name) or ALIASES.get(name)
    if row is None:
        raise UsageError(unknown, _did_you_mean(name) or "/help lists the commands.")
    return row


def _did_you_mean(name: str) -> str:
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    known = [*COMMANDS, *ALIASES]
    begun = [one for one in known if len(name) > 1 and one.startswith(name)]
    # Few letters are like many a word: the first one has to be right, or nearly all of them.
    alike = [
        one
        for one in difflib.get_close_matches(name, known, n=5)
        if one[0] == name[0] or difflib.SequenceMatcher(None, one, name).ratio() > 0.8
    ]
    near = [*begun, *alike]
    return f"Did you mean /{near[0]}?" if near else ""


def complete(repl: Repl, before: str) -> Iterator[tuple[str, str, int]]:
    """Completions of the text before the cursor: (text, a line about it, start relative to the cursor).

    What wants an argument ends with a blank.
    """
    if not before.startswith("/") or "\n" in before:
        return
    head, space, word = before.rpartition(" ")
    if not space:
        # Another name of a command only where no command's first name fits.
        for named in (COMMANDS, ALIASES):
            fitting = {name: row for name, row in named.items() if name.startswith(before[1:])}
            for name, row in fitting.items():
                _, wants, argument = row.usage.partition(" ")
                yield f"/{name}" + " " * bool(wants and argument[0] != "["), row.help, -len(before)
            if fitting:
                return
        return
    name, *words = head[1:].split() or [""]
    if name in COMMANDS:
        for text, about in COMMANDS[name].values(repl, tuple(words), word):
            if text.startswith(word):
                yield text, about, -len(word)
