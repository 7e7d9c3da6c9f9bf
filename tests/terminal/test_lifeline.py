"""The lifeline names the rank, its host and how it ended, and counts down while a rank gives no sign of life."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chat.terminal.fate import in_words, of_zombie

ROOT = Path(__file__).resolve().parents[2]

# A lifeline in a process of its own, since it ends it. `ranks` are what FACTS says; rank 1 is a real child process.
PROGRAM = """
import json, os, subprocess, sys, time
from pathlib import Path
from chat.terminal import lifeline
from chat.terminal.lifeline import Lifeline
from chat.terminal.process import die_with_parent

facts = json.loads(sys.argv[1])
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    preexec_fn=lambda: die_with_parent(9))

class Ranks:
    asked = 0
    def process_ids(self): return {0: os.getpid(), 1: child.pid} if facts["local"] else {0: os.getpid()}
    several_hosts = not facts["local"]
    def recorded_failures(self):
        if facts.get("failure_after", 0) > time.monotonic() - began: return {}
        return {self.name(int(rank)): how for rank, how in facts["failures"].items()}
    def silence(self):
        self.asked += 1
        return {self.name(1): facts["silence"][min(self.asked, len(facts["silence"])) - 1]}
    def name(self, rank): return f"Rank {rank}" + (f" ({facts['hosts'][str(rank)]})" if not facts["local"] else "")

lifeline.TICK_S = 0.05
began = time.monotonic()
line = Lifeline(say=lambda text: print(text, flush=True), run_dir=Path(facts["dir"]), answer_s=60.0)
line.kept = lambda: "Session S, 1 exchange."
line.start()
line.watch(Ranks())
if facts["kill"]: os.kill(child.pid, facts["kill"])
if facts["lost"]: line.end_after_rank_failure("Contact was lost.")
time.sleep(600)
"""
ONE_HOST = {"0": "hosta", "1": "hosta"}
TWO_HOSTS = {"0": "hosta", "1": "hostb"}
QUIET = {"failures": {}, "silence": [0.0], "kill": 0, "lost": False, "hosts": ONE_HOST, "local": True}


def last_words(folder: Path, **facts: object) -> tuple[int, list[str]]:
    """The exit code of a lifeline that meets these facts, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps({**QUIET, "dir": str(folder), **facts})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"kill": signal.SIGKILL}, "Rank 1 was killed (SIGKILL); out of memory?"),
        ({"kill": signal.SIGSEGV}, "Rank 1 was killed (SIGSEGV); a crash in a library."),
        ({"failures": {"1": "failed: OutOfMemoryError: 3 GiB"}}, "Rank 1 failed: OutOfMemoryError: 3 GiB."),
        (
            {"failures": {"1": "was killed (SIGKILL); out of memory?"}, "hosts": TWO_HOSTS, "local": False},
            "Rank 1 (hostb) was killed (SIGKILL); out of memory?",
        ),
        # The connection breaks first, and word from the other host comes a little later.
        (
            {
                "failures": {"1": "was killed (SIGKILL); out of memory?"},
                "failure_after": 1.0,
                "hosts": TWO_HOSTS,
                "local": False,
                "lost": True,
            },
            "Rank 1 (hostb) was killed (SIGKILL); out of memory?",
        ),
        ({"lost": True}, "Contact was lost."),
        (
            {"silence": [0.0, 4.0, 61.0], "hosts": TWO_HOSTS, "local": False},
            "Rank 1 (hostb) has not answered for 61 s.",
        ),
    ],
)
def test_a_rank_that_is_gone_is_named_with_its_end(tmp_path, facts, text):
    code, said = last_words(tmp_path, **facts)
    assert code == 5
    assert said[-3:] == [text, "Session S, 1 exchange.", f"Logs: {tmp_path}"]
    assert (tmp_path / "status").read_text() == "5\n"


def test_a_silent_rank_is_said_so_once_where_no_line_can_be_redrawn(tmp_path):
    code, said = last_words(tmp_path, silence=[0.0, 4.9, 5.0, 17.0, 0.0, 6.0, 60.0])
    assert code == 5
    assert said[:3] == [
        "Rank 1 has not answered for 5 s; the program ends in 55 s (--answer_timeout).",
        "All ranks answer again.",
        "Rank 1 has not answered for 6 s; the program ends in 54 s (--answer_timeout).",
    ]


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        ("kill -KILL $$", -9, "killed (SIGKILL); out of memory?"),
        ("kill -TERM $$", -15, "killed (SIGTERM)"),
        ("exit 3", 3, "exited with code 3 without an error message"),
    ],
)
def test_how_a_process_ended_is_read_before_its_parent_takes_note(act, code, words):
    child = subprocess.Popen(["sh", "-c", act])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert of_zombie(child.pid) == code
    assert in_words(code) == words
    child.wait()
    assert of_zombie(child.pid) is None
    assert of_zombie(os.getpid()) is None
