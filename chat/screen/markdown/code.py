"""Code coloured with the terminal's own sixteen colours. Imported when the first code block comes."""

from __future__ import annotations

from functools import lru_cache

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, String, _TokenType
from pygments.util import ClassNotFound
from rich.text import Text

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


@lru_cache(maxsize=32)
def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=True)
    except ClassNotFound:
        return None


def highlight_last_line(code: str, language: str) -> Text:
    """The last line of `code`, which ends with a newline; as it is if the language is not known."""
    lexer = _lexer(language)
    styled = Text()
    for kind, piece in lexer.get_tokens(code) if lexer else ():
        while kind not in STYLES and kind.parent is not None:
            kind = kind.parent
        styled.append(piece, STYLES.get(kind))
    wanted = code[:-1].rpartition("\n")[2]
    lines = styled.split("\n", allow_blank=True)
    return lines[-2] if len(lines) > 1 and lines[-2].plain == wanted else Text(wanted)
