"""Pure drawing: values to text ready to be committed. Knows no terminal, no clock and no tokens.

Every line of what is returned ends with a newline. `ReplyView`, which draws a reply in the making, is here by name.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from chat.screen.markdown.blocks import indented, wrap
from chat.screen.markdown.source import SourceStream
from chat.screen.markdown.stream import MarkdownStream
from chat.screen.palette import Palette
from chat.screen.reply_view import LIVE_LINES, Frame, ReplyView
from chat.screen.thought_lines import dimmed
from chat.terminal.streams import is_command
from chat.text.cells import cells, source_spans, visible
from chat.text.thinking import split_thinking
from dist.errors import ChatError

__all__ = [
    "Frame",
    "Palette",
    "ReplyView",
    "error_block",
    "notice",
    "render_markdown",
    "table",
    "user_echo",
]

ECHO_LINES = 12


def render_markdown(text: str, width: int, palette: Palette, *, as_source: bool = False) -> str:
    """A whole text as a reply would be committed."""
    if palette.ink == "none":
        return palette.ansi(Text(line) for line in visible(text, tabs=True).split("\n"))
    room = max(2, width - 1)
    if as_source:
        source = SourceStream(room, palette)
        return palette.ansi([*source.feed(visible(text, tabs=True)), *source.finish()])
    thought, answer = split_thinking(text)
    fold = [palette.text(f"[{len(thought):,} characters of thinking: /think last]", "quiet"), Text()]
    stream = MarkdownStream(room, LIVE_LINES, palette)
    shown = [*stream.feed(visible(answer)), *stream.finish()]
    return palette.ansi([*(fold if thought.strip() else []), *shown])


def user_echo(text: str, palette: Palette, width: int = 80) -> str:
    """What the user sent, as it stays in the scrollback; a long message shows its beginning."""
    source = text.split("\n")
    room = max(2, width - 3)
    lines: list[Text] = []
    taken = 0
    while taken < len(source) and len(lines) <= ECHO_LINES:
        line = source[taken][: 2 * ECHO_LINES * room]  # enough to fill the room; the rest need not be measured
        lines += wrap(Text(visible(line)), room)
        taken += 1
    for shown in lines:
        shown.stylize(palette.style("user"))
    if len(lines) > ECHO_LINES:
        left = len(source) - taken + 1
        cut = len(source[taken - 1]) > ECHO_LINES * room // 2  # a line that fills the room says little of the rest
        what = f"{len(text):,} characters in all" if cut or left == 1 else f"{left:,} more lines"
        lines = [*lines[:ECHO_LINES], palette.text(f"{palette.mark('…', '...')} {what}", "quiet")]
    mark = palette.text(palette.mark("› ", "> "), "accent")
    return palette.ansi([mark + lines[0], *indented(lines[1:], 2), Text()])


def notice(text: str, palette: Palette, width: int = 80) -> str:
    """Something the program says, quietly. An indented line is a command: it is kept whole, to be copied."""
    lines = [
        line
        for written in visible(text).split("\n")
        for line in ([Text(written)] if is_command(written) else wrap(Text(written), max(2, width - 1)))
    ]
    for line in lines:
        line.stylize(palette.style("quiet"))
    return palette.ansi(lines)


def raw(text: str, palette: Palette, width: int = 80) -> str:
    """A text as it is, every character of it, in lines that fit."""
    lines = [
        Text(line[start:end])
        for line in visible(text, tabs=True).split("\n")
        for start, end in source_spans(line, max(2, width - 1))
    ]
    return palette.ansi(lines)


def thought(text: str, palette: Palette, width: int = 80) -> str:
    """What a model thought before it answered."""
    return palette.ansi(dimmed(visible(text), palette, max(2, width - 1)))


def title(text: str, palette: Palette) -> str:
    """A few words above a table."""
    return palette.ansi([palette.text(text, "heading")])


def error_block(error: ChatError, palette: Palette, width: int = 80) -> str:
    """What happened, why, what to do: a line each, then a blank one."""
    what, *rest = (visible(part) for part in (error.what, error.why, error.hint) if part)
    lines = wrap(palette.text(what, "error"), max(2, width - 1))
    for part in rest:
        lines += wrap(Text(part), max(2, width - 1))
    return palette.ansi([*lines, Text()])


def table(
    rows: Sequence[Sequence[str]], width: int, palette: Palette, *, head: Sequence[str] = (), margin: int = 2
) -> str:
    """Rows of text in aligned columns; the last column takes the room that is left and wraps."""
    shown = [[visible(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    if not shown:
        return ""
    count = max(map(len, shown))
    widths = [max((cells(row[at]) for row in shown if at < len(row)), default=0) for at in range(count)]
    room = max(2, width - 1 - margin - sum(widths[:-1]) - 2 * (count - 1))
    if room < min(20, widths[-1]):  # too narrow for columns: the last one goes below the others
        return _stacked(shown, palette, width, margin)
    lines: list[Text] = []
    for number, row in enumerate(shown):
        *left, last = [*row, *[""] * (count - len(row))]
        pieces = wrap(Text(last), room)
        start = Text(" " * margin)
        for at, cell in enumerate(left):
            style = "quiet" if head and number == 0 else "accent" if at == 0 else ""
            start += palette.text(cell, style) + Text(" " * (widths[at] - cells(cell) + 2))
        if head and number == 0:
            pieces[0].stylize(palette.style("quiet"))
        below = indented(pieces[1:], cells(start.plain))
        lines += [start + pieces[0], *below]
    for line in lines:
        line.rstrip()
    return palette.ansi(lines)


def _stacked(rows: Sequence[Sequence[str]], palette: Palette, width: int, margin: int) -> str:
    lines: list[Text] = []
    for first, *others in rows:
        lines += indented(wrap(palette.text(first, "accent"), width - 1 - margin), margin)
        for cell in filter(None, others):
            lines += indented(wrap(Text(cell), max(2, width - 3 - margin)), margin + 2)
    return palette.ansi(lines)
