"""Whatever dies, whenever: what died is named, the screen's text is kept, the terminal is sane, nobody is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from program import READY_S, ROOT, Chat, environment, ranks_below, replied

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
# Machines that run the tests may have more to do than the program has time.
SLACK_S = 6.0

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


WHEN = [loading, at_the_prompt, in_a_reply, in_a_command, in_load, in_compare]


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

    def is_over(self, ranks: dict[int, int], began: float, code: int | None = 5) -> None:
        """Everybody is gone in time, the terminal is as it was, what was said is on the screen and on disk."""
        while any(alive(pid) for pid in ranks.values()):
            assert time.monotonic() - began < GONE_S + SLACK_S, "a rank is left"
            time.sleep(0.02)
        if code is not None:
            assert self.wait_end(10) == code, self.text
        deadline = time.monotonic() + GONE_S + SLACK_S
        while self.mode != self.mode_before:
            assert time.monotonic() < deadline, "the terminal is not as it was"
            time.sleep(0.02)
        if "Hello there" in "".join(self.sessions()):
            assert "Hello there" in "\n".join(self.scrollback)
        print(f"{time.monotonic() - began:.2f} s")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def every(counts: tuple[int, ...]) -> pytest.MarkDecorator:
    cases = [(when, count) for when in WHEN for count in counts]
    return pytest.mark.parametrize(
        ("when", "count"), cases, ids=[f"{when.__name__}-{count}" for when, count in cases]
    )


@pytest.mark.drawn
@every((2, 3))
def test_a_killed_follower_is_named(tmp_path, tiny_checkpoint, when: Callable[[Chat], None], count: int):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks = chat.ranks()
        began = time.monotonic()
        os.kill(ranks[count - 1], signal.SIGKILL)
        chat.wait_for(f"Rank {count - 1} {KILLED}", GONE_S + SLACK_S)
        chat.is_over(ranks, began)


@pytest.mark.drawn
@every((1, 2, 3))
def test_a_killed_rank_0_is_named(tmp_path, tiny_checkpoint, when: Callable[[Chat], None], count: int):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks = chat.ranks()
        began = time.monotonic()
        os.kill(ranks[0], signal.SIGKILL)
        chat.is_over(ranks, began)
        assert f"{'Rank 0' if count > 1 else 'The program'} {KILLED}" in chat.text
        assert ("--resume" in "".join(chat.text.split())) == (when is not loading)


@pytest.mark.drawn
@every((2, 3))
def test_a_killed_launcher_leaves_nobody(tmp_path, tiny_checkpoint, when: Callable[[Chat], None], count: int):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks = chat.ranks()
        began = time.monotonic()
        os.kill(chat.launcher(), signal.SIGKILL)
        chat.is_over(ranks, began)
        assert "torchrun was killed" in chat.text


@pytest.mark.drawn
@pytest.mark.parametrize("end", ["killed", "hung up"])
@every((1, 2, 3))
def test_a_killed_script_or_closed_terminal_leaves_nobody(tmp_path, tiny_checkpoint, when, count, end):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks = {**chat.ranks(), -1: chat.launcher()}
        began = time.monotonic()
        if end == "killed":
            os.kill(chat.process.pid, signal.SIGKILL)
            chat.is_over(ranks, began, code=None)
        else:
            chat.hang_up()
            while any(alive(pid) for pid in ranks.values()):
                assert time.monotonic() - began < GONE_S + SLACK_S, "a rank is left"
                time.sleep(0.02)
        assert when is loading or "Hello there" in "".join(chat.sessions())


@pytest.mark.drawn
@pytest.mark.parametrize("when", [at_the_prompt, in_a_reply, in_compare], ids=lambda when: when.__name__)
@pytest.mark.parametrize("count", [2, 3])
def test_a_stopped_rank_is_said_so_and_has_a_deadline(tmp_path, tiny_checkpoint, when, count):
    with Watched(tmp_path, tiny_checkpoint("fsdp2", 3), count) as chat:
        when(chat)
        ranks = chat.ranks()
        os.kill(ranks[1], signal.SIGSTOP)
        began = time.monotonic()
        chat.wait_for("Rank 1 has not answered for ", 7 + SLACK_S)
        assert time.monotonic() - began > 4
        # It goes on when the rank does.
        os.kill(ranks[1], signal.SIGCONT)
        chat.wait_for(lambda screen: "has not answered" not in screen.text, 10 + SLACK_S)
        os.kill(ranks[1], signal.SIGSTOP)
        began = time.monotonic()
        assert chat.wait_end(20 + SLACK_S) == 5
        assert "Rank 1 has not answered for 8 s." in chat.text or "Rank 1 has not answered for 9 s." in chat.text
        chat.is_over(ranks, time.monotonic())


@pytest.mark.drawn
@pytest.mark.parametrize("streams", ["closed", "broken"])
@pytest.mark.parametrize("who", ["rank 1", "rank 0", "launcher"])
@pytest.mark.parametrize("count", [2, 3])
def test_deaths_in_a_batch_whose_output_nobody_reads(tmp_path, tiny_checkpoint, who, count, streams):
    checkpoint = str(tiny_checkpoint("fsdp2", 3))
    (tmp_path / "p.txt").write_text("".join(f"Question {n}\n" for n in range(400)))
    output = tmp_path / "r.jsonl"
    words = ["bash", str(ROOT / "run_chat.sh"), str(count), checkpoint, "--prompts_file", str(tmp_path / "p.txt")]
    words += ["--output_file", str(output), "--max_new_tokens", "300", "--add_eos_length", "3", "--batch_size", "1"]
    if streams == "closed":
        words = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *words]
    run = subprocess.Popen(
        words,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if streams == "broken" else None,
        stderr=subprocess.PIPE if streams == "broken" else None,
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
    launcher = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()[0])
    began = time.monotonic()
    os.kill({"rank 0": ranks[0], "rank 1": ranks[1], "launcher": launcher}[who], signal.SIGKILL)
    while any(alive(pid) for pid in (*ranks.values(), launcher)):
        assert time.monotonic() - began < GONE_S + SLACK_S, "a rank is left"
        time.sleep(0.02)
    assert run.wait(10) == 5
    lines = output.read_bytes()
    assert lines.endswith(b"}\n")  # each line whole
    assert len(lines.splitlines()) < 400
