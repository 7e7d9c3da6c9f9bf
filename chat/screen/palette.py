"""How committed text is styled: colour, marks only, or no escape codes at all. Knows no layout."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from chat.terminal.streams import Streams

COLOR_STYLES = {
    "accent": "bold cyan",
    "strong": "bold",
    "emphasis": "italic",
    "struck": "strike",
    "code": "cyan",
    "link": "underline",
    "heading": "bold",
    "quiet": "bright_black",
    "error": "bold red",
    "user": "bold",
    "changed": "magenta",
}
MONO_STYLES = {
    "accent": "bold",
    "strong": "bold",
    "emphasis": "italic",
    "struck": "strike",
    "code": "",
    "link": "underline",
    "heading": "bold underline",
    "quiet": "dim",
    "error": "bold",
    "user": "bold",
    "changed": "underline",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """`ink` "color" uses the terminal's own sixteen colours, "mono" bold, underline and dim, "none" no codes."""

    ink: Literal["color", "mono", "none"] = "color"
    ascii: bool = False

    @classmethod
    def of(cls, streams: Streams) -> Palette:
        ink: Literal["color", "mono", "none"] = "none" if streams.plain else "color" if streams.color else "mono"
        return cls(ink=ink, ascii=streams.ascii)

    def style(self, name: str) -> str:
        return (COLOR_STYLES if self.ink == "color" else MONO_STYLES)[name]

    def text(self, content: str, name: str = "") -> Text:
        """`content` in a named style, which does not spread to text put behind it."""
        return Text().append(content, self.style(name) if name else None)

    def mark(self, fancy: str, plain: str) -> str:
        return plain if self.ascii else fancy

    def ansi(self, lines: Iterable[Text]) -> str:
        """The lines, each ended with a newline, with the escape codes that this palette allows."""
        if self.ink == "none":
            return "".join(f"{line.plain}\n" for line in lines)
        return "".join(f"{self._encoded(line)}\n" for line in lines)

    def _encoded(self, line: Text) -> str:
        segments = line.render(_CONSOLE)
        if self.ink == "mono":
            segments = Segment.remove_color(segments)
        return "".join(
            part.style.render(part.text, color_system=ColorSystem.STANDARD) if part.style else part.text
            for part in segments
        )


# Only for its table of named styles; nothing is printed on it.
_CONSOLE = Console(file=io.StringIO(), color_system="standard", legacy_windows=False, _environ={})
