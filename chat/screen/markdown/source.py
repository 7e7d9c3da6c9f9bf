"""Markdown shown as it was written: nothing is left out, marks are only made quiet. Knows no tokens."""

from __future__ import annotations

import re

from rich.text import Text

from chat.screen.markdown.blocks import BlockRenderer
from chat.screen.markdown.fence import Fence
from chat.screen.markdown.inline import inline_runs, styled
from chat.screen.palette import Palette
from chat.text.cells import source_spans

FENCE = re.compile(r"[ ]*(`{3,}|~{3,})(.*)")
HEADING = re.compile(r"[ ]{0,3}#{1,6}(\s|$)")


class SourceStream:
    """Finished lines of the source, wrapped at `width` columns. `held` is the line that is not finished yet."""

    apart = False
    begun = False
    margin = 0
    exact = True

    def __init__(self, width: int, palette: Palette, fence: Fence | None = None) -> None:
        self.held = ""
        self.fence = fence
        self._width = width
        self._palette = palette
        self._colors = BlockRenderer(palette).code_colors(fence.language if fence else "")

    def feed(self, text: str) -> list[Text]:
        *whole, self.held = (self.held + text).split("\n")
        return [piece for line in whole for piece in self._wrapped(line)]

    def resize(self, width: int, hold: int) -> None:
        self._width = width

    def finish(self) -> list[Text]:
        rest, self.held = self.held, ""
        return self._wrapped(rest) if rest else []

    def _wrapped(self, line: str) -> list[Text]:
        shown = self._styled(line)
        return [shown[start:end] if end > start else Text() for start, end in source_spans(line, self._width)]

    def _styled(self, line: str) -> Text:
        if self.fence is not None:
            bare = line.strip()
            if bare.startswith(self.fence.mark) and not bare.strip(self.fence.mark[0]):
                self.fence = None
                return self._palette.text(line, "quiet")
            return self._colors(line)
        opened = FENCE.match(line)
        if opened and not (opened[1][0] == "`" and "`" in opened[2]):
            self.fence = Fence(opened[1], opened[2].strip().split(" ")[0], 0)
            self._colors = BlockRenderer(self._palette).code_colors(self.fence.language)
            return self._palette.text(line, "quiet")
        if HEADING.match(line):
            return self._palette.text(line, "heading")
        text = Text()
        for run in inline_runs(line):
            text.append_text(self._palette.text(run.text, "quiet") if run.mark else styled(run, self._palette))
        return text
