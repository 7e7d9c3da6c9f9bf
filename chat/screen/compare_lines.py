"""Replies to one prompt, compared: a table of figures, then the texts. Knows no terminal and no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.text import Text

from chat.screen.draw import table
from chat.screen.markdown.blocks import wrap
from chat.screen.palette import Palette
from chat.text.agreement import Compared
from chat.text.cells import cells, visible

HEAD = ("", "", "tokens", "passes", "a pass", "seconds")
WIDE = 120
NARROWEST = 36
GAP = 3


def compared(replies: Sequence[Compared], palette: Palette, width: int, against: str = "greedy") -> str:
    """Figures of all replies by number, then each text once, side by side where there is room.

    What differs first from the reply that they are compared with, called `against`, is marked in each text.
    """
    heads: dict[str, str] = {}
    texts: dict[str, Text] = {}
    for number, one in enumerate(replies, 1):
        label = f"{number} {one.label}"
        heads[one.text] = f"{heads[one.text]} / {label}" if one.text in heads else label
        texts[one.text] = _marked(one, palette)
    column = (width - 1 - GAP * (len(texts) - 1)) // max(1, len(texts))
    blank = palette.ansi([Text()])
    rows = [_figures(number, one) for number, one in enumerate(replies, 1)]
    figures = table(rows, width, palette, head=(*HEAD, f"as {against}", "differs"))
    beside = width >= WIDE and len(texts) > 1 and column >= NARROWEST
    shown = [(heads[text], drawn) for text, drawn in texts.items()]
    return figures + blank + (_beside(shown, palette, column) + blank if beside else _below(shown, palette, width))


def _marked(one: Compared, palette: Palette) -> Text:
    """The text as it is, with the word where it first differs marked."""
    if one.mark is None:
        return Text(visible(one.text))
    same, other = visible(one.text[: one.mark]), visible(one.text[one.mark :])
    if palette.ink == "none":
        return Text(f"{same}{palette.mark('»', '>>')}{other}")
    blank = len(other) - len(other.lstrip())
    end = next((at for at, character in enumerate(other) if at > blank and character.isspace()), len(other))
    return Text(same) + palette.text(other[:end], "changed") + Text(other[end:])


def _figures(number: int, one: Compared) -> tuple[str, ...]:
    stats = one.reply.stats
    agreement = "-"
    if one.agreeing is not None:
        # Rounded down: only what agrees in every place is 100 %.
        agreement = f"{1000 * one.agreeing // max(1, one.judged) / 10:.1f} %, {one.agreeing:,} of {one.judged:,}"
    return (
        f"{number}",
        one.label,
        f"{stats.tokens:,}",
        f"{stats.forwards:,}",
        f"{stats.tokens_per_forward:.1f}",
        f"{stats.decode_s:.2f}",
        agreement,
        _place(one),
    )


def _place(one: Compared) -> str:
    """Where it first differs, and how near the choice was where rounding could decide."""
    if one.differs is None:
        return "-"
    margin = "" if one.margin is None else f", margin {one.margin:.2f}"
    return f"token {one.differs + 1:,}{margin}"


def _below(texts: Sequence[tuple[str, Text]], palette: Palette, width: int) -> str:
    """Each text under what it is the reply of."""
    lines: list[Text] = []
    for label, text in texts:
        lines += [*wrap(palette.text(label, "accent"), max(2, width - 1)), *wrap(text, max(2, width - 1)), Text()]
    return palette.ansi(lines)


def _beside(texts: Sequence[tuple[str, Text]], palette: Palette, column: int) -> str:
    """The texts in columns, as they are."""
    heads = [wrap(palette.text(label, "accent"), column) for label, _ in texts]
    tallest = max(map(len, heads))
    columns = [
        [*head, *[Text()] * (tallest - len(head)), *wrap(text, column)]
        for head, (_, text) in zip(heads, texts, strict=True)
    ]
    lines = []
    for row in zip_longest(*columns, fillvalue=Text()):
        line = Text()
        for at, piece in enumerate(row):
            line += piece + Text(" " * (column - cells(piece.plain) + GAP if at + 1 < len(row) else 0))
        line.rstrip()
        lines.append(line)
    return palette.ansi(lines)
