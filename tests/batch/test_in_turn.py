"""Prompts answered by several steps in turn: every line once and in order whatever happens, and what changed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from held_run import reply_by_plain_rule
from scripted_engine import SETTINGS, ScriptedEngine, Texts, question, records
from steps import add_step
from test_batch_ranks import Launched, results
from test_copies import COPIES, DictStore

from chat.batch.copies import Copies, serve
from chat.batch.in_turn import InTurn, makers_of
from chat.batch.jobs import Maker
from chat.batch.prompts import read_prompts
from chat.batch.run import check_output, run_batch
from chat.batch.summary import Summary
from chat.loading.step_list import AskedStep, asked_steps, first_there
from chat.start.options import parse_options
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import ASSISTANT, USER, Message, Transcript
from dist.checkpoint.digest import digests
from dist.checkpoint.open import open_checkpoint
from dist.errors import ChatError, CheckpointError, RankError, UsageError
from dist.protocol import Load
from dist.settings import GenerationSettings

STEPS = (100, 200, 300)
DTYPE = {"dtype": "float32"}


@dataclass
class Engine(ScriptedEngine):
    """Says which step's weights it holds; those of another copy take over what they are told."""

    step: int = 100
    taken_over: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.say = lambda text, seed: f"{self.step if '2 ' not in text else 'Always'} {question(text)}"

    def take_over(self, order: Load) -> None:
        self.step = int(Path(order.path).name)
        self.taken_over.append(order.path)

    def shutdown(self) -> None:
        pass


@dataclass
class Turns:
    """The steps, each by name; `fails` is called before one is loaded."""

    tokenizer: ChatTokenizer
    engine: Engine
    copies: Copies | None = None
    makers: Sequence[Maker] = tuple(
        Maker(name=step, conditions={"step": step, "checkpoint": f"/run/{step}", "digest": f"d{step}"})
        for step in STEPS
    )
    fails: Callable[[int], None] = lambda step: None

    def turn_to(self, step: int, say: Callable[[str], None]) -> ChatTokenizer:
        self.fails(step)
        self.engine.step = STEPS[step]
        if self.copies is not None and step:
            self.copies.load(Load(path=f"/run/{STEPS[step]}", digest=""))
        return self.tokenizer


Run = Callable[..., Any]


@pytest.fixture
def asked(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"prompt number-{number} ok\n" for number in range(5)))
    return ("--prompts_file", str(path), "--output_file", str(tmp_path / "r.jsonl"), "--steps", "100,200,300")


@pytest.fixture
def run(tokenizer: ChatTokenizer) -> Run:
    def run(*argv: str, turns: dict[str, Any] | None = None, **engine: Any) -> Any:
        options, streams = parse_options(argv), Texts()
        scripted = Engine(tokenizer, **engine)
        steps = Turns(tokenizer, scripted, **(turns or {}))
        code = run_batch(
            scripted,
            tokenizer,
            options,
            SETTINGS,
            read_prompts(options, io.BytesIO()),
            streams,
            DTYPE,
            interrupted=lambda: False,
            steps=steps,
        )
        return SimpleNamespace(
            code=code, out=streams.replies.getvalue(), err=streams.notices.getvalue(), engine=scripted
        )

    return run


