"""Drawing: what is committed is the whole reply, once; what is live stays within its bounds."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chat.screen.draw import (
    ReplyView,
    error_block,
    notice,
    render_markdown,
    table,
    user_echo,
)
from chat.screen.palette import Palette
from chat.screen.reply_view import live_rows
from chat.screen.stats_lines import stats_line, stats_rows
from chat.text.cells import cells, fold_spans, visible, wrap_spans
from chat.text.running_text import RunningText, TokenTexts
from dist.errors import CheckpointError
from dist.protocol import BlockUpdate, FinishReason, Reply, ReplyStats
from dist.settings import GenerationSettings

COLOR = Palette()
MONO = Palette(ink="mono")
PLAIN = Palette(ink="none")

END = 256

MARKDOWN = """# A heading

Some **bold** and *slanted* words with `code`, then a long line that has to be wrapped a few times before it ends.
A second line of the same paragraph.

1. **First**: an item
   - nested one
   - nested two
2. Second

   A paragraph of the second item.
10. Tenth
- x
- y

> A quotation
> over two lines

```python
def f(x):
    return x + 1  # a comment

    # after a blank line
```

| Name | Role | Count |
|------|:----:|------:|
| 中文 | **two** | 3 |
| a longer cell | x | 100 |

---
The end, with an emoji 👩‍🚀 and e\u0301.
"""

ORDINARY = """The capital of France is Paris. It lies on the Seine, and two million people live there.

It is known for these:
1. The Louvre
2. The Eiffel Tower, which was meant to stand for twenty years and has stood for well over a hundred by now
3. Its bread

