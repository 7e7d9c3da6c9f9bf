"""Code coloured line by line with the terminal's own sixteen colours. Imported when the first code block comes.

Each line is read once: what a line leaves open (a string, a comment) is carried over to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import groupby

from pygments.lexer import ExtendedRegexLexer, Lexer, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, String, _TokenType
from pygments.util import ClassNotFound
from rich.text import Span, Text

from chat.screen.markdown.lexing import LineLexer

# Colours that can be read on a dark ground and on a light one.
STYLES: dict[_TokenType, str] = {
    Comment: "italic bright_black",
    Keyword: "magenta",
    String: "green",
    Number: "cyan",
    Name.Builtin: "cyan",
    Name.Function: "bold",
    Name.Class: "bold",
}
# Longer lines are minified or data; colours would cost more than they help.
LONGEST_LINE = 2000
OPENS, CLOSES = "/*", "*/"

Piece = tuple[_TokenType, str]


class CodeColors:
    """The lines of one code block, in order."""

    def __init__(self, language: str, *, comments: bool = True) -> None:
        self._language = language if comments else ""
        self._lexer = _lexer(language)
        self._lines = None
        if isinstance(self._lexer, RegexLexer) and not isinstance(self._lexer, ExtendedRegexLexer):
            self._lines = LineLexer(self._lexer)
        self._commented = False  # within /* ... */ of a language whose lexer wants such a comment whole

    def line(self, line: str) -> Text:
        """The next line, without its line end."""
        if self._lexer is None or len(line) > LONGEST_LINE:
            return Text(line)
        pieces = list(self._pieces(self._lexer, line))
        if "".join(piece for _, piece in pieces) != line:
            return Text(line)
        spans: list[Span] = []
        at = 0
        for style, same in groupby(pieces, lambda piece: _style(piece[0])):
            begin, at = at, at + sum(len(piece) for _, piece in same)
            if style is not None:
                spans.append(Span(begin, at, style))
        return Text(line, spans=spans)

    def _pieces(self, lexer: Lexer, line: str) -> Iterator[Piece]:
        if self._commented:
            comment, close, line = line.partition(CLOSES)
            self._commented = not close
            yield Comment, comment + close
            if self._commented:
                return
        pieces = list(self._lexed(lexer, line))
        carries = OPENS in line and self._language and _forgets_comments(self._language)
        opened = _open_comment(pieces) if carries else -1
        if opened < 0:
            yield from pieces
            return
        self._commented = True
        left = opened
        for kind, piece in pieces:
            if left > 0:
                yield kind, piece[:left]
            left -= len(piece)
        yield Comment, line[opened:]

    def _lexed(self, lexer: Lexer, line: str) -> Iterable[Piece]:
        if self._lines is not None:
            try:
                return _without_line_end(list(self._lines.line(line + "\n")))
            except (TypeError, AttributeError, KeyError):  # its rules want a context of their own
                self._lines = None
        return _without_line_end(lexer.get_tokens(line))


def _without_line_end(pieces: Iterable[Piece]) -> Iterator[Piece]:
    return ((kind, piece.replace("\n", "")) for kind, piece in pieces if piece != "\n")


def _open_comment(pieces: list[Piece]) -> int:
    """Where a comment begins that the line does not close; -1 if there is none."""
    at = 0
    code = ""  # the line, with blanks for what is a string or a comment
    for kind, piece in pieces:
        if _is(kind, Comment) and piece.startswith(OPENS) and not piece[len(OPENS) :].endswith(CLOSES):
            return at
        code += " " * len(piece) if _is(kind, String) or _is(kind, Comment) else piece
        at += len(piece)
    return code.find(OPENS)


@lru_cache(maxsize=32)
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=True)
    except ClassNotFound:
        return None


@lru_cache(maxsize=32)
def _forgets_comments(language: str) -> bool:
    """Whether this language has comments in /* */ that its lexer finds only if they come in one piece."""
    colors, comment = CodeColors(language, comments=False), STYLES[Comment]
    whole = colors.line("/* a */")
    colors.line("/*")
    return any(span.style == comment for span in whole.spans) and not colors.line("a").spans


def _is(kind: _TokenType, wanted: _TokenType) -> bool:
    """Whether a token is of that kind or of a kind of it."""
    return kind[: len(wanted)] == wanted


@lru_cache(maxsize=512)
def _style(kind: _TokenType) -> str | None:
    while kind not in STYLES and kind.parent is not None:
        kind = kind.parent
    return STYLES.get(kind)
