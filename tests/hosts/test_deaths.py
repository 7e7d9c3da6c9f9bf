"""Whatever dies, whenever: what died is named, the screen's text is kept, the terminal is sane, nobody is left.

One table of cases for one host and for two (network namespaces). What was seen of each is printed at the end
(tests/support/deaths.py says how the limits are held).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pytest
from deaths import Row, Table, busyness, printed, until_gone
from namespaces import obstacle
from on_hosts import LONG, TWO_HOSTS, WAIT_S, Run
from program import READY_S, replied
from pty_screen import pasted

pytestmark = [pytest.mark.timeout(600)]

WHY_NOT = obstacle()
on_two_hosts = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
KILLED = "was killed (SIGKILL); out of memory?"

# --- When --------------------------------------------------------------------------------------------------------

When = Callable[[Run], None]


def loading(run: Run) -> None:
    run.talk(*LONG, wait=False)
    run.wait_for_ranks()


def at_the_prompt(run: Run) -> None:
    run.talk(*LONG)
    run.chat.say("/max_new_tokens 8")
    run.chat.wait_for("max_new_tokens is 8.")
    run.chat.say("Hello there")
    run.chat.wait_for(replied())


def in_prefill(run: Run) -> None:
    run.talk(*LONG)
    run.chat.send(pasted("Hello there " * 160))
    run.chat.send("\r")
    # The turn is on disk when its prompt begins to be read, not earlier; the message may be shown a little later.
    asked = "Hello there Hello there"
    run.chat.wait_for(
        lambda screen: asked in "".join(run.chat.sessions()) and asked in "\n".join(screen.scrollback)
    )


def in_a_reply(run: Run) -> None:
    run.talk(*LONG)
    run.reply_begins()


def in_a_command(run: Run) -> None:
    at_the_prompt(run)
    run.chat.say("/settings")


def in_load(run: Run) -> None:
    at_the_prompt(run)
    run.chat.say(f"/load {run.checkpoint}")


def in_compare(run: Run) -> None:
    at_the_prompt(run)
    run.chat.say("/max_new_tokens 1800")
    run.chat.wait_for("max_new_tokens is 1800.")
    run.chat.say("/compare refine_iter 1 2 3 4 5 6 7 8")
    run.chat.wait_for(lambda screen: "/compare" in screen.text)
    time.sleep(0.3)


WHEN = (loading, at_the_prompt, in_prefill, in_a_reply, in_a_command, in_load, in_compare)

# --- Who ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Death:
    """What is done, and what is said of it.

    said       a part of a line on node 0's screen
    elsewhere  what node 1's screen ends with; None: it has nobody left to say it
    code       node 0's exit code; None: it has nobody left to give one
    """

    what: str
    strike: Callable[[Run], None]
    said: Callable[[Run], str]
    elsewhere: str | None
    code: int | None = 5


def kill(victim: Callable[[Run], int]) -> Callable[[Run], None]:
    return lambda run: os.kill(victim(run), signal.SIGKILL)


LOST_A, LOST_B = r"Contact with hosta \(rank 0\) was lost\.", "Contact with hostb (rank 1) was lost."
FOLLOWER = Death(
    "follower killed",
    kill(lambda run: run.ranks()[run.count - 1]),
    lambda run: f"{run.name(run.count - 1)} {KILLED}",
    r"Rank 1 \(hostb\) was killed \(SIGKILL\)",
)
RANK_0 = Death(
    "rank 0 killed",
    kill(lambda run: run.ranks()[0]),
    lambda run: f"{run.name(0)} {KILLED}",
    # On a busy machine node 1's rank may give up before word comes.
    rf"Rank 0 \(hosta\) was killed \(SIGKILL\)|{LOST_A}",
)
LAUNCHER = Death("launcher killed", kill(lambda run: run.launcher(0)), lambda _: "torchrun was killed", LOST_A)
SCRIPT = Death(
    "script killed",
    kill(lambda run: run.scripts[0]),
    lambda _: "start script or torchrun was killed",
    LOST_A,
    code=None,
)
TERMINAL = Death("terminal closed", lambda run: run.chat.hang_up(), lambda _: "", LOST_A, code=None)
FAR_LAUNCHER = Death(
    "follower's launcher killed", kill(lambda run: run.launcher(1)), lambda _: LOST_B, r"torchrun was killed"
)
FAR_SCRIPT = Death("follower's script killed", kill(lambda run: run.scripts[1]), lambda _: LOST_B, None)
DEATHS = (FOLLOWER, RANK_0, LAUNCHER, SCRIPT, TERMINAL, FAR_LAUNCHER, FAR_SCRIPT)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text)

    with printed(write) as held:
        yield held


def is_over(run: Run, pids: Iterable[int], began: float, death: Death) -> tuple[float, float]:
    """Seconds until all were gone, and how busy the machine is. The terminal is sane, what was said is kept."""
    gone = until_gone(pids, began, WAIT_S)
    busy = busyness()
    chat = run.chat
    if death is TERMINAL:
        return gone, busy
    if death.code is not None:
        assert chat.wait_end(10) == death.code, chat.text
    deadline = time.monotonic() + WAIT_S
    while chat.mode != chat.mode_before:
        assert time.monotonic() < deadline, "the terminal is not as it was"
        time.sleep(0.02)
    if "Hello there" in "".join(chat.sessions()):
        assert "Hello there" in "\n".join(chat.scrollback)
    return gone, busy


def last_line(text: str, part: str) -> str:
    """The last line that holds a part."""
    return next((line.strip() for line in reversed(text.splitlines()) if part and part in line), "")


def dies(run: Run, table: Table, death: Death, when: When) -> None:
    """Bring a run to a moment, do it, hold what is seen against what is wanted, and write it down."""
    when(run)
    pids = run.family()
    began = time.monotonic()
    death.strike(run)
    gone, busy = is_over(run, pids, began, death)
    elsewhere = ""
    if run.several:
        assert run.follower_ends() == (5 if death.elsewhere else -signal.SIGKILL)
        elsewhere = run.last_word if death.elsewhere else ""
        assert death.elsewhere is None or re.match(death.elsewhere, elsewhere), run.said
    wanted = death.said(run)
    said = last_line("" if death is TERMINAL else run.chat.text, wanted)
    # Rank 0 may not have come so far that it could say who left it alone.
    assert wanted in said or (death is SCRIPT and when is loading), run.chat.text
    assert when is loading or "Hello there" in "".join(run.chat.sessions())
    if death is not TERMINAL:
        assert ("--resume" in "".join(run.chat.text.split())) == (when is not loading)
    table.add(Row(death.what, when.__name__, run.place, said, elsewhere, death.code, gone, busy))


def every(deaths: Iterable[Death], counts: Iterable[int | str]) -> pytest.MarkDecorator:
    """A test's cases: each of these deaths, at every moment, in each of these places."""
    cases = [(death, when, place) for death in deaths for when in WHEN for place in counts]
    names = [f"{death.what.replace(' ', '_')}-{when.__name__}-{place}" for death, when, place in cases]
    return pytest.mark.parametrize(("death", "when", "place"), cases, ids=names)


