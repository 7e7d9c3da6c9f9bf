"""The conversation's one screen and keyboard, on a thread of its own. Knows no model and no command's meaning.

Committed text scrolls up and is never touched again; below it a bounded live zone, the input line and one quiet
line are redrawn. `commit`, `show_live` and the other setters may be called from any thread and do not wait
(but for `start`, `flush` and `close`); what the person does arrives in `events`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import shlex
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from prompt_toolkit.application import Application
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.input import Input
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.search import stop_search

from chat.console_events import (
    Abort,
    Candidate,
    CommandInfo,
    Complete,
    ConsoleEvent,
    Failed,
    Fragment,
    Interrupt,
    Leave,
    Line,
    Resized,
    Submitted,
    command_word,
)
from chat.console_input import Chips, LineCompleter, SessionHistory, clean
from chat.console_keys import console_keys
from chat.console_layout import View, console_layout, console_style
from chat.console_plain import PlainLines
from chat.terminal import BaseMode, Streams

__all__ = [
    "Abort",
    "Candidate",
    "CommandInfo",
    "Complete",
    "Console",
    "ConsoleEvent",
    "Failed",
    "Fragment",
    "Interrupt",
    "Leave",
    "Line",
    "PlainLines",
    "Resized",
    "Submitted",
]

FRAME_SECONDS = 0.05
SIZE_POLL_SECONDS = 0.2
ABORT_SECONDS = 2.0


class HeldOutput(Vt100_Output):
    """An output whose flushes can be held back, so that erase, write and redraw reach the terminal as one."""

    held = False

    def flush(self) -> None:
        if not self.held:
            super().flush()


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


def reflows(environ: dict[str, str] | os._Environ[str]) -> bool:
    """Whether this terminal rewraps what is on it when it gets narrower. Most do; a few old ones cut."""
    term = environ.get("TERM", "")
    return not (
        term.startswith("linux")
        or "XTERM_VERSION" in environ
        or (term.startswith("screen") and "TMUX" not in environ)
    )


class Console:
    """The one prompt_toolkit application of a session.

    A line sent at the prompt makes the console busy until `set_busy(False)`, which the owner calls whenever
    it is ready for the next line. While busy, the input line gathers a draft; only a slash command that is
    live is handed over. `on_abort` is called on the console's thread with every Abort event: the main thread may be
    stuck in a forward.
    """

    def __init__(
        self,
        streams: Streams,
        *,
        commands: Sequence[CommandInfo],
        history_file: Path,
        complete: Complete,
        mode: BaseMode | None = None,
        vi_mode: bool = False,
        on_abort: Callable[[], None] | None = None,
        terminal_input: Input | None = None,
        output: HeldOutput | None = None,
    ) -> None:
        self.events: queue.Queue[ConsoleEvent] = queue.Queue()
        self._streams = streams
        self._mode = mode or BaseMode(streams.keyboard_fd)
        self._on_abort = on_abort
        self._commands = {command.name.lstrip("/"): command for command in commands}
        self._output = output or terminal_output(streams.replies, color=streams.color)
        self._size = self._output.get_size()
        self._view = View(ascii=streams.ascii)
        self._chips = Chips()
        self._history = SessionHistory(history_file)
        self._interrupts: deque[float] = deque(maxlen=3)
        # Crossing the threads: what is to be done by the console's, in order, and the bell for it.
        self._orders: deque[Callable[[], None]] = deque()
        self._committed: list[str] = []
        self._after_paint: list[Callable[[], None]] = []
        self._last_paint = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event | None = None
        self._running = threading.Event()
        self._failure: BaseException | None = None
        self._buffer = self._make_buffer(complete)
        self._app = self._make_app(terminal_input or _terminal_input(streams.keyboard_fd), vi_mode)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    # Called from any thread.

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._size.columns

    @property
    def height(self) -> int:
        """Rows of the terminal."""
        return self._size.rows

    def start(self) -> None:
        """Draw the input line and read keys; returns once that is so (or has failed)."""
        self._thread.start()
        self._running.wait()

    def close(self) -> None:
        """Show what is still to be committed, take the live zone away, end the thread."""
        self._order(self._exit)
        if self._thread.is_alive():
            self._thread.join()

    def commit(self, text: str) -> None:
        """Append `text` (ANSI styles allowed) to the scrollback, exactly once and in order, in whole lines."""
        if text:
            self._order(lambda: self._committed.append(text if text.endswith("\n") else text + "\n"))

    def note(self, text: str) -> None:
        """As `commit`, for what is no reply: where output is piped the two go different ways."""
        self.commit(text)

    def echo(self, text: str) -> None:
        """As `commit`, for what the person sent."""
        self.commit(text)

    def show_live(self, lines: Sequence[Line]) -> None:
        """Replace the live zone. Of frames that follow within 50 ms only the last is drawn."""
        self._order(lambda: setattr(self._view, "live", tuple(lines)))

    def clear_live(self) -> None:
        self.show_live(())

    def set_status(self, text: str) -> None:
        """What goes on now, at the left of the bottom line; "" for nothing."""
        self._order(lambda: setattr(self._view, "status", text))

    def set_toolbar(self, text: str) -> None:
        """What is set, at the right of the bottom line."""
        self._order(lambda: setattr(self._view, "toolbar", text))

    def set_busy(self, busy: bool) -> None:
        """A reply is being made, or (False) the next line is waited for."""
        self._order(lambda: self._set_busy(busy))

    def set_draft(self, text: str) -> None:
        """Put `text` into the input line, to be changed and sent."""
        self._order(lambda: self._buffer.set_document(Document(text, len(text))))

    def flush(self) -> None:
        """Wait until all that was ordered so far is on the screen."""
        shown = threading.Event()
        self._order(lambda: self._after_paint.append(shown.set))
        while self._thread.is_alive() and not shown.wait(0.1):
            pass

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        loop, bell = self._loop, self._bell
        if loop is not None and bell is not None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(bell.set)

    # The console's thread.

    def _make_buffer(self, complete: Complete) -> Buffer:
        return Buffer(
            name=DEFAULT_BUFFER,
            multiline=True,
            history=self._history,
            auto_suggest=AutoSuggestFromHistory(),
            completer=LineCompleter(complete),
            complete_while_typing=Condition(lambda: self._buffer.text.startswith("/")),
            on_text_changed=lambda _: self._hint(""),
        )

    def _make_app(self, terminal_input: Input, vi_mode: bool) -> Application[None]:
        app: Application[None] = Application(
            layout=console_layout(self._view, self._buffer, self._chips),
            style=console_style(self._streams.color),
            key_bindings=console_keys(self),
            editing_mode=EditingMode.VI if vi_mode else EditingMode.EMACS,
            input=terminal_input,
            output=self._output,
            erase_when_done=True,
            terminal_size_polling_interval=None,
            before_render=lambda _: self._check_size(),
        )
        app.ttimeoutlen = 0.1
        if vi_mode:
            app.timeoutlen = 0.1
        return app

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  (the edge of the thread: handed to the main thread)
            self._failure = error
        finally:
            self._running.set()
        if self._failure is not None:
            self.events.put(Failed(self._failure))

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bell = asyncio.Event()
        self._bell.set()
        self._loop.set_exception_handler(self._on_exception)

        def ready() -> None:
            self._app.create_background_task(self._paint_when_asked())
            self._app.create_background_task(self._watch_size())
            self._running.set()

        await self._app.run_async(pre_run=ready, handle_sigint=False, set_exception_handler=False)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or RuntimeError(str(context.get("message")))
        if self._failure is None:
            self._failure = error
        if self._app.is_running and not self._app.is_done:
            self._app.exit()

    async def _paint_when_asked(self) -> None:
        assert self._bell is not None
        while True:
            await self._bell.wait()
            await asyncio.sleep(max(0.0, self._last_paint + FRAME_SECONDS - time.monotonic()))
            self._bell.clear()
            self._paint()

    async def _watch_size(self) -> None:
        while True:
            await asyncio.sleep(SIZE_POLL_SECONDS)
            if self._output.get_size() != self._size:
                self._redraw()

    def _paint(self) -> None:
        """Carry out all orders; commit, erase and redraw in one write."""
        self._carry_out()
        if self._app.is_done:
            return
        self._check_size()
        self._write_committed()
        self._redraw()
        self._last_paint = time.monotonic()
        while self._after_paint:
            self._after_paint.pop()()

    def _carry_out(self) -> None:
        while self._orders:
            self._orders.popleft()()

    def _write_committed(self) -> None:
        """Put committed text in the place of the live zone, which is left erased."""
        if self._committed:
            text = "".join(self._committed)
            self._committed.clear()
            self._output.held = True
            self._app.renderer.erase()
            self._output.write_raw(text.replace("\r\n", "\n").replace("\n", "\r\n"))
            self._output.held = False

    def _redraw(self) -> None:
        self._check_size()
        self._app.render_counter += 1  # what was laid out for the last drawing is stale
        self._app.renderer.render(self._app, self._app.layout)

    def _check_size(self) -> None:
        """If the terminal has another size, erase what was drawn at the old one, rewrapped rows included."""
        size = self._output.get_size()
        if size == self._size:
            return
        narrower = size.columns < self._size.columns
        self._size = size
        screen = self._app.renderer.last_rendered_screen
        if screen is not None:
            extra = 0
            if narrower and reflows(os.environ):
                cursor = screen.get_cursor_position(self._app.layout.current_window)
                extra = _rewrapped_rows(screen.data_buffer, cursor.x, cursor.y, size.columns)
            self._output.held = True
            self._output.write_raw("\r")
            self._output.cursor_up(extra)
            self._app.renderer.erase()
            self._output.held = False
        self.events.put(Resized(size.columns, size.rows))

    def _exit(self) -> None:
        self._view.live = ()
        self._write_committed()
        if self._app.is_running and not self._app.is_done:
            self._app.exit()

    def _set_busy(self, busy: bool) -> None:
        self._view.busy = busy
        self._view.hint = ""
        self._interrupts.clear()

    def _hint(self, text: str) -> None:
        self._view.hint = text

    # What the keys ask for.

    def send(self) -> None:
        self._carry_out()  # a `set_busy` from before this key must not come after it
        text = clean(self._chips.unfold(self._buffer.text))
        word = command_word(text)
        if not text.strip():
            self._buffer.reset()
        elif not self._view.busy:
            self._view.busy = True
            self._hand_over(text, live=False)
        elif word is None:
            self._hint("Kept as a draft: send it when the reply is done (Ctrl-C stops the reply).")
        elif word in self._commands and not self._commands[word].live:
            self._hint(f"/{word} has to wait until the reply is done (Ctrl-C stops the reply).")
        else:
            self._hand_over(text, live=True)

    def _hand_over(self, text: str, *, live: bool) -> None:
        self._history.append_string(text)
        self._buffer.reset()
        self._chips.clear()
        self.events.put(Submitted(text, live))

    def interrupt(self) -> None:
        self._carry_out()
        if self._view.busy:
            self._interrupts.append(time.monotonic())
            in_vain = len(self._interrupts) == 3 and self._interrupts[-1] - self._interrupts[0] <= ABORT_SECONDS
            if in_vain:
                self.abort()
            else:
                self.events.put(Interrupt())
            self._hint("Stopping. Ctrl-C three times in a row ends the program.")
            return
        if self._app.layout.is_searching:
            stop_search()
        if self._buffer.text:
            self._buffer.reset()
            self._chips.clear()
        else:
            self._hint("Ctrl-D or /quit leaves.")

    def abort(self) -> None:
        if self._view.busy:
            self.events.put(Abort())
            if self._on_abort is not None:
                self._on_abort()
        else:
            self._hint("Ctrl-D or /quit leaves.")

    def leave(self) -> None:
        if self._view.busy:
            self._hint("A reply is being made: Ctrl-C stops it.")
        else:
            self.events.put(Leave())

    def paste(self, text: str) -> None:
        folded = self._chips.fold(clean(text))
        self._buffer.insert_text(folded)
        if self._chips.label(folded):
            self._hint("The whole text is sent; Ctrl-O shows it here.")

    def unfold_chips(self) -> None:
        text = self._chips.unfold(self._buffer.text)
        before = self._chips.unfold(self._buffer.document.text_before_cursor)
        self._chips.clear()
        self._buffer.set_document(Document(text, len(before)))

    def clear_screen(self) -> None:
        """Scroll everything up and out of view; the scrollback keeps it."""
        self._output.held = True
        self._app.renderer.erase()
        self._output.write_raw("\r\n" * (self._size.rows - 1))
        self._output.cursor_goto(1, 1)
        self._output.held = False
        self._redraw()

    def suspend(self) -> None:
        self._app.renderer.erase()
        self._output.show_cursor()
        self._output.flush()
        self._mode.suspend()
        self._redraw()

    def edit(self) -> None:
        """Open the line in the person's editor, which gets the terminal and a mode without signal keys."""
        command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "") or ["vi"]
        folder = Path(tempfile.mkdtemp(prefix="dllm-chat-"))
        path = folder / "message.md"
        path.write_text(self._chips.unfold(self._buffer.text), encoding="utf-8")
        self._app.renderer.erase()
        self._output.show_cursor()
        self._output.flush()
        try:
            with self._mode.lent():
                terminal = self._streams.replies.fileno()
                done = subprocess.run(
                    [*command, str(path)], stdin=self._streams.keyboard_fd, stdout=terminal, stderr=terminal
                )
            if done.returncode == 0:
                text = clean(path.read_text(encoding="utf-8", errors="replace")).removesuffix("\n")
                self._chips.clear()
                self._buffer.set_document(Document(text, len(text)))
        except OSError as error:
            self._hint(f"No editor: {error}. Set EDITOR.")
        finally:
            path.unlink(missing_ok=True)
            folder.rmdir()
        self._redraw()


def _terminal_input(fd: int) -> Input:
    # closefd=False: the file descriptor is the streams', not ours.
    return Vt100Input(open(fd, encoding="utf-8", errors="surrogateescape", closefd=False))


def _rewrapped_rows(rows: Any, x: int, y: int, columns: int) -> int:
    """How many rows lower the cursor at (x, y) stands after `rows` were rewrapped to `columns`."""
    extra = min(x, 10**6) // columns
    for number in range(y):
        used = max((at for at, cell in rows[number].items() if cell.char != " "), default=0) + 1
        extra += (used - 1) // columns
    return extra
