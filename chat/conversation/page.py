"""What the conversation says, put on its console: notices, tables, errors, replies. Knows no model and no file."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from chat.console.events import ConsoleEvent, Line
from chat.screen import draw
from chat.screen.compare_lines import compared
from chat.screen.stats_lines import stats_line, stats_rows
from chat.screen.trace_lines import legend, new_trace, pass_lines
from chat.text.agreement import Compared
from chat.text.running_text import Decode, RunningText
from chat.text.thinking import ThinkingText
from chat.text.trace import Trace
from chat.text.transcript import USER, Message
from dist.errors import ChatError
from dist.protocol import Reply


class Console(Protocol):
    """What the conversation needs of a console; console.app.Console and console.plain.PlainLines are two."""

    events: queue.Queue[ConsoleEvent]

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def commit(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def echo(self, text: str) -> None: ...
    def show_live(self, lines: Sequence[Line] | Callable[[], Sequence[Line]]) -> None: ...
    def clear_live(self) -> None: ...
    def set_status(self, text: str) -> None: ...
    def set_toolbar(self, text: str) -> None: ...
    def set_busy(self, busy: bool) -> None: ...
    def set_stoppable(self, stoppable: bool) -> None: ...
    def cut_live(self) -> None: ...
    def edit(self, text: str) -> None: ...
    def insert(self, text: str, label: str) -> None: ...
    def put_back(self, text: str) -> None: ...
    def send(self, code: str) -> bool: ...


LONG_S = 10.0
BELL = "\x07"


@dataclass(slots=True)
class Shown:
    """How replies are shown, as the user wants it."""

    markdown: Literal["rendered", "source"] = "rendered"
    thinking: Literal["hide", "show"] = "hide"
    stats: Literal["line", "full", "off"] = "line"
    bell: Literal["bell", "notify", "off"] = "bell"


class Page:
    """A console that is written on in one palette, as wide as the terminal is at that moment."""

    def __init__(self, console: Console, palette: draw.Palette) -> None:
        self.console = console
        self.palette = palette
        self.shown = Shown()

    @property
    def redraws(self) -> bool:
        """Whether live lines and the status are seen; elsewhere only what is added is."""
        return self.palette.ink != "none"

    def note(self, text: str) -> None:
        """Something that the program says."""
        self.console.note(draw.notice(text, self.palette, self.console.width))

    def title(self, text: str) -> None:
        """What stands above a table."""
        self.console.note(draw.title(text, self.palette))

    def table(self, rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> None:
        self.console.note(draw.table(rows, self.console.width, self.palette, head=head))

    def error(self, error: ChatError) -> None:
        self.console.note(draw.error_block(error, self.palette, self.console.width))

    def stats(self, reply: Reply, used: int, limit: int) -> None:
        """The figures of one reply, after which `used` of `limit` tokens are taken."""
        if self.shown.stats == "line":
            self.console.note(stats_line(reply, used, limit, self.palette, self.console.width))
        elif self.shown.stats == "full":
            self.table([*stats_rows(reply), ("context", f"{used:,} of {limit:,}")])

    def echo(self, text: str) -> None:
        """What the user sent."""
        self.console.echo(draw.user_echo(text, self.palette, self.console.width))

    def markdown(self, text: str) -> None:
        """A whole reply."""
        as_source = self._as_source()
        self.console.commit(draw.render_markdown(text, self.console.width, self.palette, as_source=as_source))

    def message(self, message: Message) -> None:
        """A message of the conversation as it was when it came, marked if it is not whole."""
        if message.role == USER:
            self.echo(message.content)
        else:
            self.markdown(message.content)
        mark = "[stopped]" if message.stopped else "[unanswered]" if message.unanswered else ""
        if mark:
            self.note(mark)

    def reply_view(
        self, decode: Decode, text: RunningText | None = None, thinking: ThinkingText | None = None
    ) -> draw.ReplyView:
        """The drawing of a reply that is about to be made; `text` is its text where someone else keeps that."""
        return draw.ReplyView(
            decode,
            self.console.width,
            self.console.height,
            self.palette,
            text,
            as_source=self._as_source,
            thinking=thinking,
            show_thinking=lambda: self.shown.thinking == "show",
        )

    def thought(self, text: str) -> None:
        """What the model thought before a reply."""
        self.console.note(draw.thought(text, self.palette, self.console.width))

    def _as_source(self) -> bool:
        return self.shown.markdown == "source"

    def trace(self, decode: Decode) -> Trace:
        """What collects the passes of a reply that is about to be made."""
        return new_trace(decode, self.palette)

    def show(self, frame: draw.Frame) -> None:
        """One frame of a reply in the making."""
        self.console.commit(frame.commit)
        self.console.show_live(frame.draw)

    def traced(self, trace: Trace, *, top: bool) -> None:
        """The last pass of a trace; with `top` the candidates of what it changed too."""
        self.console.note(pass_lines(trace, self.palette, self.console.width, top=top))

    def compared(self, replies: Sequence[Compared], against: str = "greedy") -> None:
        """Replies to one prompt, in figures and in words."""
        self.console.note(compared(replies, self.palette, self.console.width, against))

    def raw(self, text: str) -> None:
        """A text as it is, in lines that fit."""
        self.console.note(draw.raw(text, self.palette, self.console.width))

    def trace_legend(self) -> None:
        """What the marks of a trace mean."""
        self.console.note(legend(self.palette, self.console.width))

    def joined(self, parts: Sequence[str]) -> str:
        """Words about one thing, on one line."""
        return self.palette.mark(" · ", ", ").join(parts)

    def ring(self, seconds: float, what: str) -> None:
        """Call the user back to the terminal when something that took long is over."""
        if seconds >= LONG_S and self.shown.bell != "off":
            self.console.send(BELL if self.shown.bell == "bell" else f"\x1b]9;{what}{BELL}")

    def status(self, text: str) -> None:
        """What goes on now; "" for nothing."""
        self.console.set_status(text)
