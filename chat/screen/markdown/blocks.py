"""One finished Markdown block to styled lines. Knows no stream and no terminal."""

from __future__ import annotations

from collections.abc import Callable

from markdown_it.tree import SyntaxTreeNode
from rich.text import Text

from chat.screen.markdown.inline import inline_text
from chat.screen.markdown.table import table_columns, table_head, table_row
from chat.screen.palette import Palette
from chat.text.cells import cells, fold_spans, wrap_spans

CODE_INDENT = 2


class BlockRenderer:
    """One finished block to lines of at most `width` columns."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette

    def block(self, node: SyntaxTreeNode, width: int, margin: int = 0) -> list[Text]:
        """`margin`: blanks at the beginning of the source's lines that are not the block's own."""
        width = max(10, width)
        if node.type in ("paragraph", "heading"):
            text = self.inline(dedented(node.children[0].content, margin) if node.children else "")
            if node.type == "heading":
                text.stylize(self.palette.style("heading"))
            return wrap(text, width)
        if node.type in ("bullet_list", "ordered_list"):
            return self.children(node, width)
        if node.type == "blockquote":
            bar = self.palette.text(self.palette.mark("│ ", "| "), "quiet")
            return [bar + line for line in self.children(node, width - 2)]
        if node.type == "hr":
            return [self.palette.text(self.palette.mark("─", "-") * min(width, 40), "quiet")]
        if node.type == "fence":
            return self.code(node, width)
        if node.type == "table":
            return self.nested_table(node, width)
        return wrap(Text(node.content if node.token else ""), width)

    def children(self, node: SyntaxTreeNode, width: int) -> list[Text]:
        """The blocks within a block, apart where the source sets them apart."""
        lines: list[Text] = []
        end = None
        for child in node.children:
            if lines and child.map and end is not None and child.map[0] > end:
                lines.append(Text())
            item = child.type == "list_item"
            lines += self.item(node, child, width) if item else self.block(child, width)
            end = last_line(child)
        return lines

    def item(self, parent: SyntaxTreeNode, item: SyntaxTreeNode, width: int) -> list[Text]:
        ordered = parent.type == "ordered_list"
        mark = f"{item.info}{item.markup} " if ordered else self.palette.mark("• ", "- ")
        body = self.children(item, width - cells(mark)) or [Text()]
        first = self.palette.text(mark, "quiet") + body[0]
        return [first, *indented(body[1:], cells(mark))]

    def code(self, node: SyntaxTreeNode, width: int) -> list[Text]:
        lines = wrap(self.fence_head(node.info), width - CODE_INDENT) if node.info.strip() else []
        colors = self.code_colors(node.info)
        for line in node.content.removesuffix("\n").split("\n"):
            lines += fold(colors(line), width - CODE_INDENT)
        return indented(lines, CODE_INDENT)

    def fence_head(self, info: str) -> Text:
        """What stands above a code block: the words behind its fence."""
        return self.palette.text(info.strip(), "quiet")

    def code_colors(self, info: str) -> Callable[[str], Text]:
        """What colours the lines of one code block, handed over in order, as its language wants."""
        language = info.strip().split(" ")[0]
        if self.palette.ink != "color" or not language:
            return Text
        from chat.screen.markdown.code import CodeColors

        return CodeColors(language).line

    def nested_table(self, node: SyntaxTreeNode, width: int) -> list[Text]:
        rows = [
            "|".join(_cell_source(cell) for cell in row.children) for part in node.children for row in part.children
        ]
        rows.insert(1, "|".join("---" for _ in node.children[0].children[0].children))
        columns = table_columns(rows, width, self.palette)
        lines = table_head(rows[0], columns, self.palette)
        for row in rows[2:]:
            lines += table_row(row, columns, self.palette)
        return lines

    def inline(self, source: str) -> Text:
        """Running text; a line break in the source stays one."""
        return inline_text(source, self.palette)


def _cell_source(cell: SyntaxTreeNode) -> str:
    return " " + (cell.children[0].content if cell.children else "").replace("|", "\\|") + " "


def dedented(source: str, margin: int) -> str:
    """`source` without up to `margin` blanks at the beginning of its lines but the first, which has none."""
    first, *rest = (line.rstrip(" ") for line in source.split("\n"))
    return "\n".join([first, *(line[min(margin, len(line) - len(line.lstrip(" "))) :] for line in rest)])


def last_line(node: SyntaxTreeNode) -> int:
    """The source line behind `node`, trailing blank lines not counted."""
    ends = [last_line(child) for child in node.children if child.map]
    if node.type in ("list_item", "bullet_list", "ordered_list", "blockquote") and ends:
        return max(ends)
    return node.map[1] if node.map else 0


def wrap(text: Text, width: int) -> list[Text]:
    """`text` in lines of at most `width` columns, broken at blanks."""
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        lines += [line[start:end] if end > start else Text() for start, end in wrap_spans(line.plain, width)]
    return lines


def fold(line: Text, width: int) -> list[Text]:
    """One line of code in pieces of at most `width` columns."""
    return [line[start:end] if end > start else Text() for start, end in fold_spans(line.plain, max(2, width))]


def indented(lines: list[Text], margin: int) -> list[Text]:
    return [Text(" " * margin) + line if line.plain else line for line in lines] if margin else lines


def plain(lines: list[Text]) -> list[str]:
    return [line.plain for line in lines]