巴黎是法国的首都和最大城市，位于法国北部巴黎盆地的中央，跨塞纳河两岸。 Und noch ein Satz.
"""


def decode(ids: object) -> str:
    """Ids are bytes of UTF-8; END has no text."""
    return bytes(one for one in ids if one < END).decode("utf-8", errors="replace")  # type: ignore[attr-defined]


def stripped(ansi: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", ansi)


def a_reply(ids: tuple[int, ...], finish: FinishReason = "stop", blocks: int = 2) -> Reply:
    stats = ReplyStats(
        forwards=4,
        prefill_forwards=1,
        iterations=(2,) * blocks,
        converged=(True, *(False,) * (blocks - 1)),
        ttft_s=0.414,
        decode_s=2.0,
        tokens=len(ids),
    )
    settings = GenerationSettings(add_eos_length=7, refine_iter=2)
    return Reply(prompt_len=9, token_ids=ids, finish=finish, settings=settings, stats=stats)


def a_block(ids: tuple[int, ...], *, index: int = 0, done: bool = True, **changes: object) -> BlockUpdate:
    values: dict[str, object] = {
        "index": index,
        "iteration": 1,
        "token_ids": ids,
        "changed": (True,) * len(ids),
        "exact": len(ids) if done else 0,
        "settled": len(ids) if done else 0,
        **changes,
    }
    return BlockUpdate(**values)  # type: ignore[arg-type]


def committed(text: str, cuts: list[int], *, width: int = 60, height: int = 24, palette: Palette = COLOR) -> str:
    """All that a reply commits whose blocks end at `cuts`."""
    ids = tuple(text.encode())
    view = ReplyView(decode, width, height, palette)
    out = ""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    for index, (start, end) in enumerate(pairwise(edges)):
        frame = view.update(a_block(ids[start:end], index=index, finish="stop" if end == len(ids) else None))
        assert len(frame.live) <= live_rows(height)
        assert all(cells("".join(piece for _, piece in line)) < width for line in frame.live)
        out += frame.commit
    return out + view.finish(a_reply(ids))


# The sum of what is committed.


@pytest.mark.parametrize("text", [MARKDOWN, ORDINARY], ids=["markdown", "ordinary"])
def test_a_window_commits_what_the_whole_text_renders_to_and_shows_exact_tokens_as_they_will_stand(
    text: str,
) -> None:
    ids, out, at = tuple(text.encode()), "", 0
    view = ReplyView(decode, 60, 24, COLOR)
    while at < len(ids):
        drafted = (*ids[at : at + 5], *b"??")
        settled = min(1 + at % 4, len(ids) - at)
        last = at + settled == len(ids)
        places = ids[at:] if last else drafted
        frame = view.update(
            a_block(
                places,
                index=None,
                iteration=at + 1,
                done=False,
                exact=settled,
                settled=settled,
                changed=(True,) * len(places),
                finish="stop" if last else None,
            )
        )
        out += frame.commit
        at += settled
        styles = {style for line in frame.live for style, piece in line if "??" in piece}
        assert last or styles == {"draft changed"}
        assert last or not stripped(out).endswith("??")
    assert out + view.finish(a_reply(ids)) == render_markdown(text, 60, COLOR)


@pytest.mark.parametrize("text", [MARKDOWN, ORDINARY], ids=["markdown", "ordinary"])
@pytest.mark.parametrize("size", [1, 7, 8, 64, 128])
def test_blocks_of_any_size_commit_what_the_whole_text_renders_to(text: str, size: int) -> None:
    cuts = list(range(0, len(text.encode()), size))
    assert committed(text, cuts) == render_markdown(text, 60, COLOR)


words = st.lists(
    st.text("abcdefgh,.中文é", min_size=1, max_size=12).filter(lambda word: word.strip("*_`")),
    min_size=1,
    max_size=60,
).map(" ".join)
code = st.lists(st.text("abc =()#", max_size=30), max_size=8).map(
    lambda lines: "```\n" + "\n".join(lines) + "\n```"
)
bullets = st.lists(words, min_size=1, max_size=5).map(lambda items: "\n".join(f"- {item[:200]}" for item in items))
blocks = st.lists(st.one_of(words, code, bullets, st.just("## Heading")), min_size=1, max_size=5).map("\n\n".join)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(text=blocks, seed=st.integers(0, 10**6), width=st.sampled_from([30, 61, 120]))
@example(text="a b\n\n```\nx\n```\n\nc", seed=0, width=30)
def test_random_cuts_commit_what_the_whole_text_renders_to(text: str, seed: int, width: int) -> None:
    chance = random.Random(seed)
    cuts = [chance.randrange(len(text.encode()) + 1) for _ in range(chance.randrange(30))]
    assert stripped(committed(text, cuts, width=width)) == stripped(render_markdown(text, width, COLOR))


@settings(max_examples=60, deadline=None)
@given(text=st.text("ab*_`#>|-+1. \n中\t[]()~:", max_size=300), seed=st.integers(0, 10**6))
def test_no_letter_is_lost_or_repeated_whatever_the_markup(text: str, seed: int) -> None:
    chance = random.Random(seed)
    cuts = [chance.randrange(len(text.encode()) + 1) for _ in range(chance.randrange(20))]

    def letters(shown: str) -> str:
        return "".join(re.findall("[ab中]", shown))

    # The language of a code block is not shown; nor is markup, which these letters are not.
    source = re.sub(r"(`{3,}|~{3,})[^\n]*", "", text)
    assert letters(stripped(committed(text, cuts))).count("b") >= letters(source).count("b")
    assert letters(stripped(committed(text, cuts))).count("b") <= text.count("b")


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=200))
def test_without_escape_codes_the_text_itself_is_committed(text: str) -> None:
    shown = visible(text.encode("utf-8", errors="replace").decode(), tabs=True)
    assert committed(text.encode("utf-8", errors="replace").decode(), [5, 50], palette=PLAIN).startswith(
        shown if shown.endswith("\n") or not shown else shown + "\n"
    )


def test_a_paragraph_that_outgrows_the_live_zone_is_committed_before_its_end() -> None:
    text = "word " * 400
    view = ReplyView(decode, 40, 24, COLOR)
    frame = view.update(a_block(tuple(text.encode())))
    assert frame.commit.count("\n") >= 40
    assert len(frame.live) <= 12


def test_code_is_committed_line_by_line() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    frame = view.update(a_block(tuple(b"Look:\n\n```\nfirst\nsecond\nthi")))
    assert stripped(frame.commit) == "Look:\n\n  first\n  second\n"


def test_a_table_is_committed_when_it_ends() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    rows = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    assert view.update(a_block(tuple(rows.encode()))).commit == ""
    frame = view.update(a_block(tuple(b"| 3 | 4 |\n\nEnd"), index=1))
    assert stripped(frame.commit) == "a   │ b\n────┼────\n1   │ 2\n3   │ 4\n"


def test_half_a_character_waits_for_its_other_half() -> None:
    ids = tuple("x 中".encode())
    view = ReplyView(decode, 60, 24, PLAIN)
    first = view.update(a_block(ids[:3]))
    assert "\ufffd" not in first.commit + str(first.live)
    assert view.finish(a_reply(ids)) == "x 中\n"


def test_control_characters_of_the_model_are_shown_and_never_sent() -> None:
    evil = "a\x1b[2Jb\x9b31mc\x07d\u202ee\rf"
    shown = committed(evil, [3], palette=COLOR)
    assert not re.search(r"[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202e]", shown)
    assert stripped(shown) == "a^[[2Jb<U+009B>31mc^Gd<U+202E>e^Mf\n"


def test_a_stopped_reply_is_marked() -> None:
    view = ReplyView(decode, 60, 24, PLAIN)
    view.update(a_block(tuple(b"some ")))
    assert view.finish(a_reply(tuple(b"some "), finish="cancelled")) == "some \n[stopped]\n"


def test_an_empty_reply_says_so() -> None:
    assert ReplyView(decode, 60, 24, PLAIN).finish(a_reply((END,))) == "[empty reply]\n"


# The live zone.


def test_tokens_are_styled_by_how_long_they_have_stood() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    view.update(a_block(tuple(b"abcd"), done=False))
    view.update(a_block(tuple(b"abxy"), done=False, iteration=2, changed=(False, False, True, True)))
    frame = view.update(a_block(tuple(b"abxz"), done=False, iteration=3, changed=(False, False, False, True)))
    assert frame.live == ((("draft", "ab"), ("draft recent", "x"), ("draft changed", "z")),)


def test_tokens_without_text_are_placeholder_cells() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    frame = view.update(a_block((*b"ab", END, END), done=False))
    assert frame.live == ((("draft changed", "ab"), ("draft placeholder", "░░")),)
    ascii_view = ReplyView(decode, 60, 24, Palette(ascii=True))
    assert ascii_view.update(a_block((END, END), done=False)).live == ((("draft placeholder", ".."),),)


def test_a_character_of_several_tokens_is_drawn_once_all_are_there() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    assert view.update(a_block(tuple("é中".encode()), done=False)).live == ((("draft changed", "é中"),),)


def test_a_finished_block_waits_in_front_of_the_next_one() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    frame = view.update(a_block(tuple(b"one two ")))
    assert frame.live == ((("", "one two"), ("draft placeholder", "░" * 8)),) or frame.live == (
        (("", "one two "), ("draft placeholder", "░" * 8)),
    )


@settings(max_examples=50, deadline=None)
@given(
    text=st.text("ab \n中👩‍🚀\t", max_size=600),
    width=st.integers(10, 200),
    height=st.integers(5, 60),
    exact=st.integers(0, 50),
)
def test_live_lines_stay_within_the_terminal(text: str, width: int, height: int, exact: int) -> None:
    view = ReplyView(decode, width, height, COLOR)
    frame = view.update(a_block(tuple(text.encode()), done=False, exact=exact))
    assert len(frame.live) <= min(max(1, height - 4), 12)
    assert all(cells("".join(piece for _, piece in line)) <= width - 1 for line in frame.live)


def test_the_live_zone_follows_the_front_of_refinement() -> None:
    ids = tuple(("\n".join(f"line {number}" for number in range(30))).encode())
    view = ReplyView(decode, 60, 24, COLOR)
    front = len("\n".join(f"line {number}" for number in range(20)))
    frame = view.update(a_block(ids, done=False, exact=front))
    shown = ["".join(piece for _, piece in line) for line in frame.live]
    assert "line 19" in shown and len(shown) == 12


# Measuring.


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab -中。👩‍🚀é", max_size=120), more=st.text("ab 中", max_size=20), width=st.integers(2, 40))
@example(text="aa\u200d。", more="", width=2)
def test_wrapping_keeps_to_the_width_and_loses_blanks_only(text: str, more: str, width: int) -> None:
    spans = wrap_spans(text, width)
    assert all(cells(text[start:end]) <= width for start, end in spans)
    assert "".join(text[start:end] for start, end in spans).replace(" ", "") == text.replace(" ", "")
    # More text changes the last line only.
    assert wrap_spans(text + more, width)[: len(spans) - 1] == spans[:-1]


def test_folding_keeps_every_blank() -> None:
    text = "    if x:  # 中文"
    assert "".join(text[start:end] for start, end in fold_spans(text, 7)) == text


# Single pieces.


def test_stats_are_one_quiet_line_where_there_is_room() -> None:
    line = stats_line(a_reply(tuple(b"x" * 12)), 21, 8192, COLOR, 160)
    assert stripped(line) == (
        "\n12 tokens · 6.0 tok/s · first block 0.41 s · 4 forward passes, 3.0 tokens each · 4 of 4 iterations · "
        "1 of 2 blocks converged · context 21 of 8,192\n\n"
    )
    assert stripped(stats_line(a_reply(tuple(b"x" * 12)), 21, 8192, COLOR, 92)) == (
        "\n12 tokens · 6.0 tok/s · first 0.41 s · 4 passes × 3.0 · 1/2 converged · context 21/8,192\n\n"
    )
    assert stripped(stats_line(a_reply(tuple(b"x" * 12)), 21, 8192, COLOR, 76)) == (
        "\n12 tokens · 6.0 tok/s · first 0.41 s · 4 passes × 3.0 · 1/2 converged\n\n"
    )
    narrow = stripped(stats_line(a_reply(tuple(b"x" * 12)), 21, 8192, PLAIN, 40))
    assert all(cells(part) < 40 for part in narrow.splitlines())


def test_all_figures_have_names_that_a_reader_knows() -> None:
    assert dict(stats_rows(a_reply(tuple(b"x" * 12)))) == {
        "tokens": "12, ended by a stop token",
        "tokens a second": "6.0",
        "time to the first tokens": "0.41 s",
        "decoding time": "2.00 s",
        "forward passes": "4, and 1 for the prompt",
        "tokens per forward pass": "3.00",
        "refinement iterations": "4 over 2 blocks: 2 2",
        "blocks converged": "1 of 2",
    }


def test_a_reply_cut_at_its_limit_says_so() -> None:
    reply = a_reply(tuple(b"x" * 12))
    lossy = dataclasses.replace(reply, settings=dataclasses.replace(reply.settings, accept=0.7))
    assert " lossy: accept 0.7\n" in stats_line(lossy, 21, 8192, PLAIN, 160)
    assert ("not exact", "lossy: accept 0.7") in stats_rows(lossy)
    assert "12 tokens (the limit)" in stats_line(a_reply(tuple(b"x" * 12), finish="length"), 21, 8192, PLAIN, 160)


def test_an_error_is_what_why_and_hint_on_lines_of_their_own() -> None:
    error = CheckpointError("Shard 3 of 4 is missing.", "Found 3 files.", "Copy all 4.")
    assert error_block(error, PLAIN) == "Shard 3 of 4 is missing.\nFound 3 files.\nCopy all 4.\n\n"


def test_a_table_aligns_and_wraps_its_last_column() -> None:
    rows = [("add_eos_length", "7", "placeholders appended to the prefix, one block is one token longer")]
    assert table(rows, 60, PLAIN) == (
        "  add_eos_length  7  placeholders appended to the prefix,\n"
        "                     one block is one token longer\n"
    )
    assert all(cells(line) < 30 for line in table(rows, 30, PLAIN).splitlines())


def test_the_echo_of_a_long_message_is_cut() -> None:
    lines = user_echo("\n".join(map(str, range(100_000))), PLAIN, 60).splitlines()
    assert lines[:2] == ["› 0", "  1"] and lines[11:] == ["  11", "  … 99,988 more lines", ""]
    assert user_echo("x" * 100_000, PLAIN, 60).splitlines()[-2] == "  … 100,000 characters in all"
    assert "more" not in user_echo("\n".join(map(str, range(12))), PLAIN, 60)


def test_notices_use_no_colour_with_no_color() -> None:
    colours = re.compile(r"\x1b\[[0-9;]*[349][0-7]")
    assert colours.search(notice("text", COLOR))
    assert not colours.search(render_markdown(MARKDOWN, 60, MONO) + notice("text", MONO) + user_echo("x", MONO))
    assert "\x1b" not in render_markdown(MARKDOWN, 60, PLAIN)


def test_the_live_zone_stands_where_the_committed_text_will() -> None:
    view = ReplyView(decode, 60, 24, COLOR)
    frame = view.update(a_block(tuple(b"One.\n\n```\nx = 1\ny ="), finish=None))
    assert frame.live == ((("", "  "), ("", "y ="), ("draft placeholder", "░" * 19)),)
    frame = view.update(a_block(tuple(b" 2\n```\n\nTwo"), index=1))
    assert stripped(frame.commit) == "  y = 2\n"
    assert frame.live[0] == () and frame.live[1][0] == ("", "Two")


# Decoding as it comes.

PIECES = ["▁The", "▁sky", "▁", "is", ",", "▁blue", "\n", "▁\r", "</s>"]


def decode_pieces(ids: Sequence[int]) -> str:
    """As sentencepiece does: the blank before the first word is dropped, special tokens have no text."""
    text = "".join(PIECES[one] for one in ids if PIECES[one] != "</s>").replace("▁", " ")
    return text[1:] if text.startswith(" ") else text


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=6), max_size=8))
def test_text_decoded_in_parts_is_the_text_of_the_whole(parts: list[list[int]]) -> None:
    running = RunningText(decode_pieces)
    ids = [one for part in parts for one in part]
    shown = "".join(running.extend(tuple(part)) for part in parts)
    assert shown + running.finish(ids) == decode_pieces(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text("aé中👩‍🚀\r\n", max_size=40), size=st.integers(1, 5))
def test_characters_are_whole_however_the_bytes_are_cut(text: str, size: int) -> None:
    ids = tuple(text.encode())
    running = RunningText(decode)
    parts = [running.extend(ids[at : at + size]) for at in range(0, len(ids), size)]
    assert not any("\ufffd" in part or part.endswith("\r") for part in parts)
    assert "".join(parts) + running.finish(ids) == text


def test_a_token_drawn_alone_keeps_its_blank() -> None:
    texts = TokenTexts(decode_pieces)
    assert texts.at((0, 1), 1, None) == (" sky", 1)
    assert texts.at((1,), 0, before=0) == (" sky", 1)
    assert texts.at((0, 8), 1, None) == ("", 1)
