"""Runs without a conversation, over an engine that yields real events but needs no model."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pytest
from checkpoints import save_tokenizer

from chat.batch.interruption import FILE, SAME_S, Interruption
from chat.batch.jobs import derive_seed
from chat.batch.printer import ReplyPrinter
from chat.batch.prompts import read_prompts
from chat.batch.run import check_output, run_batch
from chat.start.options import LaunchOptions, parse_options
from chat.terminal import progress_line
from chat.terminal.streams import CLEAR_LINE
from chat.text.prompt import prompt_ids
from chat.text.tokenizer import ChatTokenizer, load_tokenizer
from chat.text.transcript import Transcript
from dist.errors import ChatError, PromptError, RankError, UsageError
from dist.protocol import BlockUpdate, Control, Event, FinishReason, PrefillUpdate, Reply, ReplyStats, Turn
from dist.settings import GenerationSettings

SETTINGS = GenerationSettings(add_eos_length=3, refine_iter=2, max_new_tokens=40, max_length=200)
FACTS = {"checkpoint": "/runs/global_step_3", "dtype": "float32", "processes": 2}
BLOCK = 4


def question(prompt: str) -> str:
    """The last line of the user's in the text of a prompt, with or without the template."""
    return [line for line in prompt.split("\n") if line and line != "assistant"][-1]


def never() -> bool:
    """A run that nobody interrupts."""
    return False


