"""The input line: what is in it, and what sending, stopping, pasting do. Knows no screen and no threads.

All of it runs on the console's thread; what the person wants leaves it as events.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_toolkit.application.current import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition
from prompt_toolkit.search import stop_search

from chat.console.buffer import VisibleCharacters
from chat.console.events import (
    Abort,
    CommandInfo,
    Complete,
    ConsoleEvent,
    Interrupt,
    Leave,
    Submitted,
    command_word,
)
from chat.console.input import Chips, LineCompleter, SessionHistory, clean
from chat.console.layout import View

ABORT_SECONDS = 2.0
HOW_TO_LEAVE = "Ctrl-D or /quit leaves."
NOTHING_CHANGED = "Nothing was changed."


class InputLine:
    """Drafts, history, completion, chips. Sending makes the view busy; `set_busy(False)` ends that.

    `settle` is called before a key that sends or stops: orders of the main thread that came earlier count first.
    `on_abort` is called with every Abort event: the main thread may be stuck.
    """

    def __init__(
        self,
        view: View,
        events: queue.Queue[ConsoleEvent],
        *,
        commands: Sequence[CommandInfo],
        history_file: Path,
        complete: Complete,
        settle: Callable[[], None],
        on_abort: Callable[[], None] | None,
    ) -> None:
        self.chips = Chips()
        self._view = view
        self._events = events
        self._commands = {command.name.lstrip("/"): command for command in commands}
        self._settle = settle
        self._on_abort = on_abort
        self._history = SessionHistory(history_file)
        self._interrupts: deque[float] = deque(maxlen=3)
        self.buffer = VisibleCharacters(
            name=DEFAULT_BUFFER,
            multiline=True,
            history=self._history,
            auto_suggest=AutoSuggestFromHistory(),
            completer=LineCompleter(complete),
            complete_while_typing=Condition(lambda: self.buffer.text.startswith("/")),
            on_text_changed=lambda _: self.hint(""),
        )

    @property
    def text(self) -> str:
        """What would be sent: the line with its chips unfolded."""
        return clean(self.chips.unfold(self.buffer.text))

    def replace(self, text: str) -> None:
        self.chips.clear()
        self.buffer.set_document(Document(text, len(text)))

    def edit(self, text: str) -> None:
        self.replace(text)
        self._view.editing = True

    def put_back(self, text: str) -> None:
        if not self.buffer.text:
            folded = self.chips.fold(text)
            self.buffer.set_document(Document(folded, len(folded)))

    def set_busy(self, busy: bool) -> None:
        self._view.busy = busy
        self._view.hint = ""
        self._interrupts.clear()

    def hint(self, text: str) -> None:
        self._view.hint = text

    # What the keys ask for.

    def send(self) -> None:
        self._settle()  # a `set_busy` from before this key must not come after it
        text = self.text
        word = command_word(text)
        text = text if word is None else text.rstrip(" ")
        if not text.strip():
            self.buffer.reset()
        elif not self._view.busy:
            self._view.busy = True
            self._hand_over(text, live=False)
        elif word is None:
            self.hint("Kept as a draft: send it when this is done (Ctrl-C stops a reply).")
        elif word in self._commands and not self._commands[word].live:
            self.hint(f"/{word} has to wait until this is done (Ctrl-C stops a reply).")
        else:
            self._hand_over(text, live=True)

    def _hand_over(self, text: str, *, live: bool) -> None:
        self._history.append_string(text)
        self.buffer.reset()
        self.chips.clear()
        edited, self._view.editing = self._view.editing, False
        self._events.put(Submitted(text, live, edited))

    def interrupt(self) -> None:
        self._settle()
        if self._view.busy:
            self._interrupts.append(time.monotonic())
            in_vain = len(self._interrupts) == 3 and self._interrupts[-1] - self._interrupts[0] <= ABORT_SECONDS
            if in_vain:
                self.abort()
            else:
                self._events.put(Interrupt())
            self.hint("A reply stops after this pass. Ctrl-C three times in a row ends the program.")
            return
        if get_app().layout.is_searching:
            stop_search()
        editing, self._view.editing = self._view.editing, False
        if self.buffer.text or editing:
            self.buffer.reset()
            self.chips.clear()
            self.hint(NOTHING_CHANGED if editing else "")
        else:
            self.hint(HOW_TO_LEAVE)

    def abort(self) -> None:
        self._settle()
        if self._view.busy:
            self._events.put(Abort())
            if self._on_abort is not None:
                self._on_abort()
        else:
            self.hint(HOW_TO_LEAVE)

    def leave(self) -> None:
        self._settle()
        if self._view.busy:
            self.hint("Ctrl-D leaves when this is done (Ctrl-C stops a reply).")
        else:
            self._events.put(Leave())

    def insert(self, text: str, label: str) -> None:
        """A file's text, with a line of its own for what is typed next."""
        text = clean(text)
        # A line that begins with a slash would be a command.
        lead = "\n" if text.startswith("/") and not self.buffer.document.text_before_cursor else ""
        self.buffer.insert_text(f"{lead}{self.chips.fold(text, label)}\n")

    def paste(self, text: str) -> None:
        folded = self.chips.fold(clean(text))
        self.buffer.insert_text(folded)
        if self.chips.label(folded):
            self.hint("The whole text is sent; Ctrl-O shows it here.")

    def unfold_chips(self) -> None:
        text = self.chips.unfold(self.buffer.text)
        before = self.chips.unfold(self.buffer.document.text_before_cursor)
        self.chips.clear()
        self.buffer.set_document(Document(text, len(before)))
