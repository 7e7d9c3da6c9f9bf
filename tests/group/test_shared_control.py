"""Verdicts through memory that ranks of one host share: whole, in order, and never waited for in vain."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from ranks import results_of_forks

from dist.group import shared_control
from dist.group.ranks import Ranks
from dist.group.shared_control import CAPACITY, HEADER, LINE, Ended, Memory, SharedControl, attach, room

SIZES = [*(random.Random(0).randrange(1, 400) for _ in range(200)), CAPACITY, CAPACITY + 1, 3 * CAPACITY + 7, 8]


def message(number: int) -> bytes:
    return random.Random(number).randbytes(SIZES[number])


@contextmanager
def ranks(count: int, follow: Callable[[SharedControl, int], object]) -> Iterator[tuple[SharedControl, list[int]]]:
    """Rank 0's end, and the processes of the others, which run `follow` and end with 0 if it gives True."""
    memory = Memory(count)
    begin, begun = zip(*(os.pipe() for _ in range(count)))
    processes = {0: os.getpid()}
    for rank in range(1, count):
        process = os.fork()
        if not process:
            code = 1
            try:
                ids = {place: int(one) for place, one in enumerate(os.read(begin[rank], 999).split())}
                control = SharedControl(attach(count, memory.where), rank, ids, 60.0)
                code = 0 if follow(control, rank) else 1
            finally:
                os._exit(code)
        processes[rank] = process
    reported = " ".join(map(str, processes.values())).encode()
    control = SharedControl(memory.bytes, 0, processes, 60.0)
    for pipe in begun:
        os.write(pipe, reported)
    try:
        yield control, [process for rank, process in processes.items() if rank]
    finally:
        for rank in range(1, count):
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(processes[rank], signal.SIGKILL)
                os.waitpid(processes[rank], 0)
        control.close()
        memory.all_have_it()
        for pipe in (*begin, *begun):
            os.close(pipe)


def hear_all(control: SharedControl, rank: int) -> bool:
    late = random.Random(rank)
    for number, size in enumerate(SIZES):
        if late.random() < 0.05:
            time.sleep(0.003)
        if control.read(size) != message(number):
            return False
    return True


def test_every_message_reaches_every_rank_whole_and_in_order_however_late_they_look():
    with ranks(4, hear_all) as (control, processes):
        for number in range(len(SIZES)):
            control.write(message(number))
        codes = [os.waitpid(process, 0)[1] for process in processes]
    assert codes == [0, 0, 0]


def test_a_half_written_message_is_not_read():
    memory = mmap.mmap(-1, room(2))
    both = {0: os.getpid(), 1: os.getpid()}
    slot = LINE * 3 + LINE + CAPACITY
    HEADER.pack_into(memory, slot, 1, 5, 12345)  # number and length have come, the rest has not
    with pytest.raises(Ended, match="has not answered"):
        SharedControl(memory, 1, both, 0.0).read(5)
    SharedControl(memory, 0, both, 1.0).write(b"whole")
    assert SharedControl(memory, 1, both, 1.0).read(5) == b"whole"


def test_rank_0_notices_that_a_rank_has_ended():
    with ranks(2, lambda control, rank: control.read(4)) as (control, processes):
        os.kill(processes[0], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(Ended, match="Rank 1 has ended"):
            for _ in range(9):
                control.write(b"word")
    assert time.monotonic() - began < 10 * shared_control.LOOK_S


def test_the_others_notice_that_rank_0_has_ended():
    """A fork stands for rank 0."""
    memory = Memory(2)
    process = os.fork()
    if not process:
        time.sleep(0.1)
        os._exit(0)
    control = SharedControl(attach(2, memory.where), 1, {0: process, 1: os.getpid()}, 60.0)
    with pytest.raises(Ended, match="Rank 0 has ended"):
        control.read(4)
    os.waitpid(process, 0)


def test_another_process_under_the_same_number_is_not_taken_for_rank_0():
    memory = Memory(2)
    process, descriptor, _ = memory.where.split(" ")
    with pytest.raises(OSError, match="another process"):
        attach(2, f"{process} {descriptor} {'0' * 32}")
    with pytest.raises(OSError, match="another file"):
        attach(3, memory.where)
    with pytest.raises(OSError, match="no memory"):
        attach(2, "")


def verdicts_of_forks() -> dict:
    # Forks inherit what other tests have left.
    return results_of_forks([2], partial(verdicts, inherited=shared_memory()))[2]


def verdicts(group, inherited: set[str]) -> dict:
    sizes = (1, 18, 3 * CAPACITY // 8)
    right = [torch.arange(size) * 3 for size in sizes]
    mine = right if group.rank == 0 else [torch.zeros_like(one) for one in right]
    same = all(torch.equal(group.agree(one), other) for one, other in zip(mine, right))
    return {"same": group.smallest(same), "shared": group.smallest(len(shared_memory() - inherited) == 1)}


def shared_memory() -> set[str]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[4] for line in maps if "dllm-chat" in line}


def refused(ranks: int, where: str) -> mmap.mmap:
    raise PermissionError(where)


@pytest.mark.parametrize("reachable", [True, False])
def test_where_memory_cannot_be_shared_verdicts_are_broadcast(monkeypatch, reachable):
    if not reachable:
        monkeypatch.setattr("dist.group.shared_control.attach", refused)
    assert verdicts_of_forks() == {"same": 1, "shared": reachable}


def test_ranks_of_several_hosts_share_no_memory(monkeypatch):
    monkeypatch.setattr(Ranks, "process_ids", lambda ranks: {ranks.rank: os.getpid()})
    assert verdicts_of_forks() == {"same": 1, "shared": 0}
