"""Several prompts decoded together give each the tokens that it would get alone."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from tiny_models import FAMILIES, VOCABULARY, tiny_model

from dist.engine import Engine
from dist.group import SoloGroup
from dist.head import WholeHead
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.ragged import decodes_together
from dist.settings import GenerationSettings

PROMPT = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=60).map(tuple)


def answers(engine, prompts, wish, stop_ids=(2,), poll=None):
    turn = Turn(prompts=tuple(map(tuple, prompts)), settings=wish, placeholder=2, stop_ids=stop_ids)
    events = list(engine.answer(turn, poll or (lambda: Control(settings=wish))))
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    assert sorted(replies) == list(range(len(prompts)))
    return events, [replies[row] for row in sorted(replies)]


@pytest.fixture(scope="module")
def engines():
    return {
        family: Engine(tiny_model(family), SoloGroup(torch.device("cpu")), max_positions=512) for family in FAMILIES
    }


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompts=st.lists(PROMPT, min_size=2, max_size=5),
    n=st.sampled_from([0, 1, 3, 7, 31]),
    rounds=st.sampled_from([1, 2, 3, "auto"]),
    new=st.integers(1, 30),
    room=st.integers(61, 80),
    stop_ids=st.sampled_from([(2,), (2, 5, 11, 17), tuple(range(2, 40, 3))]),
)
def test_rows_get_the_tokens_of_the_plain_rule(engines, family, prompts, n, rounds, new, room, stop_ids):
    wish = GenerationSettings(add_eos_length=n, refine_iter=rounds, max_new_tokens=new, max_length=room)
    _, replies = answers(engines[family], prompts, wish, stop_ids)
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(tiny_model(family), prompt, wish, 2, stop_ids)
        assert reply.prompt_len == len(prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_decoded_together(family):
    assert decodes_together(tiny_model(family), WholeHead())


def test_sampled_rows_are_those_of_each_prompt_alone(engines):
    wish = GenerationSettings(
        add_eos_length=7, refine_iter=2, max_new_tokens=30, temperature=0.9, top_p=0.9, seed=5
    )
    prompts = [(5, 9, 11), (40, 7), tuple(range(3, 50))]
    _, replies = answers(engines["qwen2"], prompts, wish)
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(tiny_model(), prompt, wish, 2, (2,))


def test_rows_share_forwards_and_end_each_in_its_own_time(engines):
    passes = []
    module = engines["qwen2"]._module
    hook = module.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    wish = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=40)
    prompts = [(5 + i, 9, 11, 13 + 2 * i, 30 - i) for i in range(6)]
    try:
        events, replies = answers(engines["qwen2"], prompts, wish, (2, 5, 11, 17, 23))
    finally:
        hook.remove()
    lengths = {len(reply.token_ids) for reply in replies}
    assert len(lengths) > 2
    decoding = [shape for shape in passes if shape[0] > 1 or shape == passes[-1]]
    assert len(decoding) <= max(reply.stats.forwards for reply in replies)
    assert sum(reply.stats.forwards for reply in replies) == sum(isinstance(e, BlockUpdate) for e in events)
    # Rows that are done take no further part.
    assert min(shape[0] for shape in decoding) < 6


@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_share_is_read_once(engines, family):
    common = tuple(3 + i * 7 % 50 for i in range(40))
    prompts = [(*common, 5, 9), (*common, 5, 9), (*common[:30], 8), (11, 12), (*common, 5, 9, 13), common]
    read = []
    hook = engines[family]._module.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    wish = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)
    engines[family]._decodes_together()
    read.clear()
    try:
        _, replies = answers(engines[family], prompts, wish)
    finally:
        hook.remove()
    ahead = itertools.takewhile(lambda shape: shape[0] == 1, read)
    # The last token of a prompt is left to the first pass.
    assert [length for _, length in ahead] == [41, 1, 1]
    assert [reply.stats.prefill_forwards for reply in replies] == [1, 0, 0, 1, 1, 0]
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(tiny_model(family), prompt, wish, 2, (2,))


def test_cancelling_ends_every_row_with_its_finished_blocks(engines):
    wish = GenerationSettings(add_eos_length=3, refine_iter=3, max_new_tokens=60)
    asked = 0

    def poll():
        nonlocal asked
        asked += 1
        # Two prompts are read ahead in one piece each, then come eight passes.
        return Control(settings=wish, cancel=asked == 10)

    prompts = [tuple(range(3, 20)), tuple(range(20, 45))]
    whole = answers(engines["qwen2"], prompts, wish, ())[1]
    stopped = answers(engines["qwen2"], prompts, wish, (), poll)[1]
    for reply, full in zip(stopped, whole):
        assert reply.finish == "cancelled"
        assert 4 <= len(reply.token_ids) <= 12
        assert reply.token_ids == full.token_ids[: len(reply.token_ids)]


def test_a_batch_leaves_the_conversations_cache_alone(engines):
    wish = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)
    engine = engines["llama"]
    answers(engine, [tuple(range(3, 40))], wish)
    before = engine.cached_tokens
    answers(engine, [(5, 6), (7, 8, 9)], dataclasses.replace(wish, max_new_tokens=5))
    assert engine.cached_tokens == before > 30


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_row_has_its_own_length_end_and_settings_whatever_settings_come(engines, data):
    prompts = tuple(data.draw(st.lists(PROMPT, min_size=2, max_size=5)))
    own = tuple(
        GenerationSettings(
            add_eos_length=data.draw(st.sampled_from([0, 1, 3, 7, 31])),
            refine_iter=data.draw(st.sampled_from([1, 2, 3, "auto"])),
            max_new_tokens=data.draw(st.integers(1, 30)),
            max_length=data.draw(st.integers(61, 80)),
            temperature=data.draw(st.sampled_from([0.0, 0.9])),
            top_p=data.draw(st.sampled_from([1.0, 0.9])),
            seed=data.draw(st.integers(0, 2**62)),
        )
        for _ in prompts
    )
    later = GenerationSettings(add_eos_length=2, refine_iter=4, seed=1)
    turn = Turn(
        prompts=prompts, settings=GenerationSettings(), placeholder=2, stop_ids=(2, 5, 11), row_settings=own
    )
    events = engines["qwen2"].answer(turn, lambda: Control(settings=later))
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    for row, (prompt, wish) in enumerate(zip(prompts, own)):
        assert replies[row].token_ids == plain_rule(tiny_model(), prompt, wish, 2, (2, 5, 11))
        assert replies[row].settings == wish


def test_a_turn_has_settings_for_every_prompt_or_none():
    with pytest.raises(ValueError, match="1 settings for 2 prompts"):
        Turn(
            prompts=((3,), (4,)),
            settings=GenerationSettings(),
            placeholder=2,
            stop_ids=(),
            row_settings=(GenerationSettings(),),
        )
