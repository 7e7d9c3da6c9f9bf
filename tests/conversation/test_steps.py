"""The last message answered by several steps in turn: what they say, and that the step before answers again."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from held_run import reply_by_plain_rule, run_holder
from steps import add_step, cut_in_half

from chat.commands.table import complete
from chat.console.events import Interrupt
from chat.start.options import LaunchOptions
from chat.text.transcript import Transcript

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_checkpoint, tmp_path) -> Path:
    """A run with the steps 3, 7 and 12, saved by three ranks; 12 is as 3."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    add_step(folder, 3, 7)
    shutil.copytree(folder / "global_step_3", folder / "global_step_12")
    return folder


@pytest.fixture
def talk(tmp_path):
    return run_holder(tmp_path)


@pytest.fixture
def disk(monkeypatch):
    """`disk(fault)`: `fault(path)` is called before weights are read from a file; all checks are over by then."""
    real = os.preadv

    def install(fault):
        def preadv(fd, *arguments):
            fault(str(Path(f"/proc/self/fd/{fd}").readlink()))
            return real(fd, *arguments)

        monkeypatch.setattr(os, "preadv", preadv)

    return install


def rows(shown: str) -> dict[str, list[str]]:
    """The table of a comparison by label: tokens, passes, a pass, seconds, agreement, first difference."""
    found = (re.split(" {2,}", line.strip()) for line in shown.splitlines())
    return {row[1]: row[2:] for row in found if len(row) == 8}


def answers_by(repl, run: Path, step: int) -> bool:
    """Whether the last reply, at fixed R, is that of a fresh start on this step."""
    right = reply_by_plain_rule(run / f"global_step_{step}", repl.talk.transcript, repl.talk.settings)
    return repl.talk.transcript.messages[-1].token_ids == right


