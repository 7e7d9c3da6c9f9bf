"""The console on a real terminal: keys in, screen out. The loop behind it is support/console_child.py."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from pty_screen import (
    ALT_ENTER,
    CTRL_BACKSLASH,
    CTRL_C,
    CTRL_D,
    CTRL_J,
    DOWN,
    ENTER,
    TAB,
    UP,
    PtyScreen,
    pasted,
)

from chat.console.input import LineCompleter
from dist.errors import ChatError

CHILD = Path(__file__).parents[1] / "support" / "console_child.py"
PROMPT = "›"
STATS = re.compile(r"^[\d,]+ tokens(,| ·) [\d.]+( tok)?/s", re.M)


class Talk(PtyScreen):
    """The child on a terminal, with the events it saw."""

    events_file: Path

    @property
    def events(self) -> list[str]:
        return self.events_file.read_text().splitlines() if self.events_file.exists() else []

    def wait_ready(self) -> None:
        self.wait_for(lambda screen: any(line.startswith((PROMPT, ">")) for line in screen.lines))

    def wait_event(self, event: str) -> None:
        self.wait_for(lambda _: event in self.events)


Start = Callable[..., Talk]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the child; keyword arguments are environment variables, `columns` and `rows` apart."""
    running: list[Talk] = []

    def start(*, columns: int = 80, rows: int = 24, ready: bool = True, **env: str) -> Talk:
        events = tmp_path / "events"
        talk = Talk(
            [sys.executable, str(CHILD)],
            columns=columns,
            rows=rows,
            env={
                "PYTHONPATH": str(CHILD.parents[2]),
                "XDG_STATE_HOME": str(tmp_path / "state"),
                "FAKE_EVENTS": str(events),
                "FAKE_HISTORY": str(tmp_path / "history"),
                "FAKE_PASS_S": "0.004",
                **env,
            },
        )
        talk.events_file = events
        running.append(talk)
        if ready:
            talk.wait_ready()
        return talk

    yield start
    for talk in running:
        talk.close()


# Passes enough for a key to come in time, also where a shared machine stands still for a second.
SLOW = {"FAKE_PASS_S": "0.12"}


def test_a_reply_is_committed_and_the_prompt_comes_back(start: Start) -> None:
    talk = start()
    talk.type("hello")
    talk.send(ENTER)
    talk.wait_for(STATS)
    talk.wait_for("Ctrl-D leaves")
    assert talk.text == (
        "› hello\n"
        "\n"
        "The capital of France is Paris.\n"
        "\n"
        "It lies on the Seine:\n"
        "\n"
        "• north bank\n"
        "• south bank\n"
        "\n"
        "86 tokens · 86.0 tok/s · first 0.10 s · 33 passes × 2.6 · 11/11 converged\n"
        "\n"
        "›\n"
        "  /help · Alt-Enter new line · Ctrl-D leaves                   N 7  R 3  greedy"
    )


def test_while_refining_the_live_zone_shows_placeholders_and_a_status(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("hello" + ENTER)
    talk.wait_for("░░░░")
    talk.wait_for("block 2, pass")


@pytest.mark.drawn
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 12), (200, 50)])
def test_a_reply_longer_than_the_screen_is_in_the_scrollback_once(
    start: Start, tmp_path: Path, columns: int, rows: int
) -> None:
    lines = [
        f"{number}. line number {number} {'中文 👩‍🚀' if number % 7 == 0 else ''}".rstrip()
        for number in range(1, 501)
    ]
    (tmp_path / "reply").write_text("\n".join(lines) + "\n\nThe end.")
    env = {"FAKE_REPLY": str(tmp_path / "reply"), "FAKE_PASS_S": "0.001", "FAKE_BLOCK": "32"}
    talk = start(columns=columns, rows=rows, **env)
    talk.send("go" + ENTER)
    talk.wait_for(STATS, timeout=60)
    shown = talk.scrollback
    numbers = [int(match[1]) for line in shown if (match := re.match(r"(\d+)\. line number \1\b", line))]
    assert numbers == list(range(1, 501))
    assert sum("The end." in line for line in shown) == 1
    assert sum("░" in line for line in shown) == 0


