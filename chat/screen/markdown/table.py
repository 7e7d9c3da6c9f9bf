"""A Markdown table, row by row, in columns whose widths the first rows decide. Knows no blocks around it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.text import Text

from chat.screen.markdown.inline import inline_text
from chat.screen.palette import Palette
from chat.text.cells import cells, wrap_spans

LEAST_COLUMN = 3


@dataclass(frozen=True, slots=True)
class TableColumns:
    widths: tuple[int, ...]
    right: tuple[bool, ...]


def split_cells(line: str) -> list[str]:
    """The cells of one source row."""
    line = line.strip().removeprefix("|")
    if line.endswith("|") and not line.endswith("\\|"):
        line = line[:-1]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]


def table_columns(source: list[str], width: int, palette: Palette) -> TableColumns:
    """Widths for the rows in `source` (head, rule, rows), in `width` columns altogether."""
    rule = split_cells(source[1])
    rows = [split_cells(line) for line in (source[0], *source[2:])]
    shown = [[cells(inline_text(cell, palette).plain) for cell in row] for row in rows]
    widths = [max([LEAST_COLUMN, *(row[at] for row in shown if at < len(row))]) for at in range(len(rule))]
    room = max(width - 3 * (len(widths) - 1), LEAST_COLUMN * len(widths))
    while sum(widths) > room and max(widths) > LEAST_COLUMN:
        widths[widths.index(max(widths))] -= 1
    right = tuple(cell.endswith(":") and not cell.startswith(":") for cell in rule)
    return TableColumns(tuple(widths), right)


def table_head(line: str, columns: TableColumns, palette: Palette) -> list[Text]:
    """The head row and the rule below it."""
    dash = palette.mark("─", "-")
    rule = palette.mark("─┼─", "-+-").join(dash * width for width in columns.widths)
    return [*_row(split_cells(line), columns, palette, "strong"), palette.text(rule, "quiet")]


def table_row(line: str, columns: TableColumns, palette: Palette) -> list[Text]:
    """One row, as many lines high as its fullest cell needs."""
    return _row(split_cells(line), columns, palette, "")


def _row(row: list[str], columns: TableColumns, palette: Palette, style: str) -> list[Text]:
    row = [*row, *[""] * len(columns.widths)]
    if len(row) > 2 * len(columns.widths):  # more cells than the head has: keep their text in the last column
        row = [*row[: len(columns.widths) - 1], " | ".join(filter(None, row[len(columns.widths) - 1 :]))]
    wrapped = [
        _wrapped(inline_text(cell, palette), width) for cell, width in zip(row, columns.widths, strict=False)
    ]
    bar = palette.text(palette.mark(" │ ", " | "), "quiet")
    lines: list[Text] = []
    for number in range(max(map(len, wrapped))):
        line = Text()
        for at, (cell, width, right) in enumerate(zip(wrapped, columns.widths, columns.right, strict=True)):
            piece = cell[number] if number < len(cell) else Text()
            if style:
                piece.stylize(palette.style(style))
            pad = Text(" " * (width - cells(piece.plain)))
            line += (bar if at else Text()) + (pad + piece if right else piece + pad)
        line.rstrip()
        lines.append(line)
    return lines


def _wrapped(cell: Text, width: int) -> list[Text]:
    return [cell[start:end] if end > start else Text() for start, end in wrap_spans(cell.plain, width)]