def test_every_prompt_is_answered_by_every_step_and_a_table_says_what_changed(
    run: Run, asked: tuple[str, ...], tmp_path: Path
) -> None:
    ran = run(*asked)
    made = records(tmp_path / "r.jsonl")
    assert (ran.code, ran.out) == (0, "")
    assert [(one["step"], one["prompt"]) for one in made] == [
        (step, f"prompt number-{number} ok") for step in STEPS for number in range(5)
    ]
    assert [one["response"] for one in made[5:8]] == [
        "200 prompt number-0 ok",
        "200 prompt number-1 ok",
        "Always prompt number-2 ok",
    ]
    settings = made[6]["settings"]
    assert (settings["step"], settings["checkpoint"], settings["digest"]) == (200, "/run/200", "d200")
    tokens = [sum(len(one["token_ids"]) for one in made[at : at + 5]) for at in (0, 5, 10)]
    passes = [sum(one["stats"]["forwards"] for one in made[at : at + 5]) for at in (0, 5, 10)]
    head, *rows = (line.split() for line in ran.err.splitlines())
    assert " ".join(head) == "step replies changed mean tokens by length tokens a pass first 32 as before"
    assert [row[:6] for row in rows] == [
        [str(step), "5", changed, f"{tokens[at] / 5:.1f}", "0", f"{tokens[at] / passes[at]:.2f}"]
        for at, (step, changed) in enumerate(zip(STEPS, ("-", "4", "4")))
    ]
    pairs = [
        (one, other)
        for a, b in zip(made[:5], made[5:10])
        for one, other in zip_longest(a["token_ids"][:32], b["token_ids"][:32])
    ]
    equal = sum(one == other for one, other in pairs)
    assert rows[0][6:] == ["-"] and rows[1][6:] == [f"{1000 * equal // len(pairs) / 10:.1f}", "%"]


def test_a_rerun_after_a_death_anywhere_gives_exactly_the_undisturbed_results_and_table(
    run: Run, asked: tuple[str, ...], tmp_path: Path
) -> None:
    output = tmp_path / "r.jsonl"
    whole = run(*asked)
    undisturbed = output.read_bytes()

    def dies_at(passes: int) -> Callable[[int], None]:
        def before_pass(number: int) -> None:
            if number == passes:
                raise RankError("A rank died.")

        return before_pass

    def dies_before(step: int) -> Callable[[int], None]:
        def fails(number: int) -> None:
            if number == step:
                raise RankError("A rank died.")

        return fails

    deaths: list[dict[str, Any]] = [{"before_pass": dies_at(at)} for at in range(0, whole.engine.passes, 13)]
    deaths += [{"turns": {"fails": dies_before(step)}} for step in range(3)]
    for death in deaths:
        output.unlink()
        with pytest.raises(RankError):
            run(*asked, **death)
        again = run(*asked)
        assert (again.code, output.read_bytes()) == (0, undisturbed)
        assert again.err.endswith(whole.err)
    assert run(*asked).engine.passes == 0


def test_a_step_that_changed_is_refused_and_one_that_is_gone_only_where_it_has_not_answered(
    run: Run, asked: tuple[str, ...], tmp_path: Path
) -> None:
    output, options = tmp_path / "r.jsonl", parse_options(asked)
    run(*asked)
    lines = output.read_bytes().splitlines(keepends=True)
    makers = list(Turns.makers)
    other = dataclasses.replace(makers[1], conditions={**makers[1].conditions, "digest": "e"})
    gone = Maker(name=100, conditions={"step": 100}, gone=True)

    def check(now: Sequence[Maker]) -> Any:
        return check_output(options, SETTINGS, True, read_prompts(options, io.BytesIO()), DTYPE, makers=now)

    changed = [makers[0], other, makers[2]]
    for kept in (15, 7):  # of 15 lines; in both cases there are some of step 200
        output.write_bytes(b"".join(lines[:kept]))
        for refuse in (lambda: check(changed), lambda: run(*asked, turns={"makers": changed})):
            with pytest.raises(UsageError, match=r"In it, of step 200, digest was 'd200' and is 'e' now"):
                refuse()
    assert list(check([gone, *makers[1:]])) == [0]
    assert run(*asked, turns={"makers": [gone, *makers[1:]]}).code == 0
    assert output.read_bytes() == b"".join(lines)
    output.write_bytes(b"".join(lines[:4]))
    assert list(check([gone, *makers[1:]])) == []
    problem = CheckpointError("There is no step 100.")
    missing = InTurn(
        [AskedStep(name=100, problem=problem)], None, None,  # type: ignore[arg-type]
        loaded=tmp_path, tokenizer=SimpleNamespace(template=None), use_template=True,  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="There is no step 100"):
        missing.turn_to(0, print)


