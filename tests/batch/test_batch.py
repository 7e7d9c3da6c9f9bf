"""Runs over prompts without a model: streams, exit codes, records, failures, seeds, traces."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_engine import (
    BLOCK,
    FACTS,
    SAMPLING,
    SETTINGS,
    Run,
    Screen,
    ScriptedEngine,
    Texts,
    never,
    question,
    records,
)

from chat.batch.jobs import derive_seed
from chat.batch.printer import ReplyPrinter
from chat.batch.prompts import read_prompts
from chat.batch.run import run_batch
from chat.start.options import LaunchOptions
from chat.terminal import progress_line
from chat.terminal.streams import CLEAR_LINE
from chat.text.prompt import prompt_ids
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError, UsageError
from dist.protocol import Control, Event, Turn

# Streams and exit codes.


def test_one_prompt_prints_its_reply_and_nothing_else(run: Run) -> None:
    ran = run("--prompt", "What is it?")
    assert (ran.code, ran.out, ran.err) == (0, "You said What is it?, None.\n", "")


def test_many_prompts_print_their_replies_in_order(run: Run, prompts: str) -> None:
    ran = run("--prompts_file", prompts, "--batch_size", "4")
    assert ran.out == "".join(f"You said prompt number-{number} ok, None.\n" for number in range(6))
    assert (ran.code, ran.err) == (0, "")
    # More than are decoded together: where one ends, the next begins.
    assert [(len(turn.prompts), turn.together) for turn in ran.engine.turns] == [(6, 4)]


def test_json_prints_one_object_a_line(run: Run, prompts: str) -> None:
    ran = run("--prompts_file", prompts, "--json")
    objects = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["prompt"] for one in objects] == [f"prompt number-{number} ok" for number in range(6)]


def test_json_streams_each_object_is_there_before_the_next_prompt_is_answered(run: Run, prompts: str) -> None:
    streams, seen = Texts(), []

    def say(text: str, seed: int | None) -> str:
        seen.append(streams.replies.getvalue().count("\n"))
        return "Fine."

    run("--prompts_file", prompts, "--json", streams=streams, say=say)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_with_an_output_file_stdout_stays_empty_unless_json_is_asked_for(
    run: Run, prompts: str, tmp_path: Path
) -> None:
    output = tmp_path / "r.jsonl"
    assert run("--prompts_file", prompts, "--output_file", str(output)).out == ""
    output.unlink()
    assert run("--prompts_file", prompts, "--output_file", str(output), "--json").out == output.read_text()


def test_a_record_has_exactly_the_fields_of_the_contract(run: Run, tokenizer: ChatTokenizer) -> None:
    record = json.loads(run("--prompt", "Hello", "--json", "--system", "Be kind.").out)
    asked = prompt_ids(Transcript().with_system("Be kind.").with_user("Hello"), tokenizer, True)
    reply = (*tokenizer.encode("You said Hello, None."), tokenizer.eos_id)
    assert record == {
        "prompt": "Hello",
        "response": "You said Hello, None.",
        "full_text": "system\nBe kind.\nuser\nHello\nassistant\nYou said Hello, None.",
        "prompt_len": len(asked),
        "total_len": len(asked) + len(reply),
        "token_ids": list(reply),
        "finish_reason": "stop",
        "stop_reason": "<|im_end|>",
        "settings": {
            **SETTINGS.as_dict(),
            "checkpoint": "/runs/global_step_3",
            "dtype": "float32",
            "use_chat_template": True,
            "system": "Be kind.",
            "n": 1,
        },
        "stats": {
            "forwards": 2 * -(-len(reply) // BLOCK),
            "prefill_forwards": 0,
            "iterations": [2] * -(-len(reply) // BLOCK),
            "converged": [False] * -(-len(reply) // BLOCK),
            "ttft_s": 0.25,
            "decode_s": 0.5,
            "tokens_per_s": 2.0 * len(reply),
            "tokens_per_forward": round(len(reply) / (2 * -(-len(reply) // BLOCK)), 3),
        },
    }
    assert list(record)[:5] == ["prompt", "response", "full_text", "prompt_len", "total_len"]


def test_the_turn_says_what_fills_a_block_and_what_ends_a_reply(run: Run) -> None:
    (turn,) = run("--prompt", "Hello").engine.turns
    assert (turn.placeholder, turn.stop_ids, turn.trace) == (2, (2, 0), False)


def test_a_reply_cut_by_its_budget_says_so(run: Run) -> None:
    short = SETTINGS.with_value("max_new_tokens", 5)
    record = json.loads(run("--prompt", "Hello", "--json", settings=short).out)
    assert (record["finish_reason"], len(record["token_ids"])) == ("length", 5)


def test_messages_are_recorded_as_they_were_given(run: Run, tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Hi", "name": "x"}]
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"prompt": "plain"}))
    ran = run("--prompts_file", str(path), "--system", "Common.", "--json")
    first, second = map(json.loads, ran.out.splitlines())
    assert first["prompt"] == chat
    assert first["full_text"].startswith("system\nOwn.\nuser\nHi\n")
    assert second["full_text"].startswith("system\nCommon.\nuser\nplain\n")


def test_without_the_template_the_prompt_goes_to_the_model_as_it_is(run: Run) -> None:
    record = json.loads(run("--prompt", "Hello", "--json", "--no-use_chat_template").out)
    assert record["full_text"] == "HelloYou said Hello, None."
    assert record["settings"]["use_chat_template"] is False


# Prompts that fail.


def test_a_prompt_that_fails_becomes_a_result_and_the_rest_goes_on(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in ("first", "word " * 300, " ", "last")))
    output = tmp_path / "r.jsonl"
    ran = run("--prompts_file", str(path), "--output_file", str(output), "--batch_size", "4")
    first, long, empty, last = records(output)
    assert ran.code == 4
    assert (first["finish_reason"], last["finish_reason"]) == ("stop", "stop")
    assert long["finish_reason"] == empty["finish_reason"] == "error"
    assert "with room for 40 tokens of reply the limit is 200 (max_length)" in long["error"]
    assert empty["error"] == "The prompt is empty."
    assert (long["response"], long["token_ids"], long["stats"]) == ("", [], None)
    assert [len(turn.prompts) for turn in ran.engine.turns] == [2]
    assert [line.partition(".")[0] for line in ran.err.splitlines()] == [
        "prompt 2: The prompt is too long",
        "prompt 3: The prompt is empty",
    ]


def test_one_prompt_that_fails_prints_no_reply(run: Run) -> None:
    ran = run("--prompt", "word " * 300)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("prompt 1: The prompt is too long.")


def test_of_several_replies_to_a_prompt_the_sample_is_named(run: Run) -> None:
    ran = run("--prompt", "word " * 300, "--n", "2", "--temperature", "1")
    assert [line.partition(".")[0] for line in ran.err.splitlines()][-2:] == [
        "prompt 1, sample 1: The prompt is too long",
        "prompt 1, sample 2: The prompt is too long",
    ]


def test_json_on_a_terminal_holds_no_control_characters_and_reads_the_same() -> None:
    record = {"prompt": "caf\u00e9", "response": "\x1b[31m\x7f\x9b31m\u202e"}
    screen, pipe = Screen(), io.StringIO()
    for out in (screen, pipe):
        ReplyPrinter(out, as_json=True, alone=True, streams=False).reply(record)
        assert json.loads(out.getvalue()) == record
    assert "\x9b" in pipe.getvalue()
    assert "caf\u00e9" in screen.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", screen.getvalue())


def test_of_a_turn_that_the_engine_refuses_only_the_prompt_to_blame_fails(
    run: Run, prompts: str, tmp_path: Path
) -> None:
    def say(text: str, seed: int | None) -> str:
        if "number-1" in text:
            raise PromptError("The model's output is not a number (NaN).")
        return f"Fine: {question(text)}"

    output = tmp_path / "r.jsonl"
    ran = run("--prompts_file", prompts, "--output_file", str(output), "--batch_size", "3", say=say)
    assert ran.code == 4
    assert [record["finish_reason"] for record in records(output)] == ["stop", "error"] + ["stop"] * 4
    # What is left of it is tried by halves.
    assert [len(turn.prompts) for turn in ran.engine.turns] == [6, 3, 2, 2, 1, 1, 1]


def test_the_model_s_own_limit_counts(run: Run) -> None:
    assert run("--prompt", "word " * 20, max_positions=50).code == 4


def test_a_drawn_seed_is_recorded_and_repeats_the_reply(run: Run) -> None:
    record = json.loads(run("--prompt", "Hello", "--json", settings=SAMPLING).out)
    seed = record["seed"]
    assert record["settings"]["seed"] == seed
    assert record["sample"] == 0
    again = json.loads(run("--prompt", "Hello", "--json", settings=SAMPLING.with_value("seed", seed)).out)
    assert again == record
    other = json.loads(run("--prompt", "Hello", "--json", settings=SAMPLING).out)
    assert other["seed"] != seed


def test_samples_have_seeds_of_their_own_and_keep_the_order_of_prompts(run: Run, prompts: str) -> None:
    seeded = SAMPLING.with_value("seed", 11).with_value("max_new_tokens", 64)
    ran = run("--prompts_file", prompts, "--json", "--n", "3", "--batch_size", "2", settings=seeded)
    found = [json.loads(line) for line in ran.out.splitlines()]
    seeds = [derive_seed(11, sample) for sample in range(3)]
    assert seeds[0] == 11
    assert len(set(seeds)) == 3
    assert [(one["prompt"], one["sample"], one["seed"]) for one in found] == [
        (f"prompt number-{number} ok", sample, seeds[sample]) for number in range(6) for sample in range(3)
    ]
    assert all(one["response"] == f"You said {one['prompt']}, {one['seed']}." for one in found)
    # Turns are filled in the order of the results, so a turn may hold several samples of a prompt.
    drawn = [[own.seed for own in turn.row_settings or ()] for turn in ran.engine.turns]
    assert drawn == [[seeds[place % 3] for place in range(start, min(start + 8, 18))] for start in (0, 8, 16)]


def test_what_fits_is_asked_for_the_longest_prompt_of_a_turn(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("word\n" * 5 + "word " * 30 + "\n" + "word\n" * 3)
    asked: list[tuple[int, int]] = []

    def fits(tokens: int, block: int) -> int:
        asked.append((tokens, block))
        return 4 if tokens < 100 else 2

    ran = run("--prompts_file", str(path), fits=fits)
    # The long prompt takes only one beside it, so the others before it are answered without it.
    assert [(len(turn.prompts), turn.together) for turn in ran.engine.turns] == [(5, 4), (4, 2)]
    longest = max(len(prompt) for turn in ran.engine.turns for prompt in turn.prompts)
    assert (longest + 40, 4) in asked
    assert {block for _, block in asked} == {4}


def test_what_the_first_prompts_show_of_the_model_is_reported_once(run: Run, prompts: str) -> None:
    reported = "These are read one by one."
    ran = run("--prompts_file", prompts, remark_after=lambda turns: reported if turns else None)
    assert ran.err.count(reported) == 1
    # What was known before is shown when the model is ready.
    ran = run("--prompts_file", prompts, remark_after=lambda turns: reported)
    assert reported not in ran.err


def test_greedy_samples_are_made_with_a_word_on_it(run: Run) -> None:
    ran = run("--prompt", "Hello", "--n", "2", "--json")
    assert [json.loads(line)["sample"] for line in ran.out.splitlines()] == [0, 1]
    assert ran.err == "temperature is 0, so all samples of a prompt are the same.\n"


# On a terminal.


def test_on_a_terminal_one_line_tells_how_far_it_is(
    run: Run, prompts: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_line, "REDRAW_S", 0.0)
    streams = Texts(notices=Screen(), progress=True)
    ran = run("--prompts_file", prompts, "--output_file", str(output), streams=streams)
    shown = [part for part in ran.err.split(CLEAR_LINE) if part]
    counts = [part.partition(",")[0] for part in shown]
    assert list(dict.fromkeys(counts)) == [f"{done}/6 replies" for done in range(7)]
    # Between two replies too, as blocks are finished.
    assert counts.count("3/6 replies") > 2
    assert re.search(r"^6/6 replies, [\d,]+ tokens/s, 0:00 left$", shown[-1])
    assert ran.err.endswith(CLEAR_LINE)
    assert "\n" not in ran.err
    assert "\x1b" not in ran.err.replace(CLEAR_LINE, "")


def test_no_progress_is_drawn_where_the_streams_do_not_want_it(run: Run, prompts: str, output: Path) -> None:
    ran = run("--prompts_file", prompts, "--output_file", str(output), streams=Texts(notices=Screen()))
    assert ran.err == ""


def test_escape_codes_of_a_reply_reach_a_pipe_but_no_terminal(run: Run) -> None:
    hostile = "a\x1b[2Jb"
    assert run("--prompt", "x", say=lambda text, seed: hostile).out == hostile + "\n"
    assert "\x1b" not in run("--prompt", "x", say=lambda text, seed: hostile, streams=Texts(replies=Screen())).out


def test_a_single_reply_is_printed_block_by_block_in_whole_characters(run: Run) -> None:
    streams = Texts()
    shown: list[str] = []
    text = "a\u4e16\u4e16\U0001f600 end"

    def look(number: int) -> None:
        shown.append(streams.replies.getvalue())

    ran = run("--prompt", "x", streams=streams, say=lambda *_: text, before_pass=look)
    assert ran.out == text + "\n"
    assert len(set(shown)) > 3
    assert all(text.startswith(part) for part in shown)


# The trace.


def test_a_trace_is_part_of_the_record(run: Run, output: Path, tokenizer: ChatTokenizer) -> None:
    ran = run("--prompt", "Hello", "--output_file", str(output), "--verbose_trace")
    (record,) = records(output)
    assert ran.err == ""
    assert ran.engine.turns[0].trace
    ids = record["token_ids"]
    assert [block["block"] for block in record["trace"]] == list(range(-(-len(ids) // BLOCK)))
    draft, final = record["trace"][0]["passes"]
    assert draft == {
        "iteration": 1,
        "text": "",
        "token_ids": [2] * BLOCK,
        "changed": [False] * BLOCK,
        "exact": 0,
        "candidates": [[[ids[0], 1.0]]] * BLOCK,
    }
    assert (final["iteration"], final["token_ids"], final["exact"]) == (2, ids[:BLOCK], BLOCK)
    assert final["text"] == tokenizer.decode(ids[:BLOCK])


def test_without_a_record_the_trace_is_reported_on_stderr(run: Run) -> None:
    ran = run("--prompt", "Hello", "--verbose_trace")
    assert ran.out == "You said Hello, None.\n"
    lines = ran.err.splitlines()
    assert lines[0] == "prompt 1, block 1, pass 1, 0 of 4 exact: ░░░░"
    assert lines[1].startswith("prompt 1, block 1, pass 2, 4 of 4 exact: [")
    assert lines[1].endswith("]")
    assert len(lines) == ran.engine.passes


# What cannot be.


def test_a_template_that_is_not_there_is_refused_before_anything_is_made(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    bare = dataclasses.replace(tokenizer, template=None)
    options = LaunchOptions(prompt="x", use_chat_template=True, output_file=str(tmp_path / "r.json"))
    asked = read_prompts(options, io.BytesIO())
    with pytest.raises(UsageError, match="has no chat template"):
        run_batch(ScriptedEngine(bare), bare, options, SETTINGS, asked, Texts(), FACTS, interrupted=never)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_forgets_a_prompt_is_an_error(tokenizer: ChatTokenizer) -> None:
    class Forgetful(ScriptedEngine):
        def answer(self, turn: Turn, poll: Callable[[], Control]) -> Iterator[Event]:
            return iter(())

    options = LaunchOptions(prompt="x")
    asked = read_prompts(options, io.BytesIO())
    with pytest.raises(ChatError, match="1 prompts of a turn got no reply"):
        run_batch(Forgetful(tokenizer), tokenizer, options, SETTINGS, asked, Texts(), FACTS, interrupted=never)
