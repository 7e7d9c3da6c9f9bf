"""Several groups of ranks side by side, each with a model of its own, and mail between them. Knows no model.

Within a copy all is as if there were no other ranks; copies have no collective in common. What they tell each other
goes through torch's store, so that it works across hosts, and nobody waits for anybody.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.distributed as torch_dist

from dist.errors import RankError
from dist.group.group import SoloGroup, TorchGroup
from dist.group.ranks import Ranks

KEY = "chat/copies"
# A store takes values of at most 8 MiB.
PIECE_BYTES = 1 << 20
SHORT_S, LONG_S, IDLE_S = 1e-3, 0.02, 0.2
# How long rank 0 waits for all ranks to be ready to load.
JOIN_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """`copies` of the model, each on `ranks` consecutive ranks; ranks that are left over do nothing.

    `mode`: how each copy is spread over its ranks. `words` say why it is so.
    """

    copies: int
    ranks: int
    mode: str
    words: str = ""

    def copy_of(self, rank: int) -> int | None:
        """Which copy a rank belongs to, None if it is left over."""
        copy = rank // self.ranks
        return copy if copy < self.copies else None


class Store(Protocol):
    """What is asked of torch's store."""

    def set(self, key: str, value: str, /) -> object: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...

    def delete_key(self, key: str, /) -> bool: ...


class Box:
    """Messages from one process to one other, in order. One end only puts, the other one only takes."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._key = f"{KEY}/{name}"
        self._count = 0

    def put(self, message: dict[str, Any]) -> None:
        """Send a message of plain values. Raises RankError."""
        text = json.dumps(message, separators=(",", ":"))
        pieces = [text[start : start + PIECE_BYTES] for start in range(0, len(text), PIECE_BYTES)]
        key = f"{self._key}/{self._count}"
        self._count += 1
        try:
            for number, piece in enumerate(pieces):
                self._store.set(f"{key}/{number}", piece)
            self._store.set(key, str(len(pieces)))
        except RuntimeError as problem:
            raise _lost(problem) from problem

    def take(self) -> dict[str, Any] | None:
        """The next message if it is there. Raises RankError."""
        key = f"{self._key}/{self._count}"
        try:
            if not self._store.check([key]):
                return None
            keys = [f"{key}/{number}" for number in range(int(self._store.get(key)))]
            text = b"".join(self._store.get(one) for one in keys)
            for one in (*keys, key):
                self._store.delete_key(one)
        except RuntimeError as problem:
            raise _lost(problem) from problem
        self._count += 1
        message: dict[str, Any] = json.loads(text)
        return message

    def wait(self) -> dict[str, Any]:
        """The next message, however long it takes. Raises RankError."""
        doze = SHORT_S
        while (message := self.take()) is None:
            time.sleep(doze)
            doze = min(2 * doze, LONG_S)
        return message


class Flag:
    """Something that one process says once to all others."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._key = f"{KEY}/{name}"

    def raise_it(self) -> None:
        try:
            self._store.set(self._key, "1")
        except RuntimeError as problem:
            raise _lost(problem) from problem

    def is_up(self) -> bool:
        try:
            return self._store.check([self._key])
        except RuntimeError as problem:
            raise _lost(problem) from problem


class RanksOfCopy:
    """Consecutive ranks of a run, seen as if they were all."""

    def __init__(self, ranks: Ranks, first: int, size: int) -> None:
        self._ranks = ranks
        self._first = first
        self.rank, self.size, self.device = ranks.rank - first, size, ranks.device
        self.devices: Sequence[int] = ranks.devices[first : first + size]
        self.store = torch_dist.PrefixStore(f"copy{first}", ranks.store)  # type: ignore[attr-defined]

    def process_ids(self) -> dict[int, int]:
        """{rank within the copy: process id} of those on this host."""
        own = range(self._first, self._first + self.size)
        return {rank - self._first: pid for rank, pid in self._ranks.process_ids().items() if rank in own}

    def lost(self, problem: RuntimeError) -> RankError:
        """What a library says when a peer is gone, as an error of the program that names the peer."""
        return self._ranks.lost(problem)

    def close(self) -> None:
        self._ranks.close()


class SoleRank(SoloGroup):
    """The group of a copy on one rank."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks.device)
        self._ranks = ranks
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def close(self) -> None:
        self._ranks.close()


def open_copy(ranks: Ranks, division: Division) -> SoloGroup | TorchGroup:
    """The group of this rank's copy; all of its ranks open it together. Raises RankError."""
    copy = division.copy_of(ranks.rank)
    assert copy is not None
    if division.copies == 1 and division.ranks == ranks.size:
        return TorchGroup(ranks)
    if division.ranks == 1:
        return SoleRank(ranks)
    return TorchGroup(RanksOfCopy(ranks, copy * division.ranks, division.ranks))


def tell_the_end(ranks: Ranks) -> None:
    """Rank 0: those that belong to no copy may go."""
    Flag(ranks.store, "ended").raise_it()


def wait_for_the_end(ranks: Ranks) -> None:
    """A rank that belongs to no copy."""
    ended = Flag(ranks.store, "ended")
    while not ended.is_up():
        time.sleep(IDLE_S)


def tell_free_memory(ranks: Ranks, free: int) -> None:
    """Every rank, before the division is made: how many bytes it could load."""
    ranks.store.set(f"{KEY}/free/{ranks.rank}", str(free))


def least_free_memory(ranks: Ranks) -> int:
    """Rank 0: the least of what the ranks reported. Waits for all of them. Raises RankError."""
    keys = [f"{KEY}/free/{rank}" for rank in range(ranks.size)]
    return min(int(_wait(ranks.store, key)) for key in keys)


def tell_division(ranks: Ranks, division: Division) -> None:
    """Rank 0, once."""
    ranks.store.set(f"{KEY}/division", json.dumps(asdict(division)))


def hear_division(ranks: Ranks) -> Division:
    """All other ranks: what rank 0 has decided. Raises RankError."""
    return Division(**json.loads(_wait(ranks.store, f"{KEY}/division")))


def _lost(problem: RuntimeError) -> RankError:
    return RankError("Contact with rank 0's store was lost.", str(problem).splitlines()[0])


def _wait(store: Store, key: str) -> bytes:
    deadline = time.monotonic() + JOIN_S
    try:
        while not store.check([key]):
            if time.monotonic() > deadline:
                raise RankError(f"The ranks were not ready to load within {JOIN_S:.0f} s.")
            time.sleep(LONG_S)
        return store.get(key)
    except RuntimeError as problem:
        raise _lost(problem) from problem
