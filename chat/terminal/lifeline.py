"""How the program ends, in bounded time: signals, ranks that die, ranks and libraries that hang.

The lifeline runs on a thread of rank 0 and works while the main thread is stuck in a collective: a Python signal
handler would not run there. Knows no model and no conversation; what was said is on disk already.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
TICK_S = 1.0
# What leaving may take: libraries are known to wait for each other for ever.
LEAVE_S = 5.0
# A rank that fails records why before it ends; one that was killed never will.
RECORD_WAIT_S = 0.4
PR_SET_PDEATHSIG = 1
WAKE, ABORT = 0, 255

EXIT_RANK_DIED = 5
EXIT_INTERRUPTED = 130


class Ranks(Protocol):
    """What the lifeline asks of the group."""

    def process_ids(self) -> dict[int, int]: ...

    def recorded_failures(self) -> dict[int, str]: ...


class Lifeline:
    """Rank 0's watch. `say(text)` writes to the user, `put_back()` returns the terminal to its state.

    `on_interrupt` is asked when SIGINT arrives; if it says False, the program ends at once. `on_tick` is
    called about once a second. All of them run on the lifeline's thread, which outlives their errors.
    """

    def __init__(self, *, say: Callable[[str], None], run_dir: Path) -> None:
        self.say = say
        self.put_back: Callable[[], None] = lambda: None
        self.on_interrupt: Callable[[], bool] = lambda: False
        self.on_tick: Callable[[], None] = lambda: None
        self._run_dir = run_dir
        self._ranks: Ranks | None = None
        self._pidfds: dict[int, int] = {}
        self._ending = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)

    def start(self) -> None:
        """From now on signals come here. To be called on the main thread."""
        for number in SIGNALS:
            # The handler itself does nothing: the C code beneath it writes the number to the pipe at once.
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._thread.start()

    def watch(self, ranks: Ranks) -> None:
        """Also end when one of these ranks' processes on this host dies."""
        self._ranks = ranks
        for rank, pid in ranks.process_ids().items():
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    self._pidfds[rank] = os.pidfd_open(pid)
        self._wake()

    def leave(self, code: int) -> None:
        """The program ends by itself with `code`: ranks may go. What is left to do has LEAVE_S."""
        self._ranks = None
        write_status(self._run_dir, code)
        end_within(LEAVE_S, code)

    def end(self, text: str, code: int) -> NoReturn:
        """End the program now, from any thread: followers killed, terminal back, message."""
        self._ending.acquire()
        write_status(self._run_dir, code)
        end_within(LEAVE_S, code)
        if self._ranks is not None:
            for pid in self._ranks.process_ids().values():
                if pid != os.getpid():
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
        _attempt(self.put_back)
        _attempt(lambda: self.say(text))
        os._exit(code)

    def ask_abort(self) -> None:
        """The person's way out of a reply that does not stop; from any thread, returns at once."""
        self._wake(ABORT)

    def end_after_rank_failure(self, told: str = "") -> NoReturn:
        """A rank is gone or failed: say which and why. `told` is what is known if no rank can be blamed."""
        self.end(self._blame(told), EXIT_RANK_DIED)

    def _blame(self, told: str) -> str:
        deadline = time.monotonic() + (RECORD_WAIT_S if self._pidfds else 0.0)
        failures: dict[int, str] = {}
        dead: list[int] = []
        while not failures and time.monotonic() < deadline:
            failures = self._ranks.recorded_failures() if self._ranks else {}
            dead = dead or self._dead_ranks()
            time.sleep(0.02)
        kept = f"What was said is kept. Logs: {self._run_dir}"
        if failures:
            rank = min(failures)
            return f"Rank {rank} failed: {failures[rank]}\n{kept}"
        if dead:
            return f"Rank {dead[0]} ended without a word (killed, or out of memory).\n{kept}"
        return f"{told or 'A rank was lost.'}\n{kept}"

    def _dead_ranks(self) -> list[int]:
        ready, _, _ = select.select(list(self._pidfds.values()), [], [], 0)
        return [rank for rank, fd in self._pidfds.items() if fd in ready]

    def _wake(self, number: int = WAKE) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, bytes([number]))

    def _watch(self) -> None:
        while True:
            pidfds = list(self._pidfds.values()) if self._ranks is not None else []
            ready, _, _ = select.select([self._wake_read, *pidfds], [], [], TICK_S)
            _attempt(self.on_tick)
            if self._wake_read in ready:
                for number in os.read(self._wake_read, 64):
                    self._on_signal(number)
            elif ready and self._ranks is not None:
                self.end_after_rank_failure()

    def _on_signal(self, number: int) -> None:
        if number == ABORT:
            self.end("Ended by force. What was said is kept.", EXIT_INTERRUPTED)
        if number == signal.SIGINT and not self.on_interrupt():
            self.end("Interrupted.", EXIT_INTERRUPTED)
        elif number in (signal.SIGTERM, signal.SIGHUP):
            # torchrun ends every rank when one of them died; blame that one.
            dead = self._dead_ranks() if self._ranks is not None else []
            if dead:
                self.end_after_rank_failure()
            self.end("Ended from outside. What was said is kept.", EXIT_INTERRUPTED)


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


def _attempt(work: Callable[[], None]) -> None:
    """Do what may fail on a thread that has to live on: nobody may read the terminal any more."""
    try:
        work()
    except Exception:  # noqa: BLE001  (the edge of a thread)
        with contextlib.suppress(OSError):
            traceback.print_exc()


def write_status(run_dir: Path, code: int) -> None:
    """Leave the exit code for the start script: torchrun turns every failure into 1."""
    with contextlib.suppress(OSError):
        (run_dir / "status").write_text(f"{code}\n", encoding="ascii")


def die_with_parent(number: signal.Signals) -> None:
    """Let the kernel send `number` to this process when its parent dies, so that no rank is orphaned."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
