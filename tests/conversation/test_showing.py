"""What commands show: settings, help, completion, prompts, figures, traces, the context."""

from __future__ import annotations

import base64
import os
import re

import pytest

from chat.commands.table import COMMANDS, complete, dispatch
from chat.console.events import Submitted
from chat.console.output import osc_52
from chat.screen.markdown.stream import code_blocks
from chat.sessions.session import Asked
from chat.text.prompt import prompt_ids
from chat.text.transcript import Transcript
from dist.errors import UsageError
from dist.settings import GenerationSettings


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
    assert [text for text, _, _ in complete(repl, "/exi")] == ["/exit"]
    assert "/exit" not in {text for text, _, _ in complete(repl, "/ex")}


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


def test_completion_marks_the_present_value_and_ends_with_a_blank_what_wants_one(talk):
    repl, _ = talk("/top_k 7")
    values = list(complete(repl, "/top_k "))
    assert values[0][0] == "7" and values[0][1].startswith("now; ")
    assert values[-1][0] == "default"
    assert [text for text, about, _ in complete(repl, "/set markdown ") if about.startswith("now; ")] == [
        "rendered"
    ]
    assert {text for text, _, _ in complete(repl, "/se")} >= {"/set ", "/settings", "/seed ", "/sessions"}


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


def test_the_code_to_copy_is_what_the_screen_shows_as_code():
    assert code_blocks("    four blanks\n\n```\nls\n```\n") == ("ls\n",)


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
