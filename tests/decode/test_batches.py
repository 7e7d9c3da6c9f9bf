"""Several prompts decoded together give each the tokens that it would get alone."""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager

import pytest
import torch
import transformers
from fixed_widths import at_fixed_widths, new_forward
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from tiny_models import COMMON, FAMILIES, VOCABULARY, tiny_model

from dist.decode.batch_size import row_bytes
from dist.decode.engine import Engine
from dist.decode.passes import Pass
from dist.decode.planner import HEADROOM_BYTES, SequenceForward
from dist.decode.varlen import VarlenForward
from dist.errors import PromptError
from dist.group.group import SoloGroup
from dist.model.head import WholeHead
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.settings import GenerationSettings

PROMPT = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=60).map(tuple)


def answers(engine, prompts, settings, stop_ids=(2,), poll=None):
    turn = Turn(prompts=tuple(map(tuple, prompts)), settings=settings, placeholder=2, stop_ids=stop_ids)
    events = list(engine.answer(turn, poll or (lambda: Control(settings=settings))))
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    assert sorted(replies) == list(range(len(prompts)))
    return events, [replies[row] for row in sorted(replies)]


@contextmanager
def watched(engine):
    """The lengths of the segments of every forward over several sequences."""
    read = []

    def note(module, args, kwargs):
        if "segments" in kwargs:
            read.append(kwargs["segments"].table_S4[:, 1].tolist())

    hook = engine.module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


def engine_of(family, fixed_widths=False, **more) -> Engine:
    model = tiny_model(family)
    forwards = at_fixed_widths(model, 512) if fixed_widths else None
    return Engine(model, SoloGroup(torch.device("cpu")), max_positions=512, **{"forwards": forwards, **more})


@pytest.fixture(scope="module")
def engines():
    return {family: engine_of(family) for family in FAMILIES}


@pytest.fixture(scope="module", params=["as they come", "at fixed widths"])
def either(request):
    """Engines that decode batches in both ways."""
    return {family: engine_of(family, request.param == "at fixed widths") for family in FAMILIES}


@pytest.mark.slow
@pytest.mark.drawn
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
def test_rows_get_the_tokens_of_the_plain_rule(either, family, prompts, n, rounds, new, room, stop_ids):
    wanted = GenerationSettings(add_eos_length=n, refine_iter=rounds, max_new_tokens=new, max_length=room)
    _, replies = answers(either[family], prompts, wanted, stop_ids)
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(tiny_model(family), prompt, wanted, 2, stop_ids)
        assert reply.prompt_len == len(prompt)


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_decoded_together(family):
    assert VarlenForward(tiny_model(family), WholeHead(), 3, 64).agrees()


def test_storage_that_gives_rows_other_logits_is_found():
    forward = VarlenForward(tiny_model(), WholeHead(), 2, 64)
    layer = forward.cache.layers.layers[0]
    write = layer.update
    layer.update = lambda keys, values, *more, **named: write(keys.roll(1, 2), values, *more, **named)
    assert not forward.agrees()


def test_sampled_rows_are_those_of_each_prompt_alone(either):
    settings = GenerationSettings(
        add_eos_length=7, refine_iter=2, max_new_tokens=30, temperature=0.9, top_p=0.9, seed=5
    )
    prompts = [(5, 9, 11), (40, 7), tuple(range(3, 50))]
    _, replies = answers(either["qwen2"], prompts, settings)
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(tiny_model(), prompt, settings, 2, (2,))


