"""The trace of a reply: what a pass changed and what is exact can be seen at a glance, on any terminal."""

from __future__ import annotations

import pytest

from chat.screen.palette import Palette
from chat.screen.trace_lines import new_trace, pass_lines
from chat.text.trace import Trace
from dist.protocol import BlockUpdate

WORDS = ("", "The", " capital", " of", " France", " is", "\n", "\u26f5")
END = 0


def decode(ids):
    return "".join(WORDS[one] for one in ids)


def update(ids, changed, exact, *, index=0, iteration=1, done=False, candidates=None):
    return BlockUpdate(
        index=index,
        iteration=iteration,
        token_ids=tuple(ids),
        changed=tuple(at in changed for at in range(len(ids))),
        exact=exact,
        settled=len(ids) if done else 0,
        candidates=candidates,
    )


def test_a_line_shows_what_is_exact_what_changed_and_what_is_not_filled():
    trace = Trace(decode)
    trace.take(update([1, 2, 3, END, 6], {2, 3}, 2, iteration=3))
    assert trace.last_line() == "block 1, pass 3, 2 of 5 exact: The capital│[ of░]\\n"
    trace.take(update([1, 2, 3, 4, 6], {3}, 5, iteration=4, done=True))
    assert trace.last_line() == "block 1, pass 4, 5 of 5 exact: The capital of[ France]\\n"
    trace.take(update([END, 5], {1}, 0, index=1))
    assert trace.last_line() == "block 2, pass 1, 0 of 2 exact: ░[ is]"


@pytest.mark.parametrize(
    ("palette", "line"),
    [
        (Palette(ink="none"), "block 1, pass 1, 1 of 4 exact: The│[ capital]░ of\n"),
        (Palette(ink="none", ascii=True), "block 1, pass 1, 1 of 4 exact: The|[ capital]. of\n"),
        (
            Palette(ink="mono", ascii=True),
            "\x1b[2mblock 1, pass 1, 1 of 4 exact: \x1b[0mThe\x1b[2m|\x1b[0m"
            "\x1b[4m capital\x1b[0m\x1b[2m.\x1b[0m of\n",
        ),
        (
            Palette(ink="color"),
            "\x1b[90mblock 1, pass 1, 1 of 4 exact: \x1b[0mThe\x1b[90m│\x1b[0m"
            "\x1b[35m capital\x1b[0m\x1b[90m░\x1b[0m of\n",
        ),
    ],
)
def test_without_colour_the_change_is_underlined_without_any_code_bracketed(palette, line):
    trace = new_trace(decode, palette)
    trace.take(update([1, 2, END, 3], {1}, 1))
    assert pass_lines(trace, palette, 80, top=False) == line


def test_a_long_block_wraps_within_the_width_and_shows_the_end_of_what_is_exact():
    palette = Palette(ink="none", ascii=True)
    trace = new_trace(decode, palette)
    trace.take(update([1, *[2] * 20, *[3] * 20], set(range(21, 41)), 21))
    lines = pass_lines(trace, palette, 80, top=False).splitlines()
    assert lines[0].startswith("block 1, pass 1, 21 of 41 exact: ...ital capital capital|[ of of")
    assert len(lines) == 2
    assert lines[1].startswith("  of of of")
    assert all(len(line) < 80 for line in lines)
    assert sum(line.count("of") for line in lines) == 20 + 1  # one in the head


def test_candidates_of_changed_positions_stand_below_with_what_was_sampled_marked():
    some = ((2, 0.62), (3, 0.3), (END, 0.05))
    trace = new_trace(decode, Palette(ink="none", ascii=True))
    trace.take(update([1, 3, 6], {1, 2}, 0, candidates=(some, some, ((6, 0.9), (7, 0.05), (1, 0.01)))))
    assert pass_lines(trace, Palette(ink="none", ascii=True), 80, top=True).splitlines()[1:] == [
        '    2  " capital" 0.62  *" of" 0.30  "." 0.05',
        '    3  "\\n" 0.90        "\u26f5" 0.05    "The" 0.01',
    ]


def test_many_changed_positions_are_counted_not_shown():
    palette = Palette(ink="none")
    trace = new_trace(decode, palette)
    trace.take(update([1] * 40, set(range(40)), 0, candidates=(((1, 1.0),),) * 40))
    lines = pass_lines(trace, palette, 200, top=True).splitlines()
    assert len(lines) == 1 + 16 + 1
    assert lines[-1] == "    and 24 more positions"


def test_a_window_is_one_without_a_number_and_each_pass_begins_behind_what_joined_the_reply():
    trace = Trace(decode)
    for number, (ids, settled) in enumerate((([1, 2, 3], 2), ([3, 1, END], 1)), start=1):
        trace.take(
            BlockUpdate(
                index=None,
                iteration=number,
                token_ids=tuple(ids),
                changed=(True,) * 3,
                exact=settled,
                settled=settled,
            )
        )
    assert trace.last_head() == "pass 2, 1 of 3 exact:"
    (window,) = trace.as_blocks()
    assert window["block"] is None
    assert [(one["iteration"], one["exact"], one["token_ids"]) for one in window["passes"]] == [
        (1, 2, [1, 2, 3]),
        (2, 1, [3, 1, END]),
    ]
