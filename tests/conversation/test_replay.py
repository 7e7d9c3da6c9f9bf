"""Replies decoded again under their own records, on a real engine: the same, or where they part."""

from __future__ import annotations

import random
import re
import shutil

import pytest
import torch
from checkpoints import CASES, build_model
from hold import holder

from chat.console.events import Interrupt, Submitted
from chat.conversation.state import Talk
from chat.loading.trial import Trial
from chat.sessions.journal import read_journal
from chat.text.tokenizer import load_tokenizer
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.settings import DEFAULT, GenerationSettings

START = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=24)
UNDECIDED = {"refine_iter": DEFAULT, "add_eos_length": DEFAULT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def engine(folder):
    model = build_model(CASES["fsdp1"], folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=torch.Generator().manual_seed(parameter.numel()))
    return Engine(model, SoloGroup(torch.device("cpu")), max_positions=2048)


@pytest.fixture
def talk(engine, folder, tmp_path):
    return holder(engine, load_tokenizer(folder), tmp_path, START)


def live(at, line):
    return at, Submitted(line, live=True)


def drawn_script(seed):
    """Commands of a conversation with retries, edits, stopped replies and settings that change in mid-reply."""
    dice = random.Random(seed)
    script = []
    settings = ("/refine_iter 1", "/refine_iter auto", "/refine_iter 3", "/temperature 0.8", "/temperature 0")
    settings += ("/add_eos_length 5", "/add_eos_length 0", "/top_k 5", "/seed 3", "/seed none")
    settings += ('/set stop "a"', "/set stop none")
    for number in range(6):
        script += dice.sample(settings, dice.randint(0, 2))
        script += dice.sample(('/set stop "(" "w"', "/set stop none", '/prefill "so "'), dice.randint(0, 1))
        kind = dice.choice(("say", "say", "retry", "edit", "undo", "continue"))
        if kind == "undo":
            script += ["/undo", "/redo"][: dice.randint(1, 2)]
        again = f"/{kind}" if kind in ("retry", "continue") and number else ""
        script.append(again or f"Question {number}")
        if kind == "edit" and number:
            script[-1:] = ["/edit", Submitted(f"Edited {number}", edited=True)]
        at = 0
        for line in dice.sample(settings, dice.randint(0, 3)):
            at += dice.randint(0, 4)
            script.append(live(at, line))
        if dice.random() < 0.4:
            script.append((at + dice.randint(0, 6), Interrupt()))
    return script


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.drawn) for seed in range(12)])
def test_every_reply_of_a_drawn_conversation_is_replayed_the_same(talk, tmp_path, seed):
    print("seed", seed)
    repl, console = talk(*drawn_script(seed), "/replay")
    made = [node for node in repl.talk.tree.nodes() if node.made]
    assert made
    outcomes = re.findall(r"^\d+\. .*: (same|first differs|not replayed)", console.shown, re.M)
    assert outcomes == ["same"] * len(made), console.shown[-3000:]
    assert f"replayed: {len(made)} the same, 0 not.\n" in console.shown
    # The journal is what it was, and a replay changes nothing.
    (journal,) = (tmp_path / "sessions").iterdir()
    assert read_journal(journal.read_bytes()).tree.records == repl.talk.tree.records


def test_a_reply_whose_record_was_cut_is_replayed_as_far_as_it_goes(talk, tmp_path):
    talk("Hello", "/save whole")
    journal = tmp_path / "sessions" / "whole.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if b'"tokens"' in line)
    journal.write_bytes(b"".join(lines[: last - 1]) + lines[last][:20])
    _, console = talk("/resume whole", "/replay")
    assert " unreadable bytes." in console.shown
    assert "[cut] The program ended before this reply did. /continue goes on with it" in console.shown
    assert "1. Hello: same, 16 tokens\n" in console.shown


