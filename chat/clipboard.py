"""What `/copy` puts on the clipboard, and the escape code that asks a terminal to. Knows no terminal."""

from __future__ import annotations

import base64

from dist.errors import UsageError

# What older terminals take at most, in the code's base64.
LONGEST = 74_994


def code_blocks(text: str) -> tuple[str, ...]:
    """The contents of the code blocks of a Markdown text, in order: those that the screen shows as code."""
    from chat.screen.markdown.stream import parser

    return tuple(token.content for token in parser().parse(text) if token.type == "fence")


def osc_52(text: str) -> str:
    """The code that puts `text` on the clipboard of the terminal's machine. Raises UsageError if it is too long."""
    encoded = base64.b64encode(text.encode()).decode()
    if len(encoded) > LONGEST:
        raise UsageError(
            f"{len(text):,} characters are too many to copy.",
            f"Terminals take {LONGEST * 3 // 4:,} bytes; these are {len(text.encode()):,}.",
            "/export FILE writes the conversation to a file.",
        )
    return f"\x1b]52;c;{encoded}\x07"