def test_rows_share_forwards_and_end_each_in_its_own_time(engines):
    engine = engine_of("qwen2")
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=40)
    prompts = [(5 + i, 9, 11, 13 + 2 * i, 30 - i) for i in range(6)]
    # Makes the storage, and checks the model with it.
    answers(engine, [(50 + i,) for i in range(6)], settings)
    with watched(engine) as passes:
        events, replies = answers(engine, prompts, settings, (2, 5, 11, 17, 23))
    lengths = {len(reply.token_ids) for reply in replies}
    assert len(lengths) > 2
    # All prompts are read ahead in one forward.
    assert len(passes) == 1 + max(reply.stats.forwards for reply in replies)
    assert sum(reply.stats.forwards for reply in replies) == sum(isinstance(e, BlockUpdate) for e in events)
    # Rows that are done take no further part, and nothing is padded.
    assert len(passes[0]) == 6 > len(passes[-1])
    assert passes[0] == [4] * 6 and max(map(max, passes)) <= 7


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
def test_what_prompts_share_is_read_once(engines, family):
    common = tuple(3 + i * 7 % 50 for i in range(40))
    prompts = [(*common, 5, 9), (*common, 5, 9), (*common[:30], 8), (11, 12), (*common, 5, 9, 13), common]
    other = tuple(range(20, 60))
    engine = engines[family]
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)
    # Makes the storage.
    answers(engine, [other] * 6, settings)
    engine.forwards.forget()
    with watched(engine) as read:
        _, replies = answers(engine, prompts, settings)
        # The longest one is. Its last token is left to the first pass, and so is what fits into the widest one.
        assert read[:2] == [[42], [4, 4, 4, 5, 4, 4]]
        assert [reply.stats.prefill_forwards for reply in replies] == [0, 0, 0, 0, 1, 0]
        for prompt, reply in zip(prompts, replies):
            assert reply.token_ids == plain_rule(tiny_model(family), prompt, settings, 2, (2,))
        # In the next turn too, and prompts that share nothing are read in one forward.
        read.clear()
        again = [(*common, 7), other, other[::-1]]
        _, replies = answers(engine, again, settings)
        assert read[:2] == [[39, 39], [4, 4, 4]]
        for prompt, reply in zip(again, replies):
            assert reply.token_ids == plain_rule(tiny_model(family), prompt, settings, 2, (2,))


@pytest.mark.parametrize("chunk", [5, 7, 64, 1000])
def test_prompts_are_read_in_full_chunks(chunk):
    forward = VarlenForward(tiny_model(), WholeHead(), 4, 256)
    prompts = [[3 + i * row % 50 for i in range(length)] for row, length in enumerate((30, 1, 64, 41), start=1)]
    settings = GenerationSettings(add_eos_length=0)
    steps = [Pass(token_ids=prompt, wanted=1, settings=settings) for prompt in prompts]
    events = list(forward.prefill(range(4), steps, chunk))
    assert forward.cache.stored == [prompt[:-1] for prompt in prompts]
    assert [done for _, done, _ in events] == [min(chunk * (i + 1), 132) for i in range(len(events))]
    assert {total for *_, total in events} == {136}
    assert [row for rows, *_ in events for row in rows if row == 1] == []


def windowed_model():
    """A model whose layers tell their window to the mask only, in the newest versions of transformers."""
    config = transformers.Qwen2MoeConfig(
        **COMMON,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_a_window_that_only_the_config_tells_of_is_kept_to():
    model = windowed_model()
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=512)
    prompts = [tuple(3 + i * step % 50 for i in range(60)) for step in (7, 11)]
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=24)
    _, replies = answers(engine, prompts, settings)
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(model, prompt, settings, 2, (2,))


def test_prompts_that_cannot_be_read_together_are_answered_one_by_one_and_the_user_told():
    config = transformers.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=512)
    assert engine.slow_notice is None
    prompts, settings = [(5, 9, 11), (40, 7)], GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=9)
    _, replies = answers(engine, prompts, settings)
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(model, prompt, settings, 2, (2,))
    assert engine.slow_notice is not None and "one by one" in engine.slow_notice


def test_weights_without_numbers_leave_batches_on_for_the_next_weights():
    model = copy.deepcopy(tiny_model())
    good = copy.deepcopy(model.state_dict())
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=512)
    prompts, settings = [(5, 9, 11), (40, 7)], GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=9)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(torch.nan)
    with pytest.raises(PromptError, match="not a number"):
        answers(engine, prompts, settings)
    model.load_state_dict(good)
    engine.forwards.forget()
    with watched(engine) as read:
        _, replies = answers(engine, prompts, settings)
    assert len(read[0]) == 2
    for prompt, reply in zip(prompts, replies):
        assert reply.token_ids == plain_rule(tiny_model(), prompt, settings, 2, (2,))


