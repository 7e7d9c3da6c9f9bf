"""A reply that ends leaves its place to the next prompt's: same tokens as alone, and fewer passes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from test_batches import PROMPT, answers, either, engine_of, watched  # noqa: F401 (a fixture)
from tiny_models import FAMILIES, tiny_model

from dist.protocol import BlockUpdate, Control, PrefillUpdate, Reply, Turn
from dist.settings import GenerationSettings


def refilled(engine, prompts, settings, together, stop_ids=(2,), poll=None, own=None):
    """The events and the replies, in the order of the prompts."""
    turn = Turn(
        prompts=tuple(prompts),
        settings=settings,
        placeholder=2,
        stop_ids=stop_ids,
        row_settings=own,
        together=together,
    )
    events = list(engine.answer(turn, poll or (lambda: Control(settings=settings))))
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    assert sorted(replies) == list(range(len(prompts)))
    return events, [replies[row] for row in range(len(prompts))]


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    prompts=st.lists(PROMPT, min_size=2, max_size=8),
    together=st.sampled_from([1, 2, 3, 4]),
    n=st.sampled_from([0, 1, 3, 7, 31]),
    rounds=st.sampled_from([1, 2, 3, "auto"]),
    lengths=st.lists(st.integers(1, 30), min_size=8, max_size=8),
    temperature=st.sampled_from([0.0, 0.0, 0.9]),
    stop_ids=st.sampled_from([(2,), (2, 5, 11, 17), tuple(range(2, 40, 3))]),
)
def test_whoever_takes_whose_place_each_gets_its_own_tokens(
    either,  # noqa: F811
    family,
    prompts,
    together,
    n,
    rounds,
    lengths,
    temperature,
    stop_ids,
):
    wanted = GenerationSettings(
        add_eos_length=n, refine_iter=rounds, temperature=temperature, seed=7, max_length=100
    )
    own = tuple(
        dataclasses.replace(wanted, max_new_tokens=length, seed=7 + row)
        for row, length in enumerate(lengths[: len(prompts)])
    )
    _, replies = refilled(either[family], prompts, wanted, together, stop_ids, own=own)
    for prompt, settled, reply in zip(prompts, own, replies):
        assert reply.token_ids == plain_rule(tiny_model(family), prompt, settled, 2, stop_ids)
        assert reply.prompt_len == len(prompt)


def test_places_are_filled_as_they_get_free():
    engine = engine_of("qwen2")
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=64)
    prompts = [(5 + i, 9, 11, 13 + 2 * i, 30 - i) for i in range(12)]
    own = tuple(dataclasses.replace(settings, max_new_tokens=4 + 20 * (row % 4 == 0)) for row in range(12))
    with watched(engine) as passes:
        events, replies = refilled(engine, prompts, settings, 4, own=own)
    made = sum(reply.stats.forwards for reply in replies)
    decoding = [len(read) for read in passes if max(read) <= 7]
    assert max(decoding) == 4
    # Three long replies begin one after the other in turns of four; here two of them overlap the third.
    turn_by_turn = 3 * max(reply.stats.forwards for reply in replies)
    assert len(decoding) < 0.8 * turn_by_turn
    assert sum(decoding) >= made
    # A prompt is read when its place gets free, not before.
    first_reply = next(i for i, event in enumerate(events) if isinstance(event, Reply))
    assert any(isinstance(event, PrefillUpdate) for event in events[first_reply:])


def test_of_many_places_a_few_are_filled_together():
    engine = engine_of("qwen2")
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=64)
    prompts = [tuple(5 + (i * j) % 50 for j in range(1, 30)) for i in range(45)]
    own = tuple(dataclasses.replace(settings, max_new_tokens=4 + row % 30) for row in range(45))
    with watched(engine) as passes:
        _, replies = refilled(engine, prompts, settings, 32, stop_ids=(), own=own)
    assert [len(reply.token_ids) for reply in replies] == [4 + row % 30 for row in range(45)]
    reading = [len(read) for read in passes if max(read) > 7]
    # 13 prompts take the places of others; two at a time, but for the last one.
    assert sum(reading[1:]) >= 13
    assert len(reading[1:]) <= 7
    for row in (0, 31, 32, 44):
        assert replies[row].token_ids == plain_rule(tiny_model(), prompts[row], own[row], 2, ())


def test_a_place_that_gets_free_within_the_blocks_of_others_is_filled_when_they_begin_the_next():
    engine = engine_of("qwen2")
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=40)
    prompts = [tuple(5 + (i * j) % 50 for j in range(1, 30)) for i in range(1, 9)]
    # A last block of one token takes one pass in place of two.
    own = tuple(dataclasses.replace(settings, max_new_tokens=(40, 5, 9, 13)[row % 4]) for row in range(8))
    events, replies = refilled(engine, prompts, settings, 4, stop_ids=(), own=own)
    assert [len(reply.token_ids) for reply in replies] == [(40, 5, 9, 13)[row % 4] for row in range(8)]
    passes = [{}]
    for update in (event for event in events if isinstance(event, BlockUpdate)):
        if update.row in passes[-1]:
            passes.append({})
        passes[-1][update.row] = update.iteration
    assert sum(len(one) > 1 for one in passes) > 10
    assert all(len(set(one.values())) == 1 for one in passes)
    for row in (1, 4, 5, 7):
        assert replies[row].token_ids == plain_rule(tiny_model(), prompts[row], own[row], 2, ())


def test_a_prompt_that_begins_like_a_running_one_is_not_read_again():
    engine = engine_of("qwen2")
    common = tuple(3 + i * 7 % 50 for i in range(60))
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=40)
    prompts = [(*common, 5, 9), (11, 12), (*common, 7, 8, 9)]
    own = tuple(dataclasses.replace(settings, max_new_tokens=length) for length in (40, 4, 8))
    with watched(engine) as passes:
        _, replies = refilled(engine, prompts, settings, 2, own=own)
    assert sum(max(read) > 8 for read in passes) == 1
    for prompt, settled, reply in zip(prompts, own, replies):
        assert reply.token_ids == plain_rule(tiny_model(), prompt, settled, 2, (2,))


def test_a_cancelled_turn_gives_every_prompt_a_reply_with_what_is_finished():
    engine = engine_of("qwen2")
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=16)
    prompts = [(5 + i, 9, 11) for i in range(7)]
    whole = [plain_rule(tiny_model(), prompt, settings, 2, ()) for prompt in prompts]
    for at in (0, 3, 9, 13):
        asked = iter(range(100))
        poll = lambda asked=asked, at=at: Control(settings=settings, cancel=next(asked) >= at)  # noqa: E731
        _, replies = refilled(engine, prompts, settings, 2, stop_ids=(), poll=poll)
        for reply, tokens in zip(replies, whole):
            assert reply.token_ids == tokens[: len(reply.token_ids)]
            assert (reply.finish == "cancelled") == (len(reply.token_ids) < 16)
        assert [reply.token_ids for reply in replies[4:]] == [()] * 3
    assert [reply.token_ids for reply in answers(engine, prompts, settings, ())[1]] == whole
