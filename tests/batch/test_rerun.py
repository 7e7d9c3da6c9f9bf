"""The results file: interrupted at any moment and continued, with what is refused."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import BLOCK, FACTS, SAMPLING, SETTINGS, Piped, Run, ScriptedEngine, never, records

from chat.batch.interruption import FILE, SAME_S, Interruption
from chat.batch.prompts import read_prompts
from chat.batch.run import check_output, run_batch
from chat.start.options import parse_options
from chat.text.tokenizer import ChatTokenizer
from dist.errors import RankError, UsageError


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


def test_a_file_cut_at_any_byte_is_continued(run: Run, prompts: str, output: Path) -> None:
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


def test_a_drawn_seed_is_continued(run: Run, prompts: str, output: Path) -> None:
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
def test_results_made_otherwise_are_not_continued(
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
