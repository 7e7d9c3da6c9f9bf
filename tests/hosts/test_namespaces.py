"""Two hosts: network namespaces with a cable between them, host names that stand for loopback addresses.

Each case starts the whole program on both: a conversation on node 0's terminal, followers on node 1. What goes
wrong is said on both, by rank and host, and both are gone in bounded time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deaths import busyness
from namespaces import NETWORK_6, Hosts, obstacle
from program import FIGURES, READY_S, ROOT, Chat, environment, replied
from pty_screen import CTRL_C, CTRL_D

pytestmark = [pytest.mark.timeout(600)]

WHY_NOT = obstacle()
if WHY_NOT is not None:
    pytestmark.append(pytest.mark.skip(reason=WHY_NOT))

# From a death to the last process of both hosts, and from the meeting to a refusal, on an idle machine.
GONE_S = 5.0
REFUSED_S = 5.0
# What is waited for at most.
LEFT_S = 30.0
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
    "9",
)


class Pair:
    """The program on two hosts. A context manager; nothing is left of it."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.hosts = Hosts(2)
        self.master = ""  # node 0's IPv4 address
        self.folder = folder
        self.checkpoint = str(checkpoint)

    def __enter__(self) -> Pair:
        self.hosts.__enter__()
        return self

    def start(
        self,
        *arguments: str,
        wait: bool = True,
        other_checkpoint: Path | None = None,
        other_arguments: tuple[str, ...] = (),
        **other_variables: str,
    ) -> None:
        """Both hosts, node 1 first; what is said of the other is node 1's alone."""
        home = self.folder / "b"
        home.mkdir()
        self.output = (self.folder / "b.txt").open("w+")
        command = ["bash", str(ROOT / "run_chat.sh"), "1", str(other_checkpoint or self.checkpoint)]
        self.follower = subprocess.Popen(
            self.hosts.command(1, *command, *arguments, *other_arguments),
            env=environment(home, **self.hosts.variables(1, master=self.master), **other_variables),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        self.chat = Chat(
            self.folder / "a",
            *("1", self.checkpoint, *arguments),
            wait=wait,
            command=lambda *words: self.hosts.command(0, *words),
            variables=self.hosts.variables(0, master=self.master),
        )

    def __exit__(self, *_: object) -> None:
        self.chat.close()
        if self.follower.poll() is None:
            self.follower.kill()
            self.follower.wait()
        self.output.close()
        self.hosts.__exit__(None, None, None)

    @property
    def said(self) -> str:
        """What node 1's screen shows."""
        return (self.folder / "b.txt").read_text()

    def wait_said(self, text: str, seconds: float = READY_S) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def processes(self, script: int, module: bytes) -> list[int]:
        """The processes below a start script that run a module."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                mine = f"DLLM_LAUNCHER_PID={script}".encode() in (path / "environ").read_bytes().split(b"\0")
                if mine and module in (path / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def gone(self, began: float) -> float:
        """Seconds from `began` until all ranks and launchers of both hosts are gone."""
        while self.left():
            assert time.monotonic() - began < LEFT_S, "a process is left"
            time.sleep(0.02)
        return time.monotonic() - began

    def nobody_left(self, seconds: float) -> bool:
        """Whether all ranks and launchers of both hosts are gone within some seconds."""
        deadline = time.monotonic() + seconds
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.left()

    def left(self) -> list[int]:
        """The ranks and launchers of both hosts that are still there."""
        scripts, modules = (self.chat.process.pid, self.follower.pid), (b"chat", b"chat.start.launch")
        return [pid for script in scripts for module in modules for pid in self.processes(script, module)]

    def kill(self, module: bytes) -> None:
        """Kill node 1's rank (`chat`) or launcher (`chat.start.launch`)."""
        for pid in self.processes(self.follower.pid, module):
            os.kill(pid, signal.SIGKILL)

    def reply_begins(self) -> None:
        self.chat.say("Hello there")
        self.chat.wait_for(
            lambda screen: re.search(r"block [3-9]|pass [3-9]|[1-9]\d+ tokens", screen.text) is not None
        )


def a_conversation(pair: Pair, slow: int = 0) -> None:
    pair.start("--max_new_tokens", "24", "--add_eos_length", "7")
    port = f":{29400:04X}"
    assert not [one for one in pair.hosts.listening(0) if one.endswith(port) and one.startswith("00000000")]
    if slow:
        pair.hosts.slow_down(1, slow)
        pair.hosts.round_trip(0, 1)  # the first one also asks who has the address
        took = pair.hosts.round_trip(0, 1)
        print(f"there and back: {took:.1f} ms")
        assert took >= 2 * slow
    pair.chat.say("Hello there")
    pair.chat.wait_for(replied(), 120)
    pair.chat.say("/refine_iter 4")
    pair.chat.wait_for("refine_iter is 4")
    pair.chat.say("And again")
    pair.chat.wait_for(replied(2), 120)
    print("\n".join(line for line in pair.chat.lines if FIGURES.search(line)))
    pair.chat.send(CTRL_D)
    assert pair.chat.wait_end(15) == 0
    assert pair.follower.wait(15) == 0
    assert "Node 1 of 2 (hostb): serving node 0 (hosta, 10.231.77.1:29400) with " in pair.said
    assert pair.said.endswith("Node 0 has ended the run.\n")


def a_conversation_by_ipv6(pair: Pair) -> None:
    pair.master = f"{NETWORK_6}::1"
    pair.start("--max_new_tokens", "24", "--add_eos_length", "7")
    pair.chat.say("Hello there")
    pair.chat.wait_for(replied(), 60)
    pair.chat.send(CTRL_D)
    assert pair.chat.wait_end(15) == 0
    assert pair.follower.wait(15) == 0
    assert f"serving node 0 (hosta, {NETWORK_6}::1:29400) with " in pair.said


def a_slow_cable(pair: Pair) -> None:
    a_conversation(pair, slow=50)


def is_cut_off(pair: Pair) -> None:
    """After the cable is cut: a notice with rank and host, the countdown, the end on both hosts."""
    began = time.monotonic()
    pair.hosts.cut(1)
    pair.chat.wait_for("Rank 1 (hostb) has not answered for ", 12)
    assert time.monotonic() - began > 4
    assert pair.chat.wait_end(20) == 5
    assert 8 < time.monotonic() - began < 20
    assert re.search(r"Rank 1 \(hostb\) has not answered for \d+ s\.", pair.chat.text)
    assert pair.chat.mode == pair.chat.mode_before
    assert pair.follower.wait(30) == 5
    assert re.search(r"(Rank 0 \(hosta\)|Node 0) has not answered for \d+ s\.|Contact ", pair.said), pair.said
    assert pair.nobody_left(LEFT_S)


def a_cut_cable_at_the_prompt(pair: Pair) -> None:
    pair.start(*LONG)
    is_cut_off(pair)


def a_cut_cable_in_mid_reply(pair: Pair) -> None:
    pair.start(*LONG)
    pair.reply_begins()
    is_cut_off(pair)
    assert "› Hello there" in pair.chat.text
    assert "--resume" in "".join(pair.chat.text.split())


def a_cut_cable_while_loading(pair: Pair) -> None:
    pair.start(*LONG, wait=False)
    pair.wait_said("serving node 0")
    # Rank 1 has met rank 0 when it has read the other's place.
    deadline = time.monotonic() + READY_S
    while not pair.processes(pair.follower.pid, b"chat"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    pair.hosts.cut(1)
    assert pair.chat.wait_end(90) == 5
    assert pair.follower.wait(90) == 5
    assert pair.nobody_left(LEFT_S)


def is_named(pair: Pair, text: str, seconds: float) -> None:
    began = time.monotonic()
    gone = pair.gone(began)
    busy = busyness()
    print(f"{text} Gone after {gone:.2f} s; machine {busy:.1f}")
    assert gone <= GONE_S * busy
    pair.chat.wait_for(text, seconds)
    assert pair.chat.wait_end(10) == 5
    assert pair.chat.mode == pair.chat.mode_before
    assert pair.follower.wait(15) == 5


def a_rank_killed_at_the_prompt(pair: Pair) -> None:
    pair.start(*LONG)
    pair.kill(b"chat")
    is_named(pair, "Rank 1 (hostb) was killed (SIGKILL); out of memory?", 5)
    assert "Rank 1 was killed (SIGKILL); out of memory?" in pair.said


def a_rank_killed_in_mid_reply(pair: Pair) -> None:
    pair.start(*LONG)
    pair.reply_begins()
    pair.kill(b"chat")
    is_named(pair, "Rank 1 (hostb) was killed (SIGKILL); out of memory?", 5)
    assert "› Hello there" in pair.chat.text


def a_launcher_killed_in_mid_reply(pair: Pair) -> None:
    pair.start(*LONG)
    pair.reply_begins()
    pair.kill(b"chat.start.launch")
    is_named(pair, "Contact with hostb (rank 1) was lost.", 8)


def a_stopped_rank(pair: Pair) -> None:
    pair.start(*LONG)
    (rank,) = pair.processes(pair.follower.pid, b"chat")
    os.kill(rank, signal.SIGSTOP)
    pair.chat.wait_for("Rank 1 (hostb) has not answered for ", 12)
    os.kill(rank, signal.SIGCONT)
    pair.chat.wait_for(lambda screen: "has not answered" not in screen.text, 12)
    pair.chat.say("Hello there")
    pair.chat.wait_for(lambda screen: re.search(r"block [2-9]|[1-9]\d+ tokens", screen.text) is not None)
    pair.chat.send(CTRL_C)
    pair.chat.wait_for(lambda screen: "[stopped]" in screen.text or "Stopped before" in screen.text)
    os.kill(rank, signal.SIGSTOP)
    assert pair.chat.wait_end(30) == 5
    os.kill(rank, signal.SIGKILL)
    assert pair.nobody_left(LEFT_S)


def node_0s_script_killed(pair: Pair) -> None:
    pair.start(*LONG)
    pair.reply_begins()
    pair.chat.process.kill()
    gone = pair.gone(time.monotonic())
    busy = busyness()
    print(f"node 0's script killed: gone after {gone:.2f} s; machine {busy:.1f}")
    assert gone <= GONE_S * busy
    assert pair.follower.wait(15) == 5


def is_refused(pair: Pair, code: int, *parts: str) -> None:
    pair.wait_said("serving node 0")  # the hosts have met
    met = time.monotonic()
    assert pair.chat.wait_end(READY_S) == code
    took, busy = time.monotonic() - met, busyness()
    print(f"refused {took:.1f} s after the hosts had met; machine {busy:.1f}")
    assert took <= REFUSED_S * busy
    assert pair.follower.wait(20) == code
    for said in (" ".join(pair.chat.text.split()), pair.said):
        assert not [part for part in parts if part not in said], said
    assert pair.nobody_left(LEFT_S)


def other_weights(pair: Pair) -> None:
    other = pair.folder / "other"
    shutil.copytree(pair.checkpoint, other)
    (path,) = other.rglob("model_world_size_2_rank_1.pt")
    state = torch.load(path, weights_only=False)
    for name, value in state.items():
        if name.endswith("layernorm.weight"):
            (getattr(value, "local_tensor", None) or value.to_local)().mul_(1.5)
    torch.save(state, path)
    pair.start(*LONG, wait=False, other_checkpoint=other)
    is_refused(pair, 3, "The checkpoints of the ranks differ.", "rank 0 (hosta)", "rank 1 (hostb)")


def another_dtype(pair: Pair) -> None:
    pair.start(*LONG, wait=False, other_arguments=("--dtype", "bfloat16"))
    is_refused(pair, 2, "--dtype differs between the ranks. auto on rank 0 (hosta), bfloat16 on rank 1 (hostb).")


def another_parallel(pair: Pair) -> None:
    pair.start(*LONG, wait=False, other_arguments=("--parallel", "fsdp"))
    is_refused(pair, 2, "--parallel differs between the ranks. auto on rank 0 (hosta), fsdp on rank 1 (hostb).")


def another_transformers(pair: Pair) -> None:
    # A newer one: the start script refuses what is too old.
    info = pair.folder / "newer" / "transformers-99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 99.0\n")
    pair.start(*LONG, wait=False, PYTHONPATH=str(info.parent))
    is_refused(pair, 5, "different versions of transformers.", "99.0 on rank 1 (hostb)")


CASES: list[Callable[[Pair], None]] = [
    a_conversation,
    a_conversation_by_ipv6,
    a_slow_cable,
    a_cut_cable_at_the_prompt,
    a_cut_cable_in_mid_reply,
    a_cut_cable_while_loading,
    a_rank_killed_at_the_prompt,
    a_rank_killed_in_mid_reply,
    a_launcher_killed_in_mid_reply,
    a_stopped_rank,
    node_0s_script_killed,
    other_weights,
    another_dtype,
    another_parallel,
    another_transformers,
]


@pytest.mark.drawn
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_two_hosts(tmp_path, tiny_checkpoint, case):
    with Pair(tmp_path, tiny_checkpoint("fsdp1", 2)) as pair:
        case(pair)
