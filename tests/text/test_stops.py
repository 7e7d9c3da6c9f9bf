"""Stop texts: a reply ends at the first place, whatever the passes were, and nothing beyond is given out."""

from __future__ import annotations

import dataclasses
import functools
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pieces import EOS, SPECIAL, SPECIALS, pieces_tokenizer
from plain_rule import plain_rule
from tiny_models import VOCABULARY, tiny_model

from chat.text.running_text import RunningText
from chat.text.stops import ending, first_in, held_back, reply_text, stop_finder
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.protocol import BlockUpdate, Control, Reply, Turn
from dist.settings import GenerationSettings

TOKENIZER = pieces_tokenizer()
PROMPT = st.lists(st.integers(6, VOCABULARY - 1), min_size=1, max_size=20).map(tuple)
RULES = st.sampled_from([(0, 1), (3, 2), (7, 2), (15, 3), (7, "auto"), (15, "auto"), (31, "auto")])
quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def cut_by_hand(ids, stops):
    """The shortest beginning of a reply that holds a stop text, its text up to there, and which it is."""
    for count in range(1, len(ids) + 1):
        text = TOKENIZER.decode(TOKENIZER.without_stop(ids[:count]))
        ends = [(end, stop) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
        if ends:
            end = ends[0][0]
            stop = max((stop for at, stop in ends if at == end), key=len)
            return ids[:count], text[: end - len(stop)], stop
        if ids[count - 1] == SPECIAL and "<|turn|>" in stops:
            return ids[:count], text, "<|turn|>"
    return ids, TOKENIZER.decode(TOKENIZER.without_stop(ids)), None


def drawn_stops(draw, text):
    """Some pieces of the text, so that they are found, and some that are not."""
    found = []
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(max(1, len(text)))
        found.append(text[at : at + draw.randint(1, 6)] or "x")
    return tuple(dict.fromkeys([*found, *draw.sample(["xyz", "<|turn|>", "abcabcabc"], 1)]))


def answer(engine, prompts, settings, **more):
    turn = Turn(prompts=prompts, settings=settings, placeholder=EOS, stop_ids=(EOS,), **more)
    return list(engine.answer(turn, lambda: Control(settings=settings)))


@functools.cache
def engine_of():
    group = SoloGroup(torch.device("cpu"))
    return Engine(tiny_model(), group, max_positions=512, ends=stop_finder(lambda: TOKENIZER))


@pytest.mark.slow
@settings(quick, max_examples=20)
@given(draw=st.randoms(use_true_random=False), prompts=st.lists(PROMPT, min_size=1, max_size=3), rule=RULES)
def test_a_reply_ends_where_a_stop_text_is_first_complete(draw, prompts, rule):
    n, rounds = rule
    base = GenerationSettings(
        add_eos_length=n,
        refine_iter=rounds,
        max_new_tokens=draw.choice([5, 24, 40]),
        temperature=draw.choice([0.0, 1.0]),
        seed=3,
        decoder=draw.choice(["cached", "cached", "plain"]),
    )
    plain = base if rounds != "auto" else dataclasses.replace(base, add_eos_length=0, refine_iter=1)
    whole = [plain_rule(tiny_model(), prompt, plain, EOS, (EOS,)) for prompt in prompts]
    stops = drawn_stops(draw, TOKENIZER.decode(draw.choice(whole)))
    wanted = dataclasses.replace(base, stop=stops)
    events = answer(engine_of(), tuple(prompts), wanted)
    replies = {event.row: event for event in events if isinstance(event, Reply)}
    for row, truth in enumerate(whole):
        ids, text, stop = cut_by_hand(truth, stops)
        reply = replies[row]
        assert reply.token_ids == ids
        assert reply_text(TOKENIZER, ids, stops) == text
        found = ending(TOKENIZER, ids, stops)
        assert (found and found[1]) == stop
        if stop is not None or ids[-1] == EOS:
            assert reply.finish == "stop"
        # What is given out on the way is a beginning of it.
        running = RunningText(TOKENIZER.decode, lambda text: held_back(text, stops))
        for event in events:
            if isinstance(event, BlockUpdate) and event.row == row and event.finish != "stop":
                running.extend(event.settled_ids)
                assert text.startswith(running.text)
        running.finish(ids, text)
        assert running.text == text


def test_a_stop_text_that_is_set_in_mid_reply_ends_at_the_next_place():
    settings = GenerationSettings(add_eos_length=3, refine_iter="auto", max_new_tokens=200)
    prompt = tuple(range(6, 30))
    (reply,) = [one for one in answer(engine_of(), (prompt,), settings) if isinstance(one, Reply)]
    text = TOKENIZER.decode(reply.token_ids)
    stop = next(text[at : at + 2] for at in range(len(text)) if text.count(text[at : at + 2]) > 4)
    polls = 0

    def poll():
        nonlocal polls
        polls += 1
        return Control(settings=settings if polls < 12 else dataclasses.replace(settings, stop=(stop,)))

    turn = Turn(prompts=(prompt,), settings=settings, placeholder=EOS, stop_ids=(EOS,))
    *_, last = engine_of().answer(turn, poll)
    assert isinstance(last, Reply)
    assert last.finish == "stop"
    assert last.token_ids == reply.token_ids[: len(last.token_ids)]
    cut = reply_text(TOKENIZER, last.token_ids, last.settings.stop)
    assert cut.count(stop) > 1
    assert TOKENIZER.decode(last.token_ids).startswith(cut + stop)


@pytest.mark.parametrize(
    ("text", "stops", "found"),
    [
        ("one two", ("two",), (4, "two")),
        ("abc", ("abc", "b"), (1, "b")),  # complete first
        ("abc", ("bc", "abc"), (0, "abc")),  # complete together: the longer one
        ("one", ("two",), None),
        ("one", (), None),
    ],
)
def test_of_several_stop_texts_the_one_that_is_complete_first_counts(text, stops, found):
    assert first_in(text, stops) == found


def test_what_may_begin_a_stop_text_is_held_back():
    assert held_back("so\n\nUs", ("\n\nUser:", "x")) == 4
    assert held_back("so\n\nUser:", ("\n\nUser:",)) == 0
    assert held_back("so", ()) == 0
    draw = random.Random(5)
    for _ in range(300):
        text = "".join(draw.choice("ab") for _ in range(draw.randint(0, 8)))
        stops = tuple("".join(draw.choice("ab") for _ in range(draw.randint(1, 5))) for _ in range(2))
        right = max(
            n for n in range(len(text) + 1) if not n or any(one[:n] == text[-n:] and len(one) > n for one in stops)
        )
        assert held_back(text, stops) == right


def test_special_tokens_are_those_of_the_tokenizer():
    assert SPECIALS["<|turn|>"] == SPECIAL
    assert ending(TOKENIZER, (7, SPECIAL), ("<|turn|>",)) == (TOKENIZER.decode((7,)), "<|turn|>")
