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

WORK = "import json, socket\nfor _ in range(400_000): pass"
# Beyond this a machine is not busy but stuck.
MOST_BUSY = 8.0


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

    def __str__(self) -> str:
        code = "" if self.code is None else self.code
        cells = (self.what, self.when, self.ranks, self.said, self.elsewhere, code)
        return f"| {' | '.join(map(str, cells))} | {self.gone_s:.2f} | {self.busy:.1f} |"


HEAD = "| what | when | ranks | said | the other host said | code | gone after (s) | machine |\n" + "|---" * 8 + "|"


class Table:
    """What was seen of every death, to be printed at the end."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row, limit: float) -> None:
        """Keep it, and hold it against its limit."""
        self.rows.append(row)
        print(HEAD, row, sep="\n")
        assert row.gone_s <= limit * row.busy, f"gone after {row.gone_s:.2f} s; {limit} s x {row.busy:.1f} allowed"

    def __str__(self) -> str:
        return "\n".join((HEAD, *map(str, self.rows)))


@contextmanager
def printed(write: Callable[[str], None]) -> Iterator[Table]:
    """A table that is printed when its tests are over; also into the file that DEATHS_TABLE names."""
    table = Table()
    yield table
    if table.rows:
        write(f"\n{table}\n")
        if path := os.environ.get("DEATHS_TABLE"):
            with Path(path).open("a") as file:
                file.writelines(f"{row}\n" for row in table.rows)
