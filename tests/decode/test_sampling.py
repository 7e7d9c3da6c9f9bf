"""Sampling is a deterministic map, and its distribution is the model's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from plain_rule import plain_rule
from tiny_models import tiny_model

from dist.decode.engine import Engine
from dist.decode.sampling import choose, gumbel_noise, keep_likely
from dist.group.group import SoloGroup
from dist.model.head import NOT_A_NUMBER, WholeHead
from dist.protocol import Control, Reply, Turn
from dist.settings import GenerationSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_model(), SoloGroup(CPU), max_positions=512)


def reply(engine, prompt, settings, stop_ids=(2,)) -> Reply:
    turn = Turn(prompts=(tuple(prompt),), settings=settings, placeholder=2, stop_ids=stop_ids)
    return list(engine.answer(turn, lambda: Control(settings=settings)))[-1]


def test_ties_go_to_the_lowest_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    assert choose(logits, [5, 6], GenerationSettings(), WholeHead()).tolist() == [1, 0]


def test_a_row_with_nan_chooses_no_token():
    logits = torch.tensor([[1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]])
    assert choose(logits, [1, 2], GenerationSettings(), WholeHead()).tolist() == [NOT_A_NUMBER, 2]


def test_noise_depends_on_seed_position_and_token_alone():
    whole = gumbel_noise(7, [3, 4, 5], 1000, device=CPU)
    assert torch.equal(whole[1], gumbel_noise(7, [4], 1000, device=CPU)[0])
    assert torch.equal(whole[:, 250:700], gumbel_noise(7, [3, 4, 5], 450, first_token=250, device=CPU))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, gumbel_noise(8, [3, 4, 5], 1000, device=CPU))


def test_noise_is_standard_gumbel_and_uncorrelated():
    noise = gumbel_noise(123, range(400), 5000, device=CPU).double()
    assert torch.isfinite(noise).all()
    assert abs(noise.mean().item() - 0.5772157) < 3e-3
    assert abs(noise.var().item() - math.pi**2 / 6) < 1e-2
    centred = (noise - noise.mean()) / noise.std()
    assert abs((centred[:-1] * centred[1:]).mean().item()) < 3e-3
    assert abs((centred[:, :-1] * centred[:, 1:]).mean().item()) < 3e-3


def test_filters_keep_the_likeliest():
    scores = torch.log(torch.tensor([[0.1, 0.5, 0.15, 0.25]]))
    assert keep_likely(scores, 2, 1.0).isfinite().tolist() == [[False, True, False, True]]
    assert keep_likely(scores, 0, 0.5).isfinite().tolist() == [[False, True, False, False]]
    assert keep_likely(scores, 0, 0.6).isfinite().tolist() == [[False, True, False, True]]
    assert keep_likely(scores, 0, 1e-9).isfinite().tolist() == [[False, True, False, False]]
    assert keep_likely(scores, 3, 0.95).isfinite().tolist() == [[False, True, True, True]]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (6, 1.0), (0, 0.7)])
def test_sampled_tokens_follow_the_exact_distribution(top_k, top_p):
    """Chi-square of 20,000 draws of one token against the filtered softmax; p of a false alarm 1e-4."""
    logits = torch.randn(1, 24, generator=torch.Generator().manual_seed(3)) * 1.5
    settings = GenerationSettings(temperature=0.8, top_k=top_k, top_p=top_p, seed=11)
    exact = keep_likely(logits / 0.8, top_k, top_p).softmax(-1)[0].double()
    draws = 20_000
    chosen = choose(logits.expand(draws, -1), range(draws), settings, WholeHead())
    counts = torch.bincount(chosen, minlength=24).double()
    likely = exact * draws >= 5
    assert counts[exact == 0].sum() == 0
    chi_square = ((counts - exact * draws) ** 2 / (exact * draws))[likely].sum().item()
    freedom = int(likely.sum()) - 1
    # Wilson-Hilferty: the cube root of chi-square over its freedom is nearly normal.
    z = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert z < 3.72


def test_sampling_gives_the_tokens_of_the_plain_rule(engine):
    for seed in range(6):
        for rounds in (1, 2, "auto"):
            settings = GenerationSettings(
                add_eos_length=7, refine_iter=rounds, max_new_tokens=30, temperature=0.9, top_p=0.9, seed=seed
            )
            expected = plain_rule(tiny_model(), [5, 9, 11 + seed], settings, 2, (2,))
            assert reply(engine, [5, 9, 11 + seed], settings).token_ids == expected


def test_at_auto_the_sample_is_the_same_for_every_block_size(engine):
    settings = GenerationSettings(
        add_eos_length=0, refine_iter=1, max_new_tokens=40, temperature=1.0, top_k=20, seed=4
    )
    by_token = reply(engine, [5, 9, 11], settings, ()).token_ids
    assert len(set(by_token)) > 5
    for n in (1, 3, 7, 31, 127):
        auto = dataclasses.replace(settings, add_eos_length=n, refine_iter="auto")
        assert reply(engine, [5, 9, 11], auto, ()).token_ids == by_token
    other = dataclasses.replace(settings, seed=5)
    assert reply(engine, [5, 9, 11], other, ()).token_ids != by_token
