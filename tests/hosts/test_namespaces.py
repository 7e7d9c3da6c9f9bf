"""Two hosts: network namespaces with a cable between them, host names that stand for loopback addresses.

Each case starts the whole program on both: a conversation on node 0's terminal, followers on node 1. What goes
wrong is said on both, by rank and host, and both are gone in bounded time. What dies on two hosts is in
test_deaths.py.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable

import pytest
import torch
from deaths import busyness
from namespaces import NETWORK_6, obstacle
from on_hosts import ANSWER_S, LONG, TWO_HOSTS, Run
from program import FIGURES, READY_S, replied
from pty_screen import CTRL_D

pytestmark = [pytest.mark.timeout(600)]

WHY_NOT = obstacle()
if WHY_NOT is not None:
    pytestmark.append(pytest.mark.skip(reason=WHY_NOT))

# From the meeting to a refusal, on an idle machine.
REFUSED_S = 5.0


def a_conversation(pair: Run, slow: int = 0) -> None:
    pair.talk("--max_new_tokens", "24", "--add_eos_length", "7")
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
    assert pair.follower_ends(15) == 0
    assert "Node 1 of 2 (hostb): serving node 0 (hosta, 10.231.77.1:29400) with " in pair.said
    assert pair.said.endswith("Node 0 has ended the run.\n")


def a_conversation_by_ipv6(pair: Run) -> None:
    pair.master = f"{NETWORK_6}::1"
    pair.talk("--max_new_tokens", "24", "--add_eos_length", "7")
    pair.chat.say("Hello there")
    pair.chat.wait_for(replied(), 60)
    pair.chat.send(CTRL_D)
    assert pair.chat.wait_end(15) == 0
    assert pair.follower_ends(15) == 0
    assert f"serving node 0 (hosta, {NETWORK_6}::1:29400) with " in pair.said


def a_slow_cable(pair: Run) -> None:
    a_conversation(pair, slow=50)


def is_cut_off(pair: Run) -> None:
    """After the cable is cut: a notice with rank and host, the countdown, the end on both hosts."""
    began = time.monotonic()
    pair.hosts.cut(1)
    pair.chat.wait_for("Rank 1 (hostb) has not answered for ", 12)
    assert time.monotonic() - began > 4
    assert pair.chat.wait_end(20) == 5
    assert ANSWER_S - 2 < time.monotonic() - began < 20
    assert re.search(r"Rank 1 \(hostb\) has not answered for \d+ s\.", pair.chat.text)
    assert pair.chat.mode == pair.chat.mode_before
    assert pair.follower_ends(30) == 5
    assert re.search(r"(Rank 0 \(hosta\)|Node 0) has not answered for \d+ s\.|Contact ", pair.said), pair.said
    assert pair.nobody_left()


def a_cut_cable_at_the_prompt(pair: Run) -> None:
    pair.talk(*LONG)
    is_cut_off(pair)


def a_cut_cable_in_mid_reply(pair: Run) -> None:
    pair.talk(*LONG)
    pair.reply_begins()
    is_cut_off(pair)
    assert "› Hello there" in pair.chat.text
    assert "--resume" in "".join(pair.chat.text.split())


def a_cut_cable_while_loading(pair: Run) -> None:
    pair.talk(*LONG, wait=False)
    pair.wait_said("serving node 0")
    pair.wait_for_ranks()
    # Rank 1 has met rank 0 when it has read the other's place.
    time.sleep(1.0)
    pair.hosts.cut(1)
    assert pair.chat.wait_end(90) == 5
    assert pair.follower_ends(90) == 5
    assert pair.nobody_left()


def is_refused(pair: Run, code: int, *parts: str) -> None:
    pair.wait_said("serving node 0")  # the hosts have met
    met = time.monotonic()
    assert pair.chat.wait_end(READY_S) == code
    took, busy = time.monotonic() - met, busyness()
    print(f"refused {took:.1f} s after the hosts had met; machine {busy:.1f}")
    assert took <= REFUSED_S * busy
    assert pair.follower_ends(20) == code
    for said in (" ".join(pair.chat.text.split()), pair.said):
        assert not [part for part in parts if part not in said], said
    assert pair.nobody_left()


def other_weights(pair: Run) -> None:
    other = pair.folder / "other"
    shutil.copytree(pair.checkpoint, other)
    (path,) = other.rglob("model_world_size_2_rank_1.pt")
    state = torch.load(path, weights_only=False)
    for name, value in state.items():
        if name.endswith("layernorm.weight"):
            (getattr(value, "local_tensor", None) or value.to_local)().mul_(1.5)
    torch.save(state, path)
    pair.talk(*LONG, wait=False, other_checkpoint=other)
    is_refused(pair, 3, "The checkpoints of the ranks differ.", "rank 0 (hosta)", "rank 1 (hostb)")


def another_dtype(pair: Run) -> None:
    pair.talk(*LONG, wait=False, other_arguments=("--dtype", "bfloat16"))
    is_refused(pair, 2, "--dtype differs between the ranks. auto on rank 0 (hosta), bfloat16 on rank 1 (hostb).")


def another_parallel(pair: Run) -> None:
    pair.talk(*LONG, wait=False, other_arguments=("--parallel", "fsdp"))
    is_refused(pair, 2, "--parallel differs between the ranks. auto on rank 0 (hosta), fsdp on rank 1 (hostb).")


def another_transformers(pair: Run) -> None:
    # A newer one: the start script refuses what is too old.
    info = pair.folder / "newer" / "transformers-99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 99.0\n")
    pair.talk(*LONG, wait=False, PYTHONPATH=str(info.parent))
    is_refused(pair, 5, "different versions of transformers.", "99.0 on rank 1 (hostb)")


CASES: list[Callable[[Run], None]] = [
    a_conversation,
    a_conversation_by_ipv6,
    a_slow_cable,
    a_cut_cable_at_the_prompt,
    a_cut_cable_in_mid_reply,
    a_cut_cable_while_loading,
    other_weights,
    another_dtype,
    another_parallel,
    another_transformers,
]


@pytest.mark.drawn
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_two_hosts(tmp_path, tiny_checkpoint, case):
    with Run(tmp_path, tiny_checkpoint("fsdp1", 2), TWO_HOSTS) as pair:
        case(pair)
