"""The conversation on a real engine and tokenizer, with a scripted person in the place of the terminal."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import torch
from checkpoints import CASES, build_model
from hold import holder
from known_facts import known_facts
from other_template import with_template
from plain_rule import plain_rule

from chat.commands.table import COMMANDS, complete, dispatch
from chat.console.events import Failed, Interrupt, Leave, Submitted
from chat.console.output import osc_52
from chat.screen.markdown.stream import code_blocks
from chat.screen.reply_view import ReplyView
from chat.sessions.folder import Sessions
from chat.sessions.journal import read_journal
from chat.sessions.session import Asked
from chat.text.prompt import prompt_ids
from chat.text.stops import stop_finder
from chat.text.tokenizer import ChatTokenizer, load_tokenizer
from chat.text.transcript import Transcript
from dist.decode.engine import Engine
from dist.errors import PromptError, UsageError
from dist.group.group import SoloGroup
from dist.settings import GenerationSettings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = build_model(CASES["fsdp1"], folder).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=torch.Generator().manual_seed(parameter.numel()))
    tokenizer = load_tokenizer(folder)
    engine = Engine(model, SoloGroup(torch.device("cpu")), max_positions=2048, ends=stop_finder(lambda: tokenizer))
    return model, engine, tokenizer


START = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=24)


@pytest.fixture
def talk(tiny, tmp_path):
    return holder(tiny[1], tiny[2], tmp_path, START)


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


def answered(repl, question, reply):
    """An exchange that no model made."""
    repl.talk.session.say(question, Asked(settings={}))
    repl.talk.session.tokens((1,), reply)
    repl.talk.session.reply("stop", reply, {})


def test_the_last_reply_or_its_code_goes_to_the_clipboard(talk):
    repl, console = talk("Hello")
    text = repl.talk.transcript.last_reply
    dispatch(repl, "/copy")
    assert base64.b64decode(console.copied[len("\x1b]52;c;") : -1]).decode() == text
    assert f"Sent the last reply to the terminal's clipboard: {len(text):,} characters." in console.shown
    reply = "See:\n\n```python\nprint(1)\n```\n\nor\n\n```\nls\n```\n"
    answered(repl, "Code?", reply)
    for line, code in (("/copy code", "print(1)\n"), ("/copy code 2", "ls\n")):
        dispatch(repl, line)
        assert console.copied == osc_52(code)
    assert "Sent code block 2 of 2 to the terminal's clipboard: 3 characters." in console.shown
    assert [text for text, _, _ in complete(repl, "/copy code ")] == ["1", "2"]
    for line, message in (
        ("/copy code 3", "There is no code block 3. The last reply has 2."),
        ("/copy all", "/copy cannot take 'all'"),
    ):
        with pytest.raises(UsageError, match=message):
            dispatch(repl, line)
    answered(repl, "Long?", "x" * 60_000)
    with pytest.raises(UsageError, match="60,000 characters are too many to copy"):
        dispatch(repl, "/copy")


def test_a_file_is_read_into_the_next_message_or_refused(talk, tmp_path):
    notes, binary, large, empty = (tmp_path / name for name in ("notes.txt", "x.bin", "large.txt", "empty.txt"))
    notes.write_bytes("\ufeffOne line\r\nand another\n\n".encode())
    binary.write_bytes(b"PK\x03\xff\xfe")
    large.write_text("word " * 3000)
    empty.write_text("\n")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    repl, console = talk(*(f"/read {path}" for path in (notes, binary, large, empty, pipe)))
    assert f"{pipe} is not a regular file." in console.shown
    assert console.inserted == ("One line\nand another", "notes.txt")
    assert re.search(r"notes.txt is part of your next message: 20 characters, \d+ tokens.", console.shown)
    assert f"{binary} is not text in UTF-8.\nByte 3 cannot be read: invalid start byte." in console.shown
    assert re.search(
        r"large.txt is too large for the context.\nIt has [\d,]+ tokens; with room for 24 ", console.shown
    )
    assert f"{empty} is empty." in console.shown
    assert (f"{notes}", "file", -len(f"{tmp_path}/n")) in list(complete(repl, f"/read {tmp_path}/n"))


def test_settings_show_value_default_last_use_and_origin(talk):
    _, console = talk("Hello", "/temperature 0.5", "/settings")
    rows = {line.split()[0]: line.split() for line in console.shown.splitlines() if line.startswith("  ")}
    assert rows["refine_iter"][1:] == ["2", "2", "2", "checkpoint"]
    assert rows["temperature"][1:] == ["0.5", "0.0", "0.0", "this", "conversation"]
    assert console.toolbar.endswith("N 3  R 2  temperature 0.5")


def test_a_drawn_seed_is_shown_and_repeats_the_reply(talk):
    repl, console = talk("/temperature 1", "Hello")
    seed = re.search(r"seed (\d+)", console.shown).group(1)
    again, _ = talk("/temperature 1", f"/seed {seed}", "Hello")
    assert again.talk.transcript.messages[-1].token_ids == repl.talk.transcript.messages[-1].token_ids


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


def test_help_names_every_command_and_completion_offers_names_and_values(talk):
    repl, console = talk("/help", "/help seed")
    for row in COMMANDS.values():
        assert row.usage in console.shown
    assert "seed takes a whole number from 0, or none" in console.shown
    assert {text for text, _, _ in complete(repl, "/ref")} == {"/refine_iter "}
    assert "auto" in {text for text, _, _ in complete(repl, "/refine_iter ")}
    assert {text for text, _, _ in complete(repl, "/set top_")} == {"top_k ", "top_p "}
    assert "cached" in {text for text, _, _ in complete(repl, "/set decoder c")}
    assert not list(complete(repl, "hello /ref"))


def test_help_is_grouped_has_the_keys_and_an_example_of_every_command(talk):
    _, console = talk("/help", "/help keys", *(f"/help {name}" for name in COMMANDS))
    for title in ("Conversation", "Settings", "Checkpoints", "Help and leaving"):
        assert f"\n{title}\n" in f"\n{console.shown}"
    assert re.search(r"^  Ctrl-O +show what a pasted block holds$", console.shown, re.M)
    for name, row in COMMANDS.items():
        assert row.example.startswith(f"/{name} ") or row.usage == f"/{name}", name
        assert f"For example: {row.example or row.usage}\n" in console.shown


def test_a_path_is_a_message_and_a_word_with_a_slash_is_a_command(talk):
    repl, console = talk("/home/me/x.py is what?", "/tmp/x", "/x.y", "/home is what?", "//a", " /home")
    assert [*reversed(repl.talk.transcript.questions)] == [
        "/home/me/x.py is what?",
        "/tmp/x",
        "/x.y",
        "//a",
        " /home",
    ]
    assert "Unknown command: /home" in console.shown


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


def test_completion_marks_the_present_value_and_ends_with_a_blank_what_wants_one(talk):
    repl, _ = talk("/top_k 7")
    values = list(complete(repl, "/top_k "))
    assert values[0][0] == "7" and values[0][1].startswith("now; ")
    assert values[-1][0] == "default"
    assert [text for text, about, _ in complete(repl, "/set markdown ") if about.startswith("now; ")] == [
        "rendered"
    ]
    assert {text for text, _, _ in complete(repl, "/se")} >= {"/set ", "/settings", "/seed ", "/sessions"}


def test_a_message_that_is_too_long_goes_back_into_the_line(talk):
    _, console = talk("Hello", "word " * 3000)
    assert console.given_back == "word " * 3000


def test_the_toolbar_says_session_and_context_and_while_a_reply_is_made_how_far_it_is(talk):
    repl, console = talk("Hello", "More")
    reply = repl.talk.last_reply
    used = reply.prompt_len + len(reply.token_ids)
    assert console.toolbar == f"{repl.talk.session.name}  {used:,} of 2,048 tokens  N 3  R 2  greedy"
    last = r"pass 12 · 24 tokens · \d+ tok/s · \d+ s · Ctrl-C stops"
    assert any(re.fullmatch(last, status) for status in console.status)
    dispatch(repl, "/undo")
    assert "tokens" not in console.toolbar


def test_figures_follow_a_reply_as_is_wanted(talk):
    _, console = talk("/set stats off", "Hello", "/set stats full", "More", "/stats")
    assert "tok/s" not in console.shown
    assert len(re.findall(r"^  tokens per forward pass +[\d.]+$", console.shown, re.M)) == 2
    assert re.search(r"^  blocks converged +\d+ of \d+$", console.shown, re.M)
    assert len(re.findall(r"^  context +[\d,]+ of 2,048$", console.shown, re.M)) == 1


def test_the_prompt_is_shown_as_the_model_gets_it_with_special_tokens_and_ids(tiny, talk):
    _, _, tokenizer = tiny
    repl, console = talk("/prompt", "Hello", "/prompt", "/prompt ids", "/prompt all")
    assert "There is no prompt yet." in console.shown
    asked = prompt_ids(Transcript(repl.talk.transcript.messages[:-1]), tokenizer, True)
    assert f"\n{tokenizer.decode(asked, False)}\n{len(asked)} tokens.\n" in console.shown
    rows = re.findall(r"^  (\d+) +(\d+) +'.*'$", console.shown, re.M)
    assert [int(one) for _, one in rows] == list(asked)
    assert "/prompt cannot take 'all'." in console.shown


def test_what_took_long_rings_unless_that_is_off(talk):
    repl, console = talk("Hello")
    assert not hasattr(console, "copied")
    repl.page.ring(11.0, "The reply is finished.")
    assert console.copied == "\x07"
    dispatch(repl, "/set bell notify")
    repl.page.ring(11.0, "The reply is finished.")
    assert console.copied == "\x1b]9;The reply is finished.\x07"
    dispatch(repl, "/set bell off")
    console.copied = ""
    repl.page.ring(11.0, "The reply is finished.")
    assert console.copied == ""


def asks_for_candidates(engine, monkeypatch):
    """A list that grows by what each turn says of tracing."""
    asked = []
    answer = engine.answer
    monkeypatch.setattr(engine, "answer", lambda turn, poll: (asked.append(turn.trace), answer(turn, poll))[1])
    return asked


def test_a_trace_has_a_line_for_every_pass_and_asks_for_candidates_only_at_top(tiny, talk, monkeypatch):
    asked = asks_for_candidates(tiny[1], monkeypatch)
    _, console = talk("Hello", "/trace on", "And?", "/trace top", "More?", "/trace off", "Last?")
    assert asked == [False, False, True, False]
    parts = re.split(r"Trace is \w+\..*\n", console.shown)
    passes = [re.findall(r"^block (\d+), pass (\d+), (\d+) of 4 exact: .", part, re.M) for part in parts]
    assert [len(found) for found in passes] == [0, 12, 12, 0]
    assert [(block, number) for block, number, _ in passes[1][:3]] == [("1", "1"), ("1", "2"), ("2", "1")]
    row = re.compile(r'^    [1-4] {2,}".+" [01]\.\d\d {2,}".+" 0\.\d\d {2,}".+" 0\.\d\d$', re.M)
    candidates = [len(row.findall(part)) for part in parts]
    assert candidates[:2] + candidates[3:] == [0, 0, 0]
    assert candidates[2] >= 6 * 4


def test_a_trace_can_begin_and_end_in_mid_reply(talk):
    live = [(at, Submitted(f"/trace {word}", live=True)) for at, word in ((3, "top"), (8, "off"))]
    _, console = talk("Hello", *live)
    assert "Candidates come from the next reply on." in console.shown
    assert len(re.findall(r"^block \d+, pass \d", console.shown, re.M)) == 5


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


def test_a_long_reply_is_decoded_as_it_comes_and_as_a_whole_only_once(tiny, talk, tmp_path, monkeypatch):
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


def test_a_model_that_fails_in_mid_reply_is_told_and_the_message_kept(talk, tiny):
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


def test_a_console_that_dies_in_mid_reply_is_told_and_a_closed_terminal_leaves(talk):
    with pytest.raises(ValueError, match="no keys"):
        talk("Hello", (3, Failed(ValueError("no keys"))))
    repl, _ = talk("Hello", (3, Failed(EOFError())), "More")
    assert repl.talk.transcript.questions == ("Hello",)


def test_the_end_of_input_in_mid_reply_stops_it_and_leaves(talk):
    repl, _ = talk("Hello", (5, Leave()), "More")
    assert repl.talk.transcript.questions == ("Hello",)
    assert repl.talk.transcript.messages[-1].stopped


def conversation(tmp_path, repl):
    """What is held, what a resumed session would hold, and what an export holds: all the same."""
    (path,) = (tmp_path / "sessions").iterdir()
    assert read_journal(path.read_bytes()).tree.transcript() == repl.talk.transcript
    return [message.content for message in repl.talk.transcript.messages]


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


def test_a_session_does_not_go_on_with_itself(talk, tmp_path):
    repl, console = talk("Hello", "/save mine", "/resume mine", "/resume")
    assert "The session mine is the current one." in console.shown
    assert "There is no other session to resume." in console.shown
    talk("Else", "/save other")
    assert [text for text, _, _ in complete(repl, "/resume ")] == ["other"]


def test_the_code_to_copy_is_what_the_screen_shows_as_code():
    assert code_blocks("    four blanks\n\n```\nls\n```\n") == ("ls\n",)


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


def test_saving_is_taken_up_again_while_nobody_types(talk, tmp_path):
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


def test_context_says_what_each_message_takes_and_agrees_with_the_stats_line(talk):
    settings = GenerationSettings(add_eos_length=7, refine_iter=1, max_new_tokens=8, max_length=150)
    lines = ("First question", "Second one", "Third one", "Fourth one", "Fifth one")
    for asked in (lines[:1], lines):
        repl, console = talk(*asked, "/context", settings=settings)
        used = re.findall(r"context (\d+) of 150", console.shown)[-1]
        assert f"\n{used} of 150 tokens in {len(asked)} exchange" in console.shown
        shown = console.shown.rpartition("message ")[2]
        rows = [
            (role, int(tokens), state)
            for role, tokens, state in re.findall(r"^  (\w+) +(\d+) *(left out|cached)?", shown, re.M)
        ]
        assert sum(tokens for _, tokens, state in rows if state != "left out") == int(used)
        assert [role for role, _, state in rows if state == "cached"][:2] == ["system", "user"]
        assert ("left out" in shown) == (len(asked) > 1)
    assert repl.talk.transcript.messages[-1].left_out == len(re.findall(r"^  user .* left out", shown, re.M))
    assert re.search(r"The next turn leaves out the oldest \d exchanges?\.", console.shown)


def test_what_is_left_out_is_said_once_and_again_after_it_fitted(talk):
    settings = GenerationSettings(add_eos_length=7, refine_iter=1, max_new_tokens=8, max_length=150)
    lines = tuple(f"Question {number}" for number in range(6))
    _, console = talk(*lines, "/clear", *lines, settings=settings)
    assert console.shown.count("are left out of the prompt") == 2


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
