"""The console where nothing can be redrawn, on a terminal of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pty_screen import PtyScreen

from chat.console import plain
from chat.console.events import Submitted
from chat.console.plain import PlainLines
from chat.terminal.streams import describe_streams

KEPT = "It is kept in a file: change it there, then"


@contextmanager
def plain_lines(folder: Path) -> Iterator[tuple[PtyScreen, PlainLines]]:
    with PtyScreen(["sleep", "60"], columns=200) as screen, os.fdopen(os.dup(screen.slave), "w", newline="") as out:
        streams = describe_streams(
            rank=0, run_dir=folder, keyboard_fd=screen.slave, replies=out, notices=out, environ={"TERM": "dumb"}
        )
        lines = PlainLines(streams, drafts=folder / "drafts")
        lines.start()
        yield screen, lines
        lines.close()


def test_what_takes_long_says_so_in_a_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "SIGN_SECONDS", 0.2)
    monkeypatch.setattr(plain, "SIGNS_SECONDS", 0.4)
    with plain_lines(tmp_path) as (screen, lines):
        lines.set_busy(False)
        screen.wait_for(">")
        screen.send("hello\n")
        screen.wait_for("(reading the message)")
        lines.set_status("pass 3, 24 tokens")
        screen.wait_for("(pass 3, 24 tokens)")
        lines.commit("The first line.")
        screen.wait_for("The first line.\n(pass 3, 24 tokens)\n(pass 3, 24 tokens)")
        lines.set_busy(False)
        screen.wait_for("24 tokens)\n>")


def test_a_message_that_is_refused_is_kept_in_a_file_until_another_is_sent(tmp_path: Path) -> None:
    with plain_lines(tmp_path) as (screen, lines):
        lines.set_busy(False)
        lines.put_back("too long")
        path = tmp_path / "drafts" / str(os.getpid())
        screen.wait_for(f"The message is not lost. {KEPT}\n  /read {path}")
        assert path.read_text() == "too long"
        screen.send("/read x\n")
        screen.wait_for(lambda _: not lines.events.empty())
        lines.set_busy(False)
        assert path.exists()
        screen.send("shorter\n")
        screen.wait_for(lambda _: not path.exists())


def test_a_line_that_the_terminal_cuts_is_not_sent(tmp_path: Path) -> None:
    with plain_lines(tmp_path) as (screen, lines):
        lines.set_busy(False)
        screen.send("x" * 3000)
        screen.send("y" * 3000 + "\n")
        screen.wait_for("this one has more. /read takes a file.\n>")
        assert lines.events.empty()
        screen.send("short\n")
        screen.wait_for(lambda _: not lines.events.empty())
        assert lines.events.get() == Submitted("short")


def test_one_that_a_killed_program_left_is_reported(tmp_path: Path) -> None:
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "999999999").write_text("left behind")
    with plain_lines(tmp_path) as (screen, _):
        path = tmp_path / "drafts" / str(os.getpid())
        screen.wait_for(
            f"A message was not sent last time. It is kept in a file: change it there, then\n  /read {path}"
        )
        assert path.read_text() == "left behind"
