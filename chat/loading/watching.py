"""Looks now and then whether a run has a newer complete step. Loads nothing and reads no half written one.

It polls, so that it works on network folders too, on a thread that nobody waits for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dist.checkpoint.folder import Step, latest_step, run_steps, step_fault
from dist.errors import CheckpointError

LOOK_S = 5.0
# A folder that answers slowly is polled less often: a look takes a tenth of the time at most.
SPARING = 10.0

# What files a step's folder holds, with sizes and times.
Content = tuple[tuple[str, int, int], ...]


class RunWatch:
    """Watches a run's folder for steps after the one that `loaded` gives.

    `opens` raises CheckpointError or OSError for a folder that cannot be opened; `tell` is called after every look,
    on the watch's own thread, with the number of the newest complete step, None if none or no run any more.
    """

    def __init__(
        self,
        run: Path,
        *,
        loaded: Callable[[], int | None],
        opens: Callable[[str], object],
        tell: Callable[[int | None], None],
        every: float = LOOK_S,
    ) -> None:
        self.run = run
        self.newest: int | None = None
        self._loaded = loaded
        self._opens = opens
        self._tell = tell
        self._every = every
        self._over = threading.Event()
        self._seen: dict[int, Content] = {}
        self._judged: dict[int, tuple[Content, bool]] = {}

    def start(self) -> None:
        """Look from now on, without delay for the caller."""
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Stop looking; a look that hangs on a dead network folder is not waited for."""
        self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether it was stopped, or the run's folder has gone."""
        return self._over.is_set()

    def look(self) -> None:
        """Look once. A folder that cannot be read at this moment says nothing."""
        try:
            if not self.run.is_dir():
                self.newest = None
                self._over.set()
                return
            loaded, latest = self._loaded(), latest_step(self.run)
            steps = [step for step in run_steps(self.run) if loaded is None or step.number > loaded]
            self.newest = next((one.number for one in reversed(steps) if self._is_complete(one, latest)), None)
        except OSError:
            return

    def _watch(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            began = time.monotonic()
            self.look()
            if not self._over.is_set() or self.newest is None:
                self._tell(self.newest)
            pause = max(self._every, SPARING * (time.monotonic() - began))

    def _is_complete(self, step: Step, latest: int | None) -> bool:
        """Whether training has finished writing it.

        Its own file says so, or nothing has changed since the last look; and its parts are there and can be opened.
        """
        content = tuple(sorted(_content(step.path)))
        settled = latest == step.number or self._seen.get(step.number) == content
        self._seen[step.number] = content
        if not settled:
            return False
        known = self._judged.get(step.number)
        if known is None or known[0] != content:
            known = self._judged[step.number] = content, self._is_whole(step)
        return known[1]

    def _is_whole(self, step: Step) -> bool:
        if step_fault(step.path) is not None:
            return False
        try:
            self._opens(str(step.path))
        except (CheckpointError, OSError):
            return False
        return True


def _content(folder: Path) -> Iterator[tuple[str, int, int]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            stat = path.stat()
            yield str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns
