"""/compare: the last message answered under several settings, and what is kept of it."""

from __future__ import annotations

import json
import re

import pytest
from hold import START
from plain_rule import plain_rule

from chat.commands.table import complete
from chat.console.events import Interrupt
from chat.text.prompt import prompt_ids
from chat.text.transcript import Transcript
from dist.settings import GenerationSettings


def figures(shown):
    """The rows of a comparison by label: tokens, forwards, tokens a forward, seconds, agreement."""
    rows = (re.split(" {2,}", line.strip()) for line in shown.splitlines())
    return {row[1]: row[2:] for row in rows if len(row) == 8}


def test_a_comparison_answers_the_same_prompt_under_every_value_and_changes_nothing(tiny, talk, tmp_path):
    model, _, tokenizer = tiny
    repl, console = talk("First", "Second", "/compare refine_iter 1 2 4 auto")
    alone, _ = talk("First", "Second")
    assert repl.talk.transcript == alone.talk.transcript
    assert repl.talk.settings == START
    assert repl.talk.last_reply.settings == START
    journal = next(path for path in (tmp_path / "sessions").iterdir() if path.stem == repl.talk.session.name)
    kinds = [json.loads(line)["kind"] for line in journal.read_text().splitlines()]
    assert (kinds.count("turn"), kinds.count("reply")) == (2, 2)

    asked = prompt_ids(Transcript(repl.talk.transcript.messages[:-1]), tokenizer, True)
    settings = {f"refine_iter {r}": START.with_value("refine_iter", r) for r in ("1", "2", "4", "auto")}
    settings["greedy, N = 0"] = START.with_value("refine_iter", 1).with_value("add_eos_length", 0)
    right = {
        label: plain_rule(model, asked, one, tokenizer.eos_id, tokenizer.stop_ids)
        for label, one in settings.items()
    }
    greedy = right["greedy, N = 0"]
    rows = figures(console.shown)
    for label, ids in right.items():
        assert rows[label][0] == str(len(ids))
        equal = sum(a == b for a, b in zip(ids, greedy))
        assert rows[label][4].endswith(f"%, {equal} of {max(len(ids), len(greedy))}")
        differs = next((at for at, (a, b) in enumerate(zip(ids, greedy), 1) if a != b), None)
        assert rows[label][5] == (f"token {differs}" if differs else "-")
    assert rows["refine_iter 4"][4] == rows["refine_iter auto"][4] == "100.0 %, 24 of 24"
    assert not rows["refine_iter 1"][4].startswith("100")
    assert "3 refine_iter 4 / 4 refine_iter auto / 5 greedy, N = 0\n" in console.shown
    assert any(re.match(r"refine_iter 4 \(3 of 5\): pass 1 · \d+ tokens?", status) for status in console.status)
    # A plain terminal shows no status.
    assert "refine_iter 4 (3 of 5) ...\n" in console.shown
    assert console.status[-1] == ""


def test_a_reply_of_a_comparison_is_kept_as_a_branch(talk, tmp_path):
    repl, console = talk("Hello", "/compare refine_iter 1 4", "/compare keep 2", "/compare keep 9")
    alone, _ = talk("/refine_iter 4", "Hello")
    kept = repl.talk.transcript.messages[-1]
    assert kept.token_ids == alone.talk.transcript.messages[-1].token_ids
    assert "The conversation goes on with reply 2, refine_iter 4." in console.shown
    assert "There is no reply 9 of a comparison to keep." in console.shown
    assert len(repl.talk.tree.leaves()) == 2
    assert repl.talk.tree.path()[-1].made.settings["refine_iter"] == 4
    repl, console = talk("/compare keep 1")
    assert "There is no reply 1 of a comparison to keep." in console.shown


def test_ctrl_c_stops_a_comparison_and_shows_what_is_finished(talk):
    # "Hello" takes 12 passes, refine_iter 1 takes 6, so this is in the middle of refine_iter 2.
    repl, console = talk("Hello", "/compare refine_iter 1 2 4", (9, Interrupt()), "More")
    assert set(figures(console.shown)) == {"refine_iter 1"}
    assert figures(console.shown)["refine_iter 1"][4] == "-"
    assert "Stopped: 1 of 4 replies were made." in console.shown
    assert repl.talk.transcript.questions == ("More", "Hello")
    assert all(message.token_ids for message in repl.talk.transcript.messages if message.role == "assistant")


def test_a_comparison_of_limits_judges_what_is_there_and_one_of_sampling_draws_one_seed(talk):
    _, console = talk("Hello", "/refine_iter auto", "/compare max_new_tokens 5 30")
    rows = figures(console.shown)
    assert [rows[f"max_new_tokens {n}"][4] for n in (5, 30)] == ["100.0 %, 5 of 5", "100.0 %, 30 of 30"]
    _, console = talk("Hello", "/refine_iter auto", "/temperature 1", "/compare add_eos_length 0 3 7")
    assert "1 add_eos_length 0 / 2 add_eos_length 3 / 3 add_eos_length 7 " in console.shown


def test_what_a_comparison_cannot_use_is_refused_before_anything_is_made(talk):
    _, console = talk("Hello", "/compare max_length 8192 20", "/compare top_p 0.5 2")
    assert "The prompt is too long." in console.shown
    assert "top_p cannot be '2'." in console.shown
    assert not figures(console.shown)
    repl, _ = talk()
    assert {text for text, _, _ in complete(repl, "/compare ref")} == {"refine_iter"}
    assert {text for text, _, _ in complete(repl, "/compare decoder plain ")} == {"cached"}


@pytest.mark.drawn
@pytest.mark.parametrize("at", range(8))
def test_ctrl_c_in_any_pass_of_a_comparison_stops_it(talk, at):
    """Six passes make the first reply, so one of these comes with the pass that finishes it."""
    _, console = talk("Hello", "/compare refine_iter 1 2 4", (at, Interrupt()))
    assert re.search(r"Stopped: [01] of 4 replies were made\.", console.shown)


def test_a_comparison_says_what_its_prompt_leaves_out_and_counts_what_was_answered(talk):
    settings = GenerationSettings(add_eos_length=7, refine_iter=2, max_new_tokens=8, max_length=150)
    lines = ("Skipped", (0, Interrupt()), *(f"{word} question" for word in ("One", "Two", "Three", "Four", "Five")))
    _, console = talk(*lines, "/compare refine_iter 1 2", settings=settings)
    counts = re.findall(r"the oldest \d+ of (\d+) exchanges are left out of the prompt \(\"One", console.shown)
    assert counts[-2:] == ["5", "5"]