def test_ctrl_c_stops_the_reply_and_keeps_the_session(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("hello" + ENTER)
    talk.wait_for("block 3")
    talk.send(CTRL_C)
    talk.wait_for("[stopped]")
    talk.wait_for("Ctrl-D leaves")
    assert "The capital" in talk.text
    assert talk.events[-1] == "Interrupt()"
    talk.send("/echo still here" + ENTER)
    talk.wait_for("\n/echo still here")


def test_ctrl_c_in_one_read_with_enter_stops_that_reply(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("hello" + ENTER + CTRL_C)
    talk.wait_for("[stopped]")


def test_ctrl_c_at_the_prompt_clears_the_line_and_then_says_how_to_leave(start: Start) -> None:
    talk = start()
    talk.send("half a line")
    talk.wait_for("› half a line")
    talk.send(CTRL_C)
    talk.wait_for(lambda screen: screen.lines[0] == PROMPT)
    talk.send(CTRL_C)
    talk.wait_for("Ctrl-D or /quit leaves.")
    assert talk.events == []


def test_three_ctrl_c_in_vain_abort_but_never_at_the_prompt(start: Start) -> None:
    talk = start()
    talk.send(CTRL_C * 3 + CTRL_BACKSLASH)
    talk.send("/stuck" + ENTER)
    talk.wait_event("Submitted(text='/stuck', live=False, edited=False)")
    talk.send(CTRL_C * 3)
    talk.wait_for("aborted")
    assert talk.events[1:] == ["Interrupt()", "Interrupt()", "Abort()"]


def test_ctrl_backslash_aborts_while_a_reply_is_made(start: Start) -> None:
    talk = start()
    talk.send("/stuck" + ENTER + CTRL_BACKSLASH)
    talk.wait_for("aborted")


def test_ctrl_d_on_an_empty_line_leaves_and_puts_the_terminal_back(start: Start) -> None:
    talk = start()
    assert talk.mode != talk.mode_before
    talk.send("x" + CTRL_D + "\x7f")
    talk.wait_for(lambda screen: screen.lines[0] == PROMPT)
    talk.send(CTRL_D)
    assert talk.wait_end() == 0
    assert talk.mode == talk.mode_before
    assert talk.text == "left by Leave"
    assert talk.raw.rindex(b"\x1b[?2004l") > talk.raw.rindex(b"\x1b[?2004h")


def test_alt_enter_ctrl_j_and_a_backslash_make_new_lines(start: Start) -> None:
    talk = start()
    talk.send("one" + ALT_ENTER + "two" + CTRL_J + "three\\" + ENTER + "four" + ENTER)
    talk.wait_event("Submitted(text='one\\ntwo\\nthree\\nfour', live=False, edited=False)")
    talk.wait_for("› one\n  two\n  three\n  four\n")


def test_a_live_command_runs_in_mid_reply_and_other_text_waits(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("hello" + ENTER)
    talk.wait_for("block 2")
    talk.send("/echo now" + ENTER)
    talk.wait_event("Submitted(text='/echo now', live=True, edited=False)")
    talk.send("/undo" + ENTER)
    talk.wait_for("/undo has to wait until this is done. Up brings it back.")
    talk.send("/edit x" + ENTER)
    talk.wait_for("/edit has to wait")
    assert PROMPT in talk.lines  # what cannot run does not stand in the way of what comes next
    talk.send(UP + UP)
    talk.wait_for("› /undo")
    talk.send("\x15" + "my next words" + ENTER)
    talk.wait_for("Kept as a draft")
    talk.wait_for(STATS)
    talk.wait_for("Ctrl-D leaves")
    assert talk.lines.count("› my next words") == 1
    assert not any("my next words" in event for event in talk.events)
    talk.send(ENTER)
    talk.wait_event("Submitted(text='my next words', live=False, edited=False)")


def test_an_edited_line_is_marked_when_it_is_sent_and_not_after_ctrl_c(start: Start) -> None:
    talk = start()
    talk.send("/edit as it was" + ENTER)
    talk.wait_for("› as it was")
    talk.wait_for("Ctrl-C cancels")
    talk.send(CTRL_C)
    talk.wait_for("Nothing was changed.")
    talk.wait_for(lambda screen: PROMPT in screen.lines)
    talk.send("/echo plain" + ENTER)
    talk.wait_event("Submitted(text='/echo plain', live=False, edited=False)")
    talk.send("/edit as it was" + ENTER)
    talk.wait_for("› as it was")
    talk.send(", changed" + ENTER)
    talk.wait_event("Submitted(text='as it was, changed', live=False, edited=True)")
    talk.wait_for(STATS)
    talk.wait_for("Alt-Enter new line")


@pytest.mark.parametrize("leave", [CTRL_C, ""])
def test_where_no_line_can_be_prepared_the_next_one_is_the_edited(start: Start, leave: str) -> None:
    talk = start(TERM="dumb")
    talk.send("/edit as it was\n")
    talk.wait_for("\nas it was\n>")
    if leave:
        talk.send(leave)
        talk.wait_for("Nothing was changed.\n>")
    talk.send("/echo next\n")
    talk.wait_event(f"Submitted(text='/echo next', live=False, edited={not leave})")


def test_where_no_line_can_be_prepared_the_one_to_edit_is_shown_without_its_escape_codes(start: Start) -> None:
    talk = start(TERM="dumb")
    talk.send("/edit red\x1b[31m\n")
    talk.wait_for("\nred^[[31m\n>")
    assert b"\x1b" not in talk.raw


def test_candidates_that_cannot_be_found_are_none() -> None:
    def refuse(before: str) -> Iterator[tuple[str, str, int]]:
        yield "/one", "", 0
        raise ChatError("The sessions cannot be read.")

    found = LineCompleter(refuse).get_completions(Document("/"), CompleteEvent())
    assert [one.text for one in found] == ["/one"]


def test_a_files_text_is_a_chip_in_front_of_what_is_typed_and_never_a_command(start: Start) -> None:
    talk = start()
    talk.send("/insert 300 notes.txt" + ENTER)
    talk.wait_for("[notes.txt, 300 lines]")
    talk.send("what is this?" + ENTER)
    talk.wait_for(STATS)
    whole = "\n".join(["", *(f"/row {at}" for at in range(300)), "what is this?"])
    assert talk.events[-1] == f"Submitted(text={whole!r}, live=False, edited=False)"


def test_where_nothing_can_be_redrawn_a_files_text_goes_with_the_next_message(start: Start) -> None:
    talk = start(TERM="dumb")
    talk.send("/insert 2 notes.txt\n")
    talk.wait_event("Submitted(text='/insert 2 notes.txt', live=False, edited=False)")
    talk.send("/echo first\n")
    talk.wait_event("Submitted(text='/echo first', live=False, edited=False)")
    # What is typed may be echoed before the prompt stands there.
    talk.wait_for(lambda screen: screen.text.count("/echo first") == 2 and screen.text.rstrip().endswith(">"))
    talk.send("what is this?\n")
    talk.wait_event("Submitted(text='\\n/row 0\\n/row 1\\nwhat is this?', live=False, edited=False)")


def test_a_paste_is_one_message_and_a_long_one_shows_as_a_chip(start: Start) -> None:
    talk = start()
    text = "\n".join(f"row {number}" for number in range(2000))
    talk.send("See: " + pasted("a\r\nb") + " ")
    talk.wait_for("› See: a\n  b")
    talk.send(pasted(text.replace("\n", "\r")))
    talk.wait_for("[2,000 lines pasted]")
    talk.send(" end" + ENTER)
    talk.wait_for("more lines")
    assert talk.events == [
        f"Submitted(text={'See: a' + chr(10) + 'b ' + text + ' end'!r}, live=False, edited=False)"
    ]


def test_a_chip_goes_with_one_backspace_and_opens_with_ctrl_o(start: Start) -> None:
    talk = start()
    talk.send(pasted("x\n" * 9) + pasted("y\n" * 8 + "z"))
    talk.wait_for("[9 lines pasted][9 lines pasted]")
    talk.send("\x7f")
    talk.wait_for(lambda screen: screen.text.count("lines pasted]") == 1)
    talk.send("\x0f")
    talk.wait_for("› x\n  x\n")


def test_history_holds_across_runs_with_entries_of_several_lines(start: Start) -> None:
    talk = start()
    talk.send("first" + ENTER)
    talk.wait_for(STATS)
    talk.wait_for("Ctrl-D leaves")
    talk.send("two" + CTRL_J + "lines" + ENTER)
    talk.wait_for(lambda screen: len(STATS.findall(screen.text)) == 2)
    talk.wait_for("Ctrl-D leaves")
    talk.send(CTRL_D)
    talk.wait_end()
    talk = start()
    talk.send(UP)
    talk.wait_for("› two\n  lines")
    talk.send(UP + UP)
    talk.wait_for("› first")
    talk.send(DOWN)
    talk.wait_for("› two\n  lines")


def test_ctrl_r_searches_and_a_suggestion_is_taken_with_the_right_arrow(start: Start) -> None:
    talk = start()
    talk.send("/echo some old words" + ENTER)
    talk.wait_for("\n/echo some old words")
    talk.send("\x12old")
    talk.wait_for("search back: old")
    talk.send(ENTER)
    talk.wait_for("› /echo some old words")
    talk.send(CTRL_C)
    talk.wait_for(lambda screen: PROMPT in screen.lines)
    talk.type("/echo so")
    talk.wait_for("› /echo some old words")
    talk.send("\x1b[C" + ENTER)
    talk.wait_for(
        lambda _: talk.events.count("Submitted(text='/echo some old words', live=False, edited=False)") == 2
    )


def test_the_menu_shows_descriptions_and_tab_chooses(start: Start) -> None:
    talk = start()
    talk.type("/")
    talk.wait_for("about undo")
    talk.type("und")
    talk.wait_for(lambda screen: "about echo" not in screen.text)
    talk.send(TAB)
    talk.wait_for("› /undo")
    talk.send(ENTER)
    talk.wait_event("Submitted(text='/undo', live=False, edited=False)")


def test_tab_takes_a_command_with_a_blank_opens_its_values_and_never_takes_anything_back(start: Start) -> None:
    talk = start()
    talk.send("/ech" + TAB)
    talk.wait_for("about two")
    talk.wait_for(lambda screen: "› /echo" in screen.text and screen.cursor == (8, 0))
    talk.send("o" + TAB)  # one and other have nothing more in common
    talk.wait_for(lambda screen: "about two" not in screen.text and "about other" in screen.text)
    talk.send(TAB)
    talk.wait_for("› /echo one\n")
    talk.send(TAB)
    talk.wait_for("› /echo other\n")
    talk.send(ENTER)
    talk.wait_event("Submitted(text='/echo other', live=False, edited=False)")
    talk.send("/und" + TAB + TAB + ENTER)
    talk.wait_event("Submitted(text='/undo', live=False, edited=False)")


def test_the_editor_gets_the_terminal_without_signal_keys(start: Start, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\nstty -a > {tmp_path}/mode\ntest -t 0 && test -t 1 && echo ' edited' >> \"$1\"\n")
    editor.chmod(0o755)
    talk = start(EDITOR=str(editor))
    talk.send("draft\x18\x05")
    talk.wait_for("edited")
    talk.send(ENTER)
    talk.wait_for(lambda _: bool(talk.events))
    assert "edited" in talk.events[0]
    mode = (tmp_path / "mode").read_text()
    assert "-isig icanon" in mode


def test_what_was_sent_stands_apart_from_what_came_before(start: Start) -> None:
    talk = start()
    talk.send("/echo one" + ENTER)
    talk.wait_for("\n/echo one")
    talk.send("/echo two" + ENTER)
    talk.wait_for("\n/echo two")
    assert talk.text.startswith("› /echo one\n\n/echo one\n\n› /echo two\n\n/echo two\n›")


def test_what_was_seen_is_committed_when_the_end_is_forced_and_half_a_line_is_there_next_time(start: Start) -> None:
    talk = start(FAKE_PASS_S="0.5", FAKE_BLOCK="32")
    talk.send("hello" + ENTER)
    talk.wait_for("block 2, pass 1")
    talk.send("half a li" + CTRL_BACKSLASH)
    assert talk.wait_end() == 5
    talk.wait_for("[cut]")
    finished, _, draft = talk.text.partition("\n[cut] What follows was a draft, and is not kept:\n")
    # A finished block of 32 bytes; what was seen of the next one stands apart.
    assert finished == "› hello\n\nThe capital of France is **Paris"
    assert draft.startswith("**.") and "░" not in talk.text
    assert talk.mode == talk.mode_before
    talk = start()
    talk.wait_for("› half a li")
    talk.wait_for("This line was not sent last time.")
    talk.send(CTRL_C)
    talk.wait_for(lambda screen: PROMPT in screen.lines)
    talk.send(CTRL_D)
    assert talk.wait_end() == 0
    talk = start()
    assert talk.lines[0] == PROMPT


def test_half_a_line_outlives_a_killed_program(start: Start, tmp_path: Path) -> None:
    talk = start()
    talk.send("half\x1b[13;2ua line")
    talk.wait_for("  a line")
    talk.wait_for(lambda _: any(path.read_text() == "half\na line" for path in (tmp_path / "drafts").glob("*")))
    talk.process.kill()
    talk.wait_end()
    talk = start()
    talk.wait_for("› half\n  a line")


def test_what_takes_long_says_what_it_is(start: Start) -> None:
    talk = start()
    talk.send("/stuck" + ENTER)
    talk.wait_for("/stuck, 1 s")
    talk.send(CTRL_BACKSLASH)
    talk.wait_for("Ctrl-D leaves")


def test_five_thousand_pasted_lines_are_one_message_and_take_no_time(start: Start) -> None:
    talk = start(FAKE_MUTE="1")
    text = "\n".join(f"row {number}: some words, 中文" for number in range(5000))
    began = time.monotonic()
    data = pasted(text.replace("\n", "\r")).encode()
    while data:
        data = data[os.write(talk.master, data) :]
    talk.wait_for("[5,000 lines pasted]")
    talk.send(ENTER)
    talk.wait_for(lambda _: len(talk.events) > 2)
    assert time.monotonic() - began < 10
    assert talk.events[1] == f"Submitted(text={text!r}, live=False, edited=False)"


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_wide_and_joined_characters_stand_whole_on_any_width(start: Start, tmp_path: Path, columns: int) -> None:
    # The screen model drops what follows a joiner, so there is no family among them.
    words = ["中文字符", "e\u0301te\u0301", "👩", "🇫🇷", "naïve", "ー", "한국어"]
    text = " ".join(words[at % len(words)] for at in range(120))
    (tmp_path / "reply").write_text(text)
    talk = start(columns=columns, FAKE_REPLY=str(tmp_path / "reply"), FAKE_PASS_S="0.001")
    talk.send("go" + ENTER)
    talk.wait_for(STATS)
    shown = "".join(talk.scrollback)
    for word in ("中文字符", "naïve", "한국어"):
        assert shown.replace(" ", "").count(word) == text.count(word)
    assert shown.count("👩") == text.count("👩")


def test_a_flip_writes_its_own_cells_only_and_the_live_zone_keeps_its_cap(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("hello" + ENTER)
    talk.wait_for("block 2, pass 1")
    before = len(talk.raw)
    talk.wait_for("block 2, pass 2")
    talk.wait_for("block 2, pass 3")
    written = talk.raw[before:]
    # Two passes over eight characters: what stands in front of them is not written again.
    assert b"The capi" not in written and b"/help" not in written
    assert len(written) < 600
    talk.send(CTRL_C)
    talk.wait_for("[stopped]")


def test_ctrl_c_says_what_it_does(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("/stuck" + ENTER + CTRL_C)
    talk.wait_for("This cannot be stopped halfway.")
    talk.send(CTRL_BACKSLASH)
    talk.wait_for("aborted")
    talk.send("hello" + ENTER)
    talk.wait_for("block 2")
    talk.send(CTRL_C)
    talk.wait_for("[stopped]")


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"TERM": "dumb"}], ids=["C locale", "dumb"])
def test_where_the_terminal_is_not_known_to_have_more_all_is_ascii(start: Start, env: dict[str, str]) -> None:
    talk = start(columns=50, **env)
    talk.send("/\x7f" + pasted("x\n" * 20) if "LC_ALL" in env else "")
    talk.send("hello" + (ENTER if "LC_ALL" in env else "\n"))
    talk.wait_for(STATS)
    assert max(talk.raw) < 128


def test_vi_keys(start: Start) -> None:
    talk = start(FAKE_VI="1")
    talk.send("one two")
    talk.wait_for("› one two")
    talk.wait_for("INSERT")
    talk.send("\x1b")
    talk.wait_for("NORMAL")
    talk.send("bcwthree")
    talk.wait_for("› one three")
    talk.send(ENTER)
    talk.wait_event("Submitted(text='one three', live=False, edited=False)")


def test_ctrl_l_keeps_what_was_committed(start: Start) -> None:
    talk = start()
    talk.send("/echo remember" + ENTER)
    talk.wait_for("\n/echo remember")
    talk.send("\x0c")
    talk.wait_for(lambda screen: screen.lines[0] == PROMPT)
    assert talk.scrollback.count("/echo remember") == 1


def test_a_new_size_is_noticed_and_drawn(start: Start) -> None:
    talk = start(**SLOW)
    talk.send("hello" + ENTER)
    talk.wait_for("block 2")
    talk.resize(50, 20)
    talk.wait_for(STATS)
    talk.wait_for("Ctrl-D leaves")
    assert sum("The capital of France" in line for line in talk.scrollback) == 1
    # Drawn for 80 columns, the figures would reach the last one.
    figures = [line for line in talk.scrollback if "passes ×" in line]
    assert figures
    assert max(map(len, talk.scrollback)) < 50


@pytest.mark.parametrize("name", ["NO_COLOR", "COLORTERM"])
def test_colours_only_where_they_are_wanted(start: Start, name: str) -> None:
    talk = start(**SLOW, **{name: "1"})
    talk.send("hello" + ENTER)
    talk.wait_for(re.compile(r"block ([4-9]|1\d)"))
    talk.send(CTRL_C)
    talk.wait_for(STATS)
    coloured = re.search(rb"\x1b\[[0-9;]*\b[39][0-7]m", talk.raw) is not None
    assert coloured == (name != "NO_COLOR")


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"ACCESSIBLE": "1"}], ids=["dumb", "accessible"])
def test_where_nothing_can_be_redrawn_lines_are_only_added(start: Start, env: dict[str, str]) -> None:
    talk = start(**SLOW, **env)
    talk.send("hello\n")
    talk.wait_for(STATS)
    assert b"\x1b" not in talk.raw
    assert "░" not in talk.text
    talk.wait_for(lambda screen: screen.text.endswith("\n>"))
    talk.send("again\n")
    talk.wait_for(lambda _: len(talk.events) == 2)
    talk.send(CTRL_C)
    talk.wait_for("[stopped]")
    talk.send(CTRL_D)
    assert talk.wait_end() == 0
    assert talk.mode == talk.mode_before


