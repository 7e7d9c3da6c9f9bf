"""The input line: what is in it, and what sending, stopping, pasting do. Knows no screen and no threads.

All of it runs on the console's thread; what the user wants leaves it as events.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prompt_toolkit.application.current import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition
from prompt_toolkit.search import stop_search

from chat.console.buffer import VisibleCharacters
from chat.console.events import Complete, command_word
from chat.console.input import Chips, LineCompleter, SessionHistory, clean
from chat.console.layout import View
from chat.console.state import LineState

WAITS = "Kept as a draft: send it when this is done (Ctrl-C stops a reply)."


class InputLine:
    """Drafts, history, completion, chips; `state` says what sending and stopping mean.

    `settle` is called before a key that sends or stops: orders of the main thread that came earlier count first.
    """

    def __init__(
        self, view: View, state: LineState, *, history_file: Path, complete: Complete, settle: Callable[[], None]
    ) -> None:
        self.chips = Chips()
        self._view = view
        self._state = state
        self._settle = settle
        self._history = SessionHistory(history_file)
        self.buffer = VisibleCharacters(
            name=DEFAULT_BUFFER,
            multiline=True,
            history=self._history,
            auto_suggest=AutoSuggestFromHistory(),
            completer=LineCompleter(complete),
            complete_while_typing=Condition(lambda: self.buffer.text.startswith("/")),
            on_text_changed=lambda _: self.hint(self._state.typed()),
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
        self._state.editing = True

    def put_back(self, text: str) -> None:
        if not self.buffer.text:
            folded = self.chips.fold(text)
            self.buffer.set_document(Document(folded, len(folded)))

    def set_busy(self, busy: bool) -> None:
        if busy != self._state.busy:
            self._view.say("")
        self._state.set_busy(busy)

    def hint(self, text: str) -> None:
        self._view.say(text)

    # What the keys ask for.

    def send(self) -> None:
        self._settle()  # a `set_busy` from before this key must not come after it
        text = self.text
        if command_word(text) is not None:
            text = text.rstrip(" ")
        if not text.strip():
            self.buffer.reset()
        elif not (waits := self._state.submit(text)):
            self._sent(text)
        elif command_word(text) is not None:  # if it stayed, the next one would be typed on to it
            self._sent(text)
            self.hint(f"{waits} Up brings it back.")
        else:
            self.hint(waits)

    def _sent(self, text: str) -> None:
        self._history.append_string(text)
        self.buffer.reset()
        self.chips.clear()

    def interrupt(self) -> None:
        self._settle()
        said = self._state.interrupt(draft=bool(self.buffer.text))
        if not self._state.busy:
            if get_app().layout.is_searching:
                stop_search()
            self.buffer.reset()
            self.chips.clear()
        self.hint(said)

    def abort(self) -> None:
        self._settle()
        self.hint(self._state.abort())

    def leave(self) -> None:
        self._settle()
        self.hint(self._state.leave())

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
