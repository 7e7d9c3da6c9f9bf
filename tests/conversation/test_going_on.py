"""Replies that are continued, edited or begun with a prefill: the tokens that they would have had anyway."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import jsonschema
import pytest
import torch
from checkpoints import CASES, build_model
from hold import holder

import chat.sessions
from chat.console.events import Interrupt, Submitted
from chat.conversation.going_on import whole_blocks
from chat.sessions.journal import read_journal
from chat.text.cells import visible
from chat.text.stops import stop_finder
from chat.text.tokenizer import load_tokenizer
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.settings import GenerationSettings

START = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=48, max_length=600)
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(chat.sessions.__file__).parent / "journal.schema.json").read_text())
)
RULES = {
    "blocks": {},
    "blocks that the limit cuts": {"add_eos_length": 6, "refine_iter": 3},
    "a window": {"refine_iter": "auto", "add_eos_length": 7},
    "sampled blocks": {"temperature": 1.0, "refine_iter": 3},
    "a sampled window": {"temperature": 1.0, "refine_iter": "auto", "add_eos_length": 7},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_model(CASES["fsdp1"], folder)
    # The random model's EOS ends no reply.
    return dataclasses.replace(load_tokenizer(folder), stop_ids=())


@pytest.fixture(scope="module")
def engine(tokenizer, tmp_path_factory):
    model = build_model(CASES["fsdp1"], tmp_path_factory.mktemp("model")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=torch.Generator().manual_seed(parameter.numel()))
    group = SoloGroup(torch.device("cpu"))
    return Engine(model, group, max_positions=2048, ends=stop_finder(lambda: tokenizer))


@pytest.fixture
def talk(engine, tokenizer, tmp_path):
    return holder(engine, tokenizer, tmp_path, START)


@pytest.fixture
def fed(engine):
    """How many tokens each pass has read."""
    counts = []
    hook = engine.module.register_forward_pre_hook(
        lambda module, args, given: counts.append(given["input_ids"].shape[-1]), with_kwargs=True
    )
    yield counts
    hook.remove()


def rule(name, **more):
    return dataclasses.replace(START, **{**RULES[name], **more})


def last(repl):
    return repl.talk.tree.node(repl.talk.tree.head)


def seed_of(repl):
    return [f"/seed {last(repl).made.turn.seed}"] if repl.talk.settings.samples else []


@pytest.mark.drawn
@pytest.mark.parametrize("name", RULES)
def test_a_stopped_reply_goes_on_as_if_it_had_not_been_stopped(talk, fed, name):
    at = random.Random(name).randint(5, 9)
    script = ["Hello there, who are you?", (at, Interrupt()), "/continue"]
    repl, console = talk(*script, settings=rule(name))
    made = [node.made for node in repl.talk.tree.nodes() if node.made]
    stopped, whole = made
    stopped_text = next(node.text for node in repl.talk.tree.nodes() if node.made)
    assert stopped.finish == "cancelled"
    assert 0 < len(stopped.token_ids) < len(whole.token_ids)
    assert whole.turn.continues is not None
    # Its keys and values were kept: no pass read the prompt or the reply's beginning again.
    passes = whole.stats["forwards"]
    assert max(fed[-passes:]) <= 2 * repl.talk.settings.add_eos_length + 2
    # From the line that was open on, it is shown.
    again = console.shown.rpartition("/continue")[2]
    assert visible(last(repl).text[len(stopped_text) :].partition("\n")[0]).strip("\ufffd") in again
    assert not stopped_text.count("\n") or visible(stopped_text.partition("\n")[0]) not in again
    assert [leaf.id for leaf in repl.talk.tree.leaves()] == [last(repl).id]
    once, _ = talk(*(f"/seed {whole.turn.seed}" for _ in seed_of(repl)), script[0], settings=rule(name))
    assert whole.token_ids == last(once).made.token_ids
    assert last(repl).text == last(once).text
    assert talk("/resume " + repl.talk.session.name, "/replay")[1].shown.count(": same, ") == 2
    for line in repl.talk.session.path.read_text().splitlines():
        SCHEMA.validate(json.loads(line))


@pytest.mark.drawn
@pytest.mark.parametrize("name", RULES)
def test_a_reply_that_the_limit_ended_goes_on_to_the_next_multiple(talk, name):
    repl, _ = talk("Hello", "/continue", "/continue", settings=rule(name, max_new_tokens=16))
    made = [node.made for node in repl.talk.tree.nodes() if node.made]
    assert [len(one.token_ids) for one in made] == [16, 32, 48]
    assert {one.finish for one in made} == {"length"}
    assert [one.turn.settings["max_new_tokens"] for one in made] == [16, 16, 16]
    once, _ = talk(*(f"/seed {made[0].turn.seed}" for _ in seed_of(repl)), "Hello", settings=rule(name))
    assert made[-1].token_ids == last(once).made.token_ids
    assert len(repl.talk.tree.leaves()) == 1
    shown = talk("/resume " + repl.talk.session.name, "/replay")[1].shown
    assert "[cut] The reply reached its length limit. /continue goes on with it" in shown
    assert shown.count(": same, ") == 3


@pytest.mark.parametrize("name", ["blocks that the limit cuts", "a window"])
def test_a_reply_that_was_cut_goes_on_in_a_resumed_session(talk, tmp_path, name):
    once, _ = talk("Hello", "/save whole", settings=rule(name))
    journal = tmp_path / "sessions" / "whole.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    tokens = [at for at, line in enumerate(lines) if b'"tokens"' in line]
    journal.write_bytes(b"".join(lines[: tokens[3]]) + lines[tokens[3]][:20])
    repl, console = talk("/resume whole", "/continue", settings=rule(name))
    assert "[cut] The program ended before this reply did. /continue goes on with it" in console.shown
    assert last(repl).made.token_ids == last(once).made.token_ids
    reading = read_journal(journal.read_bytes())
    assert reading.tree.transcript() == repl.talk.transcript


def test_an_edited_reply_goes_on_from_its_text_in_its_own_tokens(talk):
    repl, _ = talk("Hello", settings=rule("a window"))
    whole = last(repl)
    kept = whole.text[: len(whole.text) // 2]
    repl, console = talk("Hello", "/edit reply", Submitted(kept, edited=True), settings=rule("a window"))
    assert console.draft == whole.text
    first, again = [node for node in repl.talk.tree.nodes() if node.made]
    assert again.text.startswith(kept)
    begun = again.made.turn.begun
    assert again.made.token_ids[: begun - 2] == first.made.token_ids[: begun - 2]
    assert again.made.turn.continues is None
    assert len(repl.talk.tree.leaves()) == 2
    repl, _ = talk("Hello", "/edit reply", Submitted("No: ", edited=True), "/continue", settings=rule("blocks"))
    assert [node.text.startswith("No: ") for node in repl.talk.tree.nodes() if node.made] == [False, True, True]
    assert len(last(repl).made.token_ids) == 2 * START.max_new_tokens


def test_a_prefill_begins_the_next_reply_and_no_other(talk, tokenizer):
    repl, console = talk('/prefill "Sure: "', "Hello", "And then?", "/set prefill Yes", "More", "/replay")
    replies = [node for node in repl.talk.tree.nodes() if node.made]
    assert "The next reply begins with: Sure:" in console.shown
    assert replies[0].text.startswith("Sure: ")
    assert replies[0].made.token_ids[: replies[0].made.turn.begun] == tokenizer.encode("Sure: ")
    assert not replies[1].text.startswith("Sure: ")
    assert replies[2].text.startswith("Yes")
    assert replies[2].made.turn.settings["prefill"] == "Yes"
    assert console.shown.count(": same, ") == 3
    assert all(len(one.made.token_ids) == START.max_new_tokens for one in replies)
    assert console.shown.count("Sure:") == 3  # the command, what it says, and the reply
    _, console = talk("/prefill -", "/set prefill " + "word " * 60, "Hello")
    assert "The prefill leaves no room for a reply." in console.shown


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (["/continue"], "There is no reply to continue."),
        (
            ["Hello", (0, Interrupt()), "/continue"],
            "There is no reply to continue.\n/retry answers the last message.",
        ),
        (
            ['/set stop "(" "s" "w"', "Hello", "/continue"],
            "The reply is complete: there is nothing to continue.",
        ),
        (["/edit reply"], "There is no reply to edit."),
        (['/prefill "x\\q"'], "The text in double quotes cannot be read"),
    ],
)
def test_what_cannot_go_on_is_refused(talk, script, message):
    _, console = talk(*script)
    assert message in console.shown


def test_blocks_are_counted_through_changes_of_the_settings(talk):
    script = [
        "Hello",
        (3, Submitted("/add_eos_length 5", live=True)),
        (7, Submitted("/refine_iter auto", live=True)),
    ]
    repl, _ = talk(*script, (11, Submitted("/refine_iter 2", live=True)))
    made = last(repl).made
    assert made.changes
    rest = len(made.token_ids) - whole_blocks(made)
    assert 0 <= rest < 6
    cut = dataclasses.replace(made, token_ids=made.token_ids[: whole_blocks(made) + 6 - 1])
    assert whole_blocks(cut) == whole_blocks(made)
