"""How the program ends, in bounded time: signals, ranks that die, ranks and libraries that hang.

The lifeline runs on a thread of rank 0 and works while the main thread is stuck in a collective: a Python signal
handler would not run there. Knows no model and no conversation; what was said is on disk already.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, Protocol

from chat.terminal import fate
from chat.terminal.mode import is_stopped
from chat.terminal.process import end_within, has_ending, write_ending, write_status
from dist.system_calls import pidfd_open

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
TICK_S = 1.0
# What leaving may take: libraries are known to wait for each other for ever.
LEAVE_S = 5.0
# A rank that fails records why before it ends. One that was killed never will, but its host's launcher does.
RECORD_WAIT_S = 0.4
PARENT_WAIT_S = 0.3
PARENT_KILLED = "The start script or torchrun was killed."
OTHER_HOSTS_WAIT_S = 3.0
# How long a rank may give no sign of life before a notice, and before the program ends by default.
SILENCE_S = 5.0
ANSWER_S = 60.0
# The variable that names the ranks' parent.
TORCHRUN_PID = "DLLM_TORCHRUN_PID"
WAKE, ABORT = 0, 255

EXIT_RANK_DIED = 5
EXIT_INTERRUPTED = 130


class Ranks(Protocol):
    """What the lifeline asks of the group."""

    def process_ids(self) -> dict[int, int]:
        """{rank: process id} of the ranks on this host."""
        ...

    def recorded_failures(self) -> Mapping[str, str]:
        """{a rank's or a host's name: how it failed} as far as it is known here; returns at once."""
        ...

    def silence(self) -> dict[str, float]:
        """{who: seconds} since the last sign of life; to be asked about once a second."""
        ...

    @property
    def several_hosts(self) -> bool: ...

    def name(self, rank: int) -> str:
        """`Rank 1`, with its host where there are several."""
        ...


class Follower(Protocol):
    """What a follower's watch asks of the group."""

    @property
    def contact_lost(self) -> str | None:
        """Why nothing can be read from the others any more, or None."""
        ...

    def silence(self) -> dict[str, float]:
        """{who: seconds}, of the one that this process follows."""
        ...


