"""Ranks that begin before torchrun's agent is there to start them. Knows no option and no checkpoint.

The agent comes with all of torch, which takes about as long to import as what a rank imports: one after the other,
a start takes seconds longer. So the launcher of a run on one host starts the processes first, with what is known of
their environment, and the agent takes them over where it would start its own; what else it tells a rank reaches it
through a pipe. Where anything is not as was assumed, the process is ended and the agent starts one itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dist.system_calls import pidfd_open

PIPE = "DLLM_ENVIRONMENT_PIPE"
END_S = 2.0


@dataclass(frozen=True, slots=True)
class EarlyRank:
    """A process that waits for the rest of its environment at the end of `pipe`."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    pipe: int

    def complete(self, environment: Mapping[str, str]) -> None:
        """Send it what is not in its environment yet."""
        rest = {name: value for name, value in environment.items() if name not in self.environment}
        # It may have refused its arguments by now.
        with contextlib.suppress(BrokenPipeError):
            os.write(self.pipe, json.dumps(rest).encode())
        os.close(self.pipe)

    def end(self) -> None:
        os.close(self.pipe)
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class EarlyRanks:
    """`count` ranks running `command`, until torchrun's agent has taken them over. `run_id` is torchrun's."""

    def __init__(self, count: int, command: Sequence[str], run_id: str) -> None:
        self._command = tuple(command)
        self._waiting = {str(rank): self._start(rank, count, run_id) for rank in range(count)}

    def _start(self, rank: int, count: int, run_id: str) -> EarlyRank:
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "TORCHELASTIC_RUN_ID": run_id,
        }
        read, write = os.pipe()
        # As the agent starts ranks: in a session of their own.
        process = subprocess.Popen(
            self._command, env=environment | {PIPE: str(read)}, pass_fds=(read,), start_new_session=True
        )
        os.close(read)
        return EarlyRank(process, environment, write)

    def end_on_signals(self) -> None:
        """Until the agent sees to it: signals that end the launcher end the ranks first."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end)

    def watch(self, killed: Callable[[int, int], None]) -> None:
        """Call `killed(rank, exit code)`, on a thread of its own, if a signal ends one before the agent has it."""
        threading.Thread(target=self._watch, args=(killed,), name="early ranks", daemon=True).start()

    def _watch(self, killed: Callable[[int, int], None]) -> None:
        try:
            ranks = {pidfd_open(rank.process.pid): name for name, rank in tuple(self._waiting.items())}
        except OSError:  # an old kernel: the agent will see what became of them
            return
        for ended in select.select(ranks, [], [])[0]:
            rank = self._waiting.get(ranks[ended])
            if rank is None:
                return  # from now on the agent sees what becomes of them
            end = os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOWAIT)
            if end is not None and end.si_code != os.CLD_EXITED:
                killed(int(ranks[ended]), -end.si_status)

    def _end(self, number: int, frame: object) -> NoReturn:
        for rank in self._waiting.values():
            rank.process.terminate()
        for rank in self._waiting.values():
            rank.end()
        os._exit(128 + number)

    def hand_over(self, handler: Any) -> None:
        """Let torchrun's agent, whose class `handler` starts processes, take these where it would start its own."""
        start = getattr(handler, "_popen", None)
        if start is None:  # a torchrun of another make
            while self._waiting:
                self._waiting.popitem()[1].end()
            return

        def popen(self_: Any, args: tuple[str, ...], env: dict[str, str]) -> Any:
            return self.take(args, env) or start(self_, args, env)

        handler._popen = popen

    def take(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
        """The process that the agent wants to start, if it runs already and as the agent wants it."""
        name = environment.get("LOCAL_RANK", "")
        rank = self._waiting.pop(name, None)
        if rank is None:
            return None
        others = [key for key, value in rank.environment.items() if environment.get(key) != value]
        if _words(command) != _words(self._command) or others:
            print(f"Local rank {name} is started again: {', '.join(others) or command}.", file=sys.stderr)
            rank.end()
            return None
        rank.complete(environment)
        print(f"Local rank {name} had begun early.", file=sys.stderr)
        return rank.process


def _words(command: Sequence[str]) -> list[str]:
    """The command without the `--` that ends torchrun's own options, which some versions hand on."""
    words = list(command)
    if "--" in words:
        words.remove("--")
    return words


def complete_environment() -> None:
    """In a rank, before it meets the others: take in what the agent says. Ends the process if no agent comes."""
    pipe = os.environ.pop(PIPE, None)
    if pipe is None:
        return
    with os.fdopen(int(pipe), encoding="utf-8") as agent:
        rest = agent.read()
    if not rest:  # the launcher has refused, or is gone
        os._exit(1)
    os.environ.update(json.loads(rest))