def by_copies(asked: tuple[str, ...], engines: list[Engine]) -> int:
    """Rank 0 on this thread, the other copies on theirs; gives the exit code."""
    store, options = DictStore(), parse_options([*asked, "--batch_size", "1"])
    others = [threading.Thread(target=serve, args=(engines[n], store, n)) for n in range(1, COPIES)]
    for thread in others:
        thread.start()
    copies = Copies(engines[0], store, COPIES)
    try:
        return run_batch(
            engines[0],
            engines[0].tokenizer,
            options,
            SETTINGS,
            read_prompts(options, io.BytesIO()),
            Texts(),
            DTYPE,
            interrupted=lambda: False,
            workers=copies,
            steps=Turns(engines[0].tokenizer, engines[0], copies),
        )
    finally:
        copies.let_go()
        for thread in others:
            thread.join(20)


@pytest.mark.parametrize("there", [0, 25, 40])
def test_all_copies_take_over_each_step_before_they_answer_for_it(
    run: Run,
    asked: tuple[str, ...],
    tmp_path: Path,
    tokenizer: ChatTokenizer,
    there: int,
) -> None:
    """Also where the first step has answered already, and they are still to load when the next one is."""
    (tmp_path / "p.txt").write_text("".join(f"prompt number-{number} ok\n" for number in range(40)))
    run(*asked)
    alone = (tmp_path / "r.jsonl").read_bytes()
    (tmp_path / "r.jsonl").write_bytes(b"".join(alone.splitlines(keepends=True)[:there]))
    engines = [Engine(tokenizer, before_pass=lambda number: time.sleep(1e-3)) for _ in range(COPIES)]
    assert by_copies(asked, engines) == 0
    assert (tmp_path / "r.jsonl").read_bytes() == alone
    assert all(engine.taken_over == ["/run/200", "/run/300"] and engine.turns for engine in engines[1:])


def test_a_copy_that_cannot_take_over_a_step_ends_the_run(
    asked: tuple[str, ...],
    tmp_path: Path,
    tokenizer: ChatTokenizer,
) -> None:
    (tmp_path / "p.txt").write_text("".join(f"prompt number-{number} ok\n" for number in range(40)))

    class Torn(Engine):
        def take_over(self, order: Load) -> None:
            raise CheckpointError(f"{order.path} is torn.")

    engines = [kind(tokenizer, before_pass=lambda number: time.sleep(1e-3)) for kind in (Engine, Engine, Torn)]
    with pytest.raises(CheckpointError, match="/run/200 is torn"):
        by_copies(asked, engines)
    assert {record["step"] for record in records(tmp_path / "r.jsonl")} <= {100, 200}


def test_the_table_counts_failures_and_what_one_reply_lacks() -> None:
    summary = Summary([1, "/models/base"], 2)
    for ids, finish, forwards in (
        ((1, 2), "stop", 1),
        ((), "error", None),
        ((1, 2, 3, 4), "length", 2),
        ((5,), "stop", 1),
    ):
        stats = None if forwards is None else {"forwards": forwards}
        summary.add({"token_ids": list(ids), "finish_reason": finish, "stats": stats})
    assert summary.table() == (
        "step          replies  changed  mean tokens  by length  tokens a pass  first 32 as before  failed\n"
        "1             2        -        1.0          0          2.00           -                   1\n"
        "/models/base  2        2        2.5          1          1.67           40.0 %              0"
    )


# On checkpoints.


