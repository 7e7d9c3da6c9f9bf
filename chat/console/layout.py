"""Where things stand on the screen and how they look: live zone, input line, menu, one quiet line below.

Knows no keys and no threads. Nothing above the input line reaches the right edge, so that a narrowed terminal
rewraps as little as possible.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prompt_toolkit.application.current import get_app
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding.vi_state import InputMode
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    VerticalAlign,
    Window,
)
from prompt_toolkit.layout.processors import (
    AppendAutoSuggestion,
    ConditionalProcessor,
    HighlightIncrementalSearchProcessor,
    HighlightSelectionProcessor,
)
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth
from prompt_toolkit.widgets import SearchToolbar

from chat.console.events import Line
from chat.console.input import Chips, ShowChips
from chat.console.state import LineState

VI_MODES = {InputMode.NAVIGATION: "NORMAL", InputMode.REPLACE: "REPLACE", InputMode.REPLACE_SINGLE: "REPLACE"}
PATIENCE_S = 0.2
HINT_S = 4.0
MENU_ROWS = 10
INPUT_ROWS = 10

COLOR_STYLE = {
    "prompt": "ansicyan bold",
    "prompt.busy": "",
    "live.changed": "ansimagenta",
    "live.recent": "ansicyan",
    "live.placeholder": "ansibrightblack",
    "live.thought": "ansibrightblack",
    "chip": "ansicyan",
    "auto-suggestion": "ansibrightblack",
    "toolbar": "ansibrightblack",
    "hint": "",
    "menu": "",
    "menu.about": "ansibrightblack",
    "menu.current": "ansicyan bold",
    "search-toolbar": "ansibrightblack",
    "search-toolbar.text": "noinherit",
}
MONO_STYLE = {
    "prompt": "bold",
    "prompt.busy": "",
    "live.changed": "underline",
    "live.recent": "",
    "live.placeholder": "",
    "live.thought": "italic",
    "chip": "underline",
    "auto-suggestion": "italic",
    "toolbar": "",
    "hint": "",
    "menu": "",
    "menu.about": "",
    "menu.current": "bold underline",
}


@dataclass(slots=True)
class View:
    """What is shown besides the input line. Written and read on the console's thread only."""

    state: LineState
    live: tuple[Line, ...] = ()
    status: str = ""
    hint: str = ""
    hint_since: float = 0.0
    toolbar: str = ""
    ascii: bool = False
    idle_hints: tuple[str, ...] = field(default=("/help", "Alt-Enter new line", "Ctrl-D leaves"))
    edit_hints: tuple[str, ...] = field(default=("editing", "Enter sends it", "Ctrl-C cancels"))

    @property
    def busy(self) -> bool:
        return self.state.busy

    @property
    def editing(self) -> bool:
        return self.state.editing

    def say(self, hint: str) -> None:
        """Show a hint: at rest until the next key, at work until it has been read."""
        self.hint, self.hint_since = hint, time.monotonic()

    @property
    def hinted(self) -> str:
        """The hint, as long as nothing is more worth the room."""
        read = self.busy and (self.status or self.waiting) and time.monotonic() - self.hint_since > HINT_S
        return "" if read else self.hint

    @property
    def doing(self) -> str:
        """What goes on, and whether the program ends after it."""
        doing = self.status or self.waiting
        return f"{doing}, then leaves" if doing and self.state.leaving else doing

    @property
    def waiting(self) -> str:
        """What is being done, once that is worth saying; "" otherwise."""
        seconds = time.monotonic() - self.state.since
        return f"{self.state.doing}, {seconds:.0f} s" if self.busy and seconds > PATIENCE_S else ""

    def cut(self, text: str, width: int) -> str:
        """`text` on one line of at most `width` columns."""
        return cut(text, width, "..." if self.ascii else "…")


def console_style(color: bool) -> Style:
    return Style.from_dict(COLOR_STYLE if color else MONO_STYLE)


