"""One reply on its way to the screen: what to commit, what to show live. Pure: values in, text out.

Of the tokenizer it knows a function from ids to text; of the terminal, its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from rich.text import Text

from chat.screen.markdown.source import SourceStream
from chat.screen.markdown.stream import LineStream, MarkdownStream
from chat.screen.palette import Palette
from chat.screen.thought_lines import dimmed, folded, thinking_tokens
from chat.text.cells import visible, wrap_spans
from chat.text.running_text import Decode, RunningText, TokenTexts
from chat.text.thinking import ThinkingText
from dist.protocol import BlockUpdate, Reply

# Text with the names of its styles: "draft" for what no pass has settled, and what becomes of it.
Fragments = Sequence[tuple[str, str]]
Line = tuple[tuple[str, str], ...]

LIVE_LINES = 12
ROWS_KEPT = 4  # of the terminal, for what is not live


def _nothing() -> tuple[Line, ...]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What one update adds to the scrollback, and what the live zone shows from now on.

    `draw` makes the lines of the live zone, so that frames which are never shown cost little.
    """

    commit: str = ""
    draw: Callable[[], tuple[Line, ...]] = _nothing

    @property
    def live(self) -> tuple[Line, ...]:
        return self.draw()


class ReplyView:
    """One reply on its way to the screen, `width` x `height` being the terminal's size.

    Finished Markdown blocks are committed; what is not finished is drawn from live lines, token by token.
    Where the palette allows no escape codes, committed text is the reply's own lines; so it is, lightly coloured,
    while `as_source` says so, which is asked for every update. `text` is the reply's text where someone else keeps
    it and adds an update's tokens before the view gets them; the view only reads it.

    What the model thinks is seen in the live zone; once it is over a line of figures stands for it, below the text
    itself if `show_thinking` says so. `thinking` tells whether the reply begins inside it.
    """

    def __init__(
        self,
        decode: Decode,
        width: int,
        height: int,
        palette: Palette,
        text: RunningText | None = None,
        *,
        as_source: Callable[[], bool] = lambda: False,
        thinking: ThinkingText | None = None,
        show_thinking: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._palette = palette
        self._width = max(2, width - 1)  # the last column stays unused
        self._rows = live_rows(height)
        self._as_source = as_source
        self._stream: LineStream | MarkdownStream | SourceStream
        if palette.ink == "none":
            self._stream = LineStream()
        elif as_source():
            self._stream = SourceStream(self._width, palette)
        else:
            self._stream = MarkdownStream(self._width, self._hold, palette)
        self._follows = text is not None
        self._text = text or RunningText(decode)
        self._given = 0  # characters of it that were given to the stream
        self._thinking = thinking or ThinkingText()
        self._show_thinking = show_thinking
        self._thought_ids: tuple[int, ...] = ()
        self._thought_given = 0  # characters of what was thought that were committed
        self._clock, self._began = clock, clock()
        self._decode = decode
        self._texts = TokenTexts(decode)
        self._ages: tuple[int, ...] = ()  # for each token of the draft, iterations since it changed

    def begin(self, *, seen: bool) -> str:
        """What is to be committed of the text that the reply begins with, nothing of it if it was `seen` before."""
        commit = self._give()
        return "" if seen else commit

    def update(self, update: BlockUpdate) -> Frame:
        """The frame after one iteration. Updates of one reply come in order."""
        old = chain(self._ages, repeat(0))
        ages = tuple([0 if changed else age + 1 for changed, age in zip(update.changed, old)])
        self._ages = ages[update.settled :]
        if update.settled and not self._follows:
            self._text.extend(update.settled_ids)
        if not self._thinking.over:
            self._thought_ids += update.settled_ids
        commit = self._give() if update.settled else ""
        return self._frame(commit, None if update.finish else update, self._ages)

    def finish(self, reply: Reply) -> str:
        """What of the reply is not committed yet."""
        if not self._follows:
            self._text.finish(reply.token_ids)
        commit = self._give(final=True)
        commit += self._palette.ansi(self._stream.finish())
        if reply.finish == "cancelled":
            commit += self._palette.ansi([self._palette.text("[stopped]", "quiet")])
        elif not self._text.text.strip():
            commit += self._palette.ansi([self._palette.text("[empty reply]", "quiet")])
        return commit

    def resize(self, width: int, height: int) -> None:
        """Draw for another terminal size from now on; what is committed stays as it is."""
        self._width = max(2, width - 1)
        self._rows = live_rows(height)
        self._stream.resize(self._width, self._hold)

    @property
    def _hold(self) -> int:
        """Lines of finished text that may wait in the live zone for the end of their block."""
        return max(3, self._rows * 2 // 3)

    def _give(self, *, final: bool = False) -> str:
        text = self._text.text[self._given :]
        self._given += len(text)
        lines = self._follow()
        inside, answer = self._thinking.inside, self._thinking.feed(text, final=final)
        if isinstance(self._stream, SourceStream):
            answer = text
        elif inside or self._thinking.inside or self._thinking.thought:
            lines += self._thought(final=final)
        return self._palette.ansi([*lines, *self._stream.feed(visible(answer, tabs=self._stream.exact))])

    def _thought(self, *, final: bool) -> list[Text]:
        """What is to be committed of the thinking: whole lines if they are wanted, figures once it is over."""
        thinking, lines = self._thinking, []
        over = thinking.over and bool(self._thought_ids)
        if self._show_thinking() or (final and thinking.inside):
            new = thinking.thought[self._thought_given :]
            whole = new if over or final else new[: new.rfind("\n") + 1]
            self._thought_given += len(whole)
            lines += dimmed(visible(whole), self._palette, self._width)
        if over:
            count = thinking_tokens(self._thought_ids, self._decode)
            self._thought_ids = ()
            if thinking.thought.strip():
                lines += folded(count, self._clock() - self._began, self._palette)
        elif final and thinking.inside:
            lines.append(self._palette.text("[still thinking]", "quiet"))
        return lines

    def _follow(self) -> list[Text]:
        """Turn to the other view if that is wanted; the blank line that this gives out, if any."""
        old = self._stream
        if isinstance(old, LineStream) or self._as_source() == old.exact:
            return []
        if old.exact:
            self._stream = MarkdownStream(self._width, self._hold, self._palette, old.fence)
        else:
            self._stream = SourceStream(self._width, self._palette, old.fence)
        self._stream.held = old.held
        return [Text()] if old.apart else []

    def _frame(self, commit: str, update: BlockUpdate | None, ages: tuple[int, ...]) -> Frame:
        """A frame that can be drawn later: what it needs is fixed now."""
        stream, before = self._stream, self._text.last_id
        inside = self._thinking.inside and not isinstance(stream, SourceStream)
        thought = self._thinking.thought[self._thought_given :] if inside else ""
        held, margin, apart, begun = stream.held, stream.margin, stream.apart, stream.begun
        width, rows, exact = self._width, self._rows, stream.exact

        def draw() -> tuple[Line, ...]:
            fragments, settled = self._tokens(update, ages, before) if update else ([], 0)
            if inside:
                fragments = [(f"{style} thought", text) for style, text in fragments]
            everything = [
                ("thought", visible(thought[-rows_of(rows, width) :]).lstrip("\n")) if inside else ("", held),
                *fragments,
            ]
            lines = wrap_fragments(everything, width - margin)
            front = len(wrap_fragments(everything[: settled + 1], width - margin)) - 1
            if not margin and not exact:
                lines, front = spaced(lines, front, apart=apart, begun=begun)
            lines = window(lines, front, rows)
            return tuple((("", " " * margin), *line) if margin else line for line in lines)

        return Frame(commit=commit, draw=draw)

    def _tokens(
        self, update: BlockUpdate, ages: tuple[int, ...], before: int | None
    ) -> tuple[list[tuple[str, str]], int]:
        """Styled text of each token that has not joined the reply, and how many of these pieces are exact.

        Where all have, placeholders stand for the next block.
        """
        cell = self._palette.mark("░", ".")
        ids, exact = update.token_ids[update.settled :], max(0, update.exact - update.settled)
        if not ids:
            return [("draft placeholder", cell * len(update.token_ids))], 0
        fragments: list[tuple[str, str]] = []
        front = 0
        for at, size, text in self._texts.pieces(ids, before):
            age = min(ages[at : at + size])
            style = "draft changed" if age == 0 else "draft recent" if age == 1 and at >= exact else "draft"
            fragments.append((style, visible(text)) if text else ("draft placeholder", cell * size))
            front = len(fragments) if at + size <= exact else front
        return fragments, front


def rows_of(rows: int, width: int) -> int:
    """Characters that are enough to fill so many rows."""
    return (rows + 1) * width


def live_rows(height: int) -> int:
    """Lines of the live zone on a terminal of `height` rows."""
    return max(1, min(height - ROWS_KEPT, LIVE_LINES))


def spaced(lines: list[Line], front: int, *, apart: bool, begun: bool) -> tuple[list[Line], int]:
    """The lines with the blank line in front that they will have once committed, and where `front` is then."""
    blank = 0
    while blank < len(lines) and not any(text.strip() for _, text in lines[blank]):
        blank += 1
    gap = 1 if blank < len(lines) and (apart or (begun and blank)) else 0
    return [()] * gap + lines[blank:], max(0, front - blank) + gap


def window(lines: list[Line], front: int, rows: int) -> list[Line]:
    """At most `rows` of the lines, the one at `front` among them."""
    first = max(0, min(front - 1, len(lines) - rows))
    return lines[first : first + rows]


def wrap_fragments(fragments: Fragments, width: int) -> list[Line]:
    """Styled text in lines of at most `width` columns; newlines break too."""
    text = "".join(piece for _, piece in fragments)
    styles = [style for style, piece in fragments for _ in piece]
    lines: list[Line] = []
    offset = 0
    for source in text.split("\n"):
        for start, end in wrap_spans(source, width):
            lines.append(_runs(source[start:end], styles[offset + start : offset + end]))
        offset += len(source) + 1
    return lines


def _runs(text: str, styles: Sequence[str]) -> Line:
    """Neighbouring characters of one style joined."""
    runs: list[tuple[str, str]] = []
    for character, style in zip(text, styles, strict=True):
        if runs and runs[-1][0] == style:
            runs[-1] = (style, runs[-1][1] + character)
        else:
            runs.append((style, character))
    return tuple(runs)
