"""What a model thought before it answered: folded to a line, or dimmed. Knows no terminal and no clock."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from chat.screen.markdown.blocks import wrap
from chat.screen.palette import Palette
from chat.text.running_text import Decode
from chat.text.thinking import CLOSE
from dist.counted import counted


def folded(tokens: int, seconds: float, palette: Palette) -> list[Text]:
    """One line in the place of all that was thought, and a blank one."""
    return [
        palette.text(f"thought for {counted(tokens, 'token')}, {seconds:.1f} s", "quiet"),
        Text(),
    ]


def dimmed(thought: str, palette: Palette, width: int) -> list[Text]:
    """What was thought, without blank lines around it."""
    lines = wrap(Text(thought.strip("\n")), width) if thought.strip() else []
    for line in lines:
        line.stylize(palette.style("quiet"))
    return lines


def thinking_tokens(ids: Sequence[int], decode: Decode) -> int:
    """How many of `ids` make up the thinking, its closing tag included."""
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        if CLOSE in decode(ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return high
