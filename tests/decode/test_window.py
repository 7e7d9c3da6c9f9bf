"""`auto` through a window: whatever is drafted, the reply is the one token by token, in no more passes."""

from __future__ import annotations

import dataclasses
import hashlib
import random

import pytest
import torch
import transformers
from fixed_widths import at_fixed_widths
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_rule import plain_rule
from tiny_models import FAMILIES, VOCABULARY, tiny_model

from dist.decode.drafts import Drafts, EarlierReply, LookUp, drafts_for
from dist.decode.engine import Engine
from dist.decode.rule import Refinement
from dist.group.group import SoloGroup
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.settings import GenerationSettings

PLACEHOLDER, LIMIT = 2, 512
STOPS = st.sampled_from([(), (2,), (2, 7), (2, 5, 11, 17), tuple(range(2, 40, 3))])
LENGTHS = st.sampled_from([0, 1, 2, 3, 7, 15, 31])
PROMPT = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=60).map(tuple)
quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class Drafter:
    """Drafts of one kind; `truth` is the reply token by token, which only the test knows."""

    def __init__(self, kind: str, prompt_len: int, truth: tuple[int, ...], stop_ids: tuple[int, ...] = ()) -> None:
        self.kind, self.prompt_len, self.truth, self.stop_ids = kind, prompt_len, truth, stop_ids or (2,)
        self.accepted: dict[str, int] = {}

    def draft(self, text, tail, size, *, own=False):
        draw = random.Random(f"{self.kind} {len(text)} {text[-1]}")
        coming = self.truth[len(text) - self.prompt_len :]
        kind = draw.choice(KINDS[:-1]) if self.kind == "another one every time" else self.kind
        if kind == "the true reply":
            return coming
        if kind == "the true reply but for one token":
            return [(token + 1) % VOCABULARY if draw.random() < 0.2 else token for token in coming]
        if kind == "always wrong":
            return [(token + 1) % VOCABULARY for token in coming]
        if kind == "random":
            return [draw.randrange(VOCABULARY) for _ in range(draw.randrange(2 * size))]
        if kind == "stop ids":
            return [draw.choice(self.stop_ids) for _ in range(size)]
        if kind == "ids out of range":
            return [*coming[:1], draw.choice([-1, -5, VOCABULARY, 1 << 40]), *coming[2:]]
        return tail if kind == "own tail" else ()

    def judge(self, accepted):
        assert accepted >= 0


LOOKED_UP, EARLIER = "looked up", "an earlier reply with tokens dropped and doubled"
KINDS = (
    "own tail",
    "the true reply",
    "the true reply but for one token",
    "always wrong",
    "random",
    "stop ids",
    "ids out of range",
    "nothing",
    "another one every time",
)


def drafter_of(kind, prompt, truth, stop_ids, draw):
    if kind not in (LOOKED_UP, EARLIER):
        return Drafter(kind, len(prompt), truth, stop_ids)
    earlier = [token for token in truth if draw.random() < 0.9 for token in [token] * draw.choice([1, 1, 1, 1, 2])]
    more = {"earlier": EarlierReply(earlier, len(prompt))} if kind == EARLIER else {}
    return Drafts({"lookup": LookUp(), **more})


def engine_of(family="qwen2", fixed_widths=False, drafts=None) -> Engine:
    return Engine(
        tiny_model(family),
        SoloGroup(torch.device("cpu")),
        max_positions=LIMIT,
        drafts=drafts or drafts_for,
        forwards=at_fixed_widths(tiny_model(family), LIMIT, LIMIT + 64) if fixed_widths else None,
    )


def by_token(settings: GenerationSettings, **changes) -> GenerationSettings:
    return dataclasses.replace(settings, add_eos_length=0, refine_iter=1, **changes)


def answers(engine, prompts, settings, stop_ids=(), poll=None, **more):
    turn = Turn(prompts=tuple(map(tuple, prompts)), settings=settings, placeholder=2, stop_ids=stop_ids, **more)
    events = list(engine.answer(turn, poll or (lambda: Control(settings=settings))))
    replies = sorted((event for event in events if isinstance(event, Reply)), key=lambda reply: reply.row)
    return [event for event in events if isinstance(event, BlockUpdate)], replies


# The rule alone, over a model that is a hash: thousands of replies in seconds.


