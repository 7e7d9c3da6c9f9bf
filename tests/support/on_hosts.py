"""The whole program on one host, or on two that are network namespaces, and its processes by host and rank.

Node 0 has a conversation on a terminal, or a list of prompts; the other host's screen is a file.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from deaths import family, until_gone
from namespaces import Hosts
from program import READY_S, ROOT, Chat, environment, ranks_below, tokens_made

# Where a run takes place, other than a number of ranks on one host: a rank on each of two hosts.
TWO_HOSTS = "1+1"
# Replies that last until something happens to them, and a deadline that tests can wait for.
ANSWER_S = 8
LONG = (
    *("--max_new_tokens", "1800", "--add_eos_length", "3", "--refine_iter", "2", "--max_length", "2000"),
    *("--answer_timeout", str(ANSWER_S)),
)
# What is waited for at most; limits are held against what was measured.
WAIT_S = 30.0


class Run:
    """The program on the hosts of a place. A context manager; nothing is left of it.

    chat     node 0's terminal, once a conversation was started
    place    where it takes place, in a word
    count    how many ranks there are
    scripts  the process ids of the start scripts, by node
    """

    chat: Chat

    def __init__(self, folder: Path, checkpoint: Path, place: int | str) -> None:
        self.folder = folder
        self.checkpoint = str(checkpoint)
        self.place = str(place)
        self.master = ""  # node 0's IPv4 address
        self.scripts: list[int] = []
        self._hosts = Hosts(2) if place == TWO_HOSTS else None
        self._each = place if isinstance(place, int) else 1
        self.count = self._each if self._hosts is None else 2
        self._follower: subprocess.Popen[bytes] | None = None
        self._batch: subprocess.Popen[bytes] | None = None
        self._closing: list[Callable[[], object]] = []

    def __enter__(self) -> Run:
        if self._hosts is not None:
            self._hosts.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for close in self._closing:
            close()
        for process in (self._batch, self._follower):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if self._hosts is not None:
            self._hosts.__exit__(kind, error, trace)

    @property
    def hosts(self) -> Hosts:
        assert self._hosts is not None, "there is one host only"
        return self._hosts

    @property
    def several(self) -> bool:
        return self._hosts is not None

    # --- Start -------------------------------------------------------------------------------------------

    def talk(
        self,
        *arguments: str,
        wait: bool = True,
        other_checkpoint: Path | None = None,
        other_arguments: tuple[str, ...] = (),
        **other_variables: str,
    ) -> None:
        """Begin a conversation; what is said of the other is node 1's alone."""
        self._start_follower(arguments, other_checkpoint, other_arguments, other_variables)
        self.chat = Chat(
            self._home(0),
            *(str(self._each), self.checkpoint, *arguments),
            wait=wait,
            command=lambda *words: self._command(0, *words),
            variables=self._variables(0),
        )
        self._closing.append(self.chat.close)
        self.scripts.insert(0, self.chat.process.pid)

    def answer_prompts(self, *arguments: str, closed: bool = False, **streams: Any) -> subprocess.Popen[bytes]:
        """Begin with a list of prompts, without a terminal; `closed`: node 0 has no output streams at all."""
        self._start_follower(arguments)
        words = ["bash", str(ROOT / "run_chat.sh"), str(self._each), self.checkpoint, *arguments]
        if closed:
            words = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *words]
        self._batch = subprocess.Popen(
            self._command(0, *words),
            env=environment(self._home(0), **self._variables(0)),
            stdin=subprocess.DEVNULL,
            **streams,
        )
        self.scripts.insert(0, self._batch.pid)
        return self._batch

    def _start_follower(
        self,
        arguments: tuple[str, ...],
        checkpoint: Path | None = None,
        more: tuple[str, ...] = (),
        variables: dict[str, str] | None = None,
    ) -> None:
        if not self.several:
            return
        words = ["bash", str(ROOT / "run_chat.sh"), "1", str(checkpoint or self.checkpoint), *arguments, *more]
        screen: IO[bytes] = (self.folder / "b.txt").open("wb")
        with screen:
            self._follower = subprocess.Popen(
                self._command(1, *words),
                env=environment(self._home(1), **self._variables(1), **(variables or {})),
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )
        self.scripts.append(self._follower.pid)

    def _home(self, node: int) -> Path:
        home = self.folder / "ab"[node]
        home.mkdir(exist_ok=True)
        return home

    def _command(self, node: int, *words: str) -> list[str]:
        return list(words) if self._hosts is None else self._hosts.command(node, *words)

    def _variables(self, node: int) -> dict[str, str]:
        return {} if self._hosts is None else self._hosts.variables(node, master=self.master)

    # --- Processes ---------------------------------------------------------------------------------------

    def ranks(self) -> dict[int, int]:
        """{rank: process id} on all hosts."""
        return {rank: pid for script in self.scripts for rank, pid in ranks_below(script).items()}

    def wait_for_ranks(self) -> None:
        """Wait until the processes of all ranks are there; they may still be far from ready."""
        deadline = time.monotonic() + READY_S
        while len(self.ranks()) < self.count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def launcher(self, node: int) -> int:
        """torchrun's process, or the rank itself where it is alone."""
        script = self.scripts[node]
        return int(Path(f"/proc/{script}/task/{script}/children").read_text().split()[0])

    def family(self) -> list[int]:
        """The scripts and all that they have started."""
        return [pid for script in self.scripts for pid in (script, *family(script))]

    def nobody_left(self, seconds: float = WAIT_S) -> bool:
        """Whether all ranks and launchers of all hosts are gone within some seconds."""
        left = [pid for pid in self.family() if pid not in self.scripts]
        return until_gone(left, time.monotonic(), seconds) < seconds

    # --- What is said ------------------------------------------------------------------------------------

    def name(self, rank: int) -> str:
        """What a rank is called on node 0."""
        if not self.several:
            return f"Rank {rank}" if self.count > 1 else "The program"
        return f"Rank {rank} ({self.hosts.names[rank]})"

    @property
    def said(self) -> str:
        """What node 1's screen shows."""
        return (self.folder / "b.txt").read_text() if self.several else ""

    @property
    def last_word(self) -> str:
        """How node 1's screen says that its ranks ended."""
        lines = [line for line in self.said.splitlines() if line and not line.startswith("The logs are in ")]
        return lines[-1] if lines else ""

    def wait_said(self, text: str, seconds: float = READY_S) -> None:
        """Wait until node 1's screen shows a text."""
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def ends(self, seconds: float) -> float:
        """Wait until node 0 has ended because a rank is gone; when that was."""
        assert self.chat.wait_end(seconds) == 5, self.chat.text
        return time.monotonic()

    def follower_ends(self, seconds: float = WAIT_S) -> int:
        """Node 1's exit code, once it has ended."""
        assert self._follower is not None
        return self._follower.wait(seconds)

    def reply_begins(self, message: str = "Hello there") -> None:
        """Send a message, and wait until its reply is under way."""
        self.chat.say(message)
        under_way = re.compile(r"block [3-9]|pass [3-9]")
        self.chat.wait_for(lambda screen: tokens_made(screen) > 0 or under_way.search(screen.text) is not None)
