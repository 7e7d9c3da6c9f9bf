"""Whether a checkpoint is refined by two passes a block or through a window: its first block tells."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from plain_rule import plain_rule
from tiny_models import tiny_model

from chat.loading.trial import Trial, trial_turn, until_decided
from dist.decode.engine import Engine
from dist.decode.passes import pass_sizes
from dist.group.group import SoloGroup
from dist.protocol import BlockUpdate, Control
from dist.settings import GenerationSettings

DEFAULTS = GenerationSettings()
BOTH = ("refine_iter", "add_eos_length")


def updates_of(model, prompt=(5, 9, 11), settings=DEFAULTS):
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=512)
    assert engine.auto_length == 7
    turn = trial_turn(prompt, settings, 2)
    return [
        one for one in engine.answer(turn, lambda: Control(settings=turn.settings)) if isinstance(one, BlockUpdate)
    ]


def test_a_model_that_was_never_trained_for_it_is_decoded_through_a_window():
    trial = Trial.of_block(updates_of(tiny_model()), (2,))
    assert trial.of == 16 and trial.same < 12
    settings, why = trial.chosen(DEFAULTS, BOTH, 7)
    assert (settings.refine_iter, settings.add_eos_length) == ("auto", 7)
    assert why == (
        f"refine_iter auto, add_eos_length 7, measured: {trial.same} of 16 tokens of a first block were final "
        "after 2 passes, and below 80% a fixed refine_iter writes garbage."
    )


def test_a_model_whose_second_draft_stands_keeps_the_published_defaults():
    model = copy.deepcopy(tiny_model())
    with torch.no_grad():
        model.lm_head.weight.zero_()  # always the same token
    trial = Trial.of_block(updates_of(model), (2,))
    assert (trial.same, trial.of) == (16, 16)
    settings, why = trial.chosen(DEFAULTS, BOTH, 15)
    assert settings == DEFAULTS
    assert why == (
        "refine_iter 2, add_eos_length 127, measured: 16 of 16 tokens of a first block were final after 2 passes."
    )
    assert trial.chosen(DEFAULTS.with_value("add_eos_length", 3), ["refine_iter"], 15)[0].add_eos_length == 3


@pytest.mark.parametrize(("final", "early", "same", "of"), [((1,) * 16, (1,) * 13 + (0,) * 3, 13, 16)])
def test_eighty_per_cent_are_enough(final, early, same, of):
    trial = Trial.of_block([block(early, 1), block(early, 2), block(final, 3, "length")], (2,))
    assert trial == Trial(same=same, of=of)
    assert trial.chosen(DEFAULTS, BOTH, 7)[0].refine_iter == 2
    assert Trial(same=12, of=16).chosen(DEFAULTS, BOTH, 7)[0].refine_iter == "auto"


def test_a_reply_that_ends_at_once_tells_nothing_and_an_unfinished_trial_neither():
    short = Trial.of_block([block((7, 2, *range(14)), 1), block((7, 2, *range(14)), 2, "length")], (2,))
    assert short == Trial(same=2, of=2) and not short.tells
    settings, why = short.chosen(DEFAULTS, BOTH, 7)
    assert settings.refine_iter == "auto" and "for this reply" in why
    assert Trial.of_block([block((1,) * 16, 1)], ()) == Trial.of_block([], ()) == Trial(same=0, of=0)


@pytest.mark.parametrize("n", [0, 3, 15])
def test_the_trial_sees_what_two_passes_over_a_block_leave(n):
    """A window as long as the reply reads what a block's passes read, whatever N was asked for."""
    asked = GenerationSettings(add_eos_length=n, drafts="all", temperature=0.5, seed=1)
    block = dataclasses.replace(DEFAULTS, add_eos_length=15, max_new_tokens=16)
    twice, whole = (
        plain_rule(tiny_model(), (5, 9, 11), dataclasses.replace(block, refine_iter=rounds), 2, ())
        for rounds in (2, 16)
    )
    trial = Trial.of_block(updates_of(tiny_model(), settings=asked), ())
    assert trial == Trial(same=sum(a == b for a, b in zip(twice, whole)), of=16)


def test_what_is_warmed_up_before_the_trial_has_its_width():
    engine = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=512)
    likely = until_decided(DEFAULTS, BOTH, 15)
    assert pass_sizes(likely) == pass_sizes(trial_turn((5,), DEFAULTS, 2).settings) == ((16, 16),)
    assert until_decided(DEFAULTS, (), 15) == DEFAULTS
    assert until_decided(DEFAULTS, ("refine_iter",), engine.auto_length).add_eos_length == 127


def block(ids, iteration, finish=None):
    done = len(ids) if finish else 0
    return BlockUpdate(
        index=0,
        iteration=iteration,
        token_ids=tuple(ids),
        changed=(True,) * len(ids),
        exact=done,
        settled=done,
        finish=finish,
    )
