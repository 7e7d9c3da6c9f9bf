"""The whole program killed at a drawn moment: the journal opens, the session goes on, its replies replay."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from program import Chat, replied, run_chat
from pty_screen import CTRL_C
from steps import add_step, right_sums

from chat.sessions.journal import read_journal
from chat.sessions.session import Session

OPTIONS = ("--max_new_tokens", "60", "--add_eos_length", "3", "--dtype", "float32")
SETTINGS = ("/refine_iter 1", "/refine_iter auto", "/temperature 0.7", "/seed 4")
LINES = ("/retry", "/undo", "/redo", "/edit", "/load 7", "/load 3", "/system Be kind.", *SETTINGS)
LINES += ("/continue", "/prefill So", "/set stop w")
AT_REST = "Alt-Enter new line"


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    """A run with the steps 3 and 7."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    right_sums(add_step(folder, 3, 7))
    return folder


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    return not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def talk_until_killed(chat, dice, victim):
    """A conversation with retries, edits, loads, stopped replies, changed settings; in its midst one is killed."""
    chat.say("First question")
    chat.wait_for(replied(), 60.0)
    for number in range(dice.randint(0, 5)):
        line = dice.choice((*LINES, f"Question {number}"))
        if line == "/edit":
            chat.wait_for(AT_REST, 60.0)
            chat.send(CTRL_C)  # what was refused in mid-reply is in the line
        chat.say(line)
        if line == "/edit":
            chat.wait_for(re.compile("Enter sends it|nothing to edit"))
            chat.say(" changed")
        if dice.random() < 0.5 and not line.startswith("/load"):
            time.sleep(dice.uniform(0.0, 0.4))
            chat.say(dice.choice(SETTINGS))  # in mid-reply, mostly
        time.sleep(dice.uniform(0.0, 0.6))
        if dice.random() < 0.3:
            chat.send(CTRL_C)
        if dice.random() < 0.8:
            chat.wait_for(AT_REST, 60.0)
    chat.say(dice.choice(("Last question", "/retry", "/load 7")))
    time.sleep(dice.uniform(0.0, 1.0))
    ranks = chat.ranks()
    parent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
    target = {"rank 0": ranks[0], "rank 1": ranks[1], "launcher": parent, "script": chat.process.pid}[victim]
    os.kill(target, signal.SIGKILL)
    assert gone(list(ranks.values()), 20.0)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.drawn) for seed in range(30)])
def test_killed_at_a_drawn_moment_nothing_that_was_shown_is_lost(tmp_path, run, seed):
    dice = random.Random(seed)
    victim = dice.choice(("rank 0", "rank 1", "launcher", "script"))
    print("seed", seed, "kills", victim)
    with Chat(tmp_path, "2", str(run / "global_step_3"), *OPTIONS) as chat:
        talk_until_killed(chat, dice, victim)
        if victim.startswith("rank"):
            assert chat.wait_end(20.0) == 5
            assert "Continue: bash run_chat.sh 2" in " ".join(" ".join(chat.scrollback).split())
    (journal,) = (tmp_path / "state").glob("dllm-chat/sessions/*.jsonl")
    reading = read_journal(journal.read_bytes())
    assert reading.skipped == 0
    assert next(reading.tree.nodes()).text == "First question"
    made = [node for node in reading.tree.nodes() if node.made]
    assert made
    print(len(made), "replies by steps", [node.made.checkpoint.step for node in made])

    same = rf"^ *{len(made)} (reply|replies) replayed: {len(made)} the same, 0 not\.$"
    if seed % 2:
        done = run_chat(tmp_path, "2", "--dtype", "float32", "--replay", journal.stem)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(same, done.stdout, re.M)
        session, _ = Session.resume(journal.parent)
        session.close()
        assert session.tree.transcript() == reading.tree.transcript()
        return
    with Chat(tmp_path, "2", str(run / "global_step_3"), *OPTIONS, "--resume", journal.stem) as chat:
        chat.send(CTRL_C)  # what was typed and not sent is in the line again
        chat.wait_for("Ctrl-D leaves")
        chat.say("/replay")
        chat.wait_for("replayed: ", 120.0)
        chat.wait_for(AT_REST, 60.0)  # the step before is back
        assert re.search(same, "\n".join(chat.scrollback), re.M), "\n".join(chat.scrollback)
        chat.say("And on")
        chat.wait_for(replied(), 60.0)
        chat.say("/quit")
        assert chat.wait_end() == 0
    tree = read_journal(journal.read_bytes()).tree
    assert tree.records[: len(reading.tree.records)] == reading.tree.records
    assert tree.questions()[0].text == "And on"


@pytest.mark.timeout(600)
def test_a_replay_on_other_weights_says_so_by_its_exit_code(tmp_path, tiny_checkpoint):
    with Chat(tmp_path, "1", str(tiny_checkpoint("fsdp2", 3)), *OPTIONS) as chat:
        chat.say("Hello")
        chat.wait_for(replied(), 60.0)
        chat.say("/save mine")
        chat.wait_for("This session is named mine.")
        chat.say("/quit")
        assert chat.wait_end() == 0
        assert "Session mine, 1 exchange. Continue: bash run_chat.sh" in " ".join(" ".join(chat.scrollback).split())
    other = str(tiny_checkpoint("fsdp1_tied", 2))
    done = run_chat(tmp_path, "1", other, "--dtype", "float32", "--replay", "mine")
    assert done.returncode == 6, done.stderr
    assert re.search(r"^1\. Hello: first differs at token \d+ of 60: `.*` / `.*`$", done.stdout, re.M)
    assert "1 reply replayed: 0 the same, 1 not. Made by step 3 of " in done.stdout
    done = run_chat(tmp_path, "1", other, "--replay", "none")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "There is no session named none. The latest is mine.",
    )
