"""Code coloured with the terminal's own sixteen colours. Imported when the first code block comes."""

from __future__ import annotations

from pygments.token import Comment, Keyword, Name, Number, String
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.text import Text

# Colours that can be read on a dark ground and on a light one.
THEME = ANSISyntaxTheme(
    {
        Comment: Style(color="bright_black", italic=True),
        Keyword: Style(color="magenta"),
        String: Style(color="green"),
        Number: Style(color="cyan"),
        Name.Builtin: Style(color="cyan"),
        Name.Function: Style(bold=True),
        Name.Class: Style(bold=True),
    }
)


def highlight_last_line(code: str, language: str) -> Text:
    """The last line of `code` (which ends with a newline)."""
    styled = Syntax(code, language, theme=THEME).highlight(code)
    lines = styled.split("\n", allow_blank=False)
    wanted = code[:-1].rpartition("\n")[2]
    return lines[-1] if lines and lines[-1].plain == wanted else Text(wanted)
