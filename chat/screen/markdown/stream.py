"""Markdown that arrives in pieces, given out as finished lines. Knows no tokens and no terminal.

What is given out never depends on how the text was cut into pieces (for ordinary text; a block that outgrows
`hold` lines is given out in parts), and every character of the source is rendered exactly once.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from rich.text import Text

from chat.screen.markdown.blocks import CODE_INDENT, BlockRenderer, fold, indented, plain, wrap
from chat.screen.markdown.fence import Fence
from chat.screen.markdown.table import TableColumns, table_columns, table_head, table_row
from chat.screen.palette import Palette
from chat.text.cells import char_cells, wrap_spans

CUT_ATTEMPTS = 80
BEGINNING = 8  # characters of a line that tell what block it is of


def parser() -> MarkdownIt:
    """CommonMark's blocks with tables, without what makes text vanish or change in hindsight.

    What stands within a paragraph is not parsed: `inline` does that, more strictly.
    """
    return (
        MarkdownIt("commonmark", {"html": False})
        .enable(["table"])
        .disable(["code", "lheading", "reference", "inline"])
    )


def code_blocks(text: str) -> tuple[str, ...]:
    """The contents of the code blocks of a Markdown text, in order: those that the screen shows as code."""
    return tuple(token.content for token in parser().parse(text) if token.type == "fence")


class LineStream:
    """Text without markup: finished lines as they are."""

    apart = False
    begun = False
    margin = 0
    exact = True
    fence: Fence | None = None

    def __init__(self) -> None:
        self.held = ""

    def feed(self, text: str) -> list[Text]:
        *whole, self.held = (self.held + text).split("\n")
        return [Text(line) for line in whole]

    def resize(self, width: int, hold: int) -> None:
        """Lines are as long as they come."""

    def finish(self) -> list[Text]:
        rest, self.held = self.held, ""
        return [Text(rest)] if rest else []


class MarkdownStream:
    """Text with markup: finished blocks, rendered for `width` columns.

    `held` is the source that waits for its block to be finished. With `fence` it begins within that code block.
    """

    exact = False

    def __init__(self, width: int, hold: int, palette: Palette, fence: Fence | None = None) -> None:
        self.held = ""
        self.fence = fence
        self._width = width
        self._hold = max(2, hold)
        self._render = BlockRenderer(palette)
        self._parser = parser()
        self._colors = self._render.code_colors(fence.language if fence else "")
        self._table: TableColumns | None = None
        self._before = "fence" if fence else ""  # kind of the last block given out
        self._gap = False  # blank lines stood in the source since then

    def feed(self, text: str) -> list[Text]:
        begun = len(self.held) - self.held.rfind("\n") - 1
        self.held += text
        # Once a line has shown what it begins no block ends within it. If all surely fits, nothing need be parsed.
        if begun >= BEGINNING and "\n" not in text and self._surely_fits():
            return []
        return self._take(final=False)

    @property
    def apart(self) -> bool:
        """Whether a blank line will stand before what comes next."""
        return bool(self._before) and self._gap and self.fence is None

    @property
    def begun(self) -> bool:
        """Whether anything was given out."""
        return bool(self._before)

    @property
    def margin(self) -> int:
        """Columns by which what comes next is going to be indented."""
        return CODE_INDENT if self.fence else 0

    def resize(self, width: int, hold: int) -> None:
        self._width, self._hold = width, max(2, hold)

    def finish(self) -> list[Text]:
        return self._take(final=True)

    def _take(self, *, final: bool) -> list[Text]:
        lines: list[Text] = []
        while self.held:
            size = len(self.held)
            if self.fence:
                lines += self._take_code(self.fence, final=final)
            elif self._skip_blank(final=final):
                lines += self._take_block(final=final)
            if len(self.held) == size:
                break
        return lines

    def _skip_blank(self, *, final: bool) -> bool:
        """Drop blank lines; is there something behind them?"""
        while match := re.match(r"[ ]*\n", self.held):
            self.held = self.held[match.end() :]
            self._gap, self._table = True, None
        if not self.held.strip():
            self.held = "" if final else self.held
            return False
        return True

    def _line(self, *, final: bool) -> str | None:
        """Take the first whole line of the source."""
        line, newline, rest = self.held.partition("\n")
        if not newline and not final:
            return None
        self.held = rest
        return line

    def _spaced(self, kind: str, lines: list[Text]) -> list[Text]:
        """Lines of a block with the blank line before it that the source has, or that a heading wants."""
        apart = self._gap or "heading" in (kind, self._before)
        space = [Text()] if self._before and apart else []
        self._before, self._gap = kind, False
        return space + lines

    def _take_code(self, fence: Fence, *, final: bool) -> list[Text]:
        line = self._line(final=final)
        if line is None:
            return []
        bare = line.strip()
        if bare.startswith(fence.mark) and not bare.strip(fence.mark[0]):
            self.fence = None
            return []
        line = line.removeprefix(" " * min(fence.margin, len(line) - len(line.lstrip(" "))))
        pieces = fold(self._colors(line), self._width - CODE_INDENT - fence.margin)
        return indented(pieces, CODE_INDENT + fence.margin)

    def _take_block(self, *, final: bool) -> list[Text]:
        if self._table:
            if "|" in self.held.partition("\n")[0]:
                line = self._line(final=final)
                return [] if line is None else table_row(line, self._table, self._render.palette)
            if "\n" not in self.held and not final:
                return []
            self._table = None
        nodes = SyntaxTreeNode(self._parser.parse(self.held)).children
        node, last = nodes[0], len(nodes) == 1
        assert node.map is not None
        whole = self.held.count("\n")
        is_open = last and not final and not (node.map[1] < whole and node.type == "paragraph")
        if node.type == "fence":
            return self._open_fence(node, final=final)
        if node.type in ("heading", "hr"):
            return [] if whole == 0 and not final else self._give(node, node.map[1])
        if node.type == "table":
            return self._give_table(node, is_open=is_open)
        if node.type in ("bullet_list", "ordered_list"):
            item = node.children[0]
            if len(node.children) > 1:
                following = node.children[1].map
                assert following is not None
                return self._give_item(node, item, following[0])
            if not is_open:
                return self._give_item(node, item, node.map[1])
        elif not is_open:
            return self._give(node, node.map[1])
        return self._give_part(node) if self._outgrown() else []

    def _surely_fits(self) -> bool:
        """Whether what is held takes no more rows than may wait, by a bound that costs nothing."""
        most = len(self.held) * (1 if self.held.isascii() else 2)
        # Of two rows that follow each other at least one is half full.
        return 2 * most // self._width + self.held.count("\n") + 1 <= self._hold

    def _outgrown(self) -> bool:
        rows = sum(len(wrap_spans(line, self._width)) for line in self.held.split("\n"))
        return rows > self._hold

    def _cut_lines(self, count: int) -> str:
        """Take the first `count` lines of the source; blank ones at their end count as a gap."""
        lines = self.held.split("\n")
        self.held = "\n".join(lines[count:])
        return "\n".join(lines[:count])

    def _margin(self) -> int:
        return min(len(self.held) - len(self.held.lstrip(" ")), self._width // 3)

    def _give(self, node: SyntaxTreeNode, end: int) -> list[Text]:
        margin = self._margin()
        self._cut_lines(end)
        lines = indented(self._render.block(node, self._width - margin, margin), margin)
        return self._spaced(node.type, lines)

    def _give_item(self, parent: SyntaxTreeNode, item: SyntaxTreeNode, end: int) -> list[Text]:
        margin = self._margin()
        source = self._cut_lines(end)
        lines = self._spaced("list", indented(self._render.item(parent, item, self._width - margin), margin))
        self._gap = source.rstrip(" ").endswith("\n")
        return lines

    def _open_fence(self, node: SyntaxTreeNode, *, final: bool) -> list[Text]:
        margin = self._margin()
        if self._line(final=final) is None:
            return []
        self.fence = Fence(node.markup, node.info.strip().split(" ")[0], margin)
        self._colors = self._render.code_colors(node.info)
        head = wrap(self._render.fence_head(node.info), self._width - CODE_INDENT - margin)
        return self._spaced("fence", indented(head, CODE_INDENT + margin) if node.info.strip() else [])

    def _give_table(self, node: SyntaxTreeNode, *, is_open: bool) -> list[Text]:
        assert node.map is not None
        rows = node.map[1] - 2
        if is_open and rows <= self._hold:
            return []
        source = self.held.split("\n")[: node.map[1]]
        columns = table_columns(source[: 2 + self._hold], self._width, self._render.palette)
        self._cut_lines(2)
        self._table = columns
        return self._spaced("table", table_head(source[0], columns, self._render.palette))

    def _give_part(self, node: SyntaxTreeNode) -> list[Text]:
        """The beginning of a block that is still open but has grown too long to wait."""
        if node.type == "paragraph":
            return self._give_paragraph_part()
        lines = self.held.split("\n")
        if len(lines) < 3:
            return []
        rest = "\n".join(lines[-2:])
        self.held = "\n".join(lines[:-2]) + "\n"
        given = self._take(final=True)
        self.held = rest
        self._gap = False
        return given

    def _give_paragraph_part(self) -> list[Text]:
        """Cut where the rendered lines break, so that nothing shows the cut; else at the last blank."""
        margin = self._margin()
        source = self.held
        whole = self._paragraph(source, margin)
        spots = [at for at in range(len(source) - 1, 0, -1) if source[at] in " \n" or char_cells(source[at]) == 2]
        for at in spots[:CUT_ATTEMPTS]:
            rest = source[at:].lstrip(" \n")
            head = self._paragraph(source[:at], margin)
            if len(head) < len(whole) and plain(head + self._paragraph(" " * margin + rest, margin)) == plain(
                whole
            ):
                break
        else:
            blanks = [at for at in spots if source[at] in " \n"]
            if not blanks:
                return []
            at = blanks[0]
            rest = source[at:].lstrip(" \n")
            head = self._paragraph(source[:at], margin)
        self.held = " " * margin + rest
        return self._spaced("paragraph", head)

    def _paragraph(self, source: str, margin: int) -> list[Text]:
        lines: list[Text] = []
        for node in SyntaxTreeNode(self._parser.parse(source)).children:
            lines += self._render.block(node, self._width - margin, margin)
        return indented(lines, margin)
