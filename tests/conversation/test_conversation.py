"""The whole program on real ranks in a real terminal: run_chat.sh, torchrun, a checkpoint that verl wrote."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from program import READY_S, ROOT, Chat, environment, in_mid_reply, replied, tokens_made
from pty_screen import CTRL_C, CTRL_D, CTRL_Z, PtyScreen

from chat.sessions.journal import read_journal

LONG = ("--max_new_tokens", "1800", "--add_eos_length", "3", "--refine_iter", "2", "--max_length", "2000")


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return str(tiny_checkpoint("fsdp2", 3))


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def assert_stopped_reply_is_exported(document: dict) -> None:
    messages = document["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    assert (messages[3]["state"], messages[3]["finish"]) == ("stopped", "cancelled")
    assert messages[3]["settings"]["refine_iter"] == 4
    # The stopped reply in which it was changed is on another branch, and says so.
    changes = [record for record in document["journal"] if record["kind"] == "setting"]
    assert [(record["name"], record["value"]) for record in changes] == [("refine_iter", 4)]
    assert changes[0]["at"] % 4 == 0


@pytest.mark.timeout(600)
def test_a_conversation_on_two_ranks(tmp_path, checkpoint):
    with Chat(tmp_path, "2", checkpoint, *LONG) as chat:
        followers = [pid for rank, pid in chat.ranks().items() if rank == 1]
        assert len(followers) == 1

        # A whole turn.
        chat.say("/max_new_tokens 16")
        chat.say("Hello there")
        chat.wait_for(replied())
        assert "› Hello there" in chat.text

        # A setting changed in the middle of a reply, then the reply stopped.
        chat.say("/max_new_tokens 1800")
        chat.wait_for("max_new_tokens is 1800.")
        chat.say("A long one")
        chat.wait_for(in_mid_reply)
        chat.say("/refine_iter 4")
        chat.wait_for("refine_iter is 4 from the next block on.")
        seen = tokens_made(chat)
        chat.wait_for(lambda screen: tokens_made(screen) > seen + 8)
        chat.send(CTRL_C)
        chat.wait_for("[stopped]")
        chat.wait_for("R 4  greedy")

        # Text typed in the middle of a reply waits, and is not sent by itself.
        chat.say("/undo")
        chat.wait_for("Took back 1 exchange; 1 exchange left.")
        chat.say("Again")
        chat.wait_for(in_mid_reply)
        chat.type("not yet")
        chat.send("\r")
        chat.send(CTRL_C)
        chat.wait_for(lambda screen: screen.text.count("[stopped]") == 2)
        chat.wait_for("› not yet")
        chat.send(CTRL_C)

        # What cannot be is refused, and the conversation goes on.
        chat.say("/refine_itr 3")
        chat.wait_for("Did you mean /refine_iter?")
        chat.say(f"/export {tmp_path}/talk.json")
        chat.wait_for("Wrote")

        # A load is carried to its end, whatever is pressed; what was loaded answers as before.
        chat.send(f"/load {checkpoint}\r" + CTRL_C)
        chat.wait_for("Step 3 answers from here on")
        assert "The reply stops" not in "\n".join(chat.scrollback)

        # Followers wait without work.
        before = cpu_seconds(followers[0])
        time.sleep(3.0)
        assert cpu_seconds(followers[0]) - before < 0.15

        chat.send(CTRL_D)
        assert chat.wait_end() == 0
        assert chat.mode == chat.mode_before
        assert not chat.ranks()
    assert_stopped_reply_is_exported(json.loads((tmp_path / "talk.json").read_text()))
    text = "\n".join(chat.scrollback)
    assert not re.search(r"Traceback|Warning|\[rank", text)


@pytest.mark.timeout(600)
def test_input_history_and_sessions_outlive_a_dead_rank_and_the_reply_goes_on(tmp_path, checkpoint):
    options = ("--dtype", "float32", *LONG[2:], "--max_new_tokens", "400")
    with Chat(tmp_path, "2", checkpoint, *options) as chat:
        chat.say("Remember me")
        chat.wait_for(in_mid_reply)
        chat.kill(1)
        assert chat.wait_end(30.0) == 5
    with Chat(tmp_path, "2", checkpoint, *options, "--resume") as chat:
        chat.wait_for("/continue goes on with it")
        chat.send("\x1b[A\x1b[A")
        chat.wait_for("› Remember me")
        chat.send(CTRL_C)
        chat.say("/continue")
        chat.wait_for(replied(), 60.0)
        chat.say("/retry")
        chat.wait_for(replied(2), 60.0)
        chat.send(CTRL_D)
        assert chat.wait_end() == 0
    (journal,) = chat.sessions()
    cut, whole, again = [node.made for node in read_journal(journal.encode()).tree.nodes() if node.made]
    assert 0 < len(cut.token_ids) < len(whole.token_ids)
    assert whole.turn.begun == len(cut.token_ids)
    assert whole.token_ids == again.token_ids


@pytest.mark.timeout(600)
def test_ctrl_c_while_loading_ends_at_once(tmp_path, checkpoint):
    with Chat(tmp_path, "2", checkpoint, wait=False) as chat:
        chat.wait_for("Starting 2 processes")
        time.sleep(1.0)
        chat.send(CTRL_C)
        assert chat.wait_end(10.0) == 130
        assert chat.mode == chat.mode_before
        assert "Traceback" not in chat.text


@pytest.mark.long
@pytest.mark.timeout(600)
def test_ctrl_z_suspends_the_start_script_and_torchrun_and_fg_brings_them_back(tmp_path, checkpoint):
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with PtyScreen(
        shell, columns=100, rows=30, env=environment(tmp_path, PS1="shell$ "), timeout=READY_S
    ) as screen:
        screen.send(f"bash {ROOT}/run_chat.sh 2 {checkpoint} {' '.join(LONG)}\n")
        screen.wait_for("Ctrl-D leaves  ")
        mode = screen.mode
        for in_reply in (False, True):
            if in_reply:
                screen.send("A long one\r")
                screen.wait_for(in_mid_reply)
            screen.send("half a line" + CTRL_Z)
            screen.wait_for("Stopped")
            screen.wait_for(lambda screen: screen.text.endswith("shell$"))
            screen.send("echo at the $((1 + 1))nd prompt\n")
            screen.wait_for("at the 2nd prompt")
            screen.send("\x0cfg\n")
            screen.wait_for("› half a line")
            screen.wait_for(lambda screen: screen.mode == mode)
            screen.send("\x15")
        screen.send(CTRL_C)
        screen.wait_for("[stopped]")
        screen.wait_for("Ctrl-D leaves  ")
        screen.send(CTRL_D)
        screen.wait_for(lambda screen: screen.text.endswith("shell$"))