@dataclass
class ScriptedEngine:
    """Answers each prompt with the text that `say` makes of the prompt's text and its seed.

    Blocks are of four tokens and two passes. `before_pass` runs before each pass, with the pass's number; what
    it raises passes through.
    """

    tokenizer: ChatTokenizer
    max_positions: int | None = None
    fits: Callable[[int, int], int] = lambda tokens, block: 1
    say: Callable[[str, int | None], str] = lambda text, seed: f"You said {question(text)}, {seed}."
    before_pass: Callable[[int], None] = lambda number: None
    order: Callable[[list[Any]], Iterable[Any]] = list
    turns: list[Turn] = field(default_factory=list)
    passes: int = 0
    remark_after: Callable[[int], str | None] = lambda turns: None
    captures: bool = False

    @property
    def slow_notice(self) -> str | None:
        return self.remark_after(len(self.turns))

    def rows_that_fit(self, tokens: int, block: int) -> int:
        return self.fits(tokens, block)

    def answer(self, turn: Turn, poll: Callable[[], Control]) -> Iterator[Event]:
        self.turns.append(turn)
        for row, prompt in self.order(list(enumerate(turn.prompts))):
            yield PrefillUpdate(done=len(prompt), total=len(prompt))
            yield from self._reply(turn, row, prompt, poll)

    def _reply(self, turn: Turn, row: int, prompt: tuple[int, ...], poll: Callable[[], Control]) -> Iterator[Event]:
        seed = (turn.settings if turn.row_settings is None else turn.row_settings[row]).seed
        text = self.say(self.tokenizer.decode(prompt), seed)
        ids = (*self.tokenizer.encode(text), self.tokenizer.eos_id)
        finish: FinishReason = "stop"
        if len(ids) > turn.settings.max_new_tokens:
            ids, finish = ids[: turn.settings.max_new_tokens], "length"
        for index in range(0, len(ids), BLOCK):
            block = ids[index : index + BLOCK]
            for iteration in (1, 2):
                self.before_pass(self.passes)
                self.passes += 1
                if poll().cancel:
                    yield self._end(turn, row, prompt, ids[:index], "cancelled")
                    return
                last = iteration == 2
                yield BlockUpdate(
                    row=row,
                    index=index // BLOCK,
                    iteration=iteration,
                    token_ids=block if last else (turn.placeholder,) * len(block),
                    changed=(last,) * len(block),
                    exact=len(block) if last else 0,
                    settled=len(block) if last else 0,
                    finish=finish if last and index + BLOCK >= len(ids) else None,
                    candidates=(((block[0], 1.0),),) * len(block) if turn.trace else None,
                )
        yield self._end(turn, row, prompt, ids, finish)

    def _end(
        self, turn: Turn, row: int, prompt: tuple[int, ...], ids: tuple[int, ...], finish: FinishReason
    ) -> Reply:
        blocks = -(-len(ids) // BLOCK)
        stats = ReplyStats(
            forwards=2 * blocks,
            prefill_forwards=0,
            iterations=(2,) * blocks,
            converged=(False,) * blocks,
            ttft_s=0.25,
            decode_s=0.5,
            tokens=len(ids),
        )
        return Reply(
            row=row, prompt_len=len(prompt), token_ids=ids, finish=finish, settings=turn.settings, stats=stats
        )


@dataclass(frozen=True)
class Texts:
    """Two text streams of a program whose output is piped, or shown on a terminal."""

    replies: io.StringIO = field(default_factory=io.StringIO)
    notices: io.StringIO = field(default_factory=io.StringIO)
    progress: bool = False


@dataclass(frozen=True)
class Piped:
    """Streams of which one is a real pipe."""

    replies: TextIO
    notices: TextIO
    progress: bool = False


class Screen(io.StringIO):
    """A text stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str
    engine: ScriptedEngine


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder, {"eos_token_id": [2, 0]})


Run = Callable[..., Ran]


@pytest.fixture
def run(tokenizer: ChatTokenizer) -> Run:
    def run(
        *argv: str,
        settings: GenerationSettings = SETTINGS,
        streams: Texts | None = None,
        stdin: bytes = b"",
        facts: dict[str, Any] = FACTS,
        interrupted: Callable[[], bool] = never,
        **engine: Any,
    ) -> Ran:
        options = parse_options(argv)
        prompts = read_prompts(options, io.BytesIO(stdin))
        streams = streams or Texts()
        scripted = ScriptedEngine(tokenizer, **engine)
        code = run_batch(scripted, tokenizer, options, settings, prompts, streams, facts, interrupted=interrupted)
        return Ran(code, streams.replies.getvalue(), streams.notices.getvalue(), scripted)

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt number-{number} ok\n" for number in range(6)))
    return str(path)


def records(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".json":
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found
    return [json.loads(line) for line in path.read_text().splitlines()]


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


# Samples and seeds.


SAMPLING = SETTINGS.with_value("temperature", 0.7)


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


def test_what_the_first_prompts_show_of_the_model_is_told_once(run: Run, prompts: str) -> None:
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


# The output file, interrupted and gone on with.


@pytest.fixture(params=["r.jsonl", "r.json"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def growing(output: Path) -> Path:
    return output if output.suffix == ".jsonl" else output.with_name(output.name + ".partial")


def failing_at(passes: int, error: BaseException) -> Callable[[int], None]:
    def before_pass(number: int) -> None:
        if number == passes:
            raise error

    return before_pass


@pytest.mark.drawn
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_a_rerun_after_a_death_gives_exactly_the_undisturbed_results(
    run: Run, prompts: str, output: Path, batch_size: str
) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output), "--batch_size", batch_size)
    whole = run(*argv)
    undisturbed = output.read_bytes()
    assert whole.code == 0
    output.unlink()
    for passes in range(0, whole.engine.passes, 7):
        with pytest.raises(RankError):
            run(*argv, before_pass=failing_at(passes, RankError("Rank 1 died.")))
        again = run(*argv)
        assert again.code == 0
        assert output.read_bytes() == undisturbed
        assert passes < whole.engine.passes / 2 or again.engine.passes < whole.engine.passes
        assert [path.name for path in output.parent.iterdir() if path != Path(prompts)] == [output.name]
        output.unlink()


def test_a_file_cut_at_any_byte_is_gone_on_with(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    with pytest.raises(RankError):
        run(*argv, before_pass=failing_at(60, RankError("Rank 1 died.")))
    started = growing(output).read_bytes()
    assert started.count(b"\n") >= 2
    run(*argv)
    undisturbed = output.read_bytes()
    for cut in (*range(0, len(started), 97), len(started) - 1):
        output.unlink()
        growing(output).write_bytes(started[:cut])
        ran = run(*argv)
        assert (ran.code, output.read_bytes()) == (0, undisturbed)
        assert len(ran.engine.turns) == 6 - started[:cut].count(b"\n")


def test_each_line_is_on_disk_as_soon_as_its_reply_is_made(run: Run, prompts: str, output: Path) -> None:
    seen: list[int] = []

    def count(_number: int) -> None:
        seen.append(growing(output).read_bytes().count(b"\n"))

    run("--prompts_file", prompts, "--output_file", str(output), "--batch_size", "3", before_pass=count)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4, 5]


def test_a_finished_output_is_left_as_it_is(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    run(*argv)
    before = (output.read_bytes(), output.stat().st_mtime_ns)
    again = run(*argv)
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    assert (again.code, again.engine.turns) == (0, [])
    assert again.err == "6 of 6 results were already there.\n"
    assert not growing(output).exists() or growing(output) == output


def test_prompts_added_at_the_end_are_made_too(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    run(*argv)
    first = records(output)
    with Path(prompts).open("a") as file:
        file.write("one more ok\n")
    again = run(*argv)
    assert len(again.engine.turns) == 1
    assert records(output)[:6] == first
    assert records(output)[6]["prompt"] == "one more ok"


def test_a_run_that_died_before_putting_its_last_result_in_place_loses_none(
    run: Run, prompts: str, tmp_path: Path
) -> None:
    output = tmp_path / "r.json"
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    run(*argv)
    shorter = output.read_bytes()
    with Path(prompts).open("a") as file:
        file.write("one more ok\n")
    run(*argv)
    whole = output.read_bytes()
    growing(output).write_text("".join(json.dumps(record) + "\n" for record in json.loads(whole)))
    output.write_bytes(shorter)
    assert run(*argv).engine.turns == []
    assert json.loads(output.read_bytes()) == json.loads(whole)
    assert not growing(output).exists()


def test_failures_of_the_run_before_count(run: Run, tmp_path: Path, output: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("word " * 300 + "\nfine\n")
    argv = ("--prompts_file", str(path), "--output_file", str(output))
    assert run(*argv).code == 4
    assert run(*argv).code == 4


def test_a_drawn_seed_is_gone_on_with(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output), "--n", "2")
    with pytest.raises(RankError):
        run(*argv, settings=SAMPLING, before_pass=failing_at(60, RankError("Rank 1 died.")))
    assert run(*argv, settings=SAMPLING).code == 0
    assert len({record["settings"]["seed"] for record in records(output)}) == 1
    assert len({record["seed"] for record in records(output)}) == 2


OTHER_RUNS = pytest.mark.parametrize(
    ("more", "changed", "why"),
    [
        ((), {"settings": SETTINGS.with_value("refine_iter", 3)}, "In it refine_iter was 2 and is 3 now."),
        (
            (),
            {"facts": {**FACTS, "checkpoint": "/other"}},
            "In it checkpoint was '/runs/global_step_3' and is '/other' now.",
        ),
        (("--system", "Be kind."), {}, "In it system was None and is 'Be kind.' now."),
        (("--n", "2"), {}, "In it n was 1 and is 2 now."),
        ((), {"settings": SETTINGS.with_value("seed", 4)}, "In it seed was None and is 4 now."),
        (("--no-use_chat_template",), {}, "In it use_chat_template was True and is False now."),
        ((), {"facts": {**FACTS, "dtype": "bfloat16"}}, "In it dtype was 'float32' and is 'bfloat16' now."),
    ],
)


@OTHER_RUNS
def test_results_made_otherwise_are_not_gone_on_with(
    run: Run, prompts: str, output: Path, more: tuple[str, ...], changed: dict[str, Any], why: str
) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    run(*argv)
    before = output.read_bytes()
    with pytest.raises(UsageError) as caught:
        run(*argv, *more, **changed)
    assert str(caught.value) == (
        f"{output} holds results of another run. {why} Move it away, or choose another output file."
    )
    assert output.read_bytes() == before
    assert not growing(output).exists() or growing(output) == output


@OTHER_RUNS
def test_they_are_refused_before_a_model_loads(
    run: Run,
    prompts: str,
    output: Path,
    more: tuple[str, ...],
    changed: dict[str, Any],
    why: str,
    tokenizer: ChatTokenizer,
) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    before_pass, interrupted = flag_after(20)
    run(*argv, before_pass=before_pass, interrupted=interrupted)
    before = growing(output).read_bytes()
    assert b'"cancelled"' in before
    settings, facts = changed.get("settings", SETTINGS), changed.get("facts", FACTS)
    for known, refused in (
        (facts, True),
        ({"checkpoint": facts["checkpoint"]}, "dtype" not in why),
        (FACTS, "facts" not in changed),
    ):
        options = parse_options([*argv, *more])
        use_template = tokenizer.wants_template(options.use_chat_template)
        asked = read_prompts(options, io.BytesIO())
        caught = []
        try:
            check_output(options, settings, use_template, asked, known)
        except UsageError as error:
            caught.append(error.why)
        assert caught == ([why] if refused else [])
        assert growing(output).read_bytes() == before


def test_the_same_run_on_other_processes_goes_on(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    run(*argv)
    assert run(*argv, "--batch_size", "2", facts={**FACTS, "processes": 7}).engine.turns == []


def test_results_of_other_prompts_are_refused(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    run(*argv)
    lines = Path(prompts).read_text().splitlines(keepends=True)
    Path(prompts).write_text("".join((lines[0], "changed\n", *lines[2:])))
    with pytest.raises(UsageError, match="Its result 2 is for another prompt than this run's"):
        run(*argv)
    Path(prompts).write_text("".join(lines[:2]))
    with pytest.raises(UsageError, match="It holds 6 results, and this run has 2 to make"):
        run(*argv)


@pytest.mark.parametrize("content", ["precious words\n", '{"prompt": "a"}\n', "[1, 2]\n", "{\n}\n"])
def test_a_file_that_holds_no_results_is_never_written_over(
    run: Run, prompts: str, output: Path, content: str
) -> None:
    output.write_text(content)
    for _ in range(2):
        with pytest.raises(UsageError, match="already exists and is not a results file"):
            run("--prompts_file", prompts, "--output_file", str(output))
    assert output.read_text() == content
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(["prompts.txt", output.name])


def test_two_runs_do_not_write_one_file(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output))
    refused: list[str] = []

    def second_run(number: int) -> None:
        if number == 0:
            with pytest.raises(UsageError) as caught:
                run(*argv)
            refused.append(str(caught.value))

    assert run(*argv, before_pass=second_run).code == 0
    assert refused == [f"Another run is writing {output}. Wait for it, or choose another output file."]
    assert len(records(output)) == 6


# Interruptions.


def flag_after(passes: int) -> tuple[Callable[[int], None], Callable[[], bool]]:
    raised: list[bool] = []

    def before_pass(number: int) -> None:
        if number == passes:
            raised.append(True)

    return before_pass, lambda: bool(raised)


def test_an_interrupt_keeps_what_is_done_and_a_rerun_makes_the_rest(run: Run, prompts: str, output: Path) -> None:
    argv = ("--prompts_file", prompts, "--output_file", str(output), "--batch_size", "2")
    run(*argv)
    undisturbed = output.read_bytes()
    output.unlink()
    before_pass, interrupted = flag_after(45)
    ran = run(*argv, before_pass=before_pass, interrupted=interrupted)
    assert ran.code == 130
    lines = [json.loads(line) for line in growing(output).read_text().splitlines()]
    assert lines[0]["finish_reason"] == "stop"
    assert lines[-1]["finish_reason"] == "cancelled"
    assert output.exists() == (output.suffix == ".jsonl")
    assert run(*argv).code == 0
    assert output.read_bytes() == undisturbed


@pytest.mark.drawn
@pytest.mark.parametrize("passes", [15, 45, 70])
def test_replies_that_were_finished_when_an_earlier_one_was_interrupted_are_kept(
    run: Run, prompts: str, output: Path, passes: int
) -> None:
    """The turn's rows are answered last to first, so that the first of them is interrupted."""
    argv = ("--prompts_file", prompts, "--output_file", str(output), "--batch_size", "4")
    run(*argv)
    undisturbed = output.read_bytes()
    output.unlink()
    before_pass, interrupted = flag_after(passes)
    ran = run(*argv, before_pass=before_pass, interrupted=interrupted, order=reversed)
    kept = [json.loads(line) for line in growing(output).read_text().splitlines()]
    finished = sum(record["finish_reason"] == "stop" for record in kept)
    assert (ran.code, kept[0]["finish_reason"] == "cancelled" or passes > 60) == (130, True)
    assert ran.err == f"Interrupted: {finished} of 6 replies are done. Run the same command again to continue.\n"
    again = run(*argv)
    assert sum(len(turn.prompts) for turn in again.engine.turns) == 6 - finished
    assert (again.code, output.read_bytes()) == (0, undisturbed)
    assert not finished or again.err == f"{finished} of 6 results were already there.\n"


def test_only_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    now = 5.0
    interruption = Interruption(tmp_path, clock=lambda: now)
    interruption.announce()
    assert (tmp_path / FILE).read_text() == f"{os.getpid()}\n"
    assert not interruption.asked()
    assert interruption.arrived()
    assert interruption.asked()
    # The same one, by way of torchrun.
    now += SAME_S / 2
    assert interruption.arrived()
    now += SAME_S
    assert not interruption.arrived()


def test_a_cancelled_reply_prints_its_finished_blocks(run: Run) -> None:
    before_pass, interrupted = flag_after(5)
    ran = run("--prompt", "Hello", "--json", before_pass=before_pass, interrupted=interrupted)
    record = json.loads(ran.out)
    assert (ran.code, record["finish_reason"], len(record["token_ids"])) == (130, "cancelled", 2 * BLOCK)
    before_pass, interrupted = flag_after(5)
    assert run("--prompt", "Hello", before_pass=before_pass, interrupted=interrupted).out == (
        record["response"] + "\n"
    )


def test_when_the_reader_of_stdout_goes_the_run_ends(tokenizer: ChatTokenizer, prompts: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    options = parse_options(["--prompts_file", prompts])
    asked = read_prompts(options, io.BytesIO())
    engine = ScriptedEngine(tokenizer)
    with os.fdopen(writing, "w", buffering=1) as closed:
        streams = Piped(replies=closed, notices=io.StringIO())
        assert run_batch(engine, tokenizer, options, SETTINGS, asked, streams, FACTS, interrupted=never) == 130
    assert len(engine.turns) == 1


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


def test_without_a_record_the_trace_is_told_on_stderr(run: Run) -> None:
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
