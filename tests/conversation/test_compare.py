"""Comparisons: what counts as agreement, and how figures and texts stand on the screen."""

from __future__ import annotations

import pytest

from chat.screen.compare_lines import compared
from chat.screen.palette import Palette
from chat.text.agreement import GREEDY, Compared, agreement, first_difference, judged
from dist.protocol import Reply, ReplyStats
from dist.settings import GenerationSettings

PLAIN = Palette(ink="none", ascii=True)


def a_reply(ids, finish="stop"):
    stats = ReplyStats(
        forwards=4,
        prefill_forwards=0,
        iterations=(2, 2),
        converged=(True, False),
        ttft_s=0.1,
        decode_s=1.25,
        tokens=len(ids),
    )
    return Reply(prompt_len=5, token_ids=tuple(ids), finish=finish, settings=GenerationSettings(), stats=stats)


@pytest.mark.parametrize(
    ("ids", "finish", "expected"),
    [
        ([1, 2, 3, 0], "stop", (4, 4)),
        ([1, 9, 3, 0], "stop", (3, 4)),
        ([1, 2, 0], "stop", (2, 4)),
        ([1, 2, 3, 4, 5, 0], "stop", (3, 6)),
        ([1, 2], "length", (2, 2)),
        ([2, 1], "length", (0, 2)),
        ([1, 2, 3, 4, 5], "length", (3, 5)),
    ],
)
def test_agreement_counts_equal_places_and_what_was_cut_off_not_at_all(ids, finish, expected):
    assert agreement(a_reply(ids, finish), a_reply([1, 2, 3, 0])) == expected


def test_without_the_greedy_reply_nothing_is_judged():
    (one,) = judged({"a 1": a_reply([1])}, lambda ids, stops: str(ids))
    assert (one.agreeing, one.judged) == (None, 0)
    first, last = judged({"a 1": a_reply([1, 2]), GREEDY: a_reply([1, 3])}, lambda ids, stops: str(ids))
    assert (first.agreeing, last.agreeing) == (1, 2)


def replies(*texts):
    return [
        Compared(label=f"refine_iter {at}", reply=a_reply([1] * 3), text=text, agreeing=2, judged=3)
        for at, text in enumerate(texts, 1)
    ]


def test_figures_stand_in_a_table_and_equal_texts_below_are_shown_once():
    shown = compared(replies("One\ntwo", "Three", "One\ntwo"), PLAIN, 80)
    assert shown == (
        "                    tokens  passes  a pass  seconds  as greedy       differs\n"
        "  1  refine_iter 1  3       4       0.8     1.25     66.6 %, 2 of 3  -\n"
        "  2  refine_iter 2  3       4       0.8     1.25     66.6 %, 2 of 3  -\n"
        "  3  refine_iter 3  3       4       0.8     1.25     66.6 %, 2 of 3  -\n"
        "\n"
        "1 refine_iter 1 / 3 refine_iter 3\n"
        "One\n"
        "two\n"
        "\n"
        "2 refine_iter 2\n"
        "Three\n"
        "\n"
    )


def test_on_a_wide_terminal_texts_stand_side_by_side_within_its_width():
    shown = compared(replies("word " * 30, "\u26f5" * 40, "Short"), PLAIN, 120)
    lines = shown.splitlines()[5:]
    assert lines[0].split() == ["1", "refine_iter", "1", "2", "refine_iter", "2", "3", "refine_iter", "3"]
    assert lines[1].split()[-1] == "Short"
    assert lines[1].startswith("word word")
    assert "".join(lines).count("\u26f5") == 40
    assert "".join(lines).count("word") == 30
    assert all(len(line) + line.count("\u26f5") < 120 for line in lines)
    narrow = compared(replies("word " * 30, "Other", "Short"), PLAIN, 119)
    assert "\n2 refine_iter 2\nOther\n" in narrow


def test_control_characters_of_a_reply_are_never_sent():
    for width in (80, 200):
        assert "\x1b]" not in compared(replies("a\x1b]0;b", "c"), PLAIN, width)


@pytest.mark.parametrize(
    ("ids", "finish", "expected"),
    [
        ([1, 2, 3, 0], "stop", None),
        ([1, 9, 3, 0], "stop", 1),
        ([1, 2, 0], "stop", 2),
        ([1, 2, 3, 0, 5], "stop", 4),
        ([1, 2], "length", None),
        ([2, 1], "length", 0),
    ],
)
def test_the_first_difference_from_greedy_is_found(ids, finish, expected):
    assert first_difference(a_reply(ids, finish), a_reply([1, 2, 3, 0])) == expected


def test_the_first_difference_is_marked_in_each_text():
    words = {1: "The", 2: " sky", 3: " is", 4: " blue", 5: " green", 0: ""}

    def text(ids, stops):
        return "".join(words[one] for one in ids)

    made = list(judged({"a 1": a_reply([1, 2, 3, 5, 0]), GREEDY: a_reply([1, 2, 3, 4, 0])}, text))
    shown = compared(made, PLAIN, 80)
    assert "80.0 %, 4 of 5   token 4\n" in shown
    assert "\n1 a 1\nThe sky is>> green\n" in shown
    assert "\nThe sky is blue\n" in shown
    assert "The sky is\x1b[4m green\x1b[0m\n" in compared(made, Palette(ink="mono"), 80)
