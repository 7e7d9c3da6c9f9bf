"""Small messages from rank 0 to the other ranks of its host through shared memory. Knows no process group.

A broadcast by gloo wakes threads and crosses sockets, which after every pass takes a large part of a millisecond;
here a rank reads a counter and a few bytes. A message carries its number and a checksum, and counts when both are
right: nothing rests on the order in which a processor's writes become visible. There are two slots, used in turn,
and rank 0 writes into one again when all have said that they have read it.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from dist.system_calls import memfd_create, pidfd_open

CAPACITY = 64 << 10  # bytes of a message; a longer one goes in several
LINE = 64  # bytes that a processor's caches move together
HEADER = struct.Struct("<QII")  # the message's number, its length, its checksum
COUNT = struct.Struct("<Q")
# A rank that comes a little late is waited for awake; a long wait leaves the processor to others.
AWAKE_S, DOZE_S, LONG_DOZE_S = 1e-3, 5e-5, 5e-4
LOOK_S = 0.2  # how often a waiting rank looks whether the others are alive
TOKEN_BYTES = 16


class Ended(Exception):
    """A rank that is waited for has ended, or does not answer."""


def room(ranks: int) -> int:
    """Bytes that so many ranks share."""
    return LINE + ranks * LINE + 2 * (LINE + CAPACITY)


class Memory:
    """Memory of rank 0 that other processes find by `where`. It goes with the last process that has it."""

    def __init__(self, ranks: int) -> None:
        self._descriptor = memfd_create("dllm-chat")
        os.ftruncate(self._descriptor, room(ranks))
        self.bytes = mmap.mmap(self._descriptor, room(ranks))
        token = os.urandom(TOKEN_BYTES)
        self.bytes[:TOKEN_BYTES] = token
        self.where = f"{os.getpid()} {self._descriptor} {token.hex()}"

    @classmethod
    def possible(cls, ranks: int) -> Memory | None:
        """None on a system that cannot make any."""
        try:
            return cls(ranks)
        except OSError:
            return None

    def all_have_it(self) -> None:
        """Nobody need find it any more."""
        os.close(self._descriptor)


def attach(ranks: int, where: str) -> mmap.mmap:
    """The memory that rank 0 has made; "" if it could not. Raises OSError where it cannot be reached."""
    if not where:
        raise OSError("rank 0 has no memory to share")
    process, descriptor, token = where.split(" ")
    own = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
    try:
        if os.fstat(own).st_size != room(ranks):
            raise OSError("another file is there")
        memory = mmap.mmap(own, room(ranks))
    finally:
        os.close(own)
    if memory[:TOKEN_BYTES].hex() != token:
        raise OSError("another process is there")
    return memory


class SharedControl:
    """One rank's end. `processes`: {rank: process id} of all, to notice who has ended.

    Raises OSError if a process cannot be watched.
    """

    def __init__(self, memory: mmap.mmap, rank: int, processes: Mapping[int, int], timeout_s: float) -> None:
        self._memory = memory
        self._rank = rank
        self._followers = [other for other in processes if other]
        self._timeout_s = timeout_s
        self._count = 0
        # A process is readable once it has ended.
        self._processes = {one: pidfd_open(process) for one, process in processes.items() if one != rank}

    def write(self, message: bytes) -> None:
        """Rank 0: the next message. Raises Ended if a rank has not read the last but one and is gone."""
        for start in range(0, len(message), CAPACITY):
            self._write(message[start : start + CAPACITY])

    def read(self, size: int) -> bytes:
        """Other ranks: the next message, of so many bytes. Raises Ended if rank 0 is gone."""
        parts = [self._read(min(CAPACITY, size - start)) for start in range(0, size, CAPACITY)]
        return b"".join(parts)

    def close(self) -> None:
        for descriptor in self._processes.values():
            os.close(descriptor)
        self._processes.clear()
        self._memory.close()

    def _write(self, part: bytes) -> None:
        self._count += 1
        last = self._count - 2
        for follower in self._followers:
            self._wait(lambda: self._read_by(follower) >= last, follower)  # noqa: B023 (called at once)
        slot = self._slot()
        self._memory[slot + LINE : slot + LINE + len(part)] = part
        HEADER.pack_into(self._memory, slot, self._count, len(part), zlib.crc32(part))

    def _read(self, size: int) -> bytes:
        self._count += 1
        slot, part = self._slot(), b""

        def has_come() -> bool:
            nonlocal part
            number, length, checksum = HEADER.unpack_from(self._memory, slot)
            if (number, length) != (self._count, size):
                return False
            part = self._memory[slot + LINE : slot + LINE + size]
            return bool(zlib.crc32(part) == checksum)

        self._wait(has_come, 0)
        COUNT.pack_into(self._memory, LINE * (1 + self._rank), self._count)
        return part

    def _slot(self) -> int:
        return LINE * (2 + len(self._followers)) + (self._count % 2) * (LINE + CAPACITY)

    def _read_by(self, follower: int) -> int:
        (count,) = COUNT.unpack_from(self._memory, LINE * (1 + follower))
        return int(count)

    def _wait(self, is_ready: Callable[[], bool], other: int) -> None:
        if is_ready():
            return
        began = looked = time.monotonic()
        while not is_ready():
            now = time.monotonic()
            waited = now - began
            if now - looked > LOOK_S:
                looked = now
                if self._has_ended(other) and not is_ready():
                    raise Ended(f"Rank {other} has ended.")
                if waited > self._timeout_s:
                    raise Ended(f"Rank {other} has not answered for {waited:.0f} s.")
            # 0 lets this process's other threads run.
            time.sleep(0 if waited < AWAKE_S else DOZE_S if waited < LOOK_S else LONG_DOZE_S)

    def _has_ended(self, other: int) -> bool:
        poll = select.poll()
        poll.register(self._processes[other], select.POLLIN)
        return bool(poll.poll(0))


def open_control(
    rank: int,
    processes: Mapping[int, int],
    timeout_s: float,
    store: Any,
    gather_errors: Callable[[str | None], dict[int, str]],
) -> SharedControl | None:
    """All ranks of one host: memory that each of them can reach, or None if one of them cannot.

    Rank 0 says in the `store` where its memory is, the others look there.
    """
    control = problem = None
    memory = Memory.possible(len(processes)) if rank == 0 else None
    try:
        if rank == 0:
            store.set("control/where", memory.where if memory else "")
        where = store.get("control/where").decode()
        shared = memory.bytes if memory else attach(len(processes), where)
        control = SharedControl(shared, rank, processes, timeout_s)
    except OSError as error:  # refused, or a system that does not have it
        problem = str(error)
    failed = gather_errors(problem)
    if memory is not None:
        memory.all_have_it()
    return None if failed else control
