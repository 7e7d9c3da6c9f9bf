"""What stands behind the input line: its history on disk, its completions, its chips. Knows no keys."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput

from chat.console.events import Complete
from dist.errors import ChatError

CHIP_LINES = 6
CHIP_CHARACTERS = 1000
FIRST_CHIP = 0xF0000  # a private-use plane: one character of the input line stands for one long paste


class SessionHistory(FileHistory):
    """Sent lines, kept across runs in a file that only its owner can read. A disk that fails is no error."""

    def __init__(self, path: Path) -> None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        super().__init__(str(path))

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def append_string(self, string: str) -> None:
        """Add `string`, unless it repeats the newest entry."""
        loaded = self.get_strings()
        if not loaded or loaded[-1] != string:
            super().append_string(string)

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


class LineCompleter(Completer):
    """The toolkit's view of a function from text to candidates."""

    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        with suppress(OSError, ChatError):  # what cannot be listed has no completions
            for text, about, start in self._complete(document.text_before_cursor):
                yield Completion(text, start_position=start, display_meta=about)


class Chips:
    """Long pastes, each shown as one chip in the input line while its text waits here."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._texts)

    def fold(self, text: str, name: str = "") -> str:
        """What goes into the input line for `text`: the text itself, or one character if it is long.

        `name` is that of the file that it comes from, "" if it was pasted.
        """
        if text.count("\n") < CHIP_LINES and len(text) < CHIP_CHARACTERS:
            return text
        chip = chr(FIRST_CHIP + len(self._texts))
        self._texts[chip] = text
        self._names[chip] = name
        return chip

    def unfold(self, text: str) -> str:
        """`text` with every chip replaced by what it stands for."""
        for chip, pasted in self._texts.items():
            text = text.replace(chip, pasted)
        return text

    def label(self, character: str) -> str | None:
        pasted = self._texts.get(character)
        if pasted is None:
            return None
        lines = pasted.rstrip("\n").count("\n") + 1
        size = f"{lines:,} lines" if lines > 1 else f"{len(pasted):,} characters"
        return f"[{name}, {size}]" if (name := self._names[character]) else f"[{size} pasted]"

    def clear(self) -> None:
        self._texts.clear()
        self._names.clear()


class ShowChips(Processor):
    """Draws chips as their labels."""

    def __init__(self, chips: Chips) -> None:
        self._chips = chips

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        if not self._chips:
            return Transformation(transformation_input.fragments)
        fragments: list[tuple[str, str]] = []
        shown_at: list[int] = []  # for each character of the source line, its column in the shown line
        column = 0
        for style, text, *_ in transformation_input.fragments:
            for character in text:
                label = self._chips.label(character)
                shown = character if label is None else label
                fragments.append((style if label is None else f"{style} class:chip", shown))
                shown_at.append(column)
                column += len(shown)
        shown_at.append(column)

        def source_to_display(at: int) -> int:
            return shown_at[at] if at < len(shown_at) else column + at - len(shown_at) + 1

        def display_to_source(at: int) -> int:
            return max((i for i, shown in enumerate(shown_at) if shown <= at), default=0)

        return Transformation([*fragments], source_to_display, display_to_source)


def typed_early(fd: int) -> str:
    """What was typed on the terminal `fd` before its keys are read, without the Enter at its end.

    The Enter of that time is a newline of its own, which would be part of the message.
    """
    data = b""
    while os.isatty(fd) and select.select([fd], [], [], 0)[0]:
        chunk = os.read(fd, 4096)
        if not chunk:
            break
        data += chunk
    return clean(data.decode("utf-8", errors="replace")).strip("\n")


def clean(text: str) -> str:
    """`text` as it may be sent: newlines only as line ends, no half characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", errors="replace").decode("utf-8")