def test_a_fault_behind_a_key_is_said_in_one_line_and_the_draft_lives(start: Start) -> None:
    talk = start()
    talk.type("/boom")
    talk.wait_for("That key failed (ValueError: no candidates).")
    talk.send("\x15/echo alive" + ENTER)
    talk.wait_event("Submitted(text='/echo alive', live=False, edited=False)")


def test_a_closed_terminal_ends_the_session(start: Start) -> None:
    talk = start()
    talk.hang_up()
    talk.wait_end()
    assert talk.events[-1:] == ["Failed(error=EOFError())"] or talk.process.returncode < 0


@pytest.mark.drawn
@pytest.mark.parametrize("env", [{}, {"TERM": "dumb"}], ids=["redrawn", "dumb"])
def test_ctrl_d_in_mid_reply_leaves_after_it_unless_something_is_typed(start: Start, env: dict[str, str]) -> None:
    talk = start(FAKE_PASS_S="0.2", FAKE_BLOCK="32", **env)
    talk.send("hello" + ("\n" if env else ENTER))
    talk.wait_for(lambda screen: "block 2" in screen.text or bool(env and talk.events))
    talk.send(CTRL_D)
    talk.wait_for("Leaves when this is done")
    talk.send("/echo no" + ("\n" if env else ENTER))
    talk.wait_for("/echo no")
    talk.wait_for(STATS, timeout=40)
    talk.wait_for(lambda screen: screen.lines[screen.text.count("\n") - (not env)].startswith((PROMPT, ">")))
    assert "Leave()" not in talk.events
    talk.send("again" + ("\n" if env else ENTER))
    talk.wait_for(lambda _: any("again" in event for event in talk.events))
    talk.send(CTRL_D)
    assert talk.wait_end(40) == 0
    assert talk.events[-1] == "Leave()"
    assert len(STATS.findall("\n".join(talk.scrollback))) == 2 and "[stopped]" not in talk.text
