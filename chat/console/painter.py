"""What stands on the terminal: committed text, never touched again, and below it what is redrawn. Knows no keys.

Used on the console's thread only; every change reaches the terminal in one write.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from prompt_toolkit.application import Application

from chat.console.events import Line
from chat.console.layout import View
from chat.console.output import HeldOutput, reflows, rewrapped_rows

DRAFT, PLACEHOLDER = "draft", "placeholder"
CUT = "[cut]"
NOT_KEPT = "What follows was a draft, and is not kept:"


class Painter:
    """Commits, erases and redraws. `attach` comes first: it says which application draws below the committed text.

    `live` is the live zone of the next frame, or a function that gives it when that frame is drawn.
    """

    _app: Application[None]

    def __init__(self, output: HeldOutput, view: View) -> None:
        self.live: Sequence[Line] | Callable[[], Sequence[Line]] = ()
        self.size = output.get_size()
        self._output = output
        self._view = view
        self._committed: list[str] = []
        self._ends_blank = True

    def attach(self, app: Application[None]) -> None:
        """Draw with this application, whose output is the same."""
        self._app = app

    def add(self, text: str, *, apart: bool = False) -> None:
        """Text for the scrollback, in whole lines; with `apart` a blank line stands before it."""
        text = "\n" * (apart and not self._ends_blank) + text
        text = text if text.endswith("\n") else text + "\n"
        self._committed.append(text)
        self._ends_blank = text == "\n" or text.endswith("\n\n")

    def take_added(self) -> str:
        """What was added and is not on the terminal yet, as it is to be written; it counts as written."""
        text = "".join(self._committed)
        self._committed.clear()
        return text.replace("\r\n", "\n").replace("\n", "\r\n")

    def paint(self) -> None:
        """Commit what was added and draw the next frame below it."""
        self._view.live = tuple(self.live() if callable(self.live) else self.live)
        self.check_size()
        self._write_added()
        self.redraw()

    def cut(self) -> None:
        """Commit the live zone as it stands, drafts marked as such: nothing that was seen is erased."""
        lines = self.live() if callable(self.live) else self.live
        fragments = [one for line in lines for one in (*line, ("", "\n"))]
        draft_at = next((at for at, (style, _) in enumerate(fragments) if DRAFT in style.split()), len(fragments))
        finished, draft = (
            "".join(text for style, text in part if PLACEHOLDER not in style.split()).strip("\n")
            for part in (fragments[:draft_at], fragments[draft_at:])
        )
        if finished.strip() or draft.strip():
            shown = [finished, f"{CUT} {NOT_KEPT}\n{draft}" if draft.strip() else CUT]
            self.add("\n".join(filter(None, shown)))
        self.live = ()

    def end(self) -> None:
        """Commit what was added, and what is live; nothing is left below it."""
        self.cut()
        self._view.live = ()
        self._write_added()

    def _write_added(self) -> None:
        """Put added text in the place of the live zone, which is left erased."""
        text = self.take_added()
        if text:
            self._output.held = True
            self._app.renderer.erase()
            self._output.write_raw(text)
            self._output.held = False

    def redraw(self) -> None:
        self.check_size()
        self._app.render_counter += 1  # what was laid out for the last drawing is stale
        self._app.renderer.render(self._app, self._app.layout)

    def check_size(self) -> None:
        """If the terminal has another size, erase what was drawn at the old one, rewrapped rows included."""
        size = self._output.get_size()
        if size == self.size:
            return
        narrower = size.columns < self.size.columns
        self.size = size
        screen = self._app.renderer.last_rendered_screen
        if screen is not None:
            extra = 0
            if narrower and reflows(os.environ):
                cursor = screen.get_cursor_position(self._app.layout.current_window)
                extra = rewrapped_rows(screen.data_buffer, cursor.x, cursor.y, size.columns)
            self._output.held = True
            self._output.write_raw("\r")
            self._output.cursor_up(extra)
            self._app.renderer.erase()
            self._output.held = False

    def redraw_if_resized(self) -> None:
        if self._output.get_size() != self.size:
            self.redraw()

    def clear_screen(self) -> None:
        """Scroll everything up and out of view; the scrollback keeps it."""
        self._output.held = True
        self._app.renderer.erase()
        self._output.write_raw("\r\n" * (self.size.rows - 1))
        self._output.cursor_goto(1, 1)
        self._output.held = False
        self.redraw()

    def give_up(self) -> None:
        """Leave the terminal to another program until the next `redraw`."""
        self._app.renderer.erase()
        self._output.show_cursor()
        self._output.flush()

    def send(self, code: str) -> None:
        """A code that shows nothing."""
        self._output.write_raw(code)
        self._output.flush()
