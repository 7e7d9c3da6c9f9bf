"""The conversation's one screen and keyboard, on a thread of its own. Knows no model and no command's meaning.

Committed text scrolls up and is never touched again; below it a bounded live zone, the input line and one quiet
line are redrawn. `commit`, `show_live` and the other setters may be called from any thread and do not wait
(but for `start`, `flush` and `close`); what the user does arrives in `events`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.application import Application
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.input import Input

from chat.console.draft import Draft
from chat.console.editor import edit_text
from chat.console.events import CommandInfo, Complete, ConsoleEvent, Failed, Line
from chat.console.input import clean, typed_early
from chat.console.keyboard import Keyboard
from chat.console.keys import console_keys
from chat.console.layout import View, console_layout, console_style
from chat.console.line import WAITS, InputLine
from chat.console.loop import Loop
from chat.console.orders import Orders
from chat.console.output import HeldOutput, terminal_output
from chat.console.painter import Painter
from chat.console.state import LineState
from chat.terminal.mode import BaseMode
from chat.terminal.streams import Streams

TAKEN_OVER = "This line was not sent last time. Ctrl-C clears it."
TYPED_EARLY = "Typed while the program was loading. Enter sends it, Ctrl-C clears it."


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
        self._app = self._make_app(terminal_input or Keyboard(streams.keyboard_fd), output, vi_mode)
        self._painter.attach(self._app)
        self._loop = Loop(
            self._app,
            self._orders,
            self._painter,
            on_tick=self._tick,
            on_fault=self._line.hint,
            on_end=lambda error: self.events.put(Failed(error)),
        )

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
        self._loop.start()

    def close(self) -> None:
        """Show what is still to be committed, end the thread. A live zone that was not cleared is cut."""
        self._orders.add(self._exit)
        self._loop.join()
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
        self._orders.add(lambda: self._loop.after_paint(shown.set))
        while self._loop.alive and not shown.wait(0.1):
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
        app.ttimeoutlen = 0.1
        if vi_mode:
            app.timeoutlen = 0.1
        return app

    def _tick(self) -> None:
        self._painter.redraw_if_resized()
        if self._view.waiting and not self._view.status:
            self._app.invalidate()
        self._draft.save(self._line.text)

    def _exit(self) -> None:
        if self._loop.running:
            self._draft.save(self._line.text)
            self._painter.end()
            self._loop.exit()

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
