"""What the console tells the main thread, and the shapes it is handed. Knows no terminal and no toolkit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

COMMAND = re.compile(r"/([^\s/.]*)(?=\s|$)")

# A piece of text with the names of its styles in the live zone, and one line of pieces. "" is ordinary text; what
# is styled as a draft may still change, so it is marked as one if it is cut off.
Fragment = tuple[str, str]
Line = tuple[Fragment, ...]

# Text to insert, a line about it, and where it starts: characters before the cursor, as a number <= 0.
Candidate = tuple[str, str, int]
Complete = Callable[[str], Iterable[Candidate]]


class CommandInfo(Protocol):
    """What the console needs to know of a slash command."""

    @property
    def name(self) -> str:
        """Without the slash."""
        ...

    @property
    def live(self) -> bool:
        """May it run in the middle of a reply?"""
        ...


@dataclass(frozen=True, slots=True)
class Submitted:
    """A line (or several) was sent.

    live    it is a command to be run at once, in mid-reply
    edited  it was put into the line by `edit`, and takes the place of what was edited
    """

    text: str
    live: bool = False
    edited: bool = False


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ctrl-C while a reply is made: stop it."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Ctrl-D on an empty line: the end of input."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Three Ctrl-C within two seconds in vain, or Ctrl-\\ while a reply is made: end the program hard."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The console is dead: its thread met `error` (EOFError: the terminal was closed)."""

    error: BaseException


ConsoleEvent = Submitted | Interrupt | Leave | Abort | Failed


def command_word(text: str) -> str | None:
    """The name of the slash command in `text`, without the slash; None if it is a message.

    So is what begins with a path: a first word with a further slash or a dot.
    """
    found = COMMAND.match(text)
    return found[1] if found else None
