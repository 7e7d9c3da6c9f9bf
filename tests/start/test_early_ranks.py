"""Ranks that begin before torchrun's agent: taken over by it, or ended where it wants something else."""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chat.start.early_ranks import EarlyRanks

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
# A rank that prints what it knows once it knows all of it.
RANK = """
import os
import select
import signal
from chat.start.early_ranks import complete_environment
complete_environment()
print(*[os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")], "DLLM_ENVIRONMENT_PIPE" in os.environ)
"""
COMMAND = (sys.executable, "-c", RANK)
LAUNCHER = f"""
import os, signal, sys, time
from chat.start.early_ranks import EarlyRanks
ranks = EarlyRanks(2, {COMMAND!r}, "7")
ranks.end_on_signals()
print(*[rank.process.pid for rank in ranks._waiting.values()], flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def agents(rank: int, **other: str) -> dict[str, str]:
    """The environment that torchrun's agent gives a rank of two."""
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    groups = {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "7", "MASTER_PORT": "5"}
    return {**os.environ, **numbers, **groups, **other}


def test_the_agent_takes_over_what_runs(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = EarlyRanks(2, COMMAND, "7")
    # Newer versions of torchrun hand on the `--` that ends its options.
    taken = [ranks.take(COMMAND, agents(0)), ranks.take((*COMMAND, "--"), agents(1))]
    assert [one is not None and one.wait() for one in taken] == [0, 0]
    assert ranks.take(COMMAND, agents(0)) is None
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 2 5 False", "1 2 5 False"]


def test_what_the_agent_wants_otherwise_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    ranks = EarlyRanks(2, COMMAND, "7")
    processes = [rank.process for rank in ranks._waiting.values()]
    assert ranks.take((*COMMAND, "more"), agents(0)) is None
    assert ranks.take(COMMAND, agents(1, WORLD_SIZE="3")) is None
    assert all(process.returncode for process in processes)
    printed = capfd.readouterr()
    assert not printed.out
    assert "Local rank 1 is started again: WORLD_SIZE." in printed.err


def test_a_torchrun_of_another_make_starts_its_own() -> None:
    ranks = EarlyRanks(2, COMMAND, "7")
    processes = [rank.process for rank in ranks._waiting.values()]
    ranks.hand_over(object)
    assert all(process.returncode for process in processes)


@pytest.mark.parametrize("ended_by", ["SIGTERM", "SIGKILL"])
def test_the_launcher_takes_them_along(ended_by: str) -> None:
    """By a signal, or by its end alone: a rank whose pipe closes without a word is over."""
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        ids = [int(word) for word in launcher.stdout.readline().split()]
        watched = [os.pidfd_open(process) for process in ids]
        launcher.send_signal(getattr(signal, ended_by))
    for process in watched:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        assert poll.poll(30_000)
        os.close(process)


def test_one_that_is_killed_before_the_agent_has_it_is_said_at_once() -> None:
    ranks = EarlyRanks(2, (sys.executable, "-c", "import time; time.sleep(600)"), "7")
    killed: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    ranks.watch(lambda rank, code: killed.put((rank, code)))
    ranks._waiting["1"].process.send_signal(signal.SIGKILL)
    assert killed.get(timeout=30) == (1, -signal.SIGKILL)
    for rank in ranks._waiting.values():
        rank.end()