@pytest.mark.drawn
@every([FOLLOWER], (2, 3))
def test_a_killed_follower_is_named(tmp_path, tiny_checkpoint, table, death: Death, when: When, place: int):
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run:
        dies(run, table, death, when)


@pytest.mark.drawn
@every([RANK_0], (1, 2, 3))
def test_a_killed_rank_0_is_named(tmp_path, tiny_checkpoint, table, death: Death, when: When, place: int):
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run:
        dies(run, table, death, when)


@pytest.mark.drawn
@every([LAUNCHER], (2, 3))
def test_a_killed_launcher_leaves_nobody(tmp_path, tiny_checkpoint, table, death: Death, when: When, place: int):
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run:
        dies(run, table, death, when)


@pytest.mark.drawn
@every([SCRIPT, TERMINAL], (1, 2, 3))
def test_a_killed_script_or_closed_terminal_leaves_nobody(tmp_path, tiny_checkpoint, table, death, when, place):
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run:
        dies(run, table, death, when)


@on_two_hosts
@pytest.mark.drawn
@every(DEATHS, [TWO_HOSTS])
def test_a_death_on_one_of_two_hosts(tmp_path, tiny_checkpoint, table, death: Death, when: When, place: str):
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run:
        dies(run, table, death, when)


STOPPED = Death("stopped", lambda _: None, lambda _: "", None)
STOPPABLE = [(1, when) for when in (at_the_prompt, in_a_reply, in_load, in_compare)]
STOPPABLE += [(0, when) for when in (at_the_prompt, in_a_reply)]