def test_steps_answer_in_turn_with_the_reply_before_as_draft_and_the_first_one_is_back(run, talk):
    held = []

    def note_weights(repl, engine):
        held.append(lambda: [parameter.data_ptr() for parameter in engine.module.parameters()])
        held.append(held[0]())

    repl, console = talk(
        run / "global_step_3",
        "/refine_iter auto",
        "Hello",
        "/compare step 3 7 latest 12",
        "/refine_iter 2",
        "And?",
        prepare=note_weights,
    )
    shown = rows(console.shown)
    assert list(shown) == ["step 3", "step 7", "step 12"]  # latest is 7
    first = Transcript(repl.talk.transcript.messages[:2])
    greedy = dataclasses.replace(repl.talk.settings, add_eos_length=0, refine_iter=1)
    theirs, ours = first.messages[1].token_ids, reply_by_plain_rule(run / "global_step_7", first, greedy)
    place = next(at for at, (one, other) in enumerate(zip(theirs, ours)) if one != other)
    equal = sum(one == other for one, other in zip(theirs, ours))
    assert shown["step 3"][:2] == [str(len(theirs)), str(-(-len(theirs) // 4))]
    assert shown["step 3"][4:] == shown["step 12"][4:] == [f"100.0 %, {len(theirs)} of {len(theirs)}", "-"]
    assert shown["step 7"][0] == str(len(ours))
    assert f", {equal} of " in shown["step 7"][4]
    assert shown["step 7"][5] == f"token {place + 1}"
    assert "as step 3" in console.shown
    assert "1 step 3 / 3 step 12 " in console.shown and "»" in console.shown
    assert len([node for node in repl.talk.tree.nodes() if node.made]) == 2
    assert repl.talk.facts.step == 3 and console.toolbar.endswith("step 3")
    assert answers_by(repl, run, 3)
    weights, before = held
    assert weights() == before


def test_a_kept_reply_is_a_branch_made_by_its_step(run, talk, tmp_path):
    repl, console = talk(run / "global_step_3", "Hello", "/compare step 7", "/compare keep 2", "And?")
    assert list(rows(console.shown)) == ["step 3", "step 7"]
    assert "at refine_iter auto, only by the weights." in console.shown
    assert "The conversation goes on with reply 2, step 7." in console.shown
    made = [node.made for node in repl.talk.tree.nodes() if node.made]
    assert [one.checkpoint.step for one in made] == [3, 7, 3]
    assert [one.checkpoint.path for one in made][1] == str(run / "global_step_7" / "actor")
    assert len(repl.talk.tree.leaves()) == 2
    kept = repl.talk.tree.path()[1].made
    assert kept is made[1] and kept.token_ids != made[0].token_ids
    assert answers_by(repl, run, 3)
    (journal,) = (tmp_path / "sessions").glob("*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "checkpoint"] == [3, 7, 3]
    again = talk(run / "global_step_3", f"/resume {journal.stem}", "/replay")[1]
    assert re.search(r"1 of 3 replies (is|are) the same|differ", again.shown)


def test_a_damaged_step_and_one_whose_disk_fails_are_reported_and_the_others_answer(run, talk, disk):
    cut_in_half(add_step(run, 3, 20))

    def fail(path):
        if "global_step_7/" in path:
            raise OSError(5, "Input/output error")

    disk(fail)
    repl, console = talk(run / "global_step_3", "Hello", "/compare step 12 7 20 3", "And?")
    assert list(rows(console.shown)) == ["step 12", "step 3"]
    assert "Input/output error" in console.shown and "rank_2.pt" in console.shown
    assert "2 of 4 replies were made." in console.shown
    assert repl.talk.facts.step == 3 and answers_by(repl, run, 3)


def test_weights_that_are_lost_on_the_way_are_read_again_from_the_first_step(run, talk, disk):
    failed = []

    def fail(path):
        if "global_step_7/" in path or ("global_step_12/" in path and failed):
            failed.append(path)
            raise OSError(5, "Input/output error")

    disk(fail)
    repl, console = talk(run / "global_step_3", "Hello", "/compare step 12 7 3", "And?")
    assert console.error is None
    assert "The model no longer has any weights." in console.shown
    assert "1 of 3 replies were made." in console.shown
    assert repl.talk.facts.step == 3 and answers_by(repl, run, 3)


def test_where_the_way_back_is_gone_the_conversation_knows_who_answers(run, talk, disk):
    def remove(path):
        if "global_step_7/" in path:
            shutil.rmtree(run / "global_step_3", ignore_errors=True)

    disk(remove)
    repl, console = talk(run / "global_step_3", "Hello", "/compare step 3 7", "And?")
    assert list(rows(console.shown)) == ["step 3", "step 7"]
    assert f"Step 7 answers from here on: {run}/global_step_7/actor" in console.shown
    assert console.toolbar.endswith("step 7") and answers_by(repl, run, 7)
    assert [node.made.checkpoint.step for node in repl.talk.tree.path() if node.made] == [3, 7]


def test_nothing_is_loaded_where_the_step_before_could_not_come_back(run, talk):
    def remove():
        shutil.rmtree(run / "global_step_3")

    def rewrite():
        path = run / "global_step_3" / "actor" / "huggingface" / "generation_config.json"
        path.write_text(path.read_text().replace("{", '{"note": 1,', 1))

    for spoil, why in ((rewrite, "has changed since it was loaded"), (remove, "There is no")):
        repl, console = talk(run / "global_step_3", "Hello", spoil, "/compare step 7 12", "And?")
        assert "Step 3 could not be brought back afterwards.\n" in console.shown and why in console.shown
        assert not rows(console.shown) and repl.talk.facts.step == 3
        assert len(repl.talk.transcript.messages) == 4


@pytest.mark.drawn
@pytest.mark.parametrize("at", range(12))
def test_ctrl_c_while_a_step_loads_or_answers_stops_and_the_step_before_is_back(run, talk, at):
    repl, console = talk(run / "global_step_3", "Hello", "/compare step 7 12", (at, Interrupt()), "And?")
    assert re.search(r"Stopped: [01] of 2 replies were made\.", console.shown)
    assert repl.talk.facts.step == 3 and answers_by(repl, run, 3)


def test_what_cannot_be_compared_is_said(run, talk):
    template = run / "global_step_7" / "actor" / "huggingface" / "chat_template.jinja"
    template.write_text("{{ messages[-1].content }}!")
    steps = ("3 7", "", "3", "3 9", "base 3", "3 7")
    lines = [f"/compare step {step}" for step in steps]
    _, console = talk(run / "global_step_3", lines[0], "Hello", *lines[1:])
    assert "There is nothing to compare yet." in console.shown
    assert console.shown.count("/compare step needs at least two steps, or one other than the loaded one.") == 2
    assert "There is no step 9 in" in console.shown
    assert "The base model's folder is not known." in console.shown
    assert "Not comparable: the prompt of step 7 differs from step 3's." in console.shown
    assert rows(console.shown)["step 7"][4:] == ["-", "-"]


def test_the_base_model_answers_too_and_undecided_settings_are_auto_for_all(run, talk):
    options = LaunchOptions(
        checkpoint_dir=str(run), settings={"max_new_tokens": 12}, dtype="float32", base_model=str(run / "reference")
    )
    repl, console = talk(
        run / "global_step_3", "Hello", "/load 7", "/compare step base 7 3", "/compare keep 1", options=options
    )
    assert list(rows(console.shown)) == ["base", "step 7", "step 3"]
    assert "refine_iter is not set anywhere, so all answer at auto." in console.shown
    assert "1 base / 3 step 3 " in console.shown
    kept = repl.talk.tree.path()[-1].made
    assert kept.checkpoint.path == str(run / "reference") and kept.settings["refine_iter"] == "auto"
    assert repl.talk.facts.step == 7
    offered = [text for text, _, _ in complete(repl, "/compare step 7 ")]
    assert offered[:4] == ["latest", "12", "3", "base"]
    assert "step " in [text for text, _, _ in complete(repl, "/compare ")]
