"""Block refinement against the plain rule, token for token in float32; the test names read as the theorems."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from tiny_models import COMMON, FAMILIES, VOCABULARY, tiny_model

from dist.decode.cache import SequenceCache
from dist.decode.engine import Engine
from dist.errors import PromptError
from dist.group.group import SoloGroup
from dist.protocol import BlockUpdate, Control, PrefillUpdate, Reply, Turn
from dist.settings import GenerationSettings

PLACEHOLDER = 2
LIMIT = 512
GREEDY_BY_TOKEN = {"add_eos_length": 0, "refine_iter": 1}

ROUNDS = st.sampled_from([1, 2, 3, 5, "auto"])
LENGTHS = st.sampled_from([0, 1, 3, 7, 31, 127])
PROMPTS = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=300).map(tuple)
STOPS = st.sampled_from([(2,), (2, 7), (2, 5, 11, 17), tuple(range(2, 40, 3))])

many = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def engine_of():
    engines = {}

    def of(family="qwen2", seed=0):
        if (family, seed) not in engines:
            model = tiny_model(family, seed)
            engines[family, seed] = Engine(model, SoloGroup(torch.device("cpu")), max_positions=LIMIT)
        return engines[family, seed]

    return of


def events(engine, prompt, settings, stop_ids=(2,), poll=None):
    turn = Turn(prompts=(tuple(prompt),), settings=settings, placeholder=PLACEHOLDER, stop_ids=stop_ids)
    return list(engine.answer(turn, poll or (lambda: Control(settings=settings))))


def reply(engine, prompt, settings, stop_ids=(2,), poll=None) -> Reply:
    return events(engine, prompt, settings, stop_ids, poll)[-1]


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
@many
@given(data=st.data())
def test_cached_decoding_gives_the_tokens_of_the_plain_rule(engine_of, family, data):
    prompt = data.draw(PROMPTS)
    settings = GenerationSettings(
        add_eos_length=data.draw(LENGTHS),
        refine_iter=data.draw(ROUNDS),
        max_new_tokens=data.draw(st.integers(1, 40)),
        max_length=len(prompt) + data.draw(st.integers(1, 60)),
    )
    stop_ids = data.draw(STOPS)
    expected = plain_rule(tiny_model(family), prompt, settings, PLACEHOLDER, stop_ids, LIMIT)
    assert reply(engine_of(family), prompt, settings, stop_ids).token_ids == expected


@many
@given(prompt=PROMPTS, n=LENGTHS, rounds=ROUNDS, new=st.integers(1, 40), stop_ids=STOPS)
def test_the_plain_decoder_gives_the_tokens_of_the_plain_rule(engine_of, prompt, n, rounds, new, stop_ids):
    settings = GenerationSettings(add_eos_length=n, refine_iter=rounds, max_new_tokens=new, decoder="plain")
    expected = plain_rule(tiny_model(), prompt, settings, PLACEHOLDER, stop_ids, LIMIT)
    assert reply(engine_of(), prompt, settings, stop_ids).token_ids == expected


@pytest.mark.slow
@many
@given(prompt=PROMPTS, n=LENGTHS, new=st.integers(1, 60), stop_ids=STOPS)
def test_auto_equals_greedy_token_by_token_and_never_needs_more_forwards(engine_of, prompt, n, new, stop_ids):
    by_token = GenerationSettings(**GREEDY_BY_TOKEN, max_new_tokens=new)
    auto = dataclasses.replace(by_token, add_eos_length=n, refine_iter="auto")
    slow = reply(engine_of(), prompt, by_token, stop_ids)
    fast = reply(engine_of(), prompt, auto, stop_ids)
    assert fast.token_ids == slow.token_ids
    assert fast.finish == slow.finish
    assert fast.stats.forwards <= slow.stats.forwards
    assert all(fast.stats.converged)


@pytest.mark.slow
@many
@given(prompt=PROMPTS, n=st.sampled_from([3, 7, 31]))
def test_after_i_passes_the_first_i_tokens_are_greedy_and_exact_tokens_stay(engine_of, prompt, n):
    by_token = GenerationSettings(**GREEDY_BY_TOKEN, max_new_tokens=n + 1)
    greedy = reply(engine_of(), prompt, by_token, stop_ids=()).token_ids
    settings = GenerationSettings(add_eos_length=n, refine_iter=n + 1, max_new_tokens=n + 1)
    updates = [e for e in events(engine_of(), prompt, settings, ()) if isinstance(e, BlockUpdate)]
    for update in updates:
        assert update.exact >= update.iteration or update.settled
        assert update.token_ids[: update.exact] == greedy[: update.exact]
    assert updates[-1].token_ids == greedy


@many
@given(prompt=PROMPTS, n=LENGTHS, rounds=ROUNDS, room=st.integers(1, 20), new=st.integers(1, 20))
def test_budgets_are_hard(engine_of, prompt, n, rounds, room, new):
    settings = GenerationSettings(
        add_eos_length=n, refine_iter=rounds, max_new_tokens=new, max_length=len(prompt) + room
    )
    done = reply(engine_of(), prompt, settings, stop_ids=())
    assert done.finish == "length"
    assert len(done.token_ids) == min(room, new)


def test_the_models_position_limit_caps_max_length(engine_of):
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=100, max_length=8192)
    done = reply(engine_of(), [5] * (LIMIT - 10), settings, stop_ids=())
    assert (len(done.token_ids), done.finish) == (10, "length")


def test_a_prompt_without_room_for_a_reply_is_refused_with_the_numbers(engine_of):
    with pytest.raises(PromptError, match=r"600 tokens.* may have 512"):
        reply(engine_of(), [5] * 600, GenerationSettings())
    with pytest.raises(PromptError, match="empty"):
        reply(engine_of(), [], GenerationSettings())


@pytest.mark.slow
def test_forgetting_to_refresh_stale_keys_and_values_changes_replies(engine_of, monkeypatch):
    """The guarantee has teeth: a cache that trusts the finished block's stale entries fails."""

    def trusting(self, token_ids, wanted):
        length = min(len(self.token_ids), len(token_ids) - wanted)
        self.truncate(length)
        self.token_ids[:] = token_ids[:length]
        return token_ids[length:]

    rng = random.Random(0)
    prompts = [[rng.randrange(3, VOCABULARY) for _ in range(20)] for _ in range(20)]
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=40)
    expected = [plain_rule(tiny_model(), prompt, settings, PLACEHOLDER, ()) for prompt in prompts]
    assert [reply(engine_of(), prompt, settings, ()).token_ids for prompt in prompts] == expected
    monkeypatch.setattr(SequenceCache, "rewind_to_shared", trusting)
    engine = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=LIMIT)
    wrong = 0
    for prompt, right in zip(prompts, expected):
        engine.forwards.forget()
        wrong += reply(engine, prompt, settings, ()).token_ids != right
    assert wrong >= 5


