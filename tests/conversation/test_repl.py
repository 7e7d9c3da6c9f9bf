"""A conversation from line to line: turns, refusals, Ctrl-C, faults in mid-reply, leaving."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from hold import START
from plain_rule import plain_rule

from chat.commands.table import complete, dispatch
from chat.console.events import Failed, Interrupt, Leave, Submitted
from chat.sessions.journal import read_journal
from chat.text.prompt import prompt_ids
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import Transcript
from dist.settings import GenerationSettings


def test_a_conversation_of_several_turns_gives_the_plain_rules_tokens(tiny, talk):
    model, _, tokenizer = tiny
    repl, console = talk("Hello", "And then?", "/undo", "What else?")
    messages = repl.talk.transcript.messages
    assert [message.role for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message.content for message in messages if message.role == "user"] == ["Hello", "What else?"]
    for at in (2, 4):
        asked = prompt_ids(Transcript(messages[:at]), tokenizer, True)
        right = plain_rule(model, asked, START, tokenizer.eos_id, tokenizer.stop_ids)
        assert messages[at].token_ids == right
    assert console.live_frames > 4
    assert console.shown.count("tok/s") == 3


def test_a_live_setting_counts_from_the_next_block_and_stays(talk):
    repl, console = talk("Hello", (3, Submitted("/refine_iter 1", live=True)), "More")
    assert "refine_iter is 1 from the next block on." in console.shown
    assert repl.talk.settings.refine_iter == 1
    first, second = re.findall(r"(\d+)(?: of \d+)? iterations", console.shown)
    assert int(first) > int(second)
    assert repl.talk.last_reply.settings.refine_iter == 1


@pytest.mark.parametrize("rounds", ["auto", 2])
def test_a_stop_text_ends_the_reply_and_is_not_in_it(tiny, talk, rounds):
    settings = dataclasses.replace(START, refine_iter=rounds, max_new_tokens=40)
    repl, _ = talk("Hello", settings=settings)
    whole = repl.talk.transcript.messages[-1]
    stop = whole.content[len(whole.content) // 2 :][:3]
    repl, console = talk(f"/set stop {json.dumps(stop)}", "Hello", "And then?", "/settings", settings=settings)
    assert f"stop is {json.dumps(stop, ensure_ascii=False)}." in console.shown
    cut = repl.talk.transcript.messages[2]
    assert cut.content == whole.content.partition(stop)[0]
    assert len(cut.token_ids) < len(whole.token_ids)
    assert not cut.stopped
    # The next prompt has the text as it is shown, in the reply's own tokens.
    messages = repl.talk.transcript.messages
    asked = prompt_ids(Transcript(messages[:4]), tiny[2], True)
    assert f"assistant\n{cut.content}<|im_end|>\n" in tiny[2].decode(asked, False)
    before = prompt_ids(Transcript(messages[:2]), tiny[2], True)
    assert asked[: len(before)] == before
    assert asked[len(before) :][: len(cut.token_ids) - 4] == cut.token_ids[:-4]
    reading = read_journal(repl.talk.session.path.read_bytes())
    assert [node.text for node in reading.tree.path()][-3:] == [one.content for one in messages[-3:]]


def test_ctrl_c_keeps_what_is_finished_and_the_conversation(talk):
    repl, _ = talk("Hello", (5, Interrupt()), "More", settings=GenerationSettings(add_eos_length=3))
    stopped, whole = repl.talk.transcript.messages[2], repl.talk.transcript.messages[4]
    assert stopped.stopped
    assert 0 < len(stopped.token_ids) <= 12
    assert not whole.stopped
    assert whole.token_ids


def test_ctrl_c_before_the_first_block_leaves_the_message_unanswered_for_retry(talk):
    repl, console = talk("Hello", (0, Interrupt()), "/retry")
    assert "/retry answers the message again" in console.shown
    user, reply = repl.talk.transcript.messages[1:]
    assert not user.unanswered
    assert reply.token_ids


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/refne_iter 3", "Unknown command: /refne_iter\nDid you mean /refine_iter?"),
        ("/xyzzy", "Unknown command: /xyzzy\n/help lists the commands."),
        ("/stop", "Unknown command: /stop\nCtrl-C stops a reply; /set stop TEXT ends replies at a text."),
        ("/temp 1", "Unknown command: /temp\nDid you mean /temperature?"),
        ("/new", "Unknown command: /new\nDid you mean /clear?"),
        ("/set markdown html", "markdown cannot be 'html'.\nIt takes rendered or source."),
        ("/set markdwn source", "There is no setting markdwn.\nDid you mean markdown?"),
        ("/refine_iter 0", "refine_iter cannot be '0'.\nIt takes a whole number from 1 to 4096, or auto"),
        ("/set temprature 1", "There is no setting temprature.\nDid you mean temperature?"),
        ("/undo", "There is nothing to undo."),
        ("/undo x", "/undo cannot take 'x'.\nIt takes a whole number from 1."),
        ("/retry", "There is nothing to answer again."),
        ("/edit", "There is nothing to edit."),
        ("/edit 0", "/edit cannot take '0'."),
        ("/compare refine_iter 1 2", "There is nothing to compare yet."),
        ("/compare", "/compare needs a setting and two values or more."),
        ("/compare refine_iter 2 2", "/compare needs a setting and two values or more."),
        ("/compare refine 1 2", "There is no setting refine.\nDid you mean refine_iter?"),
        ("/copy", "There is no reply to copy."),
        ("/read", "/read needs a file name."),
        ("/read /nowhere/x", "There is no file /nowhere/x."),
        ("/read /", "/ is a folder."),
        ("/set overflow cut", "overflow cannot be 'cut'.\nIt takes drop or refuse."),
        ("/set stats no", "stats cannot be 'no'.\nIt takes line, full or off."),
        ("/trace all", "/trace cannot be 'all'.\nIt takes on, off or top."),
        ("/export x.md", "There is nothing to export.\nThe conversation has no messages yet."),
        ("/resume nothing", "There is no session to resume."),
        ("/help nothing", "/nothing does not exist."),
        ("/read a\0b", "A file's name cannot hold a NUL character."),
        (f"/read {'x' * 300}", "x cannot be read.\nFile name too long."),
        ("/max_new_tokens 99999999999999999999", "It takes a whole number from 1 to 2147483647."),
        ("/resume", "There is no other session to resume."),
    ],
)
def test_what_cannot_be_is_refused_with_one_message_and_changes_nothing(talk, line, message):
    repl, console = talk(line)
    assert message in console.shown
    assert "Traceback" not in console.shown
    assert repl.talk.settings == START
    assert repl.talk.transcript == Transcript().with_system("Be brief.")


def test_a_prompt_too_long_is_refused_and_nothing_is_lost(talk):
    repl, console = talk("Hello", "word " * 3000)
    assert "The prompt is too long." in console.shown
    assert "2,048" in console.shown
    assert [message.role for message in repl.talk.transcript.messages] == ["system", "user", "assistant"]


def test_the_oldest_exchanges_are_left_out_and_named_when_the_context_is_full(talk):
    settings = GenerationSettings(add_eos_length=7, refine_iter=1, max_new_tokens=8, max_length=150)
    repl, console = talk("First question", "Second one", "Third one", "Fourth one", "Fifth one", settings=settings)
    assert "oldest 1 of" in console.shown
    assert '"First question"' in console.shown
    assert len(repl.talk.transcript.exchanges) == 5
    assert repl.talk.transcript.messages[-1].left_out >= 1


def test_a_full_context_refuses_instead_where_that_is_set(talk):
    settings = GenerationSettings(add_eos_length=7, refine_iter=1, max_new_tokens=8, max_length=150)
    lines = ("First question", "Second one", "Third one", "Fourth one", "Fifth one")
    repl, console = talk(
        "/set overflow refuse", "/settings", *lines, "/overflow drop", "Sixth one", settings=settings
    )
    assert re.search(r"^  overflow +refuse +drop +- +this conversation$", console.shown, re.M)
    assert "The conversation no longer fits 150 tokens.\n" in console.shown
    assert "would have to be left out.\n/set overflow drop leaves them out; /clear starts over." in console.shown
    refused = len(lines) + 1 - len(repl.talk.transcript.exchanges)
    assert refused == console.shown.count("would have to be left out")
    # Once it may be dropped, the next message is answered.
    assert repl.talk.transcript.messages[-1].left_out >= 1
    assert "refuse" in {text for text, _, _ in complete(repl, "/set overflow r")}
    assert "overflow " in {text for text, _, _ in complete(repl, "/set ov")}


def test_a_drawn_seed_is_shown_and_repeats_the_reply(talk):
    repl, console = talk("/temperature 1", "Hello")
    seed = re.search(r"seed (\d+)", console.shown).group(1)
    again, _ = talk("/temperature 1", f"/seed {seed}", "Hello")
    assert again.talk.transcript.messages[-1].token_ids == repl.talk.transcript.messages[-1].token_ids


@pytest.mark.parametrize("line", ["/exit", "/bye", "/q", "/quit"])
def test_other_programs_words_for_leaving_leave(talk, line):
    assert talk(line, "Hello")[0].talk.transcript.questions == ()


@pytest.mark.parametrize("word", ["exit", "quit", "Quit"])
def test_a_bare_word_for_leaving_asks_first(talk, word):
    repl, console = talk(word, "Hello", word, word, "More")
    assert repl.talk.transcript.questions == ("Hello",)
    assert f"To leave, send {word} once more, or /quit." in console.shown
    assert talk(f" {word}")[0].talk.transcript.questions == (f" {word}",)


def test_a_setting_goes_back_to_its_default(talk):
    repl, console = talk("/refine_iter 4", "/set refine_iter default", "/set markdown source", "/settings")
    assert repl.talk.settings.refine_iter == GenerationSettings().refine_iter
    assert re.search(r"^  refine_iter +2 +2 +- +default$", console.shown, re.M)
    assert re.search(r"^  markdown +source +rendered +- +this conversation$", console.shown, re.M)
    dispatch(repl, "/set markdown default")
    assert repl.page.shown.markdown == "rendered"


def test_a_message_that_is_too_long_goes_back_into_the_line(talk):
    _, console = talk("Hello", "word " * 3000)
    assert console.given_back == "word " * 3000


def test_a_long_reply_is_decoded_as_it_arrives_and_as_a_whole_only_once(tiny, talk, tmp_path, monkeypatch):
    lengths = []
    decode = ChatTokenizer.decode

    def counting(tokenizer, ids, skip_special=True):
        lengths.append(len(ids))
        return decode(tokenizer, ids, skip_special)

    monkeypatch.setattr(ChatTokenizer, "decode", counting)
    repl, _ = talk("Hello", settings=GenerationSettings(add_eos_length=3, refine_iter=1, max_new_tokens=200))
    reply = repl.talk.transcript.messages[-1]
    assert len(reply.token_ids) == 200
    assert [length for length in lengths if length > 100] == [200]
    (journal,) = (tmp_path / "sessions").iterdir()
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    text, ids = "", []
    for record in records:
        if record["kind"] == "tokens":
            text += record.get("text", "")
            ids += record["ids"]
            whole = decode(tiny[2], ids)
            assert whole.startswith(text)
            assert set(whole[len(text) :]) <= {"\ufffd"}
    assert tuple(ids) == reply.token_ids
    assert reply.content.startswith(text)


def test_a_model_that_fails_in_mid_reply_is_reported_and_the_message_kept(talk, tiny):
    model = tiny[0]
    weight = model.lm_head.weight
    with torch.no_grad():
        kept = weight[5].clone()
        weight[5] = float("nan")
    try:
        repl, console = talk("Hello")
    finally:
        with torch.no_grad():
            weight[5] = kept
    assert "The model's output is not a number (NaN)." in console.shown
    assert console.cut  # what was seen of it stays
    assert repl.talk.transcript.messages[-1].unanswered


def test_a_console_that_dies_in_mid_reply_is_reported_and_a_closed_terminal_leaves(talk):
    with pytest.raises(ValueError, match="no keys"):
        talk("Hello", (3, Failed(ValueError("no keys"))))
    repl, _ = talk("Hello", (3, Failed(EOFError())), "More")
    assert repl.talk.transcript.questions == ("Hello",)


def test_the_end_of_input_in_mid_reply_stops_it_and_leaves(talk):
    repl, _ = talk("Hello", (5, Leave()), "More")
    assert repl.talk.transcript.questions == ("Hello",)
    assert repl.talk.transcript.messages[-1].stopped
