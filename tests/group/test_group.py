"""Real gloo ranks under torchrun: same tokens on any number of them, and nobody is left alone in the loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from plain_rule import plain_rule
from ranks import results_of_forks, results_of_ranks
from ranks_engine import CHANGES, GREEDY, PROMPT, SAMPLED
from tiny_models import FAMILIES, tiny_model

from dist.group.group import SoloGroup
from dist.group.wire import order_from_bytes, order_to_bytes
from dist.protocol import Load, Shutdown, Turn
from dist.settings import GenerationSettings


@pytest.mark.drawn
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_decode_as_one(size):
    got = results_of_ranks(size, "ranks_engine.py")
    right = list(plain_rule(tiny_model(), PROMPT, GREEDY, 2, (2,)))
    assert got["size"] == size
    assert got["greedy"] == right
    assert got["sampled"] == list(plain_rule(tiny_model(), PROMPT, SAMPLED, 2, (2,)))
    assert got["long prompt"] == list(plain_rule(tiny_model(), PROMPT * 60, GREEDY, 2, (2,)))
    finish, iterations, tokens = got["cancelled"]
    assert finish == "cancelled"
    # Two passes for the first block, three for the next two: the change was live on every rank.
    assert iterations == [2, 3, 3]
    first = dataclasses.replace(GREEDY, max_new_tokens=8)
    assert tokens[:8] == list(plain_rule(tiny_model(), PROMPT, first, 2, ()))
    assert len(tokens) == 24
    assert got["after an abandoned turn"] == right
    assert "empty" in got["refused"]
    assert got["after a refused turn"] == right
    logits = tiny_model()(torch.tensor([[*PROMPT, *right[:-1]]])).logits[0, len(PROMPT) - 1 :]
    assert got["logprobs"] == pytest.approx(logits.log_softmax(dim=-1)[range(len(right)), right].tolist(), abs=1e-4)
    for name, whole in (("blocks", got["greedy"]), ("window", got["auto"])):
        assert got[f"stopped, {name}"] == ["stop", whole[: whole.index(whole[-4]) + 1]]
    assert got["heard"] == [CHANGES] * (size - 1)


@pytest.mark.drawn
@pytest.mark.parametrize("size", [2, 3])
def test_drawn_replies_of_every_family_are_those_of_the_plain_rule_on_all_ranks(size):
    assert results_of_ranks(size, "ranks_drawn.py") == {"size": size, "families": list(FAMILIES)}


@pytest.mark.parametrize(
    "order",
    [
        Turn(
            prompts=((1, 2, 3), (4,)),
            settings=GenerationSettings(refine_iter="auto", temperature=0.7, seed=2**62),
            placeholder=2,
            stop_ids=(2, 5),
            trace=True,
            row_settings=(GenerationSettings(seed=2**62), GenerationSettings(add_eos_length=0, top_p=0.5)),
        ),
        Turn(prompts=((7,),), settings=GenerationSettings(), placeholder=2, stop_ids=()),
        Load(path="/tmp/ä b", digest="0f"),
        Shutdown(),
    ],
)
def test_orders_survive_the_wire(order):
    assert order_from_bytes(order_to_bytes(order)) == order


def test_only_orders_are_read_from_the_wire():
    with pytest.raises(ValueError, match="not an order"):
        order_from_bytes(b'{"order": "Exec", "code": "1"}')


def test_a_single_process_needs_no_collectives():
    group = SoloGroup()
    assert group.gather_errors("x") == {0: "x"}
    assert (group.rank, group.size, group.smallest(5)) == (0, 1, 5)
    numbers = torch.arange(6).reshape(2, 3)
    group.sum_in_place(numbers)
    assert group.gather(numbers).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def exchanged_after_connecting(group):
    from dist.group.connection import Connection

    connection = Connection(torch.device("cpu"))
    failed = group.gather_errors(None)  # by another group meanwhile
    connection.wait()
    rows = torch.arange(4.0) * (group.rank + 1)
    group.spread_rows(rows, [0, 2, 4])
    return [failed, rows.tolist()]


def test_ranks_connect_while_they_do_something_else():
    assert results_of_forks([2], exchanged_after_connecting)[2] == [{}, [0.0, 1.0, 4.0, 6.0]]


def test_a_connection_that_cannot_be_is_reported_where_it_is_needed():
    from dist.group.connection import Connection

    with pytest.raises(ValueError, match="not been initialized"):
        Connection(torch.device("cpu")).wait()  # no group has been opened here
