"""The conversation's one screen and keyboard, on a thread of its own. Knows no model and no command's meaning.

Committed text scrolls up and is never touched again; below it a bounded live zone, the input line and one quiet
line are redrawn. `commit`, `show_live` and the other setters may be called from any thread and do not wait
(but for `start`, `flush` and `close`); what the user does arrives in `events`.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.input import Input

from chat.console.draft import Draft
from chat.console.editor import edit_text
from chat.console.events import (
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
    Submitted,
)
from chat.console.input import clean, typed_early
from chat.console.keyboard import GuardedKeys, Keyboard
from chat.console.keys import console_keys
from chat.console.layout import View, console_layout, console_style
from chat.console.line import WAITS, InputLine
from chat.console.orders import Orders
from chat.console.output import HeldOutput, terminal_output
from chat.console.painter import Painter
from chat.console.plain import PlainLines
from chat.console.state import LineState
from chat.terminal.mode import BaseMode
from chat.terminal.streams import Streams

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
    "Submitted",
]

FRAME_SECONDS = 0.05
SIZE_POLL_SECONDS = 0.2
TAKEN_OVER = "This line was not sent last time. Ctrl-C clears it."
TYPED_EARLY = "Typed while the program was loading. Enter sends it, Ctrl-C clears it."
MAX_FAULTS, FAULT_SECONDS = 20, 2.0


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
        self._orders = Orders()
        output = output or terminal_output(streams.replies, color=streams.color)
        self._state = LineState(self.events, waits=WAITS, commands=commands, on_abort=on_abort)
        self._view = View(self._state, ascii=streams.ascii)
        self._painter = Painter(output, self._view)
        self._line = InputLine(
            self._view, self._state, history_file=history_file, complete=complete, settle=self._orders.carry_out
        )
        self._draft = Draft(history_file.parent / "drafts")
        self._after_paint: list[Callable[[], None]] = []
        self._last_paint = 0.0
        self._running = threading.Event()
        self._failure: BaseException | None = None
        self._faults: deque[float] = deque(maxlen=MAX_FAULTS)
        self._app = self._make_app(terminal_input or Keyboard(streams.keyboard_fd), output, vi_mode)
        self._painter.attach(self._app)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)

    # Called from any thread.

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._painter.size.columns

    @property
    def height(self) -> int:
        """Rows of the terminal."""
        return self._painter.size.rows

    def start(self) -> None:
        """Draw the input line and read keys; returns once that is so (or has failed)."""
        left, early = self._draft.take_over(), typed_early(self._streams.keyboard_fd)
        if left or early:
            self._line.put_back("\n".join(filter(None, (left, early))))
            self._line.hint(TYPED_EARLY if early else TAKEN_OVER)
        self._thread.start()
        self._running.wait()

    def close(self) -> None:
        """Show what is still to be committed, end the thread. A live zone that was not cleared is cut."""
        self._orders.add(self._exit)
        if self._thread.is_alive():
            self._thread.join()
        # If the thread has died, the last words stand here still.
        self._orders.carry_out()
        with suppress(OSError, ValueError):
            self._streams.replies.write(self._painter.take_added())
            self._streams.replies.flush()

    def commit(self, text: str) -> None:
        """Append `text` (ANSI styles allowed) to the scrollback, exactly once and in order, in whole lines."""
        if text:
            self._orders.add(lambda: self._painter.add(text))

    def note(self, text: str) -> None:
        """As `commit`, for what is no reply: where output is piped the two go different ways."""
        self.commit(text)

    def echo(self, text: str) -> None:
        """As `commit`, for what the user sent: a blank line stands before it."""
        if text:
            self._orders.add(lambda: self._painter.add(text, apart=True))

    def show_live(self, lines: Sequence[Line] | Callable[[], Sequence[Line]]) -> None:
        """Replace the live zone. Of frames that follow within 50 ms only the last is drawn.

        A function is called when its frame is drawn, on the console's thread.
        """
        self._orders.add(lambda: setattr(self._painter, "live", lines))

    def clear_live(self) -> None:
        self.show_live(())

    def set_status(self, text: str) -> None:
        """What goes on now, at the left of the bottom line; "" for nothing."""
        self._orders.add(lambda: setattr(self._view, "status", text))

    def set_toolbar(self, text: str) -> None:
        """What is set, at the right of the bottom line."""
        self._orders.add(lambda: setattr(self._view, "toolbar", text))

    def set_busy(self, busy: bool) -> None:
        """A reply is being made (or other work goes on), or (False) the next line is waited for."""
        self._orders.add(lambda: self._line.set_busy(busy))

    def set_stoppable(self, stoppable: bool) -> None:
        """What makes the console busy is a reply, which Ctrl-C stops."""
        self._orders.add(lambda: setattr(self._state, "stoppable", stoppable))

    def cut_live(self) -> None:
        """Commit the live zone as it stands, marked as cut: what made it is broken off."""
        self._orders.add(self._painter.cut)

    def edit(self, text: str) -> None:
        """Put `text` into the input line; what is sent next is marked as edited, unless Ctrl-C comes first."""
        self._orders.add(lambda: self._line.edit(text))

    def insert(self, text: str, label: str) -> None:
        """Put `text` into the input line at the cursor; if it is long it shows as a chip called `label`."""
        self._orders.add(lambda: self._line.insert(text, label))

    def put_back(self, text: str) -> None:
        """Give a line back that could not be used, unless something else has been typed by now."""
        self._orders.add(lambda: self._line.put_back(text))

    def send(self, code: str) -> bool:
        """Send the terminal a code that shows nothing; whether that can be done here."""
        self._orders.add(lambda: self._painter.send(code))
        return True

    def flush(self) -> None:
        """Wait until all that was ordered so far is on the screen."""
        shown = threading.Event()
        self._orders.add(lambda: self._after_paint.append(shown.set))
        while self._thread.is_alive() and not shown.wait(0.1):
            pass

    # The console's thread.

    def _make_app(self, terminal_input: Input, output: HeldOutput, vi_mode: bool) -> Application[None]:
        app: Application[None] = Application(
            layout=console_layout(self._view, self._line.buffer, self._line.chips),
            style=console_style(self._streams.color),
            key_bindings=console_keys(self._line, self),
            editing_mode=EditingMode.VI if vi_mode else EditingMode.EMACS,
            input=terminal_input,
            output=output,
            erase_when_done=True,
            terminal_size_polling_interval=None,
            before_render=lambda _: self._painter.check_size(),
        )
        app.key_processor = GuardedKeys(app.key_processor._bindings, self._on_key_error)
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
        self._orders.attach()
        asyncio.get_running_loop().set_exception_handler(self._on_exception)

        def ready() -> None:
            self._app.create_background_task(self._paint_when_asked())
            self._app.create_background_task(self._watch_size())
            self._running.set()

        await self._app.run_async(pre_run=ready, handle_sigint=False, set_exception_handler=False)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something that runs beside the keys failed: a completion, a drawing. The line lives on if it can."""
        error = context.get("exception") or RuntimeError(str(context.get("message")))
        self._on_key_error(error) if isinstance(error, Exception) else self._fail(error)

    def _on_key_error(self, error: Exception) -> None:
        """Log a fault and say it in one line; too many in a row end the console."""
        now = time.monotonic()
        self._faults.append(now)
        print("".join(traceback.format_exception(error)), file=sys.stderr, flush=True)
        if len(self._faults) == MAX_FAULTS and now - self._faults[0] < FAULT_SECONDS:
            self._fail(error)
            return
        self._line.hint(f"That key failed ({type(error).__name__}: {error}). The line is kept; the log has more.")
        self._app.invalidate()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        if self._app.is_running and not self._app.is_done:
            self._app.exit()

    async def _paint_when_asked(self) -> None:
        while True:
            await self._orders.come()
            await asyncio.sleep(max(0.0, self._last_paint + FRAME_SECONDS - time.monotonic()))
            self._orders.take_note()
            try:
                self._paint()
            except Exception as error:  # noqa: BLE001  (the edge of the thread: handed to the main thread)
                self._fail(error)
                return

    async def _watch_size(self) -> None:
        while True:
            await asyncio.sleep(SIZE_POLL_SECONDS)
            self._painter.redraw_if_resized()
            if self._view.waiting and not self._view.status:
                self._app.invalidate()
            self._draft.save(self._line.text)

    def _paint(self) -> None:
        """Carry out all orders and show what came of them."""
        self._orders.carry_out()
        if self._app.is_done:
            return
        self._painter.paint()
        self._last_paint = time.monotonic()
        while self._after_paint:
            self._after_paint.pop()()

    def _exit(self) -> None:
        if self._app.is_running and not self._app.is_done:
            self._draft.save(self._line.text)
            self._painter.end()
            self._app.exit()

    # What the keys ask of the screen.

    def clear_screen(self) -> None:
        self._painter.clear_screen()

    def suspend(self) -> None:
        self._painter.give_up()
        self._mode.suspend()
        self._painter.redraw()

    def open_editor(self) -> None:
        """Open the line in the user's editor."""
        self._painter.give_up()
        try:
            self._line.replace(clean(edit_text(self._line.text, self._streams, self._mode)))
        except OSError as error:
            self._line.hint(f"No editor: {error}. Set EDITOR.")
        self._painter.redraw()