def console_layout(view: View, buffer: Buffer, chips: Chips) -> Layout:
    """The whole screen that is redrawn; the input line has the focus."""
    search = SearchToolbar(forward_search_prompt="search: ", backward_search_prompt="search back: ")
    control = BufferControl(
        buffer=buffer,
        search_buffer_control=search.control,
        preview_search=True,
        input_processors=[
            HighlightIncrementalSearchProcessor(),
            HighlightSelectionProcessor(),
            ConditionalProcessor(AppendAutoSuggestion(), Condition(lambda: not view.busy)),
            ShowChips(chips),
        ],
    )
    line = Window(
        control,
        wrap_lines=True,
        dont_extend_height=True,
        height=lambda: Dimension(min=1, max=max(1, min(INPUT_ROWS, get_app().output.get_size().rows // 2))),
        get_line_prefix=lambda number, wrapped: _prefix(view, number, wrapped),
    )
    menu = ConditionalContainer(
        _text_rows(lambda: _menu(buffer, view), lambda: _menu_rows(buffer)),
        Condition(lambda: buffer.complete_state is not None and bool(buffer.complete_state.completions)),
    )
    return Layout(
        HSplit(
            [
                _text_rows(lambda: _live(view), lambda: len(view.live)),
                line,
                search,
                menu,
                _text_rows(lambda: _bottom(view, get_app().output.get_size().columns - 1), lambda: 1),
            ],
            align=VerticalAlign.TOP,
        ),
        focused_element=line,
    )


def _text_rows(text: Callable[[], StyleAndTextTuples], rows: Callable[[], int]) -> Window:
    return Window(
        FormattedTextControl(text),
        height=lambda: Dimension(min=0, preferred=rows(), max=rows()),
        dont_extend_height=True,
        wrap_lines=False,
    )


def _live(view: View) -> StyleAndTextTuples:
    fragments: StyleAndTextTuples = []
    for number, line in enumerate(view.live):
        if number:
            fragments.append(("", "\n"))
        fragments += [(" ".join(f"class:live.{name}" for name in style.split()), text) for style, text in line]
    return fragments


def _prefix(view: View, number: int, wrapped: int) -> StyleAndTextTuples:
    if number or wrapped:
        return [("", "  ")]
    mark = "> " if view.ascii else "› "
    return [("class:prompt.busy" if view.busy else "class:prompt", mark)]


def _menu_rows(buffer: Buffer) -> int:
    state = buffer.complete_state
    return min(MENU_ROWS, get_app().output.get_size().rows // 3, len(state.completions)) if state else 0


def _menu(buffer: Buffer, view: View) -> StyleAndTextTuples:
    """The candidates around the chosen one, each with its description."""
    state = buffer.complete_state
    if state is None or not state.completions:
        return []
    chosen = state.complete_index
    rows = _menu_rows(buffer)
    first = max(0, min((chosen or 0) - rows // 2, len(state.completions) - rows))
    shown = state.completions[first : first + rows]
    width = get_app().output.get_size().columns - 3
    names = min(max(get_cwidth(item.display_text) for item in shown), max(8, width // 2))
    fragments: StyleAndTextTuples = []
    for number, item in enumerate(shown, first):
        style = "class:menu.current" if number == chosen else "class:menu"
        mark = ("> " if view.ascii else "› ") if number == chosen else "  "
        about = view.cut(item.display_meta_text, width - names - 2)
        name = view.cut(item.display_text, names)
        fragments += [
            ("", "\n" if number > first else ""),
            (style, mark + name),
            ("", " " * (names - get_cwidth(name) + 2)),
            ("class:menu.about", about),
        ]
    return fragments


def _bottom(view: View, width: int) -> StyleAndTextTuples:
    """One line: what goes on or how to go on, and at the right what is set."""
    hint = view.hinted
    left = hint or view.doing
    style = "class:hint" if hint else "class:toolbar"
    if not left:
        left = ("  " if view.ascii else " · ").join(view.edit_hints if view.editing else view.idle_hints)
    left = view.cut(f"  {_vi_mode()}{left}", width)
    room = width - get_cwidth(left) - 2
    toolbar = view.toolbar
    while toolbar and get_cwidth(toolbar) > room:  # the parts that matter most are the last
        toolbar = toolbar.partition("  ")[2]
    return [(style, left), ("", " " * (room + 2 - get_cwidth(toolbar))), ("class:toolbar", toolbar)]


def _vi_mode() -> str:
    """Which of vi's modes the line is in; "" where it is not edited as in vi."""
    app = get_app()
    if app.editing_mode != EditingMode.VI:
        return ""
    return VI_MODES.get(app.vi_state.input_mode, "INSERT") + "  "


def cut(text: str, width: int, mark: str) -> str:
    """`text` on one line of at most `width` columns, with `mark` at its end if it is not whole."""
    text = text.replace("\n", " ")
    if get_cwidth(text) <= width:
        return text
    while text and get_cwidth(text) > width - len(mark):
        text = text[:-1]
    return (text + mark)[: max(0, width)]
