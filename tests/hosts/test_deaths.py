"""Whatever dies, whenever: what died is named, the screen's text is kept, the terminal is sane, nobody is left.

A table of all of it is printed at the end (tests/support/deaths.py says how the limit is held).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from deaths import Row, Table, busyness, family, printed, until_gone
from program import READY_S, ROOT, Chat, environment, ranks_below, replied
from pty_screen import pasted

pytestmark = [pytest.mark.timeout(600)]

LONG = (
    "--max_new_tokens",
    "1800",
    "--add_eos_length",
    "3",
    "--refine_iter",
    "2",
    "--max_length",
    "2000",
    "--answer_timeout",
    "8",
)
GONE_S = 2.0
# What is waited for at most; the limit itself is held against what was measured.
WAIT_S = 20.0

KILLED = "was killed (SIGKILL); out of memory?"


def loading(chat: Chat) -> None:
    deadline = time.monotonic() + READY_S
    while len(chat.ranks()) < chat.count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_the_prompt(chat: Chat) -> None:
    chat.wait_for("/help lists the commands", READY_S)
    chat.say("/max_new_tokens 8")
    chat.say("Hello there")
    chat.wait_for(replied())


def in_prefill(chat: Chat) -> None:
    chat.wait_for("/help lists the commands", READY_S)
    chat.send(pasted("Hello there " * 160))
    chat.send("\r")
    # The turn is on disk when its prompt begins to be read, not earlier; the message may be shown a little later.
    asked = "Hello there Hello there"
    chat.wait_for(lambda screen: asked in "".join(chat.sessions()) and asked in "\n".join(screen.scrollback))


def in_a_reply(chat: Chat) -> None:
    chat.wait_for("/help lists the commands", READY_S)
    chat.say("Hello there")
    under_way = re.compile(r"block [3-9]|pass [3-9]|[1-9]\d+ tokens")
    chat.wait_for(lambda screen: under_way.search(screen.text) is not None)


def in_a_command(chat: Chat) -> None:
    at_the_prompt(chat)
    chat.say("/settings")


def in_load(chat: Chat) -> None:
    at_the_prompt(chat)
    chat.say(f"/load {chat.checkpoint}")


def in_compare(chat: Chat) -> None:
    at_the_prompt(chat)
    chat.say("/max_new_tokens 1800")
    chat.say("/compare refine_iter 1 2 3 4 5 6 7 8")
    chat.wait_for(lambda screen: "/compare" in screen.text)
    time.sleep(0.3)


WHEN = [loading, at_the_prompt, in_prefill, in_a_reply, in_a_command, in_load, in_compare]


class Watched(Chat):
    """A conversation of `count` ranks that something will happen to."""

    def __init__(self, home: Path, checkpoint: Path, count: int) -> None:
        self.count = count
        self.checkpoint = str(checkpoint)
        super().__init__(home, str(count), self.checkpoint, *LONG, wait=False)

    def launcher(self) -> int:
        """torchrun's process, or the rank itself where it is alone."""
        (pid,) = map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split())
        return pid

    def family(self) -> list[int]:
        """The script and all that it has started."""
        return [self.process.pid, *family(self.process.pid)]

    def is_over(self, pids: list[int], began: float, code: int | None = 5) -> float:
        """Seconds until all were gone. The terminal is as it was, what was said is on the screen and on disk."""
        gone = until_gone(pids, began, WAIT_S)
        if code is not None:
            assert self.wait_end(10) == code, self.text
        deadline = time.monotonic() + WAIT_S
        while self.mode != self.mode_before:
            assert time.monotonic() < deadline, "the terminal is not as it was"
            time.sleep(0.02)
        if "Hello there" in "".join(self.sessions()):
            assert "Hello there" in "\n".join(self.scrollback)
        return gone

    def last_words(self, *parts: str) -> str:
        """The line of the screen that holds all of these."""
        lines = self.text.splitlines()
        return next((line.strip() for line in reversed(lines) if all(part in line for part in parts)), "")


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text)

    with printed(write) as held:
        yield held


def every(counts: tuple[int, ...]) -> pytest.MarkDecorator:
    cases = [(when, count) for when in WHEN for count in counts]
    return pytest.mark.parametrize(
        ("when", "count"), cases, ids=[f"{when.__name__}-{count}" for when, count in cases]
    )


@pytest.mark.drawn
@every((2, 3))
def test_a_killed_follower_is_named(tmp_path, tiny_checkpoint, table, when: Callable[[Chat], None], count: int):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks, pids = chat.ranks(), chat.family()
        began = time.monotonic()
        os.kill(ranks[count - 1], signal.SIGKILL)
        gone = chat.is_over(pids, began)
        said = f"Rank {count - 1} {KILLED}"
        assert said in chat.text
        table.add(Row("follower killed", when.__name__, str(count), said, 5, gone, busyness()), GONE_S)


@pytest.mark.drawn
@every((1, 2, 3))
def test_a_killed_rank_0_is_named(tmp_path, tiny_checkpoint, table, when: Callable[[Chat], None], count: int):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks, pids = chat.ranks(), chat.family()
        began = time.monotonic()
        os.kill(ranks[0], signal.SIGKILL)
        gone = chat.is_over(pids, began)
        said = f"{'Rank 0' if count > 1 else 'The program'} {KILLED}"
        assert said in chat.text
        assert ("--resume" in "".join(chat.text.split())) == (when is not loading)
        table.add(Row("rank 0 killed", when.__name__, str(count), said, 5, gone, busyness()), GONE_S)