def test_storage_for_batches_counts_as_room_for_batches(monkeypatch):
    engine = engine_of("qwen2")
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=20)
    total = 20 * row_bytes(engine.module, 23, 4)
    monkeypatch.setattr("dist.decode.engine.free_bytes", lambda device: total - engine.forwards.batch_bytes)
    assert engine.rows_that_fit(23, 4) == 10
    answers(engine, [(5 + i, 9) for i in range(10)], settings)
    assert engine.forwards.batch_bytes > total / 4
    assert engine.rows_that_fit(23, 4) == 10


def test_of_prompts_that_hold_each_other_the_longest_is_read_and_the_others_copied():
    talk = tuple(3 + i * 7 % 50 for i in range(240))
    engine = engine_of("qwen2")
    with watched(engine) as read:
        answers(engine, [talk[:end] for end in range(20, 241, 20)], GenerationSettings(add_eos_length=3))
    # Two forwards are the check of the model.
    assert read[2] == [239] and len(read[3]) == 12


def test_more_prompts_than_there_is_room_for_are_answered_in_parts(engines, monkeypatch):
    made = []

    def uncaptured(module, head, rows, capacity):
        made.append((rows, capacity))
        return new_forward(module, head, rows, capacity)

    model, group = tiny_model(), SoloGroup(torch.device("cpu"))
    forwards = SequenceForward(model, WholeHead(), group, 512, uncaptured=uncaptured)
    engine = engine_of("qwen2", forwards=forwards)
    need = row_bytes(engine.module, 23, 4)
    monkeypatch.setattr("dist.decode.planner.free_bytes", lambda device: HEADROOM_BYTES + 2 * need + 1)
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=20)
    prompts = [(5 + i, 9, 11) for i in range(5)]
    for _ in range(2):
        _, replies = answers(engine, prompts, settings)
        for prompt, reply in zip(prompts, replies):
            assert reply.token_ids == plain_rule(tiny_model(), prompt, settings, 2, (2,))
    assert made == [(2, 256)]


def test_cancelling_ends_every_row_with_its_finished_blocks(engines):
    settings = GenerationSettings(add_eos_length=3, refine_iter=3, max_new_tokens=60)
    asked = 0

    def poll():
        nonlocal asked
        asked += 1
        # Both prompts are read ahead in one forward, then come eight passes.
        return Control(settings=settings, cancel=asked == 9)

    prompts = [tuple(range(3, 20)), tuple(range(20, 45))]
    whole = answers(engines["qwen2"], prompts, settings, ())[1]
    stopped = answers(engines["qwen2"], prompts, settings, (), poll)[1]
    for reply, full in zip(stopped, whole):
        assert reply.finish == "cancelled"
        assert 4 <= len(reply.token_ids) <= 12
        assert reply.token_ids == full.token_ids[: len(reply.token_ids)]


def test_a_batch_leaves_the_conversations_cache_alone(engines):
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=12)
    engine = engines["llama"]
    answers(engine, [tuple(range(3, 40))], settings)
    before = engine.cached_tokens
    answers(engine, [(5, 6), (7, 8, 9)], dataclasses.replace(settings, max_new_tokens=5))
    assert engine.cached_tokens == before > 30


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_row_has_its_own_length_end_and_settings_whatever_settings_come(either, data):
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
    events = either["qwen2"].answer(turn, lambda: Control(settings=later))
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    for row, (prompt, wanted) in enumerate(zip(prompts, own)):
        assert replies[row].token_ids == plain_rule(tiny_model(), prompt, wanted, 2, (2, 5, 11))
        assert replies[row].settings == wanted


def test_a_turn_has_settings_for_every_prompt_or_none():
    with pytest.raises(ValueError, match="1 settings for 2 prompts"):
        Turn(
            prompts=((3,), (4,)),
            settings=GenerationSettings(),
            placeholder=2,
            stop_ids=(),
            row_settings=(GenerationSettings(),),
        )
