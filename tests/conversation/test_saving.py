"""What a conversation leaves on disk while it lasts: sessions, exports, what /find finds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hold import START, conversation
from known_facts import known_facts

from chat.commands.table import complete
from chat.console.events import Interrupt, Submitted
from chat.screen.reply_view import ReplyView
from chat.sessions.folder import Sessions
from chat.sessions.journal import read_journal


def test_export_writes_what_was_said(talk, tmp_path):
    repl, console = talk(
        "Hello", f"/export {tmp_path}/a.md", f"/export {tmp_path}/a.json", f"/export {tmp_path}/a.md"
    )
    assert "exists already" in console.shown
    document = json.loads((tmp_path / "a.json").read_text())
    assert [message["content"] for message in document["messages"]] == [
        message.content for message in repl.talk.transcript.messages
    ]
    assert "Hello" in (tmp_path / "a.md").read_text()


def test_a_session_is_named_listed_and_resumed(talk, tmp_path):
    repl, _ = talk("Hello", "/save first")
    again, console = talk("/sessions", "/resume first")
    assert re.search(r"^  first +\d{4}-\d\d-\d\d \d\d:\d\d +just now +Hello$", console.shown, re.M)
    assert again.talk.transcript == repl.talk.transcript
    assert [info.name for info in Sessions(tmp_path / "sessions").latest()] == ["first"]


def test_a_session_does_not_go_on_with_itself(talk, tmp_path):
    repl, console = talk("Hello", "/save mine", "/resume mine", "/resume")
    assert "The session mine is the current one." in console.shown
    assert "There is no other session to resume." in console.shown
    talk("Else", "/save other")
    assert [text for text, _, _ in complete(repl, "/resume ")] == ["other"]


def test_a_setting_changed_in_mid_reply_is_journaled_where_it_came_into_force(talk):
    changes = ((3, Submitted("/refine_iter 1", live=True)), (3, Submitted("/temperature 0.5", live=True)))
    repl, _ = talk("Hello", *changes, "More")
    first, second = (node.made for node in repl.talk.tree.path() if node.made)
    assert first.turn.settings == START.as_dict()
    # R = 2: the change came in the second block's passes, so it counts from the third block on.
    assert [(one.at, one.name, one.value) for one in first.changes] == [
        (8, "refine_iter", 1),
        (8, "temperature", 0.5),
    ]
    assert first.settings == second.turn.settings == repl.talk.settings.as_dict()
    assert (second.changes, isinstance(second.turn.seed, int)) == ((), True)


def test_a_session_shows_its_end_as_it_was_and_brings_its_settings_along(talk, tmp_path):
    talk("/refine_iter 3", "Hello", "Stopped", (5, Interrupt()), "/save first")
    repl, console = talk("/resume first", "/settings")
    assert "Session first, 2 exchanges.\n› Stopped\n" in console.shown.replace("\n\n", "\n")
    assert "[stopped] /continue goes on with it, /retry answers the message again." in console.shown
    assert "Hello" not in console.shown.partition("Session first")[2].partition("setting")[0]
    assert repl.talk.settings.refine_iter == 3
    assert re.search(r"^  refine_iter +3 +2 +- +the session$", console.shown, re.M)
    talk("Unheard", (0, Interrupt()), "/save second")
    _, console = talk("/resume second")
    assert "[unanswered] /retry answers this message." in console.shown


def test_what_differs_from_when_a_session_was_made_is_said(talk):
    before = known_facts(step=3, path=Path("/runs/a"), processes=2, parallel="tp: 2 parts")
    talk("/refine_iter 3", "/add_eos_length 5", "Hello", "/save first", facts=before)
    now = known_facts(step=7, path=Path("/runs/b"), dtype="bfloat16")
    repl, console = talk("/resume first", facts=now, origins={"add_eos_length": "command line"})
    shown = " ".join(console.shown.split())
    for said in (
        f"add_eos_length is {START.add_eos_length} (command line); the session used 5.",
        "Another checkpoint answers now: step 7 of /runs/b; the last reply was made by step 3 of /runs/a.",
        "The dtype differs: bfloat16, before: float32.",
        "The layout over the ranks differs: none, before: tp.",
        "The number of processes differs: 1, before: 2.",
    ):
        assert said in shown
    assert (repl.talk.settings.refine_iter, repl.talk.settings.add_eos_length) == (3, START.add_eos_length)
    # Each reply goes on being that of its own checkpoint.
    assert repl.talk.tree.node(repl.talk.tree.head).made.checkpoint.step == 3
    _, console = talk("/resume first", facts=before)
    assert "differs" not in console.shown and "answers now" not in console.shown


def test_a_setting_that_this_version_does_not_know_is_said(talk, tmp_path):
    talk("Hello", "/save first")
    journal = tmp_path / "sessions" / "first.jsonl"
    journal.write_text(journal.read_text().replace('"settings":{', '"settings":{"beams":4,'))
    _, console = talk("/resume first")
    assert "The session used beams 4, which this version does not know." in console.shown


def test_leaving_says_how_to_continue_and_what_is_not_on_disk(talk, tmp_path, monkeypatch):
    _, console = talk("Hello", "/save mine")
    assert console.shown.endswith("Session mine, 1 exchange. Continue:\n  --resume mine\n")
    assert "Continue" not in talk()[1].shown
    (tmp_path / "sessions").rename(tmp_path / "moved")
    (tmp_path / "sessions").write_text("a file")
    _, console = talk("Hello")
    assert "The conversation is not being saved.\n" in console.shown
    assert "  not saved  " in console.toolbar
    assert re.search(r"Not saved: \d+ records of this conversation\. .*File exists\.\n$", console.shown)


def test_saving_is_resumed_while_nobody_types(talk, tmp_path):
    blocked = tmp_path / "sessions"
    blocked.write_text("a file")
    repl, console = talk("Hello", blocked.unlink, "/find nothing like it")
    _, said, after = console.shown.partition("The conversation is saved again, with everything that was missing.")
    assert said and "/find" in after
    assert "not saved" not in console.toolbar
    assert conversation(tmp_path, repl)[1] == "Hello"


def test_saving_that_works_again_is_said(talk, tmp_path):
    blocked = tmp_path / "sessions"
    blocked.write_text("a file")
    unblock = Submitted("/read /nowhere")
    repl, console = talk("Hello", unblock, "/export /nowhere.md")
    blocked.unlink()
    repl.talk.set_system("Be kind.")
    assert "The conversation is saved again, with everything that was missing." in console.shown
    assert "not saved" not in console.toolbar
    assert conversation(tmp_path, repl)[0] == "Be kind."


def test_find_and_history_show_what_was_said(talk):
    talk("A needle in hay", "/save first")
    _, console = talk("/find NEEDLE", "/find nothing like it", "One", "Two", "Three", "/history 2")
    assert re.search(r"^  first +user +A needle in hay$", console.shown, re.M)
    assert "No session holds 'nothing like it'." in console.shown
    end = console.shown.rpartition("1 exchange before these.")[2]
    assert end.count("› ") == 2
    assert "› Two" in end


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("x.docx", "Cannot tell the format of 'x.docx' from its extension."),
        ("/nowhere/x.md", "/nowhere/x.md cannot be written."),
        ("a\0b.md", "A file's name cannot hold a NUL character."),
        (f"{'x' * 300}.md", "x.md cannot be written.\nFile name too long."),
        ("x.md 3-", "There is nothing to export.\nThe conversation has 1 exchange."),
    ],
)
def test_an_export_that_cannot_be_is_refused(talk, argument, message):
    assert message in talk("Hello", f"/export {argument}")[1].shown


def test_an_export_suggests_its_name_and_is_resumed_from(talk, tmp_path):
    repl, console = talk("Hello", "/save mine", "/retry", "/export", f"/export {tmp_path}/mine.json")
    assert console.draft == "/export mine.md"
    assert ("mine.parquet", "verl's multi-turn data", -3) in list(complete(repl, "/export min"))
    again, console = talk(f"/resume {tmp_path}/mine.json", "/branches")
    assert f"{tmp_path}/mine.json is now the session mine-2." in console.shown
    assert again.talk.transcript == repl.talk.transcript
    assert len(again.talk.tree.leaves()) == 2


@pytest.mark.parametrize("rounds", ["2", "auto"])
def test_tokens_are_in_the_journal_before_they_are_shown(talk, tmp_path, monkeypatch, rounds):
    """A reader of the journal sees no less than the screen, after every pass."""
    shown = []
    draw = ReplyView.update

    def update(view, update):
        shown.extend(update.settled_ids)
        if shown:
            (journal,) = (tmp_path / "sessions").iterdir()
            node = read_journal(journal.read_bytes()).tree.path()[-1]
            assert node.made.token_ids == tuple(shown)
        # What stands as final in the live zone has joined the reply, but for a block that still goes on.
        assert update.exact == update.settled or update.index is not None
        return draw(view, update)

    monkeypatch.setattr(ReplyView, "update", update)
    repl, _ = talk(f"/refine_iter {rounds}", "Hello")
    assert len(shown) == len(repl.talk.last_reply.token_ids) == 24
