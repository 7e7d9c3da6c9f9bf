"""Log-probabilities of replies: those of one plain forward over the final text, whatever rule made it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_models import FAMILIES, tiny_model

import dist.decode.engine
from dist.decode.causality import Causality
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.settings import GenerationSettings

PROMPTS = (tuple(range(3, 40)), (5, 9), (7,))
BLOCKS = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=14)
WINDOW = dataclasses.replace(BLOCKS, add_eos_length=7, refine_iter="auto")


def engine_of(family="qwen2", chunk=5):
    return Engine(tiny_model(family), SoloGroup(torch.device("cpu")), max_positions=512, chunk=chunk)


def answers(engine, prompts, settings, **more):
    turn = Turn(prompts=prompts, settings=settings, placeholder=2, stop_ids=(2,), logprobs=3, **more)
    events = list(engine.answer(turn, lambda: Control(settings=settings)))
    replies = sorted((event for event in events if isinstance(event, Reply)), key=lambda reply: reply.row)
    return replies, sum(isinstance(event, BlockUpdate) for event in events)


@torch.no_grad()
def check(model, prompt, reply):
    ids = reply.token_ids
    logits = model(torch.tensor([[*prompt, *ids[:-1]]])).logits[0, len(prompt) - 1 :]
    right = logits.float().log_softmax(dim=-1)
    top = right.topk(3, dim=-1)
    assert len(reply.logprobs) == len(ids)
    for at, (value, best) in enumerate(reply.logprobs):
        assert value == pytest.approx(right[at, ids[at]].item(), abs=1e-4)
        assert [one for _, one in best] == pytest.approx(top.values[at].tolist(), abs=1e-4)
        assert [right[at, token].item() for token, _ in best] == pytest.approx(top.values[at].tolist(), abs=1e-4)


@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_one_forward_over_the_text(family):
    for settings in (BLOCKS, WINDOW, dataclasses.replace(BLOCKS, temperature=1.0, seed=3, decoder="plain")):
        replies, _ = answers(engine_of(family), PROMPTS, settings)
        for prompt, reply in zip(PROMPTS, replies, strict=True):
            check(tiny_model(family), prompt, reply)


def test_a_reply_that_is_there_is_judged_without_a_token_being_made():
    engine = engine_of()
    (whole,), _ = answers(engine, PROMPTS[:1], WINDOW)
    cached = engine.cached_tokens
    settings = dataclasses.replace(BLOCKS, max_new_tokens=len(whole.token_ids))
    (again,), passes = answers(engine, PROMPTS[:1], settings, begun=(whole.token_ids,))
    assert passes == 0
    assert again.token_ids == whole.token_ids
    check(tiny_model(), PROMPTS[0], again)
    assert again.logprobs == whole.logprobs
    # The conversation's own keys and values are where they were.
    assert engine.cached_tokens == cached


def test_a_model_without_a_usable_cache_is_read_at_once_and_one_that_is_not_causal_gives_none(monkeypatch):
    uncached, not_causal = Causality(problem="no cache"), Causality(problem="looks ahead", causal=False)
    for probe, gives in ((uncached, True), (not_causal, False)):
        monkeypatch.setattr(dist.decode.engine, "probe_causality", lambda module, head, probe=probe: probe)
        (reply,), _ = answers(engine_of(), PROMPTS[:1], BLOCKS)
        assert (reply.logprobs is not None) == gives
        if gives:
            check(tiny_model(), PROMPTS[0], reply)
