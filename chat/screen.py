"""Pure drawing: values to styled text. Knows no terminal and no clock; of the tokenizer, a function ids -> text.

Committed text is a string whose every line ends with a newline; the live zone is lines of styled fragments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from chat.cells import cells, visible, wrap_spans
from chat.markdown import LineStream, MarkdownStream, indented, wrap
from chat.palette import Palette
from dist.errors import ChatError
from dist.protocol import BlockUpdate, Reply

__all__ = [
    "Frame",
    "Palette",
    "ReplyView",
    "error_block",
    "notice",
    "render_markdown",
    "stats_line",
    "table",
    "user_echo",
    "welcome",
]

Decode = Callable[[Sequence[int]], str]
Line = tuple[tuple[str, str], ...]

LIVE_LINES = 12
ROWS_KEPT = 4  # of the terminal, for what is not live
ECHO_LINES = 12
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


def render_markdown(text: str, width: int, palette: Palette) -> str:
    """A whole text as a reply would be committed."""
    if palette.ink == "none":
        return palette.ansi(Text(line) for line in visible(text).split("\n"))
    stream = MarkdownStream(max(2, width - 1), LIVE_LINES, palette)
    return palette.ansi([*stream.feed(visible(text)), *stream.finish()])


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


def user_echo(text: str, palette: Palette, width: int = 80) -> str:
    """What the person sent, as it stays in the scrollback; a long message shows its beginning."""
    lines = wrap(Text(visible(text)), max(2, width - 3))
    more = len(lines) - ECHO_LINES
    if more > 1:
        lines = [*lines[:ECHO_LINES], palette.text(f"{palette.mark('…', '...')} {more:,} more lines", "quiet")]
    mark = palette.text(palette.mark("› ", "> "), "accent")
    for line in lines[: ECHO_LINES if more > 1 else None]:
        line.stylize(palette.style("user"))
    return palette.ansi([mark + lines[0], *indented(lines[1:], 2), Text()])


def notice(text: str, palette: Palette, width: int = 80) -> str:
    """Something the program says, quietly."""
    lines = wrap(Text(visible(text)), max(2, width - 1))
    for line in lines:
        line.stylize(palette.style("quiet"))
    return palette.ansi(lines)


def error_block(error: ChatError, palette: Palette, width: int = 80) -> str:
    """What happened, why, what to do: a line each, then a blank one."""
    what, *rest = (visible(part) for part in (error.what, error.why, error.mend) if part)
    lines = wrap(palette.text(what, "error"), max(2, width - 1))
    for part in rest:
        lines += wrap(Text(part), max(2, width - 1))
    return palette.ansi([*lines, Text()])


def table(
    rows: Sequence[Sequence[str]], width: int, palette: Palette, *, head: Sequence[str] = (), margin: int = 2
) -> str:
    """Rows of text in aligned columns; the last column takes the room that is left and wraps."""
    shown = [[visible(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    if not shown:
        return ""
    count = max(map(len, shown))
    widths = [max((cells(row[at]) for row in shown if at < len(row)), default=0) for at in range(count)]
    room = max(2, width - 1 - margin - sum(widths[:-1]) - 2 * (count - 1))
    if room < min(20, widths[-1]):  # too narrow for columns: the last one goes below the others
        return _stacked(shown, palette, width, margin)
    lines: list[Text] = []
    for number, row in enumerate(shown):
        *left, last = [*row, *[""] * (count - len(row))]
        pieces = wrap(Text(last), room)
        start = Text(" " * margin)
        for at, cell in enumerate(left):
            style = "quiet" if head and number == 0 else "accent" if at == 0 else ""
            start += palette.text(cell, style) + Text(" " * (widths[at] - cells(cell) + 2))
        if head and number == 0:
            pieces[0].stylize(palette.style("quiet"))
        below = indented(pieces[1:], cells(start.plain))
        lines += [start + pieces[0], *below]
    for line in lines:
        line.rstrip()
    return palette.ansi(lines)


def _stacked(rows: Sequence[Sequence[str]], palette: Palette, width: int, margin: int) -> str:
    lines: list[Text] = []
    for first, *others in rows:
        lines += indented(wrap(palette.text(first, "accent"), width - 1 - margin), margin)
        for cell in filter(None, others):
            lines += indented(wrap(Text(cell), max(2, width - 3 - margin)), margin + 2)
    return palette.ansi(lines)


def welcome(facts: Mapping[str, Any], palette: Palette, width: int = 80) -> str:
    """The first words of a conversation: which model answers. Any of `facts` may be absent."""
    folder = str(facts.get("checkpoint", ""))
    parts = [
        str(facts.get("model_type") or ""),
        count_text(facts["parameters"]) + " parameters" if facts.get("parameters") else "",
        str(facts.get("dtype") or "").removeprefix("torch."),
        f"{facts['processes']} process{'es' if facts['processes'] > 1 else ''}" if facts.get("processes") else "",
        f"ready in {facts['ready_seconds']:.1f} s" if facts.get("ready_seconds") else "",
    ]
    about = palette.mark(" · ", ", ").join(filter(None, parts))
    lines = (
        [palette.text(line.plain, "strong") for line in wrap(Text(visible(folder)), width - 1)] if folder else []
    )
    lines += [palette.text(line.plain, "quiet") for line in wrap(Text(visible(about)), width - 1)]
    return palette.ansi([*lines, Text()])


def count_text(number: int) -> str:
    """A large number in three digits or so: 135 M, 7.6 B."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f} {unit}"
    return f"{number:,}"


def stats_line(reply: Reply, context_used: int, context_limit: int, palette: Palette, width: int = 80) -> str:
    """The figures of one reply: a blank line, one quiet line (two where it is narrow), a blank line.

    `context_used` of `context_limit` tokens are taken by the conversation after this reply.
    """
    stats = reply.stats
    blocks = len(stats.iterations)
    allowed = reply.settings.refine_iter
    parts = [
        f"{stats.tokens:,} tokens" + (" (the limit)" if reply.finish == "length" else ""),
        f"{stats.tokens_per_s:.1f} tok/s",
        f"first block {stats.ttft_s:.2f} s",
        f"{stats.forwards:,} forwards, {stats.tokens_per_forward:.1f} tokens each",
        f"passes {sum(stats.iterations):,} of {allowed if allowed == 'auto' else f'{allowed * blocks:,}'}",
        f"{sum(stats.converged)} of {blocks} blocks converged",
        f"context {context_used:,} of {context_limit:,}",
        *([f"seed {reply.settings.seed}"] if reply.settings.samples else []),
    ]
    lines: list[str] = []
    for part in parts:
        joined = palette.mark(" · ", ", ").join([lines[-1], part]) if lines else part
        if lines and cells(joined) <= width - 1:
            lines[-1] = joined
        else:
            lines.append(part)
    return palette.ansi([Text(), *(palette.text(line, "quiet") for line in lines), Text()])
