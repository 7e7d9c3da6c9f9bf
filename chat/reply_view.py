"""One reply on its way to the screen: what to commit, what to show live. Pure: values in, text out.

Of the tokenizer it knows a function from ids to text; of the terminal, its size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chat.cells import visible, wrap_spans
from chat.markdown import LineStream, MarkdownStream
from chat.palette import Palette
from dist.protocol import BlockUpdate, Reply

Decode = Callable[[Sequence[int]], str]
Line = tuple[tuple[str, str], ...]

LIVE_LINES = 12
ROWS_KEPT = 4  # of the terminal, for what is not live
TORN = "\ufffd"  # what a decoder gives for half a character


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What one update adds to the scrollback, and what the live zone shows from now on."""

    commit: str = ""
    live: tuple[Line, ...] = ()


class ReplyView:
    """One reply on its way to the screen, `width` x `height` being the terminal's size.

    Finished Markdown blocks are committed; what is not finished is drawn from live lines, token by token.
    With `markdown` off, or where the palette allows no escape codes, committed text is the reply's own lines.
    """

    def __init__(self, decode: Decode, width: int, height: int, palette: Palette, markdown: bool = True) -> None:
        self._decode = decode
        self._palette = palette
        self._width = max(2, width - 1)  # the last column stays unused
        self._rows = live_rows(height)
        self._stream: LineStream | MarkdownStream
        if palette.ink == "none":
            self._stream = LineStream(None, self._hold)
        elif markdown:
            self._stream = MarkdownStream(self._width, self._hold, palette)
        else:
            self._stream = LineStream(self._width, self._hold)
        self._done: tuple[int, ...] = ()
        self._taken = ""  # decoded text that the stream was fed
        self._ages: tuple[int, ...] = ()  # for each token of the block, iterations since it changed
        self._block = -1
        self._pairs: dict[tuple[int, int], str] = {}

    def update(self, update: BlockUpdate) -> Frame:
        """The frame after one iteration. Updates of one reply come in order."""
        if update.done:
            self._done += update.token_ids
            self._ages = ()
            commit = self._feed(final=False)
            coming = 0 if update.finish else len(update.token_ids)
            return Frame(commit=commit, live=self._live([("placeholder", self._cell)] * coming, 0))
        self._age(update)
        return Frame(live=self._live(*self._tokens(update)))

    def finish(self, reply: Reply) -> str:
        """What of the reply is not committed yet."""
        self._done = reply.token_ids
        commit = self._feed(final=True)
        if reply.finish == "cancelled":
            commit += self._palette.ansi([self._palette.text("[stopped]", "quiet")])
        elif not self._taken.strip():
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

    @property
    def _cell(self) -> str:
        return self._palette.mark("░", ".")

    def _feed(self, *, final: bool) -> str:
        text = self._decode(self._done)
        if not final:
            text = text.rstrip(TORN + "\r")
        new, self._taken = text[len(self._taken) :], text if len(text) > len(self._taken) else self._taken
        lines = self._stream.feed(visible(new))
        if final:
            lines += self._stream.finish()
        return self._palette.ansi(lines)

    def _age(self, update: BlockUpdate) -> None:
        old = self._ages if update.index == self._block else ()
        self._block = update.index
        self._ages = tuple(
            0 if changed else (old[at] + 1 if at < len(old) else 0) for at, changed in enumerate(update.changed)
        )

    def _tokens(self, update: BlockUpdate) -> tuple[list[tuple[str, str]], int]:
        """Styled text of each token of a block in progress, and how many of them have settled."""
        fragments: list[tuple[str, str]] = []
        at, settled = 0, 0
        while at < len(update.token_ids):
            text, size = self._token_text(update.token_ids, at)
            age = min(self._ages[at : at + size])
            style = "changed" if age == 0 else "recent" if age == 1 and at >= update.exact else ""
            fragments.append((style, visible(text)) if text else ("placeholder", self._cell * size))
            at += size
            settled = len(fragments) if at <= update.exact else settled
        return fragments, settled

    def _token_text(self, ids: Sequence[int], at: int) -> tuple[str, int]:
        """Text of the token at `at`, with what follows it if it holds only part of a character; how many tokens."""
        text = self._after(ids[at - 1] if at else None, ids[at])
        if TORN not in text:
            return text, 1
        for size in range(2, 5):
            joined = self._decode(ids[at : at + size])
            if TORN not in joined:
                return joined, min(size, len(ids) - at)
        return "", 1

    def _after(self, before: int | None, token: int) -> str:
        """Text of one token, given its neighbour: some tokenizers drop the blank before a lone token."""
        key = (-1 if before is None else before, token)
        text = self._pairs.get(key)
        if text is None:
            lead = self._decode([before]) if before is not None else ""
            both = self._decode([before, token]) if before is not None and TORN not in lead else ""
            text = both[len(lead) :] if both.startswith(lead) and both else self._decode([token])
            self._pairs[key] = text
        return text

    def _live(self, fragments: list[tuple[str, str]], settled: int) -> tuple[Line, ...]:
        """At most `_rows` lines: the unfinished text, then the block, kept in view around where it settles."""
        held, margin = self._stream.held, self._stream.margin
        if not held and not fragments:
            return ()
        fragments = [("", "\n" * self._stream.apart + held), *fragments]
        lines = wrap_fragments(fragments, self._width - margin)
        if len(lines) > self._rows:
            front = len(wrap_fragments(fragments[: settled + 1], self._width - margin)) - 1
            first = max(0, min(front - 1, len(lines) - self._rows))
            lines = lines[first : first + self._rows]
        return tuple((("", " " * margin), *line) for line in lines) if margin else tuple(lines)


def live_rows(height: int) -> int:
    """Lines of the live zone on a terminal of `height` rows."""
    return max(1, min(height - ROWS_KEPT, LIVE_LINES))


def wrap_fragments(fragments: Sequence[tuple[str, str]], width: int) -> list[Line]:
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
