"""The terminal as the toolkit sees it: written in whole frames, never asked anything. Knows no layout."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import Any, TextIO

from prompt_toolkit.data_structures import Size
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from dist.errors import UsageError

# What older terminals take of a clipboard at most, in base64.
LONGEST_COPY = 74_994


class HeldOutput(Vt100_Output):
    """An output whose flushes can be held back, so that erase, write and redraw reach the terminal as one."""

    held = False

    def flush(self) -> None:
        if not self.held:
            super().flush()

    def erase_down(self) -> None:
        # From the second column, then the line itself: some terminals take erasing from the very first cell for
        # clearing the screen, and push what stood there into the scrollback.
        self.write_raw("\x1b[C\x1b[J\x1b[D\x1b[K")


def terminal_output(stream: TextIO, *, color: bool) -> HeldOutput:
    """The output for a terminal; never asks it where the cursor is."""

    def size() -> Size:
        try:
            found = os.get_terminal_size(stream.fileno())
        except OSError:
            return Size(rows=24, columns=80)
        return Size(rows=found.lines or 24, columns=found.columns or 80)

    return HeldOutput(
        stream,
        size,
        term=os.environ.get("TERM"),
        default_color_depth=ColorDepth.DEPTH_4_BIT if color else ColorDepth.DEPTH_1_BIT,
        enable_bell=False,
        enable_cpr=False,
    )


def reflows(environ: Mapping[str, str]) -> bool:
    """Whether this terminal rewraps what is on it when it gets narrower. Most do; a few old ones cut."""
    term = environ.get("TERM", "")
    return not (
        term.startswith("linux")
        or "XTERM_VERSION" in environ
        or (term.startswith("screen") and "TMUX" not in environ)
    )


def osc_52(text: str) -> str:
    """The code that puts `text` on the clipboard of the terminal's machine. Raises UsageError if it is too long."""
    encoded = base64.b64encode(text.encode()).decode()
    if len(encoded) > LONGEST_COPY:
        raise UsageError(
            f"{len(text):,} characters are too many to copy.",
            f"Terminals take {LONGEST_COPY * 3 // 4:,} bytes; these are {len(text.encode()):,}.",
            "/export FILE writes the conversation to a file.",
        )
    return f"\x1b]52;c;{encoded}\x07"


def rewrapped_rows(rows: Any, x: int, y: int, columns: int) -> int:
    """How many rows lower the cursor at (x, y) stands after `rows` were rewrapped to `columns`."""
    extra = min(x, 10**6) // columns
    for number in range(y):
        used = max((at for at, cell in rows[number].items() if cell.char != " "), default=0) + 1
        extra += (used - 1) // columns
    return extra
