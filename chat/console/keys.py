"""Which key does what at the input line. Knows what the console can do, not how."""

from __future__ import annotations

from typing import Protocol

from prompt_toolkit.application.current import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, emacs_mode, has_focus, vi_navigation_mode
from prompt_toolkit.key_binding import KeyBindings, KeyBindingsBase, KeyPressEvent, merge_key_bindings
from prompt_toolkit.key_binding.bindings.auto_suggest import load_auto_suggest_bindings
from prompt_toolkit.keys import Keys


class LineActions(Protocol):
    """What keys can ask of the input line. All run on the console's thread."""

    def send(self) -> None: ...
    def interrupt(self) -> None: ...
    def abort(self) -> None: ...
    def leave(self) -> None: ...
    def paste(self, text: str) -> None: ...
    def unfold_chips(self) -> None: ...


class ScreenActions(Protocol):
    """What keys can ask of the console as a whole."""

    def suspend(self) -> None: ...
    def open_editor(self) -> None: ...
    def clear_screen(self) -> None: ...


def console_keys(line: LineActions, screen: ScreenActions) -> KeyBindingsBase:
    """The bindings that come on top of the toolkit's own emacs and vi ones."""
    return merge_key_bindings([load_auto_suggest_bindings(), _line_keys(line), _session_keys(line, screen)])


def _line_keys(line: LineActions) -> KeyBindings:
    """Keys that change or send the line."""
    keys = KeyBindings()
    at_line = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=at_line)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        chosen = buffer.complete_state and buffer.complete_state.current_completion
        if chosen:
            buffer.complete_state = None
            if chosen.text.endswith(" "):
                buffer.start_completion()  # an argument is still to come
                return
        before = buffer.document.text_before_cursor
        if before.endswith("\\") and not buffer.document.text_after_cursor:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            line.send()

    @keys.add("escape", "enter", filter=at_line & emacs_mode)  # in vi mode these are two keys
    @keys.add("c-j", filter=at_line)
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab", filter=at_line)
    def _tab(event: KeyPressEvent) -> None:
        complete_word(event.current_buffer)

    @keys.add(Keys.BracketedPaste, filter=at_line)
    def _paste(event: KeyPressEvent) -> None:
        line.paste(event.data)

    @keys.add("c-o", filter=at_line)
    def _unfold(event: KeyPressEvent) -> None:
        line.unfold_chips()

    @keys.add("escape", filter=Condition(lambda: get_app().current_buffer.complete_state is not None) & emacs_mode)
    def _close_menu(event: KeyPressEvent) -> None:
        event.current_buffer.cancel_completion()

    @keys.add("escape", Keys.Any, filter=emacs_mode)
    def _unknown_alt(event: KeyPressEvent) -> None:
        """Alt with a letter that means nothing types nothing; any other key counts as if Escape were not there."""
        event.current_buffer.cancel_completion()
        key = event.key_sequence[-1]
        if not (len(key.data) == 1 and key.data.isprintable()):
            event.key_processor.feed(key, first=True)

    @keys.add("c-d", filter=at_line & Condition(lambda: not get_app().current_buffer.text))
    def _leave(event: KeyPressEvent) -> None:
        line.leave()

    return keys


def complete_word(buffer: Buffer) -> None:
    """Tab: take the only candidate and a blank, so that its values come; else what all share; else the next one.

    Where nothing can be completed it indents.
    """
    if not buffer.text.startswith("/"):
        buffer.insert_text("    ")
        return
    state = buffer.complete_state
    if state is not None and state.current_completion is not None and len(state.completions) > 1:
        buffer.complete_next()
        return
    buffer.complete_state = None
    document = buffer.document
    found = list(buffer.completer.get_completions(document, CompleteEvent(completion_requested=True)))
    common = get_common_complete_suffix(document, found)
    if len(found) == 1:
        buffer.apply_completion(found[0])
        if not buffer.document.text_before_cursor.endswith((" ", "/")):
            buffer.insert_text(" ")
        buffer.start_completion()
    elif common:
        buffer.insert_text(common)
        buffer.start_completion()
    elif state is not None and found:
        buffer.complete_state = state
        buffer.complete_next()
    elif found:
        buffer.start_completion()


def _session_keys(line: LineActions, screen: ScreenActions) -> KeyBindings:
    """Keys that stop, leave the line for something else, or redraw."""
    keys = KeyBindings()

    @keys.add("c-c")
    def _interrupt(event: KeyPressEvent) -> None:
        line.interrupt()

    @keys.add("c-\\")
    def _abort(event: KeyPressEvent) -> None:
        line.abort()

    @keys.add("c-z")
    def _suspend(event: KeyPressEvent) -> None:
        screen.suspend()

    @keys.add("c-l")
    def _clear(event: KeyPressEvent) -> None:
        screen.clear_screen()

    for end in ("(", ")", "e"):  # keyboard macros: an Enter in one would send

        @keys.add("c-x", end)
        def _no_macro(event: KeyPressEvent) -> None:
            pass

    @keys.add("c-x", "c-e", filter=has_focus(DEFAULT_BUFFER) & emacs_mode)
    @keys.add("v", filter=has_focus(DEFAULT_BUFFER) & vi_navigation_mode)
    def _edit(event: KeyPressEvent) -> None:
        screen.open_editor()

    return keys
