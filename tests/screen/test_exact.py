"""Exactly what the model wrote: the source view is the reply, the rendered view leaves out what it draws."""

from __future__ import annotations

import argparse
import random
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pygments.lexer import ExtendedRegexLexer, LexerContext
from pygments.lexers import get_lexer_by_name
from test_screen import COLOR, MONO, PLAIN, a_block, a_reply, decode, stripped

from chat.screen.draw import ReplyView, render_markdown
from chat.screen.markdown.code import CodeColors
from chat.screen.markdown.inline import inline_runs
from chat.screen.markdown.lexing import LineLexer
from chat.screen.palette import Palette
from chat.text.cells import cells, source_spans

AS_WRITTEN = [
    "2*3*4",
    r"\(x\)",
    r"\{1,2\}",
    "__init__",
    r"\d+\.\d*",
    r"C:\new\_folder\*.txt",
    "f(*args, **kwargs)",
    "snake_case_name and _private_",
    "x = (*p)*(*q)",
    r"\*not slanted\*",
    "$a_1 * b_2 * c$",
    r"\[ a*b*c \] and $$x_{1}*y_{2}*z$$",
    "<a href='_x_'>y</a> <!-- *c* -->",
    "https://h.org/_a_/*b*",
    "&amp; &lt; &#42; &copy;",
    "__foo__ and __bar__",
    "*.txt and *.py",
    "/* c */",
    "2 * 3 * 4",
    "a ** b ** c, 2**10",
    '[a](http://x/_y_z_ "title") ![i](p_q_r.png) <https://x.y>',
    "[x][y] and [z]: http://w",
    "a~b~c",
    "line\\",
    "#hashtag and C#",
    "*open and never closed",
    "`open and never closed",
    "50% * 2 _ 3",
]

MARKED = {
    "**bold** x": "bold x",
    "*slanted*": "slanted",
    "这是**重点**内容": "这是重点内容",
    "***both***": "both",
    "`code *x* \\d`": "code *x* \\d",
    "~~no~~": "no",
    "**a *b* c**": "a b c",
    "_two words_": "two words",
    "(**x**), **y**.": "(x), y.",
    "**Note:** y": "Note: y",
    "``a`b``": "a`b",
    "# Learn C#": "Learn C#",
    "### **x** y ###": "x y",
    "- a\n- b": "• a\n• b",
    "1) a\n2) b": "1) a\n2) b",
    "> q": "│ q",
    "```python title=x\nx = 1\n```": "  python title=x\n  x = 1",
    "| a | b |\n|---|---|\n| **1** | `2` |": "a   │ b\n────┼────\n1   │ 2",
    "| a |\n|---|\n| x \\| y |": "a\n──────\nx \\| y",
    "def f(x):\n    return x": "def f(x):\n    return x",
}


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_what_is_no_mark_reads_as_it_was_written(text: str) -> None:
    assert stripped(render_markdown(text, 120, COLOR)) == text + "\n"
    assert stripped(render_markdown(f"- {text}", 120, COLOR)) == f"• {text}\n"
    assert stripped(render_markdown(f"Now {text}, so it is.", 120, MONO)) == f"Now {text}, so it is.\n"


@pytest.mark.parametrize("text", MARKED)
def test_only_marks_that_are_drawn_another_way_are_left_out(text: str) -> None:
    assert stripped(render_markdown(text, 120, COLOR)) == MARKED[text] + "\n"


OTHERS = ["word", "word", "中文，字", "e\u0301", "👩\u200d🚀", "\n", "\n\n", "\t", "  ", "*", "_", "**", "`"]
pieces = st.sampled_from([*AS_WRITTEN, *MARKED, *OTHERS])
texts = st.lists(pieces, max_size=20).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(text=texts)
@example(text="|a|\n|-|\n|b|c|d|")
def test_the_rendered_view_holds_every_other_character_in_order(text: str) -> None:
    """A drawn reply, not wrapped: what is missing is of marks only, and what is left is in order."""
    shown = stripped(render_markdown(text, 5000, COLOR))
    rest = iter(re.sub(r"[\s#*_`~>|:+─┼│•-]", "", shown))
    source = re.sub(r"[\s#*_`~>|:+─┼│•-]", "", text)
    assert "".join(rest) == source


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_marks_and_the_rest_are_the_whole_source(text: str) -> None:
    assert "".join(run.text for run in inline_runs(text)) == text


def shown_as_source(text: str, seed: int, width: int, palette: Palette = COLOR) -> str:
    ids = tuple(text.encode())
    chance = random.Random(seed)
    cuts = sorted({0, len(ids), *(chance.randrange(len(ids) + 1) for _ in range(8))})
    view = ReplyView(decode, width, 24, palette, as_source=lambda: True)
    out = ""
    for index, (start, end) in enumerate(pairwise(cuts)):
        frame = view.update(a_block(ids[start:end], index=index, finish="stop" if end == len(ids) else None))
        assert all(cells("".join(piece for _, piece in line)) < width for line in frame.live)
        out += frame.commit
    return out + view.finish(a_reply(ids))