@pytest.fixture
def three(tiny_checkpoint: Callable[[str, int], Path], tmp_path: Path) -> Path:
    """A run with the steps 3, 7 and 12; 12 is as 3."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), folder)
    add_step(folder, 3, 7)
    shutil.copytree(folder / "global_step_3", folder / "global_step_12")
    return folder


def test_steps_are_opened_by_number_word_or_path_and_what_is_half_written_is_reported(three: Path) -> None:
    (three / "global_step_12" / "actor" / "model_world_size_3_rank_1.pt").unlink()
    words = ("3", "latest", "7", "12", "base", str(three / "reference"), "99")
    for folder in (three, three / "global_step_3"):
        found = list(asked_steps(words, str(folder), str(three / "reference"), open_checkpoint))
        assert [step.name for step in found] == [3, 7, 12, str(three / "reference"), 99]
        assert [step.checkpoint is None for step in found] == [False, False, True, False, True]
        assert "Shard 1 of 3 is missing" in str(found[2].problem)
        assert "There is no step 99" in str(found[4].problem)
        assert first_there(found[2:]).layout == "safetensors"
    with pytest.raises(CheckpointError, match="Shard 1 of 3"):
        first_there(found[2:3])
    with pytest.raises(UsageError, match="no steps beside it"):
        list(asked_steps(["3"], str(three / "reference"), None, open_checkpoint))
    assert [maker.gone for maker in makers_of(found)] == [False, False, True, False, True]


def test_a_step_that_changes_after_the_start_makes_no_results(three: Path) -> None:
    steps = list(asked_steps(["3", "7"], str(three), None, open_checkpoint))
    path = three / "global_step_7" / "actor" / "huggingface" / "generation_config.json"
    path.write_text(path.read_text().replace("{", '{"note": 1,', 1))
    now = digests(open_checkpoint(three / "global_step_7")).checkpoint
    checkpoints = SimpleNamespace(check=lambda folder: now)
    turns = InTurn(
        steps,
        checkpoints,
        None,
        loaded=three / "global_step_3" / "actor",
        tokenizer=SimpleNamespace(template=None),  # type: ignore[arg-type]
        use_template=True,
    )
    turns.turn_to(0, print)
    with pytest.raises(ChatError, match="has changed since the run began"):
        turns.turn_to(1, print)


@pytest.mark.long  # a drawn test in test_batch_ranks.py kills one rank within a step
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("parallel", "lines"), [("copies", 5), ("copies", 8), ("fsdp", 12), ("fsdp", 16)])
def test_killed_inside_or_between_steps_a_rerun_completes_the_file(
    three: Path, tmp_path: Path, parallel: str, lines: int
) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "r.jsonl"
    prompts.write_text("".join(f"Question {number}\n" for number in range(8)))

    def launch(number: int) -> Launched:
        run_dir = tmp_path / f"run{number}"
        run_dir.mkdir()
        more = ("--steps", "3,7,12", "--temperature", "0", "--batch_size", "2", "--refine_iter", "auto")
        return Launched(three, prompts, output, run_dir, 2, parallel, more, stops=())

    killed = launch(0)
    killed.wait_for_results(lines)
    ranks = [killed.process(rank) for rank in (0, 1)]
    for process in (killed.launcher.pid, *ranks):
        os.kill(process, signal.SIGKILL)
    killed.launcher.communicate()
    kept = results(output)
    assert lines <= len(kept) < 24
    code, out, err = launch(1).end()
    assert (code, out) == (0, "")
    assert err.splitlines()[-3].split()[:3] == ["3", "8", "-"]
    made = results(output)
    assert made[: len(kept)] == kept
    assert [(one["step"], one["prompt"]) for one in made] == [
        (step, f"Question {number}") for step in (3, 7, 12) for number in range(8)
    ]
    assert [one["token_ids"] for one in made[16:]] == [one["token_ids"] for one in made[:8]]
    settings = GenerationSettings(add_eos_length=0, refine_iter=1, max_new_tokens=24)
    for at in (3, 11):
        asked = Transcript((Message(USER, made[at]["prompt"]), Message(ASSISTANT, "")))
        right = reply_by_plain_rule(three / f"global_step_{made[at]['step']}", asked, settings)
        assert tuple(made[at]["token_ids"]) == right
    assert json.loads(output.read_text().splitlines()[0])["settings"]["step"] == 3
