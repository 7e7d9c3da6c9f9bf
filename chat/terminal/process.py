"""How one process ends: in bounded time, with its parent, its exit code and reason left for the start script."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
# What rank 0's guard needs to put the terminal back; what is said after that has a line of its own.
GUARD_S = 0.2


def end_within(seconds: float, code: int) -> None:
    """From now on this process has `seconds` left; then it ends with `code`, whatever its threads wait for.

    All stacks go to the log first. A library that waits while it holds the interpreter's lock would stop a Python
    thread too: one second later a thread of C ends the process, with code 1.
    """

    def end() -> None:
        faulthandler.dump_traceback(file=2)
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + 1, exit=True, file=2)


def write_status(run_dir: Path, code: int) -> None:
    """Leave the exit code for the start script: torchrun turns every failure into 1."""
    with contextlib.suppress(OSError):
        (run_dir / "status").write_text(f"{code}\n", encoding="ascii")


def write_ending(run_dir: Path, text: str) -> None:
    """Leave why this host's ranks ended for the start script, unless a rank has done so already."""
    with contextlib.suppress(OSError), (run_dir / "ending").open("x", encoding="utf-8") as file:
        file.write(f"{text}\n")


def has_ending(run_dir: Path) -> bool:
    """Whether it is known on this host why its ranks end."""
    return (run_dir / "ending").exists()


def end_children() -> None:
    """Kill the processes that this one has started; those that are stopped would take note of nothing else."""
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in path.read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
    time.sleep(GUARD_S)


def die_with_parent(number: signal.Signals, parent: str | None = None) -> None:
    """Let the kernel send `number` to this process when its parent dies, so that no rank is orphaned.

    `parent` is the id of the process that started this one. It may have died already, and be a zombie where
    process 1 reaps none, as in many containers: this process then has another parent.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if parent is not None and os.getppid() != int(parent):
        os.kill(os.getpid(), number)