class Lifeline:
    """Rank 0's watch. `say(text)` writes to the user, `put_back()` returns the terminal to its state.

    `on_interrupt` is asked when SIGINT arrives; if it says False, the program ends at once. `on_tick` is
    called about once a second, `on_silence` with a text while a rank gives no sign of life and with `""` when it
    does again; after `answer_s` of silence the program ends. `kept()` says what of the user's is saved. All of them
    run on the lifeline's thread, which outlives their errors.
    """

    def __init__(self, *, say: Callable[[str], None], run_dir: Path, answer_s: float = ANSWER_S) -> None:
        self.say = say
        self.kept: Callable[[], str] = lambda: ""
        self.on_silence: Callable[[str], None] = self._say_silence
        self._answer_s = answer_s
        self._parent = os.getppid()
        self._silence_shown = ""
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
        """Also end when one of these ranks fails or falls silent; again when their processes are known."""
        self._ranks = ranks
        for rank, pid in ranks.process_ids().items():
            if pid != os.getpid() and rank not in self._pidfds:
                with contextlib.suppress(OSError):
                    self._pidfds[rank] = pidfd_open(pid)
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
        """The user's way out of a reply that does not stop; from any thread, returns at once."""
        self._wake(ABORT)

    def end_after_rank_failure(self, otherwise: str = "A rank was lost.") -> NoReturn:
        """A rank is gone or failed: say which and why. `otherwise` is said if no rank can be blamed."""
        self.end(self._closing(self._blame() or otherwise), EXIT_RANK_DIED)

    def _closing(self, text: str) -> str:
        kept = ""
        with contextlib.suppress(Exception):  # the edge of a thread: the message goes without it
            kept = self.kept()
        return "\n".join(filter(None, (text, kept, f"Logs: {self._run_dir}")))

    def _blame(self) -> str | None:
        """Which rank failed first and how, in words; waits a little for those who know."""
        ranks = self._ranks
        if ranks is None:
            return PARENT_KILLED if os.getppid() != self._parent else None
        deadline = time.monotonic() + (OTHER_HOSTS_WAIT_S if ranks.several_hosts else RECORD_WAIT_S)
        ended: dict[int, int | None] = {}
        while True:
            for rank, pid in self._dead_ranks().items():
                # The status can be read until torchrun takes note of the end.
                ended.setdefault(rank, fate.of_zombie(pid))
            if os.getppid() != self._parent:  # the ranks went with it
                return PARENT_KILLED
            for who, how in ranks.recorded_failures().items():
                return fate.as_sentence(f"{who} {how}")
            for rank, code in ended.items():
                if code is not None and code < 0 and not self._parent_dies():
                    return fate.as_sentence(f"{ranks.name(rank)} was {fate.in_words(code)}")
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        for rank, code in ended.items():
            how = "exited without an error message (killed, or out of memory?)"
            return fate.as_sentence(f"{ranks.name(rank)} {how if code is None else fate.in_words(code)}")
        return None

    def _dead_ranks(self) -> dict[int, int]:
        """{rank: process id} of those on this host that have ended."""
        ids = self._ranks.process_ids() if self._ranks is not None else {}
        ready, _, _ = select.select(list(self._pidfds.values()), [], [], 0)
        return {rank: ids[rank] for rank, fd in self._pidfds.items() if fd in ready and rank in ids}

    def _look_around(self) -> None:
        """Ranks on other hosts end unseen; any rank may fall silent."""
        ranks = self._ranks
        if ranks is None:
            return
        if ranks.recorded_failures():
            self.end_after_rank_failure()
        if is_stopped(self._parent):  # by Ctrl-Z, and its store answers nobody
            return
        silent = [(who, seconds) for who, seconds in ranks.silence().items() if seconds >= SILENCE_S]
        text = ""
        if silent:
            who, seconds = silent[0]
            text = f"{who} has not answered for {seconds:.0f} s"
            left = self._answer_s - seconds
            if left <= 0:
                self.end(self._closing(f"{text}."), EXIT_RANK_DIED)
            text += f"; the program ends in {left:.0f} s (--answer_timeout)"
        if text or self._silence_shown:
            _attempt(lambda: self.on_silence(text))
        self._silence_shown = text

    def _say_silence(self, text: str) -> None:
        # Where no line can be drawn again, the beginning and the end are enough.
        if not text or not self._silence_shown:
            self.say(f"{text}." if text else "All ranks answer again.")

    def _wake(self, number: int = WAKE) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, bytes([number]))

    def _watch(self) -> None:
        while True:
            pidfds = list(self._pidfds.values()) if self._ranks is not None else []
            ready, _, _ = select.select([self._wake_read, *pidfds], [], [], TICK_S)
            _attempt(self.on_tick)
            if not ready:
                _attempt(self._look_around)
            if self._wake_read in ready:
                for number in os.read(self._wake_read, 64):
                    self._on_signal(number)
            elif ready and self._ranks is not None:
                self.end_after_rank_failure()

    def _parent_dies(self) -> bool:
        """Whether torchrun has been killed. Its threads die one after the other, the ranks with the first."""
        deadline = time.monotonic() + PARENT_WAIT_S
        while os.getppid() == self._parent and time.monotonic() < deadline:
            time.sleep(0.02)
        return os.getppid() != self._parent

    def _is_anybody_lost(self) -> bool:
        """Whether a signal came because a rank or torchrun has died."""
        recorded = self._ranks is not None and bool(self._ranks.recorded_failures())
        return bool(self._dead_ranks()) or recorded or self._parent_dies()

    def _on_signal(self, number: int) -> None:
        if number == ABORT:
            self.end(self._closing("Ended by force."), EXIT_INTERRUPTED)
        if number == signal.SIGINT and not self.on_interrupt():
            self.end("Interrupted.", EXIT_INTERRUPTED)
        elif number in (signal.SIGTERM, signal.SIGHUP):
            if self._ranks is None and has_ending(self._run_dir):
                os._exit(EXIT_RANK_DIED)  # the launcher has ended, and the start script says why
            # torchrun ends every rank when one of them died; blame that one.
            if self._is_anybody_lost():
                self.end_after_rank_failure()
            if self._ranks is None and "TORCHELASTIC_RUN_ID" in os.environ and number == signal.SIGTERM:
                # A rank has failed before the ranks met. torchrun's parent knows which, and says so.
                _attempt(self.put_back)
                os._exit(1)
            self.end(self._closing("Ended by an external signal."), EXIT_INTERRUPTED)


def watch_rank_0(
    ranks: Follower,
    run_dir: Path,
    answer_s: float,
    name: str | None = None,
    before_the_end: Callable[[], None] = lambda: None,
) -> None:
    """End this process if who it follows gives no sign of life, and leave word of it on this host.

    `name` is what that one is called, by default what `ranks` call it.
    """

    def watch() -> None:
        while True:
            time.sleep(TICK_S)
            if is_stopped(os.getppid()):
                continue
            ((who, seconds),) = ranks.silence().items()
            # Without its store rank 0 is gone, but its last order may still be on its way.
            if seconds > (SILENCE_S if ranks.contact_lost else answer_s):
                write_ending(run_dir, f"{name or who[0].upper() + who[1:]} has not answered for {seconds:.0f} s.")
                before_the_end()
                os._exit(EXIT_RANK_DIED)

    threading.Thread(target=watch, name="watch", daemon=True).start()


def _attempt(work: Callable[[], None]) -> None:
    """Do what may fail on a thread that has to live on: nobody may read the terminal any more."""
    try:
        work()
    except Exception:  # noqa: BLE001  (the edge of a thread)
        with contextlib.suppress(OSError):
            traceback.print_exc()
