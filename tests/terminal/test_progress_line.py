"""The progress line: one row of the terminal, whatever is said meanwhile."""

from __future__ import annotations

import os

from pty_screen import PtyScreen

from chat.terminal.progress_line import ProgressLine


def test_it_stays_one_row_however_narrow_the_terminal_and_what_is_said_stands_above_it() -> None:
    with PtyScreen(["sleep", "60"], columns=20) as screen, os.fdopen(os.dup(screen.slave), "w", newline="") as out:
        line = ProgressLine(out, draws=True)
        line.show("Loading /a/long/path/of/a/checkpoint")
        line.show("读取中文路径的检查点文件夹 1 of 2")
        line.say("A notice.")
        screen.wait_for("A notice.\n读取中文路径的检查")
        assert screen.text == "A notice.\n读取中文路径的检查"
        line.clear()
        screen.wait_for(lambda _: screen.text == "A notice.")


def test_where_nothing_is_redrawn_only_what_is_said_is_seen() -> None:
    with PtyScreen(["sleep", "60"], columns=20) as screen, os.fdopen(os.dup(screen.slave), "w", newline="") as out:
        line = ProgressLine(out, draws=False)
        line.show("Loading")
        line.say("A notice.")
        line.clear()
        screen.wait_for("A notice.")
        assert b"\x1b" not in screen.raw and b"Loading" not in screen.raw
