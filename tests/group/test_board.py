"""Signs of life and causes of death reach the others, and a store that hangs keeps nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as torch_dist

from dist.group import board
from dist.group.board import Board, connect, post_failure


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def port() -> Iterator[int]:
    server = torch_dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield int(server.port)
    del server


class Clock:
    """The clock that silence is counted by; a test turns it forward."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def three(port: int, clock: Clock) -> Iterator[list[Board]]:
    boards = [Board(connect("127.0.0.1", port), str(rank), "12" if rank == 0 else "0", clock) for rank in range(3)]
    yield boards
    for one in boards:
        one.close()


def test_a_rank_that_is_closed_is_silent_and_the_others_are_not(three, clock):
    assert eventually(lambda: three[0].silence() == {"1": 0.0, "2": 0.0})
    three[2].close()
    three[0].silence()

    def only_rank_2_is_silent() -> bool:
        clock.now += 1.0
        time.sleep(0.6)  # more than a period: whoever lives has given a sign
        silence = three[0].silence()
        return silence["2"] > 3 and silence["1"] == 0.0

    assert eventually(only_rank_2_is_silent)


def test_ones_own_sleep_is_not_the_others_silence(three, clock):
    assert eventually(lambda: three[1].silence() == {"0": 0.0})
    three[0].close()
    three[1].silence()
    three[1].silence()
    clock.now += 3600.0
    assert three[1].silence()["0"] <= board.LONGEST_STEP_S


def test_a_failure_reaches_all_and_the_first_reason_stays(three):
    three[2].post_failure("Rank 2", "failed: OutOfMemoryError: 3 GiB", wait_s=20.0)
    three[2].post_failure("Rank 2", "exited with code 1", wait_s=20.0)
    three[1].post_failure("Rank 1", "was killed", wait_s=20.0)
    for one in three:
        assert eventually(lambda one=one: len(one.failures()) == 2)
        assert list(one.failures().items()) == [
            ("Rank 2", "failed: OutOfMemoryError: 3 GiB"),
            ("Rank 1", "was killed"),
        ]


def test_a_launcher_posts_for_a_rank_that_could_not(three, port):
    post_failure(connect("127.0.0.1", port), "Rank 1", "was killed (SIGKILL); out of memory?")
    assert eventually(lambda: three[0].failures() == {"Rank 1": "was killed (SIGKILL); out of memory?"})


class Stuck:
    """A store behind a cut cable: every question waits for ever."""

    def __init__(self) -> None:
        self.cable = threading.Event()

    def set(self, key: str, value: str) -> None:
        self.cable.wait()
        raise RuntimeError("closed")

    get = check = add = set


def test_a_store_that_never_answers_keeps_nobody(clock):
    store = Stuck()
    stuck = Board(store, "1", ["0"], clock)
    for _ in range(7):
        clock.now += 1.0
        silence = stuck.silence()
    assert silence == {"0": 7.0}
    began = time.monotonic()
    stuck.post_failure("Rank 1", "failed", wait_s=0.1)
    stuck.close()
    assert time.monotonic() - began < 10
    store.cable.set()


class Gone(Stuck):
    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Connection reset by peer\nand more")

    get = check = add = set


def test_a_store_that_is_gone_is_said_so():
    gone = Board(Gone(), "1", ["0"])
    assert eventually(lambda: gone.contact_lost == "Connection reset by peer")
