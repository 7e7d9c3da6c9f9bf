"""/edit, /retry, /undo, /clear, /system: what was said before, changed, and nothing lost."""

from __future__ import annotations

import json
import re

import pytest
from hold import START, conversation, holder
from other_template import with_template
from plain_rule import plain_rule

from chat.commands.table import complete
from chat.console.events import Interrupt, Submitted
from chat.sessions.journal import read_journal
from chat.text.prompt import prompt_ids
from chat.text.transcript import Transcript
from dist.errors import PromptError


def test_clear_and_system_keep_what_they_should(talk):
    repl, console = talk("Hello", "/clear", "/system Talk like a clerk.", "/context", "/system -")
    assert repl.talk.transcript == Transcript()
    assert "Cleared 1 exchange." in console.shown


IGNORES_SYSTEM = "{% for message in messages if message.role != 'system' %}|{{ message.content }}{% endfor %}|"


def test_a_system_prompt_that_the_template_ignores_is_said_to_have_no_effect(tiny, tmp_path):
    tokenizer = with_template(tiny[2], IGNORES_SYSTEM)
    hold = holder(tiny[1], tokenizer, tmp_path, START)
    _, console = hold("/system Be kind.", "/context", "/system -", "/settings")
    assert "The system prompt has no effect: the chat template ignores it. /system - removes it." in console.shown
    assert "The system prompt is removed." in console.shown
    assert "Replies end at <|im_end|> (2: EOS)." in console.shown


def test_an_edited_message_goes_on_from_there_on_screen_and_on_disk(tiny, talk, tmp_path):
    model, _, tokenizer = tiny
    edited = Submitted("Second, changed", edited=True)
    repl, console = talk("First", "Second", "Third", "/edit 2", edited, f"/export {tmp_path}/a.json")
    assert console.draft == "Second"
    assert "Message 2 of 3: Enter sends it and goes on from there" in console.shown
    messages = repl.talk.transcript.messages
    assert [message.content for message in messages if message.role == "user"] == ["First", "Second, changed"]
    asked = prompt_ids(Transcript(messages[:-1]), tokenizer, True)
    assert messages[-1].token_ids == plain_rule(model, asked, START, tokenizer.eos_id, tokenizer.stop_ids)
    (journal,) = (tmp_path / "sessions").iterdir()
    assert read_journal(journal.read_bytes()).tree.transcript() == repl.talk.transcript
    exported = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert [message["content"] for message in exported] == [message.content for message in messages]


def test_undo_after_an_edit_takes_back_the_edited_exchange_alone(talk):
    repl, _ = talk("First", "Second", "/edit", Submitted("Changed", edited=True), "/undo")
    assert repl.talk.transcript.questions == ("First",)


@pytest.mark.parametrize("next_line", [Submitted("Third"), Submitted("/settings", edited=True)])
def test_an_edit_that_is_not_sent_leaves_everything_as_it_was(talk, next_line):
    """A line that is not marked as edited was sent after Ctrl-C had ended the editing."""
    repl, console = talk("First", "Second", "/edit 2", next_line, "Last")
    assert console.draft == "First"
    questions = [text for text in repl.talk.transcript.questions if text != "Third"]
    assert questions == ["Last", "Second", "First"]


def test_an_edited_message_that_cannot_be_answered_changes_nothing(talk):
    repl, console = talk("First", "Second", "/edit 2", Submitted("word " * 3000, edited=True))
    assert "The prompt is too long." in console.shown
    assert repl.talk.transcript.questions == ("Second", "First")
    assert "/edit cannot take 3.\nYou have sent 2 messages." in talk("One", "Two", "/edit 3")[1].shown
    assert list(complete(repl, "/edit "))[:2] == [("1", "Second", 0), ("2", "First", 0)]


@pytest.mark.parametrize("again", [("/retry",), ("/edit 2", Submitted("Changed", edited=True))])
def test_a_retry_or_an_edit_stopped_before_its_first_block_leaves_all_as_it_was(talk, tmp_path, again):
    repl, console = talk("First", "Second", *again, (0, Interrupt()))
    assert "Stopped before anything was finished. The conversation is as it was." in console.shown
    stopped = conversation(tmp_path, repl)
    (tmp_path / "sessions").rename(tmp_path / "kept")
    repl, _ = talk("First", "Second")
    assert stopped == conversation(tmp_path, repl)


def test_a_retry_that_fails_leaves_all_as_it_was(tiny, talk, tmp_path, monkeypatch):
    answer, turns = tiny[1].answer, []

    def failing(turn, poll):
        turns.append(turn)
        if len(turns) == 2:
            raise PromptError("The model's output is not a number (NaN).")
        return answer(turn, poll)

    monkeypatch.setattr(tiny[1], "answer", failing)
    repl, console = talk("First", "/retry")
    assert "not a number" in console.shown
    assert len(conversation(tmp_path, repl)) == 3
    assert not any(message.unanswered for message in repl.talk.transcript.messages)


def test_a_refused_edit_goes_on_being_one(talk):
    refused, accepted = Submitted("word " * 3000, edited=True), Submitted("Changed", edited=True)
    repl, console = talk("First", "Second", "/edit 2", refused, accepted)
    assert console.draft == refused.text
    assert repl.talk.transcript.questions == ("Changed",)


def test_everything_said_can_be_reached_by_redo_and_branches(talk):
    repl, console = talk("One", "Two", "/undo", "/redo", "/undo 2", "Three", "/redo", "/branches", "/branches 1")
    assert "Back again: 2 exchanges. Last is: Two" in console.shown
    assert "There is nothing to redo.\n/branches lists everything that was said." in console.shown
    assert re.search(r"^  1 +One +just now", console.shown, re.M)
    assert re.search(r"^  2 +reply: .* here, just now", console.shown, re.M)
    assert repl.talk.transcript.questions == ("Two", "One")
    assert "On branch 1: 2 exchanges." in console.shown
    _, console = talk("One", "Two", "/undo", "/branches")
    assert re.search(r"^  1 +Two +goes on from here, just now", console.shown, re.M)


def test_branches_that_begin_alike_are_shown_by_what_differs(talk):
    long = "What is the capital of the country that lies to the north of"
    edited = Submitted(f"{long} Norway?", edited=True)
    _, console = talk(f"{long} Spain?", "/edit", edited, "/branches")
    assert re.search(r"^  1 +\.\.\. Spain\? +just now", console.shown, re.M)


def test_a_retried_reply_and_what_followed_an_edit_stay_on_branches(talk, tmp_path):
    repl, _ = talk("One", "/retry", "Two", "/edit 2", Submitted("One more", edited=True))
    texts = [[node.text for node in repl.talk.tree.path(leaf.id)][1::2] for leaf in repl.talk.tree.leaves()]
    assert texts == [["One"], ["One", "Two"], ["One more"]]
    assert conversation(tmp_path, repl)[1] == "One more"


def test_a_changed_system_prompt_counts_for_a_retry_and_stays_on_undo(talk, tmp_path):
    repl, _ = talk("One", "/system Be rude.", "/retry", "/history", "/undo", "/redo")
    assert conversation(tmp_path, repl)[:2] == ["Be rude.", "One"]
    assert len(repl.talk.tree.leaves()) == 2
    (tmp_path / "sessions").rename(tmp_path / "kept")
    repl, _ = talk("One", "/system Be rude.", "/retry", "/undo")
    assert conversation(tmp_path, repl) == ["Be rude."]