def test_a_block_costs_r_forwards_and_feeds_only_what_is_stale(engine_of):
    engine = engine_of()
    fed = []
    hook = engine.module.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=32)
    done = reply(engine, list(range(3, 53)), settings, stop_ids=())
    hook.remove()
    assert done.stats.forwards == sum(done.stats.iterations) == len(fed) == 8
    first_passes, later_passes = fed[2::2], fed[1::2]
    assert all(8 <= rows <= 15 for rows in first_passes)
    assert all(rows <= 7 for rows in later_passes)


def test_a_second_turn_reads_only_what_is_new(engine_of):
    engine = engine_of()
    settings = GenerationSettings(add_eos_length=3, refine_iter="auto", max_new_tokens=12)
    first = list(range(3, 60)) * 3
    answer = reply(engine, first, settings, ())
    second = [*first, *answer.token_ids, 9, 8, 7]
    fed = []
    hook = engine.module.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    again = reply(engine, second, settings, ())
    hook.remove()
    assert fed[0] <= 3 + 2 * 4
    assert again.token_ids == plain_rule(tiny_model(), second, settings, PLACEHOLDER, ())


def test_earlier_turns_never_leak_into_a_reply(engine_of):
    """Undo, retry, an edited or shorter prompt: whatever the cache held, the tokens are those of the plain rule."""
    engine = engine_of()
    rng = random.Random(1)
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=20)
    prompt = [rng.randrange(3, VOCABULARY) for _ in range(60)]
    for _ in range(12):
        answer = reply(engine, prompt, settings)
        assert answer.token_ids == plain_rule(tiny_model(), prompt, settings, PLACEHOLDER, (2,))
        prompt = [*prompt, *answer.token_ids, *(rng.randrange(3, VOCABULARY) for _ in range(4))]
        prompt = prompt[: rng.randrange(10, len(prompt))]
        prompt[rng.randrange(len(prompt))] = rng.randrange(3, VOCABULARY)


