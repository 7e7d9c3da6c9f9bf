"""What a model thinks before it answers: seen while it lasts, then folded, never lost."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_screen import COLOR, PLAIN, a_block, a_reply, decode, stripped

from chat.screen.draw import ReplyView, render_markdown
from chat.screen.palette import Palette
from chat.text.thinking import ThinkingText, opens_thinking, split_thinking


@settings(max_examples=100, deadline=None)
@given(
    thought=st.text("ab <\n", max_size=30).filter(str.strip),
    answer=st.text("ab <think/>", max_size=30),
    cuts=st.lists(st.integers(0, 80), max_size=6),
)
def test_a_reply_is_cut_at_the_tags_however_it_comes(thought: str, answer: str, cuts: list[int]) -> None:
    for inside in (True, False):
        whole = ("" if inside else "<think>") + f"{thought}</think>\n\n{answer}"
        text = ThinkingText(inside=inside)
        edges = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
        parts = [text.feed(whole[start:end]) for start, end in pairwise(edges)]
        assert ("".join(parts) + text.feed("", final=True), text.thought) == (answer.lstrip("\n"), thought)
        assert split_thinking(whole)[0] == thought


@pytest.mark.parametrize("text", ["", "<", "<thin", "no <think>tags</think>", "a</thinkb", "<thinking>x"])
def test_what_has_no_thinking_at_its_beginning_is_all_answer(text: str) -> None:
    reply = ThinkingText()
    assert "".join(reply.feed(character) for character in text) + reply.feed("", final=True) == text
    assert reply.thought == ""


def test_a_template_that_opens_the_tag_is_known_by_the_prompts_end() -> None:
    assert opens_thinking("<|assistant|><think>\n")
    assert not opens_thinking("<think>\n\n</think>\n\n")


REPLY = "<think>\nOne *way*.\nAnother.\n</think>\n\nThe **answer**.\n"


def shown(
    text: str, palette: Palette, *, show: bool = False, inside: bool = False, source: bool = False
) -> list[str]:
    """What is committed block by block, and at the end."""
    ticks = iter(range(0, 1000, 2))
    view = ReplyView(
        decode,
        60,
        24,
        palette,
        as_source=lambda: source,
        thinking=ThinkingText(inside=inside),
        show_thinking=lambda: show,
        clock=lambda: float(next(ticks)),
    )
    ids = tuple(text.encode())
    commits = [
        stripped(view.update(a_block(ids[at : at + 8], index=at // 8)).commit) for at in range(0, len(ids), 8)
    ]
    return [*filter(None, commits), stripped(view.finish(a_reply(ids)))]


def test_thinking_is_folded_to_its_figures_when_it_is_over() -> None:
    for palette in (COLOR, PLAIN):
        answer = "The answer.\n" if palette is COLOR else "The **answer**.\n"
        assert "".join(shown(REPLY, palette)) == f"thought for 36 tokens, 2.0 s\n\n{answer}"
    assert "".join(shown(REPLY.removeprefix("<think>"), COLOR, inside=True)).startswith("thought for 29 tokens")


def test_thinking_stays_dimmed_where_that_is_wanted_and_as_written_in_the_source_view() -> None:
    commits = shown(REPLY, COLOR, show=True)
    assert commits[0] == "One *way*.\n"
    assert "".join(commits) == "One *way*.\nAnother.\nthought for 36 tokens, 2.0 s\n\nThe answer.\n"
    assert "".join(shown(REPLY, COLOR, source=True)) == REPLY


def test_an_empty_thought_leaves_nothing_and_an_unfinished_one_all_of_it() -> None:
    assert "".join(shown("<think>\n\n</think>\n\nHi.", COLOR)) == "Hi.\n"
    assert "".join(shown("<think>\nOne.\nTwo", COLOR)) == "One.\nTwo\n[still thinking]\n"


def test_thinking_is_seen_in_the_live_zone_while_it_lasts() -> None:
    view = ReplyView(decode, 60, 24, COLOR, thinking=ThinkingText(inside=True))
    frame = view.update(a_block(tuple(b"One way")))
    assert frame.commit == ""
    assert frame.live[0][0] == ("thought", "One way")


def test_a_reply_of_before_is_shown_without_its_thinking() -> None:
    text = stripped(render_markdown(REPLY, 60, COLOR))
    assert re.fullmatch(r"\[\d+ characters of thinking: /think last\]\n\nThe answer\.\n", text)
