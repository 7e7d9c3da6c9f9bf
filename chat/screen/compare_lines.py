"""Replies to one prompt, compared: a table of figures, then the texts. Knows no terminal and no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.text import Text

from chat.screen.draw import render_markdown, table
from chat.screen.markdown.blocks import wrap
from chat.screen.palette import Palette
from chat.text.agreement import Compared
from chat.text.cells import cells, visible

HEAD = ("", "tokens", "forwards", "a forward", "seconds", "as greedy")
WIDE = 120
NARROWEST = 36
GAP = 3


def compared(replies: Sequence[Compared], palette: Palette, width: int) -> str:
    """Figures of all replies, then each text once, side by side where there is room."""
    texts: dict[str, str] = {}
    for one in replies:
        texts[one.text] = f"{texts[one.text]} / {one.label}" if one.text in texts else one.label
    column = (width - 1 - GAP * (len(texts) - 1)) // max(1, len(texts))
    blank = palette.ansi([Text()])
    figures = table([_figures(one) for one in replies], width, palette, head=HEAD)
    if width >= WIDE and len(texts) > 1 and column >= NARROWEST:
        return figures + blank + _beside(texts, palette, column) + blank
    return figures + blank + "".join(_below(texts, palette, width))


def _figures(one: Compared) -> tuple[str, ...]:
    stats = one.reply.stats
    agreement = "-"
    if one.agreeing is not None:
        # Rounded down: only what agrees in every place is 100 %.
        agreement = f"{1000 * one.agreeing // max(1, one.judged) / 10:.1f} %, {one.agreeing:,} of {one.judged:,}"
    return (
        one.label,
        f"{stats.tokens:,}",
        f"{stats.forwards:,}",
        f"{stats.tokens_per_forward:.1f}",
        f"{stats.decode_s:.2f}",
        agreement,
    )


def _below(texts: dict[str, str], palette: Palette, width: int) -> list[str]:
    """Each text under what it is the reply of."""
    parts = []
    for text, label in texts.items():
        heads = wrap(palette.text(label, "accent"), max(2, width - 1))
        parts += [palette.ansi(heads), render_markdown(text, width, palette), palette.ansi([Text()])]
    return parts


def _beside(texts: dict[str, str], palette: Palette, column: int) -> str:
    """The texts in columns, as they are."""
    heads = [wrap(palette.text(label, "accent"), column) for label in texts.values()]
    tallest = max(map(len, heads))
    columns = [
        [*head, *[Text()] * (tallest - len(head)), *wrap(Text(visible(text)), column)]
        for head, text in zip(heads, texts, strict=True)
    ]
    lines = []
    for row in zip_longest(*columns, fillvalue=Text()):
        line = Text()
        for at, piece in enumerate(row):
            line += piece + Text(" " * (column - cells(piece.plain) + GAP if at + 1 < len(row) else 0))
        line.rstrip()
        lines.append(line)
    return palette.ansi(lines)