@pytest.mark.parametrize("rounds", [False, True])
def test_other_weights_show_where_replies_part_and_who_made_them(talk, tmp_path, monkeypatch, rounds):
    monkeypatch.setattr(Talk, "rounds", property(lambda talk: rounds))
    repl, _ = talk("Hello", "Again")
    (journal,) = (tmp_path / "sessions").iterdir()
    data = journal.read_bytes().replace(b'"path":"tiny"', b'"path":"other"')
    ids = repl.talk.tree.node(repl.talk.tree.head).made.token_ids
    text = data.decode()
    place = text.rindex('"ids":[')
    end = text.index("]", place)
    tokens = text[place + 7 : end].split(",")
    tokens[1] = str((int(tokens[1]) + 1) % 200)
    journal.write_text(f"{text[: place + 7]}{','.join(tokens)}{text[end:]}")
    journal.rename(journal.with_name("changed.jsonl"))
    _, console = talk("/resume changed", "/replay here")
    at = len(ids) - len(tokens) + 2
    lead = r", where the top-2 margin is \d+\.\d\d logits" if rounds else ""
    assert re.search(
        rf"^2\. Again: first differs at token {at} of {len(ids)}: `.*` / `.*`{lead}$", console.shown, re.M
    )
    assert "2 replies replayed: 1 the same, 1 not. Made by other; replayed on tiny.\n" in console.shown


def test_a_replay_can_be_stopped_and_what_has_no_record_is_said(talk, tmp_path):
    _, console = talk("Hello", "More", "/replay", (3, Interrupt()))
    assert "Stopped. No reply was replayed." in console.shown
    (tmp_path / "x.json").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "token_ids": [1]}]}'
    )
    _, console = talk(f"/resume {tmp_path}/x.json", "/replay")
    assert "1. a: not replayed, its settings are not known.\n" in console.shown
    assert "No reply was replayed; 1 could not be replayed." in console.shown
    assert "There is no reply to replay yet." in talk("/replay")[1].shown


def test_a_message_is_in_the_journal_before_the_model_is_tried_out_on_it(talk, tmp_path, monkeypatch):
    """Where nothing says how the model is to be refined, its first block is measured first."""
    seen = []
    real = Trial.of_block

    def of_block(updates, stop_ids):
        (journal,) = (tmp_path / "sessions").iterdir()
        seen.append(read_journal(journal.read_bytes()).tree.transcript().last_question)
        return real(updates, stop_ids)

    monkeypatch.setattr(Trial, "of_block", of_block)
    repl, console = talk("Hello", "/replay", origins=UNDECIDED)
    assert seen == ["Hello"]
    (node,) = (node for node in repl.talk.tree.nodes() if node.made)
    # What the trial decided is what the reply began with, not a change in its middle.
    assert node.made.turn.settings == repl.talk.settings.as_dict() != START.as_dict()
    assert node.made.changes == ()
    assert "1 reply replayed: 1 the same, 0 not.\n" in console.shown
    (journal,) = (tmp_path / "sessions").iterdir()
    assert read_journal(journal.read_bytes()).tree.records == repl.talk.tree.records


def test_ctrl_c_while_the_model_is_tried_out_leaves_the_message_unanswered(talk, tmp_path):
    repl, console = talk("Hello", (1, Interrupt()), origins=UNDECIDED)
    assert "Stopped before anything was finished. /retry answers the message again." in console.shown
    (journal,) = (tmp_path / "sessions").iterdir()
    assert [node.text for node in read_journal(journal.read_bytes()).tree.path()] == ["Be brief.", "Hello"]
    assert repl.talk.transcript.messages[-1].unanswered


def test_a_replay_gives_the_template_what_it_was_given(engine, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "shouting")
    template = "{% if shout %}!!{% endif %}{% for one in messages %}{{ one['content'] }} {% endfor %}"
    (tmp_path / "shouting" / "chat_template.jinja").write_text(template)
    talk = holder(engine, load_tokenizer(tmp_path / "shouting"), tmp_path, START)
    repl, console = talk("/set template.shout true", "Hello", "/set template.shout false", "Hello", "/replay")
    lengths = [node.made.turn.prompt_len for node in repl.talk.tree.nodes() if node.made]
    assert lengths[0] + 2 <= lengths[1]
    assert "2 replies replayed: 2 the same, 0 not.\n" in console.shown
    assert "the prompt is another one" not in console.shown
