"""The setting `accept`: what is taken before it is exact, held to the rule written out naively."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_accept import plain_accept
from plain_rule import plain_rule
from test_window import FAMILIES, LENGTHS, LIMIT, PROMPT, STOPS, answers, engine_of
from tiny_models import tiny_model

from dist.decode.passes import pass_sizes
from dist.settings import GenerationSettings

quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
# Tiny random models are sure of nothing, so most of these are below what they give their first choice.
LEAST = st.sampled_from([0.002, 0.005, 0.02, 0.05, 0.7, None])


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize("family", FAMILIES)
@settings(quick, max_examples=6)
@given(data=st.data())
def test_sure_choices_are_taken_as_the_rule_says(family, data):
    prompts = data.draw(st.lists(PROMPT, min_size=1, max_size=3))
    stop_ids = data.draw(STOPS)
    all_settings = [
        GenerationSettings(
            add_eos_length=data.draw(LENGTHS),
            refine_iter=data.draw(st.sampled_from(["auto", "auto", 1, 2, 3])),
            max_new_tokens=data.draw(st.integers(1, 24)),
            max_length=data.draw(st.integers(61, 90)),
            temperature=data.draw(st.sampled_from([0.0, 0.0, 0.8])),
            seed=5,
            accept=data.draw(LEAST),
            decoder="plain" if len(prompts) == 1 and data.draw(st.booleans()) else "cached",
        )
        for _ in prompts
    ]
    engine = engine_of(family, data.draw(st.booleans()))
    right = []
    for prompt, wanted in zip(prompts, all_settings):
        if wanted.accept is None or (wanted.decoder, wanted.refine_iter) == ("plain", "auto"):
            right.append(plain_rule(tiny_model(family), prompt, wanted, 2, stop_ids, LIMIT))
        else:
            right.append(plain_accept(tiny_model(family), prompt, wanted, 2, stop_ids, LIMIT))
    for _ in range(2):  # The second time what the cache holds is the reply itself.
        _, replies = answers(engine, prompts, all_settings[0], stop_ids, row_settings=tuple(all_settings))
        assert [reply.token_ids for reply in replies] == right
        assert all(
            reply.stats.forwards <= len(reply.token_ids)
            for reply, one in zip(replies, all_settings)
            if (one.decoder, one.refine_iter) == ("cached", "auto")
        )


def test_it_takes_more_a_pass_and_never_what_was_looked_up():
    """Four tokens at once, as the method's later checkpoints are decoded, are nearly all taken of a sure model."""
    prompt = tuple(3 + at % 5 for at in range(20))
    settings = GenerationSettings(add_eos_length=3, refine_iter="auto", max_new_tokens=24)
    _, (exact,) = answers(engine_of(), [prompt], settings)
    sure = dataclasses.replace(settings, accept=1e-6)
    _, (all_taken,) = answers(engine_of(), [prompt], sure, earlier=(exact.token_ids,))
    assert all_taken.stats.accepted == (4,) * 6
    assert all_taken.stats.drafts["lookup"] == all_taken.stats.drafts["earlier"] == 0
    # What is never sure is decoded exactly, and at fixed R a block of which nothing is sure token by token.
    for rounds in ("auto", 1, 2):
        never = dataclasses.replace(settings, refine_iter=rounds, accept=1.0)
        _, (reply,) = answers(engine_of(), [prompt], never)
        assert reply.token_ids == exact.token_ids
        assert reply.stats.forwards <= 24 * (1 if rounds == "auto" else rounds)


def test_its_passes_have_the_widths_that_are_captured():
    settings = GenerationSettings(add_eos_length=7, refine_iter="auto", max_new_tokens=40, accept=0.004)
    engine = engine_of(fixed_widths=True)
    _, (reply,) = answers(engine, [tuple(range(3, 60))], settings)
    assert max(reply.stats.accepted) > 1
    assert {size[1:3] for size in engine.forwards.alone.widths} == set(pass_sizes(settings)) == {(8, 8), (15, 8)}
