"""One finished Markdown block to styled lines. Knows no stream and no terminal."""

from __future__ import annotations

from markdown_it.tree import SyntaxTreeNode
from rich.text import Text

from chat.screen.markdown.table import table_columns, table_head, table_row
from chat.screen.palette import Palette
from chat.text.cells import cells, fold_spans, wrap_spans

CODE_INDENT = 2


class BlockRenderer:
    """One finished block to lines of at most `width` columns."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette

    def block(self, node: SyntaxTreeNode, width: int) -> list[Text]:
        width = max(10, width)
        if node.type in ("paragraph", "heading"):
            text = self.inline(node.children[0].children if node.children else [])
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
        lines: list[Text] = []
        so_far = ""
        for line in node.content.removesuffix("\n").split("\n"):
            so_far += line + "\n"
            lines += fold(self.code_line(so_far, node.info.strip().split(" ")[0]), width - CODE_INDENT)
        return indented(lines, CODE_INDENT)

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

    def code_line(self, code: str, language: str) -> Text:
        """The last line of `code`, coloured as its language wants."""
        line = code[:-1].rpartition("\n")[2]
        if self.palette.ink != "color" or not language or not line.strip():
            return Text(line)
        from chat.screen.markdown.code import highlight_last_line

        return highlight_last_line(code, language)

    def inline(self, nodes: list[SyntaxTreeNode]) -> Text:
        """Running text; a line break in the source stays one."""
        text = Text()
        for node in nodes:
            if node.type in ("softbreak", "hardbreak"):
                text.append("\n")
            elif node.type == "code_inline":
                tick = "" if self.palette.ink == "color" else "`"
                text.append_text(self.palette.text(f"{tick}{node.content}{tick}", "code"))
            elif node.type == "image":
                text.append(f"[image: {node.content}] ({node.attrs.get('src', '')})")
            elif node.children:
                inner = self.inline(node.children)
                text.append_text(self._marked(node, inner))
            else:
                text.append(node.content)
        return text

    def _marked(self, node: SyntaxTreeNode, inner: Text) -> Text:
        names = {"strong": "strong", "em": "emphasis", "s": "struck", "link": "link"}
        if node.type in names:
            inner.stylize(self.palette.style(names[node.type]))
        if node.type == "link":
            target = str(node.attrs.get("href", ""))
            if target and target != inner.plain:
                inner = inner + self.palette.text(f" ({target})", "quiet")
        return inner


def _cell_source(cell: SyntaxTreeNode) -> str:
    return " " + (cell.children[0].content if cell.children else "").replace("|", "\\|") + " "


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
