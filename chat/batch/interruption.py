"""Ctrl-C while prompts are answered: the first ends the list after the present pass, another one ends at once.

Knows no prompts. A word to the start script says that from now on the signal is rank 0's alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# One Ctrl-C comes more than once: from the terminal, through torchrun and from the start script.
SAME_S = 0.7
FILE = "interruptible"


class Interruption:
    """Whether the run was asked to end. `arrived` may be called from any thread."""

    def __init__(self, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = run_dir / FILE
        self._clock = clock
        self._first: float | None = None

    def announce(self) -> None:
        """Leave this process's id in the run's folder, where the start script looks before it ends the ranks."""
        self._file.write_text(f"{os.getpid()}\n", encoding="ascii")

    def asked(self) -> bool:
        """Whether it is to end after the present pass."""
        return self._first is not None

    def arrived(self) -> bool:
        """A signal came. False: it is the second, and the program is to end at once."""
        now = self._clock()
        if self._first is None:
            self._first = now
        return now - self._first < SAME_S