def test_long_prompts_are_read_in_chunks_that_count_as_prefill(engine_of):
    engine = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=LIMIT, chunk=32)
    prompt = [3 + i % 50 for i in range(200)]
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=8)
    seen = events(engine, prompt, settings, ())
    progress = [(e.done, e.total) for e in seen if isinstance(e, PrefillUpdate)]
    assert progress == [(32 * (i + 1), 207) for i in range(6)][: len(progress)]
    assert seen[-1].stats.prefill_forwards == len(progress) == 6
    assert seen[-1].stats.forwards == 2
    assert seen[-1].token_ids == plain_rule(tiny_model(), prompt, settings, PLACEHOLDER, ())


def test_cancelling_stops_within_one_pass_and_keeps_finished_blocks(engine_of):
    settings = GenerationSettings(add_eos_length=3, refine_iter=3, max_new_tokens=100)
    asked = 0

    def poll():
        nonlocal asked
        asked += 1
        return Control(settings=settings, cancel=asked == 8)

    whole = reply(engine_of(), [5, 9, 11], settings, ())
    done = reply(engine_of(), [5, 9, 11], settings, (), poll)
    assert done.finish == "cancelled"
    assert done.stats.forwards == 8
    assert done.token_ids == whole.token_ids[: 4 * len(done.stats.iterations)]
    assert 0 < len(done.token_ids) <= 12


def test_cancelling_during_prefill_gives_an_empty_reply(engine_of):
    engine = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=LIMIT, chunk=16)
    settings = GenerationSettings(add_eos_length=3)
    done = reply(engine, [5] * 100, settings, (), lambda: Control(settings=settings, cancel=True))
    assert (done.finish, done.token_ids, done.stats.prefill_forwards) == ("cancelled", (), 1)


def test_new_settings_count_from_the_next_block_on(engine_of):
    before = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=20)
    after = dataclasses.replace(before, add_eos_length=7, refine_iter=1)
    prompt = [5, 9, 11]
    seen = events(engine_of(), prompt, before, (), lambda: Control(settings=after))
    sizes = [e.settled for e in seen if isinstance(e, BlockUpdate) and e.settled]
    assert sizes == [4, 8, 8]
    assert seen[-1].stats.iterations == (2, 1, 1)
    block = plain_rule(tiny_model(), prompt, dataclasses.replace(before, max_new_tokens=4), PLACEHOLDER, ())
    rest = dataclasses.replace(after, max_new_tokens=16)
    expected = block + plain_rule(tiny_model(), [*prompt, *block], rest, PLACEHOLDER, ())
    assert seen[-1].token_ids == expected


def test_a_smaller_budget_in_mid_reply_ends_it_at_the_block(engine_of):
    before = GenerationSettings(add_eos_length=7, refine_iter=1, max_new_tokens=100)
    after = dataclasses.replace(before, max_new_tokens=4)
    seen = events(engine_of(), [5, 9, 11], before, (), lambda: Control(settings=after))
    assert seen[-1].finish == "length"
    assert len(seen[-1].token_ids) == 8


def test_an_abandoned_iterator_ends_the_turn(engine_of):
    engine = engine_of()
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=50)
    turn = Turn(prompts=((5, 9, 11),), settings=settings, placeholder=PLACEHOLDER, stop_ids=())
    for _ in engine.answer(turn, lambda: Control(settings=settings)):
        break
    right = plain_rule(tiny_model(), [5, 9, 12], settings, PLACEHOLDER, ())
    assert reply(engine, [5, 9, 12], settings, ()).token_ids == right