code = st.sampled_from(["def f(x):", "    return '*' # a", "\tif (a) { /* b", "c */ }", "", "| x |", "é中 = 1"])
blocks = st.lists(code, max_size=6).map(lambda lines: "\n```python\n" + "\n".join(lines) + "\n```\n")


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.one_of(texts, blocks), max_size=4).map("\n".join), seed=st.integers(0, 10**6))
@example(text="a\n\n\n\nb  \n\n", seed=1)
def test_the_source_view_commits_the_reply_byte_for_byte(text: str, seed: int) -> None:
    for palette in (COLOR, MONO, PLAIN):
        shown = stripped(shown_as_source(text, seed, 10_000, palette)).removesuffix("[empty reply]\n")
        assert shown == (text if text.endswith("\n") or not text else text + "\n")


def columns(line: str) -> int:
    """Columns that a line takes on a terminal whose tabs stop at every eighth."""
    used = 0
    for at, part in enumerate(line.split("\t")):
        used += (8 - used % 8 if at else 0) + cells(part)
    return used


@settings(max_examples=100, deadline=None)
@given(text=texts, seed=st.integers(0, 10**6), width=st.sampled_from([20, 40, 80, 120]))
def test_the_source_view_is_only_wrapped(text: str, seed: int, width: int) -> None:
    lines = stripped(shown_as_source(text, seed, width)).removesuffix("[empty reply]\n").splitlines()
    assert all(columns(line) < width for line in lines)
    assert "".join(lines) == text.replace("\n", "")


@settings(max_examples=100, deadline=None)
@given(text=st.text("ab \t中e\u0301👩\u200d🚀", max_size=60), width=st.integers(8, 30))
def test_every_character_of_a_wrapped_line_is_in_one_piece(text: str, width: int) -> None:
    spans = source_spans(text, width)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(columns(text[start:end]) <= width for start, end in spans)


def test_the_view_can_be_changed_in_mid_reply_and_back() -> None:
    wanted = [False]
    view = ReplyView(decode, 60, 24, COLOR, as_source=lambda: wanted[0])
    parts = ["**one**\n\n**two", "** and\n\n```py\nx = '**'\n", "y = 2\n", "```\n\n**three**\n\n- a\n", "- b"]
    shown = []
    for index, part in enumerate(parts):
        wanted[0] = index in (1, 2)
        shown.append(stripped(view.update(a_block(tuple(part.encode()), index=index)).commit))
    shown.append(stripped(view.finish(a_reply(tuple("".join(parts).encode())))))
    assert shown == [
        "one\n",
        "\n**two** and\n\n```py\nx = '**'\n",
        "y = 2\n",
        "\nthree\n",
        "\n• a\n",
        "• b\n",
    ]


DENSE = "    x[%d]=(a+b*%d)//(c-d%%e)^f|g&h;y,z={'k':[1,2.5e3,0xff]},lambda q:q**2 if q!=3 else ~q#z"


@pytest.mark.slow
@pytest.mark.parametrize(("dense", "limit_s"), [(False, 0.5), (True, 1.0)])  # 0.3 s on a machine at rest
def test_colouring_a_thousand_lines_of_code_takes_under_half_a_second(dense: bool, limit_s: float) -> None:
    lines = Path(argparse.__file__).read_text().split("\n")[:1000]
    if dense:
        lines = [DENSE % (at, at) for at in range(1000)]
    text = "\n".join(["```python", *lines, "```", ""])
    render_markdown("```python\nx\n```", 80, COLOR)  # what is loaded once
    took = []
    for _ in range(3):
        began = time.process_time()
        colors = CodeColors("python")
        for one in lines:
            colors.line(one)
        took.append(time.process_time() - began)
    assert min(took) < limit_s
    assert len(render_markdown(text, 200, COLOR).splitlines()) == len(lines) + 1


def test_what_a_line_of_code_leaves_open_is_coloured_on_the_next() -> None:
    def styles(language: str, *lines: str) -> list[set[str]]:
        colors = CodeColors(language)
        return [{str(span.style) for span in colors.line(line).spans} for line in lines]

    comment = {"italic bright_black"}
    assert styles("python", 'x = """a', "b", 'c"""') == [{"green"}] * 3
    for language in ("c", "js", "css", "go", "java"):
        assert styles(language, "/* a", "b", "c */") == [comment] * 3
    assert styles("c", 'f("/* no");', "a")[1] == set()


@pytest.mark.parametrize("language", ["python", "c", "csharp", "bash", "rust", "html", "perl", "sql"])
def test_code_is_lexed_as_the_toolkit_does_it(language: str) -> None:
    """Also with rules that refer to their own groups (bash, perl) or belong to one lexer alone (csharp)."""
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=True)
    lines = LineLexer(lexer)
    stack = ["root"]
    for line in [
        *Path(__file__).read_text().split("\n"),
        "/* a",
        "b */ x",
        "cat <<EOF",
        "$x",
        "EOF",
        "<b a='x'>",
        "#",
    ]:
        context = LexerContext(f"{line}\n", 0, list(stack))
        theirs = [
            (kind, text) for _, kind, text in ExtendedRegexLexer.get_tokens_unprocessed(lexer, context=context)
        ]
        stack = context.stack
        assert list(lines.line(f"{line}\n")) == theirs