@pytest.mark.drawn
@every((2, 3))
def test_a_killed_launcher_leaves_nobody(
    tmp_path, tiny_checkpoint, table, when: Callable[[Chat], None], count: int
):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        pids = chat.family()
        began = time.monotonic()
        os.kill(chat.launcher(), signal.SIGKILL)
        gone = chat.is_over(pids, began)
        said = chat.last_words("torchrun was killed")
        assert said
        table.add(Row("launcher killed", when.__name__, str(count), said, 5, gone, busyness()), GONE_S)


@pytest.mark.drawn
@pytest.mark.parametrize("end", ["killed", "hung up"])
@every((1, 2, 3))
def test_a_killed_script_or_closed_terminal_leaves_nobody(tmp_path, tiny_checkpoint, table, when, count, end):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        pids = chat.family()
        began = time.monotonic()
        if end == "killed":
            os.kill(chat.process.pid, signal.SIGKILL)
            gone = chat.is_over(pids, began, code=None)
            what = "script killed"
        else:
            chat.hang_up()
            gone = until_gone(pids, began, WAIT_S)
            what = "terminal closed"
        assert when is loading or "Hello there" in "".join(chat.sessions())
        said = chat.last_words("start script or torchrun was killed") if end == "killed" else ""
        table.add(Row(what, when.__name__, str(count), said, None, gone, busyness()), GONE_S)


@pytest.mark.drawn
@pytest.mark.parametrize("when", [at_the_prompt, in_a_reply, in_load, in_compare], ids=lambda when: when.__name__)
@pytest.mark.parametrize("count", [2, 3])
def test_a_stopped_rank_is_said_so_and_has_a_deadline(tmp_path, tiny_checkpoint, table, when, count):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks, pids = chat.ranks(), chat.family()
        os.kill(ranks[1], signal.SIGSTOP)
        began = time.monotonic()
        chat.wait_for("Rank 1 has not answered for ", WAIT_S)
        assert time.monotonic() - began > 4
        # It goes on when the rank does.
        os.kill(ranks[1], signal.SIGCONT)
        chat.wait_for(lambda screen: "has not answered" not in screen.text, WAIT_S)
        os.kill(ranks[1], signal.SIGSTOP)
        assert chat.wait_end(2 * WAIT_S) == 5
        ended = time.monotonic()
        said = chat.last_words("Rank 1 has not answered for ", " s.")
        assert said in ("Rank 1 has not answered for 8 s.", "Rank 1 has not answered for 9 s.")
        gone = chat.is_over(pids, ended)
        table.add(Row("rank 1 stopped", when.__name__, str(count), said, 5, gone, busyness()), GONE_S)


@pytest.mark.drawn
@pytest.mark.parametrize("streams", ["read", "closed", "broken"])
@pytest.mark.parametrize(
    ("who", "count"),
    [("rank 0", 1), ("script", 1)]
    + [(who, count) for who in ("rank 1", "rank 0", "launcher", "script") for count in (2, 3)],
)
def test_deaths_in_a_batch_whose_output_nobody_reads(tmp_path, tiny_checkpoint, table, who, count, streams):
    checkpoint = str(tiny_checkpoint("fsdp2", 3))
    (tmp_path / "p.txt").write_text("".join(f"Question {n}\n" for n in range(400)))
    output = tmp_path / "r.jsonl"
    words = ["bash", str(ROOT / "run_chat.sh"), str(count), checkpoint, "--prompts_file", str(tmp_path / "p.txt")]
    words += ["--output_file", str(output), "--max_new_tokens", "300", "--add_eos_length", "3", "--batch_size", "1"]
    if streams == "closed":
        words = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *words]
    errors = tmp_path / "stderr"
    with errors.open("wb") as kept:
        run = subprocess.Popen(
            words,
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if streams == "broken" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if streams == "broken" else kept,
        )
    if run.stdout is not None and run.stderr is not None:
        assert run.stderr.readline().startswith(b"Starting ")
        run.stdout.close()  # nobody reads any more
        run.stderr.close()
    deadline = time.monotonic() + READY_S
    while not (output.exists() and output.read_bytes().count(b"\n") > 2):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ranks = ranks_below(run.pid)
    assert len(ranks) == count
    pids = [run.pid, *family(run.pid)]
    launcher = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])
    victims = {**{f"rank {rank}": pid for rank, pid in ranks.items()}, "launcher": launcher, "script": run.pid}
    began = time.monotonic()
    os.kill(victims[who], signal.SIGKILL)
    gone = until_gone(pids, began, WAIT_S)
    code = run.wait(10)
    assert code == (-signal.SIGKILL if who == "script" else 5)
    lines = output.read_bytes()
    assert lines.endswith(b"}\n")  # each line whole
    assert len(lines.splitlines()) < 400
    said = ""
    if streams == "read" and who != "script":
        named = {"launcher": "torchrun", "rank 0": "Rank 0" if count > 1 else "The program"}.get(who, "Rank 1")
        said = next(line for line in errors.read_text().splitlines() if f"{named} was killed" in line)
    table.add(Row(f"{who} killed", f"batch, output {streams}", str(count), said, code, gone, busyness()), GONE_S)