def test_a_model_that_looks_ahead_is_decoded_by_the_plain_rule(engine_of):
    model = tiny_model("llama", seed=5)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    inner = model.model.forward

    def looking_ahead(input_ids, **kwargs):
        rows, length = input_ids.shape
        kwargs["attention_mask"] = torch.zeros(rows, 1, length, length)
        return inner(input_ids=input_ids, **kwargs)

    model.model.forward = looking_ahead
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=LIMIT)
    assert engine.slow_reason == "its attention looks ahead (it is not causal)"
    for rounds in (1, 3, "auto"):
        settings = GenerationSettings(add_eos_length=7, refine_iter=rounds, max_new_tokens=20)
        expected = plain_rule(model, [5, 9, 11], settings, PLACEHOLDER, (2,))
        assert reply(engine, [5, 9, 11], settings).token_ids == expected


def test_a_model_that_computes_nan_is_named_and_the_next_turn_works():
    model = tiny_model("llama", seed=6)
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=LIMIT)
    settings = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=8)
    right = reply(engine, [5, 9], settings)
    weight = model.lm_head.weight[3, 0].item()
    with torch.no_grad():
        model.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(PromptError, match="not a number"):
        reply(engine, [5, 9], settings)
    with torch.no_grad():
        model.lm_head.weight[3, 0] = weight
    assert reply(engine, [5, 9], settings).token_ids == right.token_ids


@pytest.mark.parametrize("rounds", ["auto", 4])
def test_trace_names_the_likeliest_tokens_of_every_place_that_was_chosen(engine_of, rounds):
    settings = GenerationSettings(add_eos_length=3, refine_iter=rounds, max_new_tokens=12)
    turn = Turn(prompts=((5, 9, 11),), settings=settings, placeholder=PLACEHOLDER, stop_ids=(), trace=True)
    before = 0  # exact since the pass before
    for event in engine_of().answer(turn, lambda: Control(settings=settings)):
        if isinstance(event, BlockUpdate):
            assert event.candidates is not None and event.candidates[:before] == ((),) * before
            assert len(event.candidates) == len(event.token_ids)
            for token, places in zip(event.token_ids[before:], event.candidates[before:]):
                assert len(places) == 3 and places[0][0] == token
                assert 1 >= places[0][1] >= places[1][1] >= places[2][1] >= 0
            before = 0 if event.settled else event.exact


def test_a_model_whose_state_cannot_be_rewound_is_decoded_by_the_plain_rule():
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, time_step_rank=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MambaForCausalLM(config).eval()
        with torch.no_grad():
            model.backbone.embeddings.weight.normal_()
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=None)
    assert engine.slow_reason is not None and "rewound" in engine.slow_reason
    for rounds in (1, 3, "auto"):
        settings = GenerationSettings(add_eos_length=7, refine_iter=rounds, max_new_tokens=20)
        expected = plain_rule(model, [5, 9, 11], settings, PLACEHOLDER, (2,))
        assert reply(engine, [5, 9, 11], settings).token_ids == expected


def test_rotary_scaling_by_length_is_decoded_by_the_plain_rule_once_it_can_matter():
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [3.0, 2.0, 5.0, 4.0],
        "original_max_position_embeddings": 64,
        "factor": 8.0,
        "rope_theta": 10000.0,
    }
    config = transformers.LlamaConfig(**COMMON, rope_scaling=scaling)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=LIMIT)
    assert engine.slow_reason is None
    for length in (20, 50, 58, 63, 80):
        settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=24)
        prompt = [3 + i % 50 for i in range(length)]
        # Blocks that straddle the limit see other frequencies in the whole block than in the cut one.
        expected = plain_rule(model, prompt, settings, PLACEHOLDER, (), LIMIT)
        assert reply(engine, prompt, settings, ()).token_ids == expected
        assert (engine.cached_tokens > 0) == (length == 20)
        engine.forwards.forget()
