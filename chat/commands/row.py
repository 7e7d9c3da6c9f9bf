"""What a slash command is, and a decorator that makes one of a function. Knows no command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist.counted import counted
from dist.errors import UsageError

if TYPE_CHECKING:
    from chat.conversation.repl import Repl

Run = Callable[["Repl", str], None]
# A value that can follow a command, and a few words about it.
Value = tuple[str, str]
# The values that can stand last on a line; it is handed the words between the command and the one begun, and that.
Values = Callable[["Repl", "tuple[str, ...]", str], Iterable[Value]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One slash command. `name` and `aliases` are without the slash; `live` ones run in the middle of a reply."""

    name: str
    usage: str
    help: str
    run: Run
    live: bool
    values: Values
    aliases: tuple[str, ...] = ()
    example: str = ""


def _nothing(repl: Repl, words: tuple[str, ...], word: str) -> Iterable[Value]:
    return ()


def command(
    name: str,
    usage: str,
    help: str,
    *,
    live: bool = False,
    values: Values = _nothing,
    aliases: tuple[str, ...] = (),
    example: str = "",
) -> Callable[[Run], Command]:
    """Make a row of the table of a function."""

    def row(run: Run) -> Command:
        return Command(
            name=name, usage=usage, help=help, run=run, live=live, values=values, aliases=aliases, example=example
        )

    return row


def first_word(values: Callable[[Repl, str], Iterable[Value]]) -> Values:
    """Values for the first word after the command; there are none for later ones."""
    return lambda repl, words, word: () if words else values(repl, word)


def whole_number(argument: str, name: str, default: int = 1) -> int:
    """A number of exchanges or messages, `default` where none is named; raises UsageError."""
    if not argument:
        return default
    if not argument.isdecimal() or int(argument) < 1:
        raise UsageError(f"{name} cannot take {argument!r}.", "It takes a whole number from 1.")
    return int(argument)


def unquoted(argument: str) -> str:
    """A text as it was typed, or, between double quotes, as JSON reads it. Raises UsageError."""
    if not (len(argument) > 1 and argument.startswith('"') and argument.endswith('"')):
        return argument
    try:
        return str(json.loads(argument))
    except ValueError as error:
        raise UsageError(f"The text in double quotes cannot be read: {argument}", f"{error}.") from None


def exchanges(n: int) -> str:
    return counted(n, "exchange")


def ago(seconds: float) -> str:
    """How long ago something was, in one word and a unit."""
    for length, unit in ((86400 * 365, "year"), (86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= length:
            n = int(seconds // length)
            return f"{counted(n, unit)} ago"
    return "just now"