def hashed(token_ids, salt, spread) -> int:
    """A next token that depends on the last `spread` tokens."""
    digest = hashlib.blake2b(f"{salt} {token_ids[-spread:]}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 23


def hash_reply(prompt, count, stop_ids, salt, spread):
    text = list(prompt)
    while len(text) - len(prompt) < count:
        text.append(hashed(text, salt, spread))
        if text[-1] in stop_ids:
            break
    return tuple(text[len(prompt) :])


@pytest.mark.slow
@settings(quick, max_examples=400)
@given(
    draw=st.randoms(use_true_random=False),
    kind=st.sampled_from((*KINDS, LOOKED_UP, EARLIER)),
    n=LENGTHS,
    new=st.integers(1, 80),
    room=st.integers(1, 90),
    stop_ids=STOPS,
)
def test_whatever_is_drafted_the_reply_is_that_token_by_token_in_no_more_passes(draw, kind, n, new, room, stop_ids):
    salt, spread = draw.random(), draw.choice([1, 2, 5, 100])
    prompt = [draw.randrange(23) for _ in range(draw.randrange(1, 9))]
    truth = hash_reply(prompt, min(new, room), stop_ids, salt, spread)
    wanted = GenerationSettings(
        add_eos_length=n, refine_iter="auto", max_new_tokens=new, max_length=len(prompt) + room
    )
    rule = Refinement(
        prompt,
        wanted,
        placeholder=2,
        stop_ids=stop_ids,
        limit=10**6,
        vocabulary=VOCABULARY,
        drafts=drafter_of(kind, prompt, truth, stop_ids, draw),
    )
    accepted: list[int] = []
    while rule.finish is None:
        step = rule.next_pass()
        known = (*prompt, *rule.token_ids)
        assert tuple(step.token_ids[: len(known)]) == known
        assert step.wanted <= n + 1 and len(step.token_ids) == len(known) + step.wanted - 1
        assert len(step.token_ids) < wanted.max_length and all(0 <= token < VOCABULARY for token in step.token_ids)
        choices = [hashed(step.token_ids[:place], salt, spread) for place in step.positions]
        update = rule.accept(choices, wanted)
        assert 1 <= update.settled == update.exact <= n + 1
        assert update.token_ids[: update.settled] == rule.token_ids[-update.settled :]
        accepted.append(update.settled)
    assert rule.token_ids == truth
    assert rule.finish == ("stop" if truth[-1] in stop_ids else "length")
    assert sum(accepted) == len(truth) and len(accepted) <= len(truth)
    if kind == "the true reply":
        assert len(accepted) == -(-len(truth) // (n + 1))


# The rule with real models.


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
@settings(quick, max_examples=4)
@given(data=st.data())
def test_drawn_drafters_change_no_reply_of_any_family(family, data):
    prompts = data.draw(st.lists(PROMPT, min_size=1, max_size=3))
    wanted = GenerationSettings(
        add_eos_length=data.draw(LENGTHS),
        refine_iter="auto",
        max_new_tokens=data.draw(st.integers(1, 24)),
        max_length=data.draw(st.integers(61, 90)),
        temperature=data.draw(st.sampled_from([0.0, 0.0, 0.8])),
        top_p=data.draw(st.sampled_from([1.0, 0.9])),
        seed=5,
    )
    stop_ids, kind = data.draw(STOPS), data.draw(st.sampled_from(KINDS))
    truths = [plain_rule(tiny_model(family), one, by_token(wanted), 2, stop_ids, LIMIT) for one in prompts]
    engine = engine_of(
        family,
        data.draw(st.booleans()),
        lambda turn, row: Drafter(kind, len(turn.prompts[row]), truths[row], stop_ids),
    )
    for _ in range(2):  # The second time what the cache holds is the reply itself.
        _, replies = answers(engine, prompts, wanted, stop_ids)
        assert [reply.token_ids for reply in replies] == truths
        for reply, truth in zip(replies, truths):
            assert reply.stats.forwards == len(reply.stats.accepted) <= len(truth)
            if kind == "the true reply":
                assert reply.stats.forwards == -(-len(truth) // (wanted.add_eos_length + 1))


@settings(quick, max_examples=6)
@given(data=st.data())
def test_settings_that_change_in_mid_reply_count_from_the_next_window_or_block_on(data):
    def drawn():
        return GenerationSettings(
            add_eos_length=data.draw(LENGTHS),
            refine_iter=data.draw(st.sampled_from(["auto", "auto", 1, 2, 3])),
            max_new_tokens=data.draw(st.integers(10, 30)),
            temperature=data.draw(st.sampled_from([0.0, 0.8])),
            seed=data.draw(st.integers(0, 3)),
        )

    prompt, kind, now = data.draw(PROMPT), data.draw(st.sampled_from(KINDS)), drawn()
    model = tiny_model("llama")
    engine = engine_of(
        "llama", data.draw(st.booleans()), lambda turn, row: Drafter(kind, len(turn.prompts[row]), (3, 4, 5) * 20)
    )
    came = [now]

    def poll():
        came.append(drawn() if data.draw(st.integers(0, 3)) == 0 else came[-1])
        return Control(settings=came[-1])

    turn = Turn(prompts=(prompt,), settings=now, placeholder=2, stop_ids=(2, 7))
    text = prompt
    for event in engine.answer(turn, poll):
        if isinstance(event, BlockUpdate) and event.settled:
            under = by_token(now) if now.refine_iter == "auto" else now
            under = dataclasses.replace(under, max_new_tokens=event.settled)
            made = event.token_ids[: event.settled]
            assert made == plain_rule(model, text, under, 2, (2, 7), LIMIT)
            text, now = (*text, *made), came[-1]
    assert isinstance(event, Reply) and (*prompt, *event.token_ids) == text


def test_recorded_changes_come_into_force_at_their_places():
    """As a replay needs them, whatever passes the reply is made in."""
    before = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=30)
    warm = dataclasses.replace(before, temperature=0.9, seed=4)
    blocks = dataclasses.replace(warm, add_eos_length=3, refine_iter=2)
    prompt = (5, 9, 11)
    text = prompt
    for under, end in ((by_token(before), 5), (by_token(warm), 17), (blocks, 30)):
        count = end - (len(text) - len(prompt))
        text += plain_rule(tiny_model(), text, dataclasses.replace(under, max_new_tokens=count), 2, ())
    changes = (((5, warm), (17, blocks)),)
    _, (reply,) = answers(engine_of(), [prompt], before, changes=changes)
    assert (*prompt, *reply.token_ids) == text
    assert reply.settings == blocks and sum(reply.stats.accepted) == 17 and reply.stats.iterations


def test_a_window_has_one_width_and_reads_no_token_twice():
    engine, settings = engine_of(fixed_widths=True), GenerationSettings(add_eos_length=7, refine_iter="auto")
    prompt = tuple(3 + i * 7 % 50 for i in range(60))
    _, (reply,) = answers(engine, [prompt], dataclasses.replace(settings, max_new_tokens=40))
    assert len(set(reply.stats.accepted)) > 1
    assert set(engine.forwards.alone.widths) == {(1, 8, 8, 8)}
    # As it comes: one token of the text, then the draft.
    engine, read = engine_of(), []
    hook = engine.module.register_forward_pre_hook(
        lambda module, args, named: read.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    _, (reply,) = answers(engine, [prompt], dataclasses.replace(settings, max_new_tokens=40))
    hook.remove()  # the model is shared with other tests
    assert read[0] == 60 + 7 and max(read[1:]) == 8 and len(read) == reply.stats.forwards


def test_cancelling_keeps_every_exact_token():
    settings = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=60)
    truth = plain_rule(tiny_model(), (5, 9, 11), by_token(settings), 2, ())
    polls = iter(range(100))
    _, (reply,) = answers(
        engine_of(), [(5, 9, 11)], settings, poll=lambda: Control(settings=settings, cancel=next(polls) == 3)
    )
    assert (reply.finish, reply.stats.forwards, len(reply.stats.accepted)) == ("cancelled", 4, 4)
    assert reply.token_ids == truth[: sum(reply.stats.accepted)]


def test_a_causal_model_whose_cache_cannot_be_rewound_is_decoded_through_a_window_too():
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
    settings = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=30)
    _, (reply,) = answers(engine, [(5, 9, 11)], settings)
    assert reply.token_ids == plain_rule(model, (5, 9, 11), by_token(settings), 2, ())
    assert reply.stats.forwards == len(reply.stats.accepted) <= 30


def test_an_earlier_reply_costs_few_passes_and_is_counted_as_what_gave_the_tokens():
    settings = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=40)
    prompt = tuple(3 + i * 7 % 50 for i in range(30))
    _, (first,) = answers(engine_of(), [prompt], settings)
    _, (again,) = answers(engine_of(), [prompt], settings, earlier=(first.token_ids,))
    assert again.token_ids == first.token_ids and again.stats.forwards == 5
    assert again.stats.drafts == {"own": 0, "lookup": 0, "earlier": 35}
    # A reply of other weights helps as far as it goes, and changes nothing.
    other = (*first.token_ids[:20], 5, *first.token_ids[22:])
    _, (near,) = answers(engine_of(), [prompt], settings, earlier=(other,))
    assert near.token_ids == first.token_ids and near.stats.forwards <= 12
    _, (own,) = answers(engine_of(), [prompt], dataclasses.replace(settings, drafts="own"), earlier=(other,))
    assert own.token_ids == first.token_ids and set(own.stats.drafts) == {"own", "lookup", "earlier"}
    assert own.stats.drafts["lookup"] == own.stats.drafts["earlier"] == 0
