"""Passes at fixed widths over fixed storage, uncaptured as a CPU runs them, against the plain rule in float32."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from fixed_widths import at_fixed_widths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from tiny_models import COMMON, FAMILIES, VOCABULARY, tiny_model

from dist.decode import cuda_graphs
from dist.decode.cuda_graphs import CapturedForward, FixedWidth, capture_problem
from dist.decode.engine import Engine
from dist.decode.forward import CachedForward
from dist.decode.packed_batch import Segment
from dist.decode.planner import SequenceForward
from dist.decode.varlen import VarlenForward
from dist.errors import PromptError
from dist.group.group import SoloGroup
from dist.kernels.attention import Segments, reference_attention
from dist.model.fused_modules import EXACT
from dist.model.head import WholeHead
from dist.protocol import BlockUpdate, Control, Load, Reply, Shutdown, Turn
from dist.settings import GenerationSettings

PLACEHOLDER, LIMIT = 2, 512
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
PROMPTS = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=200).map(tuple)
many = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def engine_of(family="qwen2", seed=0, capacity=LIMIT) -> Engine:
    model = tiny_model(family, seed)
    forwards = at_fixed_widths(model, LIMIT, capacity)
    return Engine(model, SoloGroup(torch.device("cpu")), max_positions=LIMIT, forwards=forwards)


def events(engine, prompt, settings, stop_ids=(2,), trace=False, poll=None):
    turn = Turn(
        prompts=(tuple(prompt),), settings=settings, placeholder=PLACEHOLDER, stop_ids=stop_ids, trace=trace
    )
    return list(engine.answer(turn, poll or (lambda: Control(settings=settings))))


def reply(engine, prompt, settings, stop_ids=(2,)) -> Reply:
    return events(engine, prompt, settings, stop_ids)[-1]


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
@many
@given(data=st.data())
def test_fixed_widths_give_the_tokens_of_the_plain_rule_also_in_later_turns(family, data):
    engine = engine_of(family)
    prompt = data.draw(PROMPTS)
    for _ in range(2):
        settings = GenerationSettings(
            add_eos_length=data.draw(st.sampled_from([0, 1, 3, 7, 31])),
            refine_iter=data.draw(st.sampled_from([1, 2, 3, 5, "auto"])),
            max_new_tokens=data.draw(st.integers(1, 40)),
            max_length=min(LIMIT, len(prompt) + data.draw(st.integers(1, 60))),
        )
        expected = plain_rule(tiny_model(family), prompt, settings, PLACEHOLDER, (2, 7), LIMIT)
        done = reply(engine, prompt, settings, (2, 7))
        assert done.token_ids == expected
        prompt = (*prompt, *done.token_ids, *data.draw(PROMPTS))[:450]


@pytest.mark.slow
@many
@given(prompt=PROMPTS, temperature=st.sampled_from([0.0, 0.7]))
def test_sampling_and_candidates_are_those_of_the_cached_decoder(prompt, temperature):
    settings = GenerationSettings(
        add_eos_length=7, refine_iter=3, max_new_tokens=20, temperature=temperature, seed=5
    )
    plain = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=LIMIT)
    ours, theirs = (
        [event for event in events(engine, prompt, settings, trace=True) if isinstance(event, BlockUpdate)]
        for engine in (engine_of(), plain)
    )
    assert [update.token_ids for update in ours] == [update.token_ids for update in theirs]
    for one, other in zip(ours, theirs):
        assert [[i for i, _ in row] for row in one.candidates] == [[i for i, _ in row] for row in other.candidates]


def test_a_block_size_changed_in_mid_reply_is_served():
    prompt = tuple(range(3, 40))
    settings = GenerationSettings(add_eos_length=31, refine_iter=2, max_new_tokens=120)
    smaller = settings.with_value("add_eos_length", 3)

    def run(engine):
        polls = iter(range(1000))
        return events(
            engine, prompt, settings, (), poll=lambda: Control(settings=settings if next(polls) < 3 else smaller)
        )[-1].token_ids

    plain = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=LIMIT)
    assert run(engine_of()) == run(plain)


def test_rows_within_a_block_do_not_make_a_pass_as_wide_as_those_that_begin_one(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "FEW_TOKENS", 8)
    monkeypatch.setattr(cuda_graphs, "PATIENCE", 1)
    engine, settings = engine_of(), GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=64)
    prompts = [tuple(3 + (i * j) % 50 for j in range(1, 9)) for i in range(1, 9)]
    # A block of one token takes one pass: from then on rows are out of step.
    own = tuple(settings.with_value("max_new_tokens", 8 * (row % 3) + 9 + row % 2) for row in range(8))
    turn = Turn(
        prompts=tuple(prompts),
        settings=settings,
        placeholder=PLACEHOLDER,
        stop_ids=(),
        row_settings=own,
        together=4,
    )
    replies = [one for one in engine.answer(turn, lambda: Control(settings=settings)) if isinstance(one, Reply)]
    assert len(replies) == 8
    for reply in replies:
        wanted = plain_rule(tiny_model(), prompts[reply.row], own[reply.row], PLACEHOLDER, (), LIMIT)
        assert reply.token_ids == wanted
    of_four = {shape.tokens for shape in engine.forwards.batch.widths if shape[:2] == (4, 15)}
    assert of_four - {4 * 15} and of_four <= {4 * tokens for tokens in (9, 11, 13, 15)}


@pytest.mark.parametrize("count", [1, 2, 8])
def test_segments_are_padded_to_the_tokens_of_a_shape(count):
    for width, narrow, kept in ((15, 7, 8), (7, 7, 7), (31, 15, 16)):
        for needed in range(count * kept, count * width + 1):
            tokens = cuda_graphs._tokens(needed, count, width, narrow)
            assert needed <= tokens <= count * width
            lengths = [kept] * count
            for at in range(needed - sum(lengths)):
                lengths[at % count] += 1
            segments = [Segment(row, 3, [5] * length, length - kept, kept) for row, length in enumerate(lengths)]
            padded = cuda_graphs._padded(segments, cuda_graphs.Shape(count, width, kept, tokens))
            assert sum(len(one.token_ids) for one in padded) == tokens
            assert all(kept <= len(one.token_ids) <= width for one in padded)
            assert all(one.first + kept <= len(one.token_ids) for one in padded)


def test_a_batch_that_gets_smaller_is_captured_again_only_once_that_pays():
    engine, settings = engine_of(), GenerationSettings(add_eos_length=1, refine_iter=2, max_new_tokens=90)
    prompts = [tuple(3 + (i * j) % 50 for j in range(1, 9)) for i in range(1, 5)]

    def run(*lengths):
        own = tuple(settings.with_value("max_new_tokens", length) for length in lengths)
        turn = Turn(
            prompts=tuple(prompts), settings=settings, placeholder=PLACEHOLDER, stop_ids=(), row_settings=own
        )
        found = [one for one in engine.answer(turn, lambda: Control(settings=settings)) if isinstance(one, Reply)]
        for reply in found:
            wanted = plain_rule(tiny_model(), prompts[reply.row], own[reply.row], PLACEHOLDER, (), LIMIT)
            assert reply.token_ids == wanted
        return {count for count, width, *_ in engine.forwards.batch.widths if width <= 3}

    # Two and one are left for a few passes, which the pass of four makes; then for many.
    assert run(8, 8, 16, 20) == {4}
    assert run(8, 8, 16, 90) == {4, 1}


class LatePass(FixedWidth):
    """On a device that does everything only when it is waited for, as one that others use at the same time."""

    def __init__(self, seen):
        super().__init__(lambda order: seen.append(order.tolist()), WholeHead(), 2, 1, torch.device("cpu"))
        self._queue = []

    def _body(self):
        self._queue.append(lambda: self._forward(self._order.clone()))

    def _wait(self):
        for work in self._queue:
            work()
        self._queue.clear()
        super()._wait()


def test_an_order_is_not_written_over_before_the_device_has_read_it():
    """One that reads a prompt is not waited for; the next one of its size would take its tokens away."""
    seen: list[list[int]] = []
    late = LatePass(seen)
    late.run([1, 2], None)
    late.run([3, 4], None)
    late.chosen()
    late.run([5, 6], None)
    assert seen == [[1, 2], [3, 4]]  # what has been waited for is not waited for again
    late.chosen()
    assert seen == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("more", [1, 2, 8, 9])
def test_what_a_window_finds_unread_goes_through_its_width(more, monkeypatch):
    """More than its places is read in two passes of that width, not in one of another."""
    engine, settings = engine_of(), GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=20)
    prompt = tuple(range(3, 40))
    first = reply(engine, prompt, settings, ())
    other = []
    monkeypatch.setattr(VarlenForward, "_feed", lambda self, segments: other.append(segments))
    longer = (*prompt, *first.token_ids[:-1], *range(3, 3 + more))
    second = reply(engine, longer, settings, ())
    assert second.token_ids == plain_rule(tiny_model(), longer, settings, PLACEHOLDER, (), LIMIT)
    assert set(engine.forwards.alone.widths) == {(1, 8, 8, 8)} and not other
    assert second.stats.prefill_forwards == (more > 1)


def test_at_the_end_of_the_storage_nothing_is_written_past_it():
    prompt = tuple(token % 50 + 3 for token in range(LIMIT - 5))
    settings = GenerationSettings(add_eos_length=31, refine_iter=2, max_new_tokens=40)
    expected = plain_rule(tiny_model(), prompt, settings, PLACEHOLDER, (), LIMIT)
    assert reply(engine_of(), prompt, settings, ()).token_ids == expected


@pytest.mark.drawn
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_passes_for_a_family_of_causal_models(family, rows):
    forward, problem = capture_problem(tiny_model(family), WholeHead(), rows, 64, capture=False)
    assert forward is not None and problem is None


def test_the_check_finds_storage_that_gives_other_logits():
    forward = CapturedForward(tiny_model(), WholeHead(), 1, 64, capture=False)
    layer = forward.cache.layers.layers[0]
    write = layer.update
    layer.update = lambda keys, values, *more, **named: write(keys * 1.5, values, *more, **named)
    assert not forward.agrees()


def test_a_model_whose_attention_is_its_own_is_named_as_the_problem():
    config = transformers.GPTJConfig(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, bos_token_id=1, eos_token_id=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    forward, problem = capture_problem(model, WholeHead(), 1, 64, capture=False)
    assert forward is None and problem is not None


def test_attention_in_chunks_is_named_as_the_problem():
    model = copy.deepcopy(tiny_model())
    model.config.layer_types = ["chunked_attention", "full_attention"]
    assert capture_problem(model, WholeHead(), 1, 64, capture=False) == (
        None,
        "its attention is of another kind (chunked_attention)",
    )


def test_positions_that_rotary_scaling_adds_are_positions_like_others():
    config = transformers.Qwen2Config(**{**COMMON, "max_position_embeddings": 32}, rope_parameters=YARN)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=128, forwards=at_fixed_widths(model, 128))
    prompt, settings = tuple(range(3, 60)), GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=20)
    assert reply(engine, prompt, settings, ()).token_ids == plain_rule(
        model, prompt, settings, PLACEHOLDER, (), 128
    )


def test_a_reply_ends_where_the_storage_ends_whatever_limit_comes_meanwhile():
    engine = engine_of(capacity=64)
    settings = GenerationSettings(add_eos_length=7, refine_iter=1, max_new_tokens=300, max_length=60)
    longer = settings.with_value("max_length", 500)
    done = events(engine, range(3, 30), settings, (), poll=lambda: Control(settings=longer))[-1]
    assert (done.prompt_len + len(done.token_ids), done.finish) == (64, "length")


def test_a_warm_up_changes_no_reply():
    engine = engine_of()
    engine.warm_up(GenerationSettings(add_eos_length=7, max_length=100))
    # Begins as the last warm-up does.
    prompt, settings = (3, 3, *range(3, 30)), GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=20)
    assert reply(engine, prompt, settings).token_ids == plain_rule(tiny_model(), prompt, settings, 2, (2,), LIMIT)


def test_captured_passes_serve_other_weights_in_the_same_place():
    model = copy.deepcopy(tiny_model())

    class Weights:
        def swap(self, order, ready, progress):
            for name, parameter in model.named_parameters():
                parameter.data.copy_(tiny_model(seed=int(order.path)).get_parameter(name))

    orders = [Load(path="1", digest=""), Shutdown()]

    class Follower(SoloGroup):
        def receive(self):
            return orders.pop(0)

    forwards = at_fixed_widths(model, LIMIT)
    engine = Engine(
        model, Follower(torch.device("cpu")), max_positions=LIMIT, reloader=Weights(), forwards=forwards
    )
    prompt, settings = range(3, 40), GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=30)
    reply(engine, prompt, settings)
    widths = dict(engine.forwards.alone.widths)
    engine.follow()
    expected = plain_rule(tiny_model(seed=1), tuple(prompt), settings, PLACEHOLDER, (2,), LIMIT)
    assert reply(engine, prompt, settings).token_ids == expected
    assert widths and engine.forwards.alone.widths == widths


def test_on_a_cpu_a_sequence_is_decoded_eagerly():
    sequence = SequenceForward(tiny_model(), WholeHead(), SoloGroup(torch.device("cpu")), LIMIT)
    turn = Turn(prompts=((3,),), settings=GenerationSettings(), placeholder=PLACEHOLDER, stop_ids=())
    assert isinstance(sequence.for_turn(turn), CachedForward)
    assert sequence.notice is None


def test_an_exact_model_is_not_decoded_in_another_way():
    model = copy.deepcopy(tiny_model())
    setattr(model, EXACT, True)
    sequence = SequenceForward(model, WholeHead(), SoloGroup(torch.device("cpu")), LIMIT)
    turn = Turn(prompts=((3, 4),), settings=GenerationSettings(), placeholder=2, stop_ids=())
    with pytest.raises(PromptError, match="exact is not possible"):
        sequence.for_turn(turn)


def test_a_window_hides_all_but_the_last_slots():
    q, k, v = torch.randn(2, 3, 8), torch.randn(1, 12, 8), torch.randn(1, 12, 8)
    segments = Segments(torch.tensor([[0, 3, 5, 0]]), 3)
    near = reference_attention(q, k, v, segments, scale=1.0, window=2, softcap=0.0)
    k[:, :3], v[:, :3] = 9.0, 9.0
    assert torch.equal(near, reference_attention(q, k, v, segments, scale=1.0, window=2, softcap=0.0))
