"""The keyboard as the toolkit sees it, and a processor of keys whose bindings may fail. Knows no key's meaning."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindingsBase, KeyPress
from prompt_toolkit.key_binding.key_bindings import Binding
from prompt_toolkit.key_binding.key_processor import KeyProcessor
from prompt_toolkit.keys import Keys

from chat.console.sequences import Key, Paste, SequenceReader

READ_BYTES = 65536


class Keyboard(Vt100Input):
    """Keys and pastes of the terminal `fd`; whatever else a terminal sends is dropped."""

    def __init__(self, fd: int) -> None:
        # closefd=False: the file descriptor is the streams', not ours.
        super().__init__(open(fd, encoding="utf-8", errors="surrogateescape", closefd=False))  # noqa: SIM115
        self._sequences = SequenceReader(ANSI_SEQUENCES)

    def read_keys(self) -> list[KeyPress]:
        return list(_key_presses(self._sequences.feed(self.stdin_reader.read(READ_BYTES))))

    def flush_keys(self) -> list[KeyPress]:
        return list(_key_presses(self._sequences.flush()))


def _key_presses(found: Iterable[Key | Paste]) -> Iterable[KeyPress]:
    for one in found:
        if isinstance(one, Paste):
            yield KeyPress(Keys.BracketedPaste, one.text)
            continue
        meant = ANSI_SEQUENCES.get(one.text, one.text)
        keys = meant if isinstance(meant, tuple) else (meant,)
        for at, key in enumerate(keys):
            yield KeyPress(key, one.text if at == 0 else "")


class GuardedKeys(KeyProcessor):
    """A key processor whose bindings may fail: `on_error` is called, and the next key is taken."""

    def __init__(self, bindings: KeyBindingsBase, on_error: Callable[[Exception], None]) -> None:
        super().__init__(bindings)
        self._on_error = on_error

    def _call_handler(self, handler: Binding, key_sequence: list[KeyPress]) -> None:
        try:
            super()._call_handler(handler, key_sequence)
        except Exception as error:  # noqa: BLE001  (the edge: any of the toolkit's bindings may have a fault)
            self._on_error(error)
