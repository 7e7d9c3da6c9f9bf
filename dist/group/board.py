"""A board that all ranks and their launchers write on: signs of life, and why a rank failed. Knows no collective.

It is torch's store, over a connection of its own. All reading and writing is done by one thread, which may hang for
as long as it likes (a cut cable): what was last read is there at once, and how long a rank has been silent is
counted by whoever asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Protocol

import torch.distributed as torch_dist

PERIOD_S = 0.5
# A step of the clock longer than this is sleep of our own (Ctrl-Z, a suspended machine), not the others' silence.
LONGEST_STEP_S = 2.0
ANSWER = timedelta(seconds=20)
BEAT, FAILURE, FAILURES = "chat/beat/", "chat/failure/", "chat/failures"
# Between who failed and how.
SEPARATOR = "\t"


class Store(Protocol):
    """What is asked of torch's store."""

    def set(self, key: str, value: str, /) -> object: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...

    def add(self, key: str, amount: int, /) -> int: ...


def connect(address: str, port: int) -> Store:
    """The store at `address`, by a connection of our own. Raises RuntimeError."""
    store: Store = torch_dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, wait_for_workers=False, timeout=ANSWER
    )
    return store


def node_name(node: int) -> str:
    """What the launcher of a host is called on the board."""
    return f"node {node}"


def post_failure(store: Store, who: str, how: str) -> None:
    """Write who failed and how, in words; what is first said of one stays. Raises RuntimeError without a store."""
    store.set(f"{FAILURE}{store.add(FAILURES, 1)}", f"{who}{SEPARATOR}{how}")


class Board:
    """The view of the others that `name` has: a rank's number, or a launcher's `node_name`.

    `watched` are those whose signs of life count here.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        watched: Iterable[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._name = name
        self._beats = dict.fromkeys(watched, "")
        self._seen = dict(self._beats)
        self._present: set[str] = set()
        self._silence = dict.fromkeys(self._beats, 0.0)
        self._failures: dict[str, str] = {}
        self._failures_read = 0
        self._to_post: tuple[str, str] | None = None
        self._asked = self._clock()
        self._wake = threading.Event()
        self._closed = False
        self.contact_lost: str | None = None  # why nothing can be read any more
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)
        self._thread.start()

    def silence(self) -> dict[str, float]:
        """{name: seconds} since the last sign of life of each that is watched; to be asked about once a second.

        Time in which this process did not run itself is not counted.
        """
        now = self._clock()
        step = min(now - self._asked, LONGEST_STEP_S)
        self._asked = now
        for name, beat in self._beats.items():
            if beat != self._seen[name]:
                self._seen[name], self._silence[name] = beat, 0.0
            else:
                self._silence[name] += step
        return dict(self._silence)

    def has_come(self, name: str) -> bool:
        """Whether one that is watched has ever given a sign of life."""
        return name in self._present

    def failures(self) -> dict[str, str]:
        """{who: how} as far as it has been read, the first that failed first."""
        return dict(self._failures)

    def post_failure(self, who: str, how: str, wait_s: float) -> None:
        """Have a failure written; returns when that is done, or after `wait_s`."""
        self._to_post = who, how
        self._wake.set()
        deadline = time.monotonic() + wait_s
        while self._to_post is not None and self.contact_lost is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        """No more signs of life."""
        self._closed = True
        self._wake.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        beat = 0
        while not self._closed:
            beat += 1
            try:
                self._exchange(str(beat))
            except RuntimeError as error:
                self.contact_lost = str(error).splitlines()[0]
                return
            self._wake.wait(PERIOD_S)
            self._wake.clear()

    def _exchange(self, beat: str) -> None:
        self._store.set(f"{BEAT}{self._name}", beat)
        if self._to_post is not None:
            post_failure(self._store, *self._to_post)
            self._to_post = None
        for name in self._beats:
            key = f"{BEAT}{name}"
            # One that has not come yet is not silent while the store itself answers.
            there = name in self._present or self._store.check([key])
            self._beats[name] = self._store.get(key).decode() if there else f"not yet, {beat}"
            if there:
                self._present.add(name)
        # One that is counted may not be written yet.
        while self._store.check([key := f"{FAILURE}{self._failures_read + 1}"]):
            self._failures_read += 1
            who, _, how = self._store.get(key).decode().partition(SEPARATOR)
            self._failures.setdefault(who, how)
