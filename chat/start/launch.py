"""torchrun, meeting the other hosts first, with its own talk in a log. The ranks keep this process's streams.

`python -m chat.start.launch LOG COUNT [options of python -m chat]`. torchrun hands file descriptors 0, 1 and 2 on
to its workers and closes all others, so its banner cannot be sent elsewhere by the shell without taking the ranks'
stderr along. Dies with the start script, and the ranks with it.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from chat.start.early_ranks import EarlyRanks
from chat.start.options import LaunchOptions, asked_options, load_config, version_text, with_config
from chat.terminal.fate import as_sentence, in_words
from chat.terminal.lifeline import EXIT_RANK_DIED, TORCHRUN_PID, watch_rank_0
from chat.terminal.process import die_with_parent, end_children, write_ending, write_status
from chat.terminal.streams import NoticeStream
from dist.errors import ChatError
from dist.group.hosts import Hosts, check_interfaces, host_name

if TYPE_CHECKING:
    from dist.group.rendezvous import Meeting

# Exit codes of ranks that have reported why themselves, or that torchrun ended because of another.
REPORTED = (2, 3, 4, 5, 130, -signal.SIGTERM)
POST_S = 2.0
# How long ranks may take to end by themselves after node 0; one that is stopped never does.
GOODBYE_S = 3.0


class Waiting:
    """One line on the screen while something is waited for; where it cannot be redrawn, once for each thing."""

    def __init__(self, fd: int) -> None:
        self._out = NoticeStream(os.dup(fd), "utf-8")
        self._redraws = os.isatty(fd) and os.environ.get("TERM", "dumb") != "dumb" and "NO_COLOR" not in os.environ
        self._shown = ""

    def show(self, text: str) -> None:
        """`text` is `what, how long`; the empty text takes the line away."""
        if self._redraws:
            if text != self._shown:
                self._out.write(f"\r\x1b[K{text}")
                self._out.flush()
        elif text and text.partition(",")[0] != self._shown.partition(",")[0]:
            self.say(f"{text.partition(',')[0]}.")
        self._shown = text

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._redraws and self._shown:
            self._out.write("\r\x1b[K")
        print(text, file=self._out, flush=True)


def main() -> None:
    """Start the ranks of this host; ends with torchrun's exit code, or with an error's own."""
    log, count, *arguments = sys.argv[1:]
    die_with_parent(signal.SIGKILL, os.environ.get("DLLM_LAUNCHER_PID"))
    os.environ[TORCHRUN_PID] = str(os.getpid())
    run_dir = Path(os.environ.get("DLLM_RUN_DIR") or Path(log).parent)
    waiting = Waiting(2)
    # Only the Python object changes: the workers inherit descriptor 2 as it is. Never closed:
    # what torchrun says at the end goes there, too.
    sys.stderr = Path(log).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115
    code = 0
    try:
        hosts = Hosts.from_environment()
        check_interfaces()
        options = with_config(asked_options(arguments, io.StringIO()), load_config())
        start_ranks(hosts, int(count), arguments, options, waiting, run_dir)
    except ChatError as error:
        waiting.say(str(error))
        write_status(run_dir, error.exit_code)
        code = error.exit_code
    except Exception:  # noqa: BLE001  (the edge of the program: torchrun tells so of ranks that failed)
        traceback.print_exc()
        code = 1
    # Taking torch apart takes half a second, and threads may be stuck in a library.
    sys.stderr.flush()
    os._exit(code)


def start_ranks(
    hosts: Hosts, count: int, arguments: list[str], options: LaunchOptions, waiting: Waiting, run_dir: Path
) -> None:
    """torchrun's agent, from the meeting to the end of the ranks. Raises ChatError, SystemExit."""
    run_id = str(os.getpid())
    early = None
    if hosts.nodes == 1:  # on several, a rank's number is known once all have met
        # As torchrun does, which would do it after they have begun.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        python = os.environ.get("PYTHON_EXEC", sys.executable)
        early = EarlyRanks(count, [python, "-u", "-m", "chat", *arguments], run_id)
        early.end_on_signals()
        early.watch(partial(end_with_rank, run_dir))
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
    from torch.distributed.run import main as torchrun

    from dist.group.rendezvous import BACKEND, Meeting, register

    def met(others: dict[int, dict[str, str]]) -> None:
        look_after(hosts, meeting, options.answer_timeout, run_dir)
        if hosts.node:
            checkpoint = options.checkpoint_dir or "the embedded model"
            waiting.say(
                f"Node {hosts.node} of {hosts.nodes} ({host_name()}): serving node 0 ({others[0]['host']}, "
                f"{hosts.meeting_point}) with {checkpoint}."
            )

    meeting = Meeting(
        hosts, count, join_s=options.join_timeout, notice=waiting.show, met=met, program=version_text()
    )
    register(meeting)
    agent = [f"--nnodes={hosts.nodes}", f"--nproc_per_node={count}", f"--rdzv_backend={BACKEND}"]
    agent += [f"--rdzv_endpoint={hosts.meeting_point}", f"--rdzv_id={run_id}"]
    if early is not None:
        early.hand_over(SubprocessHandler)
    try:
        # What follows `--` is the program's: torchrun would take `--n` for a shortened option of its own.
        torchrun([*agent, "-m", "chat", "--", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in REPORTED:
            meeting.leave()
        else:
            report_failure(hosts, meeting, rank, failure.exitcode, run_dir)
        raise
    meeting.leave()


def report_failure(hosts: Hosts, meeting: Meeting, rank: int, code: int, run_dir: Path) -> None:
    """Say on all hosts how a rank of this one ended that could not say so itself."""
    from dist.group.ranks import rank_name

    who = rank_name(rank, host_name() if hosts.nodes > 1 else None)
    how = ("was " if code < 0 else "") + in_words(code)
    write_ending(run_dir, as_sentence(f"{who} {how}"))
    # Rank 0 may be on another host, or gone with its store.
    if meeting.store is not None:
        post_within(meeting.store, who, how, POST_S)
    if hosts.node == 0:
        meeting.leave(f"{who} {how}")


def end_with_rank(run_dir: Path, rank: int, code: int) -> None:
    """A rank was killed before the agent was there to see it: end, and all other ranks with this process."""
    if code not in REPORTED:
        write_ending(run_dir, as_sentence(f"Rank {rank} was {in_words(code)}"))
        os._exit(EXIT_RANK_DIED)


def look_after(hosts: Hosts, meeting: Meeting, answer_s: float, run_dir: Path) -> None:
    """From the meeting on rank 0 sees whether this host is there, and this host whether node 0 is.

    Node 0's launcher also ends a rank 0 that no longer answers.
    """
    from dist.group.board import PERIOD_S, Board, connect, node_name
    from dist.group.lines import GOODBYE
    from dist.group.ranks import LOST, contact_name, rank_name

    board = Board(connect(*meeting.place), node_name(hosts.node), [node_name(0) if hosts.node else "0"])

    def end(why: str) -> NoReturn:
        # The ranks of this host end with this process.
        write_ending(run_dir, as_sentence(why))
        meeting.leave(why)
        os._exit(EXIT_RANK_DIED)

    def lost(node: int) -> None:
        contact = contact_name(meeting.others[node]["host"], meeting.ranks_of(node))
        board.post_failure(contact, LOST, POST_S)
        time.sleep(PERIOD_S)
        if not board.has_come("0"):  # it still imports libraries: its own end would come late
            end(" ".join(next(iter(board.failures().items()), (contact, LOST))))

    def node_0_ended(why: str) -> None:
        if why == GOODBYE:
            time.sleep(GOODBYE_S)
            why = "Node 0 has ended the run"
        contact = contact_name(meeting.others[0]["host"], range(int(meeting.others[0]["ranks"])))
        end(why or f"{contact} {LOST}")

    if hosts.node:
        watch_rank_0(board, run_dir, answer_s)
        meeting.watch_node_0(node_0_ended)
    else:
        name = rank_name(0, host_name() if hosts.nodes > 1 else None)
        watch_rank_0(board, run_dir, answer_s, name, end_children)
        meeting.watch_others(lost)


def post_within(store: Any, who: str, how: str, seconds: float) -> None:
    """Tell rank 0 how a rank ended, unless it is gone with its store: that is not waited for."""
    from dist.group.board import post_failure

    def post() -> None:
        with contextlib.suppress(RuntimeError):
            post_failure(store, who, how)

    thread = threading.Thread(target=post, daemon=True)
    thread.start()
    thread.join(seconds)


if __name__ == "__main__":
    main()