@pytest.mark.drawn
@pytest.mark.parametrize("place", [2, 3, pytest.param(TWO_HOSTS, marks=on_two_hosts)])
@pytest.mark.parametrize(("rank", "when"), STOPPABLE, ids=[f"{rank}-{when.__name__}" for rank, when in STOPPABLE])
def test_a_stopped_rank_has_a_deadline(tmp_path, tiny_checkpoint, table, rank: int, when: When, place):
    """What rank 0 says of another is taken back when that one goes on; nobody says anything of a stopped rank 0."""
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run:
        when(run)
        pids, process, name = run.family(), run.ranks()[rank], run.name(rank)
        os.kill(process, signal.SIGSTOP)
        if rank:
            began = time.monotonic()
            run.chat.wait_for(f"{name} has not answered for ", WAIT_S)
            assert time.monotonic() - began > 4
            os.kill(process, signal.SIGCONT)
            run.chat.wait_for(lambda screen: "has not answered" not in screen.text, WAIT_S)
            os.kill(process, signal.SIGSTOP)
        ended = run.ends(2 * WAIT_S)
        gone, busy = is_over(run, pids, ended, STOPPED)
        said = last_line(run.chat.text, f"{name} has not answered for ")
        # On a busy machine nobody may look for a second or two.
        assert re.search(rf"{re.escape(name)} has not answered for (8|9|10) s\.$", said), said
        assert "--resume" in "".join(run.chat.text.split())
        table.add(Row(f"rank {rank} stopped", when.__name__, run.place, said, run.last_word, 5, gone, busy))


ONE_HOST = [(death, 1) for death in (RANK_0, SCRIPT)]
ONE_HOST += [(death, count) for death in (FOLLOWER, RANK_0, LAUNCHER, SCRIPT) for count in (2, 3)]
BATCH = [(*case, "read") for case in ONE_HOST]
BATCH += [pytest.param(death, TWO_HOSTS, "read", marks=on_two_hosts) for death in DEATHS if death is not TERMINAL]
BATCH += [(*case, streams) for case in ONE_HOST if case[1] != 2 for streams in ("closed", "broken")]


@pytest.mark.drawn
@pytest.mark.parametrize(("death", "place", "streams"), BATCH, ids=lambda value: str(getattr(value, "what", value)))
def test_deaths_in_a_batch_whose_output_nobody_reads(tmp_path, tiny_checkpoint, table, death, place, streams):
    (tmp_path / "p.txt").write_text("".join(f"Question {n}\n" for n in range(400)))
    output, errors = tmp_path / "r.jsonl", tmp_path / "stderr"
    words = ["--prompts_file", str(tmp_path / "p.txt"), "--output_file", str(output)]
    words += ["--max_new_tokens", "300", "--add_eos_length", "3", "--batch_size", "1"]
    with Run(tmp_path, tiny_checkpoint("fsdp2", 3), place) as run, errors.open("wb") as kept:
        batch = run.answer_prompts(
            *words,
            closed=streams == "closed",
            stdout=subprocess.PIPE if streams == "broken" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if streams == "broken" else kept,
        )
        if batch.stdout is not None and batch.stderr is not None:
            assert batch.stderr.readline().startswith(b"Starting ")
            batch.stdout.close()  # nobody reads any more
            batch.stderr.close()
        deadline = time.monotonic() + READY_S
        while not (output.exists() and output.read_bytes().count(b"\n") > 2):
            assert batch.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(run.ranks()) == run.count
        pids = run.family()
        began = time.monotonic()
        death.strike(run)
        gone, busy = until_gone(pids, began, WAIT_S), busyness()
        code = batch.wait(10)
        assert code == (-signal.SIGKILL if death is SCRIPT else 5)
        lines = output.read_bytes()
        assert lines.endswith(b"}\n")  # each line whole
        assert len(lines.splitlines()) < 400
        said, elsewhere = "", ""
        if streams == "read" and death is not SCRIPT:
            said = last_line(errors.read_text(), death.said(run))
            assert said
        if run.several:
            assert run.follower_ends() == (5 if death.elsewhere else -signal.SIGKILL)
            elsewhere = run.last_word if death.elsewhere else ""
            assert death.elsewhere is None or re.match(death.elsewhere, elsewhere), run.said
        table.add(Row(death.what, f"batch, output {streams}", run.place, said, elsewhere, code, gone, busy))
