"""Where two checkpoints' replies diverge, in a sentence; and when that cannot be said."""

from __future__ import annotations

import dataclasses
import math

import pytest

from chat.conversation.divergence import Margins, divergence
from chat.sessions.nodes import Change, Made
from chat.sessions.records import CheckpointRecord, TurnRecord
from dist.protocol import BlockUpdate

WORDS = ["", " and", " the", " sea", " a", " lake", " end", " here", " now"]
SETTINGS = {"refine_iter": "auto", "temperature": 0.0, "top_k": 0, "top_p": 1.0}


def decode(ids):
    return "".join(WORDS[one] for one in ids)


def made(ids, step=100, finish="stop", changes=(), seed=1, prompt="abc", **settings):
    turn = TurnRecord(
        id=2, message=1, time=0.0, settings={**SETTINGS, **settings}, seed=seed, prompt_len=9, prompt=prompt
    )
    checkpoint = CheckpointRecord(time=0.0, path="/run", step=step, digest=str(step))
    return Made(turn=turn, checkpoint=checkpoint, finish=finish, token_ids=tuple(ids), changes=changes)


def test_the_place_and_the_words_of_both_are_named():
    said = divergence(made([1, 2, 3, 6, 7, 8]), made([1, 4, 5, 6, 7, 8], step=200), decode)
    assert said == (
        'The same as the reply of step 100 for 1 token, then "a lake end here" in the place of "the sea end here".'
    )


def test_equal_replies_and_one_that_was_cut_are_the_same():
    assert divergence(made([1, 2]), made([1, 2], step=200), decode) == (
        "The same as the reply of step 100, in all 2 tokens."
    )
    assert divergence(made([1, 2, 3], finish="length"), made([1, 2], step=200), decode) == (
        "The same as the reply of step 100, in the 2 tokens that both have."
    )


def test_in_16_bits_the_margin_stands_beside_it():
    margins = Margins()
    for ids, settled in (((1, 4, 5), 1), ((4, 5, 6), 3)):
        places = tuple(((one, 0.6), (one + 1, 0.3)) for one in ids)
        margins.take(
            BlockUpdate(
                index=None,
                iteration=1,
                token_ids=ids,
                changed=(True,) * 3,
                exact=settled,
                settled=settled,
                candidates=places,
            )
        )
    assert margins.at(3) == pytest.approx(math.log(2)) and margins.at(4) is None
    said = divergence(made([1, 2]), made([1, 4, 5, 6], step=200), decode, margins)
    assert said.endswith(" The top-2 margin there is 0.69 logits, and 16 bits round.")


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ({"prompt": "other"}, "their prompts differ."),
        ({"refine_iter": 2}, "both must be made at refine_iter auto."),
        ({"temperature": 0.5}, "temperature was 0.5 and is 0.0."),
        ({"changes": (Change(at=1, name="refine_iter", value=2),)}, "settings changed while one of them was made."),
    ],
)
def test_what_cannot_be_compared_is_said(before, why):
    said = divergence(made([1], **before), made([1], step=200), decode)
    assert said == f"Not comparable with the reply of step 100: {why}"


def test_a_seed_counts_where_there_is_sampling():
    before, now = made([1], seed=7, temperature=0.5), made([1], step=200, seed=8, temperature=0.5)
    assert "the seed was 7 and is 8 (/seed 7 uses it again)" in divergence(before, now, decode)
    again = dataclasses.replace(now, turn=dataclasses.replace(now.turn, seed=7))
    assert divergence(before, again, decode).startswith("The same")


def test_the_same_weights_are_compared_at_any_refinement_that_is_the_same():
    fixed = {"refine_iter": 2, "add_eos_length": 7}
    assert divergence(made([1, 2], **fixed), made([1, 2], **fixed), decode) == (
        "The same as the reply of step 100, in all 2 tokens."
    )
    said = divergence(made([1, 2], **fixed), made([1, 2], refine_iter=3, add_eos_length=7), decode)
    assert said == "Not comparable with the reply of step 100: refine_iter was 2 and is 3."
