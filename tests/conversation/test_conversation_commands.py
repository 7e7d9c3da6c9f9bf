"""What commands do to a conversation, by the whole program in a real terminal."""

from __future__ import annotations

import base64
import json
import re

import pytest
from program import Chat, replied
from pty_screen import CTRL_C

LONG = ("--max_new_tokens", "1800", "--add_eos_length", "3", "--refine_iter", "2")
SHORT = ("--max_new_tokens", "12", "--add_eos_length", "3", "--refine_iter", "2")


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return str(tiny_checkpoint("fsdp2", 3))


def exported(chat: Chat) -> list[str]:
    """What the user said, by an export."""
    target = chat.home / f"{len(list(chat.home.glob('*.json')))}.json"
    chat.say(f"/export {target}")
    chat.wait_for(lambda screen: f"Wrote{target}" in "".join(screen.text.split()))
    messages = json.loads(target.read_text())["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def replies(chat: Chat, count: int) -> None:
    """Wait until so many replies have been made in all."""
    chat.wait_for(replied(count))
    chat.wait_for("Alt-Enter new line")


@pytest.mark.timeout(600)
def test_a_trace_is_switched_on_in_mid_reply_and_reads_well_on_80_columns(tmp_path, checkpoint):
    with Chat(tmp_path, "2", checkpoint, *LONG) as chat:
        chat.resize(80, 24)
        chat.say("Hello")
        chat.wait_for("pass 2")
        chat.say("/trace on")
        chat.wait_for(lambda screen: screen.text.count(" of 4 exact:") > 8)
        chat.send(CTRL_C)
        chat.wait_for("[stopped]")
        chat.wait_for("Alt-Enter new line")
        chat.say("/trace top")
        chat.wait_for("Trace is top.")
        chat.say("/max_new_tokens 4")
        chat.wait_for("max_new_tokens is 4.")
        chat.say("Once more")
        chat.wait_for("(the limit)")
        lines = [line.rstrip() for line in chat.scrollback]
        last = next(at for at, line in enumerate(lines) if line.startswith("block 1, pass 1, 1 of 4 exact:"))
        rows = [
            re.fullmatch(r'    (\d) +".+" \d\.\d\d +".+" \d\.\d\d +".+" \d\.\d\d', line)
            for line in lines[last + 1 :]
        ]
        assert [row[1] for row in rows[:4] if row] == ["1", "2", "3", "4"]
        assert not [line for line in lines[last:] if len(line) > 79]
        assert any(line.startswith("block 1, pass 2, ") for line in lines[last:])
        chat.say("/quit")
        assert chat.wait_end() == 0


@pytest.mark.timeout(600)
def test_values_of_a_setting_are_compared_and_ctrl_c_stops_that(tmp_path, checkpoint):
    with Chat(tmp_path, "2", checkpoint, *SHORT) as chat:
        chat.resize(140, 40)
        chat.say("Hello")
        replies(chat, 1)
        chat.say("/compare refine_iter 1 2 auto")
        chat.wait_for("as greedy")
        chat.wait_for("Alt-Enter new line")
        cells = (re.split(r" {2,}", line.strip()) for line in chat.scrollback)
        rows = {row[1]: row[2:] for row in cells if len(row) == 8}
        assert list(rows) == ["refine_iter 1", "refine_iter 2", "refine_iter auto", "greedy, N = 0"]
        assert rows["refine_iter auto"][4:] == ["100.0 %, 12 of 12", "-"]
        assert rows["greedy, N = 0"][:2] == ["12", "12"]

        # Stopped in the middle, it leaves a conversation that goes on.
        chat.say("/max_new_tokens 1800")
        chat.wait_for("max_new_tokens is 1800.")
        chat.say("/compare add_eos_length 3 5")
        chat.wait_for("add_eos_length 3 (1 of 3): ")
        chat.send(CTRL_C)
        chat.wait_for("Stopped: 0 of 3 replies were made.")
        chat.say("/max_new_tokens 8")
        chat.wait_for("max_new_tokens is 8.")
        chat.say("More")
        replies(chat, 2)
        assert exported(chat) == ["Hello", "More"]
        chat.say("/quit")
        assert chat.wait_end() == 0
    (journal,) = chat.sessions()
    assert [json.loads(line)["kind"] for line in journal.splitlines()].count("turn") == 2


@pytest.mark.timeout(600)
def test_a_file_goes_into_a_message_a_reply_to_the_clipboard_and_an_earlier_message_is_edited(tmp_path, checkpoint):
    notes = tmp_path / "notes.txt"
    notes.write_text("\n".join(f"row {at}" for at in range(40)) + "\n")
    with Chat(tmp_path, "1", checkpoint, *SHORT) as chat:
        chat.say(f"/read {notes}")
        chat.wait_for("› [notes.txt, 40 lines]")
        chat.type("What is this?")
        chat.send("\r")
        replies(chat, 1)
        chat.say("/copy")
        chat.wait_for("Sent the last reply to the terminal's clipboard")
        assert exported(chat) == [notes.read_text() + "What is this?"]
        document = json.loads(next(tmp_path.glob("*.json")).read_text())
        found = re.search(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", chat.raw)
        assert found is not None
        assert base64.b64decode(found[1]).decode() == document["messages"][1]["content"]

        chat.say("/clear")
        chat.wait_for("Cleared 1 exchange.")
        for count, line in enumerate(("One", "Two", "Three"), 2):
            chat.say(line)
            replies(chat, count)

        # Ctrl-C leaves everything as it was, and what is typed next is a message like any other.
        chat.say("/edit 2")
        chat.wait_for("› Two\n")
        chat.wait_for("Ctrl-C cancels")
        chat.send(CTRL_C)
        chat.wait_for("Nothing was changed.")
        assert exported(chat) == ["One", "Two", "Three"]

        # Enter goes on from there, on the screen, in the session and in exports.
        chat.say("/edit 2")
        chat.wait_for("  editing · Enter sends it")
        chat.type(" and a half")
        chat.send("\r")
        replies(chat, 5)
        assert "› Two and a half" in chat.text
        assert exported(chat) == ["One", "Two and a half"]
        chat.say("/quit")
        assert chat.wait_end() == 0
    with Chat(tmp_path, "1", checkpoint, *SHORT, "--resume") as chat:
        chat.wait_for("2 exchanges")
        chat.say("/undo")
        chat.wait_for("It began: Two and a half")
        assert exported(chat) == ["One"]
