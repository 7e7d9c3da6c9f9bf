"""One pass over a block as committed lines, for `/trace`. Knows no terminal and no tokens.

Where the palette allows no escape codes, what the pass changed stands in brackets.
"""

from __future__ import annotations

from rich.text import Text

from chat.screen.draw import table
from chat.screen.markdown.blocks import indented, wrap
from chat.screen.palette import Palette
from chat.text.running_text import Decode
from chat.text.trace import Position, Trace

MARGIN = 2
SHOWN_POSITIONS = 16
EXACT_SHOWN = 20  # characters of the exact beginning, once it is much longer than that

STYLES = {"changed": "changed", "border": "quiet", "placeholder": "quiet"}


def new_trace(decode: Decode, palette: Palette) -> Trace:
    """A trace whose marks the palette's terminal can show."""
    return Trace(decode, cell=palette.mark("░", "."), border=palette.mark("│", "|"))


def legend(palette: Palette, width: int) -> str:
    """What the marks mean."""
    changed = "[changed]" if palette.ink == "none" else "changed"
    line = palette.text("legend: ", "quiet") + Text("exact") + palette.text(palette.mark("│", "|"), "quiet")
    line += Text(" may change, ") + palette.text(changed, STYLES["changed"]) + Text(" by this pass, ")
    line += palette.text(palette.mark("░", "."), "quiet") + Text(" not filled yet, \\n a line break")
    return palette.ansi(wrap(line, max(2, width - 1)))


def pass_lines(trace: Trace, palette: Palette, width: int, *, top: bool) -> str:
    """The last pass: one line, wrapped where it is longer; with `top` the candidates of what it changed below."""
    line = palette.text(trace.last_head() + " ", "quiet")
    for number, (style, text) in enumerate(trace.last_draft()):
        shown = text
        if number == 0 and style == "exact" and len(text) > 2 * EXACT_SHOWN:
            shown = palette.mark("…", "...") + text[-EXACT_SHOWN:]
        if style == "changed" and palette.ink == "none":
            shown = f"[{text}]"
        line += palette.text(shown, STYLES.get(style, ""))
    first, *rest = wrap(line, max(2, width - 1 - MARGIN))
    lines = palette.ansi([first, *indented(rest, MARGIN)])
    return lines + candidate_lines(list(trace.last_positions()), palette, width) if top else lines


def candidate_lines(positions: list[Position], palette: Palette, width: int) -> str:
    """A row for each position: its number and its candidates; a chosen one that is not the likeliest has a star."""
    rows = [
        [str(position.number), *(_candidate(at, *candidate) for at, candidate in enumerate(position.candidates))]
        for position in positions[:SHOWN_POSITIONS]
    ]
    lines = table(rows, width, palette, margin=2 * MARGIN)
    more = len(positions) - len(rows)
    if more:
        lines += palette.ansi([Text(" " * 2 * MARGIN) + palette.text(f"and {more:,} more positions", "quiet")])
    return lines


def _candidate(at: int, text: str, probability: float, chosen: bool) -> str:
    return f'{"*" if chosen and at else ""}"{text}" {probability:.2f}'
