"""Marks within a line of Markdown (bold, code, links) found strictly. Knows no blocks.

Every character of the source is in exactly one run, in order. Only what is surely meant as a mark counts as one:
not `*` and `_` in words, numbers, formulas, addresses and HTML, nor anything behind a backslash.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from chat.screen.palette import Palette
from chat.text.cells import char_cells

PROTECTED = re.compile(
    r"""
      (?P<code>   (?<!`) (?P<tick>`+) (?!`) .+? (?<!`) (?P=tick) (?!`) )
    | (?P<math>   \\\( .*? \\\) | \\\[ .*? \\\] | \$\$ .+? \$\$ | \$ (?=\S) [^$\n]*? (?<=\S) \$ (?!\d) )
    | (?P<escape> \\ [!-/:-@\[-`{-~] )
    | (?P<html>   <!-- .*? --> | </? [A-Za-z] [^<>]* > )
    | (?P<link>   !? \[ (?P<label> (?: [^\[\]\\] | \\. | \[ [^\[\]]* \] )* ) \]
                  \( (?: [^()\s] | \( [^()]* \) )* (?: \s+ "[^"]*" )? \) )
    | (?P<url>    \b (?: https? | ftp ) :// [^\s<>]* [^\s<>*_~.,;:!?)\]}'"] )
    | (?P<marks>  \*+ | _+ | ~+ )
    """,
    re.VERBOSE | re.DOTALL,
)

STYLES = {
    "*": ("emphasis",),
    "_": ("emphasis",),
    "**": ("strong",),
    "__": ("strong",),
    "***": ("strong", "emphasis"),
    "___": ("strong", "emphasis"),
    "~~": ("struck",),
}
BEFORE_OPENING = set("([{\"'“‘«„—–-|>:*_~¿¡")
AFTER_OPENING = set("\"'“‘«„([{`$<\\#@&+=-^%!*_~")
AFTER_CLOSING = set(".,;:!?)]}\"'”’»—–-|<*_~…/")


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of the source with the names of its styles. `mark`: it only says how its neighbours are meant."""

    text: str
    styles: tuple[str, ...] = ()
    mark: bool = False


@dataclass(frozen=True, slots=True)
class _Atom:
    kind: str  # "text", "code", "link", "marks"; "text" stays as it is
    text: str
    label: tuple[int, int] = (0, 0)
    opens: bool = False
    closes: bool = False


def inline_runs(source: str) -> list[Run]:
    """The runs of a paragraph, a heading or a table's cell."""
    runs: list[Run] = []
    _nest(list(_atoms(source)), (), runs)
    return runs


def inline_text(source: str, palette: Palette) -> Text:
    """`source` drawn: marks are left out, but the ticks of code where no colour tells it."""
    text = Text()
    for run in inline_runs(source):
        if not run.mark or (run.text.startswith("`") and palette.ink != "color"):
            text.append_text(styled(run, palette))
    return text


def styled(run: Run, palette: Palette) -> Text:
    """A run in its styles."""
    text = Text(run.text)
    for name in run.styles:
        text.stylize(palette.style(name))
    return text


def _atoms(source: str) -> Iterator[_Atom]:
    end = 0
    for found in PROTECTED.finditer(source):
        if found.start() > end:
            yield _Atom("text", source[end : found.start()])
        end = found.end()
        kind, text = found.lastgroup or "", found[0]
        if found["code"]:
            yield _Atom("code", text)
        elif found["link"] is not None:
            at = found.start()
            yield _Atom("link", text, (found.start("label") - at, found.end("label") - at))
        elif kind == "marks" and text in STYLES:
            before, after = source[found.start() - 1 : found.start()], source[end : end + 1]
            yield _Atom("marks", text, opens=_opens(text[0], before, after), closes=_closes(text[0], before, after))
        else:
            yield _Atom("text", text)
    if end < len(source):
        yield _Atom("text", source[end:])


def _wide(character: str) -> bool:
    """A character of a script that is written without blanks between words."""
    return bool(character) and char_cells(character) == 2


def _opens(mark: str, before: str, after: str) -> bool:
    free = not before or before.isspace() or before in BEFORE_OPENING or (mark != "_" and _wide(before))
    return free and bool(after) and (after.isalnum() or after in AFTER_OPENING or ord(after) > 0xFF)


def _closes(mark: str, before: str, after: str) -> bool:
    free = not after or after.isspace() or after in AFTER_CLOSING or (mark != "_" and _wide(after))
    return free and bool(before) and not before.isspace()


def _nest(atoms: list[_Atom], styles: tuple[str, ...], runs: list[Run]) -> None:
    closing: dict[str, list[int]] = {}
    for number, atom in enumerate(atoms):
        if atom.closes:
            closing.setdefault(atom.text, []).append(number)
    at = 0
    while at < len(atoms):
        atom = atoms[at]
        end = _next(closing.get(atom.text, []), at + 2) if atom.opens else 0
        if not end:
            _plain(atom, styles, runs)
            at += 1
            continue
        within = atoms[at + 1 : end]
        if atom.text[0] == "_" and not any(char.isspace() for one in within for char in one.text):
            for one in atoms[at : end + 1]:  # a name, such as __init__
                _plain(one, styles, runs)
        else:
            runs.append(Run(atom.text, styles, mark=True))
            _nest(within, styles + STYLES[atom.text], runs)
            runs.append(Run(atoms[end].text, styles, mark=True))
        at = end + 1


def _next(numbers: list[int], least: int) -> int:
    """The first of the sorted numbers from `least` on; 0 if there is none."""
    at = bisect_left(numbers, least)
    return numbers[at] if at < len(numbers) else 0


def _plain(atom: _Atom, styles: tuple[str, ...], runs: list[Run]) -> None:
    if atom.kind == "code":
        ticks = len(atom.text) - len(atom.text.lstrip("`"))
        runs.append(Run(atom.text[:ticks], styles, mark=True))
        runs.append(Run(atom.text[ticks:-ticks], (*styles, "code")))
        runs.append(Run(atom.text[-ticks:], styles, mark=True))
    elif atom.kind == "link":
        first, last = atom.label
        runs.append(Run(atom.text[:first], styles))
        _nest(list(_atoms(atom.text[first:last])), (*styles, "link"), runs)
        runs.append(Run(atom.text[last:], (*styles, "quiet")))
    else:
        runs.append(Run(atom.text, styles))
