"""Launchers hear of each other's end at once, and whether it was an orderly one."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist.group.lines import GOODBYE, Line, Lines

ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import sys, time; from dist.group.lines import Line
line = Line('127.0.0.1', int(sys.argv[1]), 2)
line.watch(lambda why: print('lost:', why))
print('ready')
time.sleep(600)
"""
NODE_0 = """
import sys, time; from dist.group.lines import Lines
lines = Lines('127.0.0.1')
lines.watch(lambda node: print('lost:', node))
print(lines.port)
sys.stdin.readline()
lines.close(*sys.argv[1:])
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-uc", program, *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def test_a_killed_launcher_is_lost_and_one_that_says_goodbye_is_not(start):
    lines = Lines("127.0.0.1")
    lost: queue.SimpleQueue[int] = queue.SimpleQueue()
    lines.watch(lost.put)
    Line("127.0.0.1", lines.port, 1).close()
    other = start(OTHER, str(lines.port))
    assert other.stdout.readline() == "ready\n"
    other.send_signal(signal.SIGKILL)
    assert lost.get(timeout=20) == 2
    assert lost.empty()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["Rank 0 (hosta) was killed"], "Rank 0 (hosta) was killed"), ([], GOODBYE), (["killed"], "")],
)
def test_the_others_hear_why_node_0_ends(start, arguments, why):
    node_0 = start(NODE_0, *arguments)
    port = int(node_0.stdout.readline())
    line, gone = Line("127.0.0.1", port, 1), Line("127.0.0.1", port, 3)
    words: queue.SimpleQueue[str] = queue.SimpleQueue()
    line.watch(words.put)
    gone._socket.close()
    assert node_0.stdout.readline() == "lost: 3\n"  # so it has taken the line before, too
    if arguments == ["killed"]:
        node_0.kill()
    node_0.communicate("\n")
    assert words.get(timeout=20) == why
    line.close()
