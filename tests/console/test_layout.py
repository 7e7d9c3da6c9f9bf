"""What the bottom line says at a moment. No terminal."""

from __future__ import annotations

import queue
import time

import pytest

from chat.console import layout
from chat.console.events import Leave
from chat.console.layout import View
from chat.console.state import LineState


def test_a_hint_makes_room_for_what_goes_on_once_it_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    state = LineState(queue.Queue(), waits="")
    view = View(state)
    view.say(state.leave() or "half a line")
    monkeypatch.setattr(layout, "HINT_S", -1.0)
    assert view.hinted == "half a line"  # nothing goes on
    state.submit("/load 7")
    state.since = time.monotonic() - 2
    assert (view.hinted, view.doing) == ("", "/load, 2 s")
    view.status = "loading 1 of 2 GB"
    monkeypatch.setattr(layout, "HINT_S", 9.0)
    view.say(state.leave())
    assert view.hinted.startswith("Leaves when this is done")
    assert view.doing == "loading 1 of 2 GB, then leaves"
    state.typed()
    assert view.doing == "loading 1 of 2 GB"


def test_ctrl_d_while_something_goes_on_counts_when_it_is_done_unless_something_is_typed() -> None:
    events: queue.Queue[object] = queue.Queue()
    state = LineState(events, waits="")  # type: ignore[arg-type]
    for typed in (True, False):
        state.submit("hello")
        events.get_nowait()
        assert state.leave()
        assert bool(state.typed() if typed else "") == typed
        assert events.empty()
        state.set_busy(False)
        assert events.empty() == typed
    assert events.get_nowait() == Leave() and not state.leaving
