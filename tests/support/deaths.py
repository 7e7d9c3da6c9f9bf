"""How long it takes until nobody is left after a death, what was seen of each, and how busy the machine is.

A limit is the program's own on an idle machine. On a busy one it is stretched by how much longer a fixed amount of
work takes here than the processor time it costs, measured when the program is gone: its own work does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

WORK = "import json, socket\nfor _ in range(400_000): pass"
# Beyond this a machine is not busy but stuck.
MOST_BUSY = 8.0
# From a death to the last process, on an idle machine: on one host, and on several.
GONE_S, GONE_FAR_S = 2.0, 5.0


def busyness() -> float:
    """How much longer than its processor time some work on every core takes: 1 on an idle machine."""
    before, began = os.times(), time.monotonic()
    cores = os.cpu_count() or 1
    runs = [subprocess.Popen([sys.executable, "-S", "-c", WORK]) for _ in range(cores)]
    for run in runs:
        run.wait()
    wall, after = time.monotonic() - began, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return min(MOST_BUSY, max(1.0, wall * cores / max(used, 1e-3)))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family(script: int) -> list[int]:
    """Every process that a start script has brought about, whatever it runs: they inherit its variable."""
    mark = f"DLLM_LAUNCHER_PID={script}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def until_gone(pids: Iterable[int], began: float, at_most: float) -> float:
    """Seconds from `began` to the end of the last of them; `at_most` if somebody is left then."""
    left = [pid for pid in pids if alive(pid)]
    while left and time.monotonic() - began < at_most:
        time.sleep(0.01)
        left = [pid for pid in left if alive(pid)]
    return time.monotonic() - began


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    when: str
    ranks: str
    said: str
    elsewhere: str
    code: int | None
    gone_s: float
    busy: float

    @property
    def limit_s(self) -> float:
        """What it may take on an idle machine."""
        return GONE_FAR_S if "+" in self.ranks else GONE_S

    def __str__(self) -> str:
        code = "" if self.code is None else self.code
        cells = (self.what, self.when, self.ranks, self.said, self.elsewhere, code)
        return f"| {' | '.join(map(str, cells))} | {self.gone_s:.2f} | {self.busy:.1f} |"


HEAD = "| what | when | ranks | said | the other host said | code | gone after (s) | machine |\n" + "|---" * 8 + "|"


class Table:
    """What was seen of every death, to be printed at the end."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep it, and hold it against its limit."""
        self.rows.append(row)
        print(HEAD, row, sep="\n")
        if path := os.environ.get("DEATHS_TABLE"):
            with Path(path).open("a") as file:
                file.write(f"{row}\n")
        allowed = f"{row.limit_s:.0f} s x {row.busy:.1f} allowed"
        assert row.gone_s <= row.limit_s * row.busy, f"gone after {row.gone_s:.2f} s; {allowed}"

    @property
    def summary(self) -> str:
        """How long it took on one host and on several, and how busy the machine was."""
        parts = []
        for where, limit in (("one host", GONE_S), ("two hosts", GONE_FAR_S)):
            took = [row.gone_s for row in self.rows if row.limit_s == limit]
            within = sum(seconds <= limit for seconds in took)
            if took:
                parts.append(f"{len(took)} on {where}, {within} within {limit:.0f} s, slowest {max(took):.2f} s")
        busy = [row.busy for row in self.rows]
        return f"{'; '.join(parts)}; machine {median(busy):.1f} in the median, at most {max(busy):.1f}"

    def __str__(self) -> str:
        return "\n".join((HEAD, *map(str, self.rows)))


@contextmanager
def printed(write: Callable[[str], None]) -> Iterator[Table]:
    """A table that is printed when its tests are over, also if they are ended before (SIGINT).

    Its rows go to the file that DEATHS_TABLE names as they come.
    """
    table = Table()
    yield table
    if table.rows:
        write(f"\n{table}\n\n{table.summary}\n")
