"""Files of very many prompts: nothing of them is held in memory, the first result comes at once."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_engine import FACTS, SETTINGS, ScriptedEngine, Texts, never

from chat.batch import prompts as prompts_module
from chat.batch import results_file
from chat.batch.jobs import Jobs
from chat.batch.prompts import Prompt, Prompts, read_prompts
from chat.batch.results_file import ResultsFile, check_results
from chat.batch.run import run_batch
from chat.start.options import parse_options
from chat.text.tokenizer import ChatTokenizer
from chat.text.transcript import Transcript
from dist.errors import RankError, UsageError

ROOT = Path(__file__).parents[2]


def read(path: Path) -> Prompts:
    return read_prompts(parse_options(["--prompts_file", str(path)]), io.BytesIO())


def json_lines(path: Path, count: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"prompt": f"question {number}", "more": "x" * 100}) + "\n")
    return path


def parquet(path: Path, count: int) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"question {number}" for number in range(count)]
    parquet.write_table(pa.table({"prompt": texts, "more": ["x" * 100] * count}), path)
    return path


MAKERS = pytest.mark.parametrize("make", [json_lines, parquet])


@pytest.mark.slow
@MAKERS
def test_prompts_are_read_as_they_are_gone_through(
    tmp_path: Path, make: Callable[[Path, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix = {json_lines: ".jsonl", parquet: ".parquet"}[make]
    path = make(tmp_path / f"p{suffix}", 20_000)
    monkeypatch.setattr(prompts_module, "CHECKED", 100)
    tracemalloc.start()
    try:
        found = read(path)
        assert len(found) == 20_000
        for number, prompt in enumerate(found):
            assert prompt.given == f"question {number}"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    # It stays the same file, and can be gone through again.
    path.unlink()
    assert next(iter(found)).given == "question 0"
    assert sum(1 for _ in found) == 20_000


def test_what_is_wrong_far_down_is_said_when_its_turn_comes_and_what_is_done_stays(
    tmp_path: Path,
    tokenizer: ChatTokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, output = json_lines(tmp_path / "p.jsonl", 12), tmp_path / "r.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:10], "{}", *lines[11:]]))
    with pytest.raises(UsageError, match="line 11 has neither prompt nor messages"):
        read(path)
    monkeypatch.setattr(prompts_module, "CHECKED", 5)
    argv = ["--prompts_file", str(path), "--output_file", str(output), "--batch_size", "4"]

    def run() -> int:
        options = parse_options(argv)
        engine = ScriptedEngine(tokenizer)
        return run_batch(engine, tokenizer, options, SETTINGS, read(path), Texts(), FACTS, interrupted=never)

    with pytest.raises(UsageError, match="line 11 has neither prompt nor messages"):
        run()
    assert len(output.read_text().splitlines()) == 10
    path.write_text("\n".join(lines))
    assert run() == 0
    made = [json.loads(line)["prompt"] for line in output.read_text().splitlines()]
    assert made == [f"question {number}" for number in range(12)]


def test_a_pipe_is_stored_and_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "p.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text('{"prompt": "a"}\n{"prompt": "b"}\n'))
    writer.start()
    found = read(pipe)
    writer.join()
    assert [[one.given for one in found] for _ in range(2)] == [["a", "b"]] * 2


# Results that come before earlier ones.


class Many:
    """Prompts that are made up as they are gone through."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Prompt]:
        return (Prompt(given=f"prompt {number}", transcript=Transcript()) for number in range(self._count))


CONDITIONS = {"refine_iter": 2}


def record(place: int) -> dict[str, object]:
    return {"prompt": f"prompt {place}", "response": "r" * 50, "finish_reason": "stop", "settings": CONDITIONS}


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_whatever_is_cut_off_after_a_kill_each_finished_result_stays_and_comes_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results come in a drawn order; now and then the run is killed, which leaves files as they are."""
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    monkeypatch.setattr(results_file, "MOST_STALE", 5)
    jobs, path = Jobs(Many(60), 1), tmp_path / name
    made: list[int] = []
    while len(made) < 60:
        check_results(path, jobs, CONDITIONS)
        file = ResultsFile(path, jobs, CONDITIONS)
        waiting = dict(file.later)
        assert sorted([*range(file.finished), *waiting]) == sorted(made)
        written = file.finished
        left = [place for place in range(60) if place not in made]
        for _ in range(draw.randint(1, 25)):
            if not left:
                break
            # From the first few that are missing, as workers take them.
            place = left.pop(draw.randrange(min(8, len(left))))
            waiting[place] = record(place)
            made.append(place)
            if place != written:
                file.add_later(place, record(place))
                continue
            while written in waiting:
                file.add(waiting.pop(written))
                written += 1
            file.caught_up(waiting)
        file.close()
        if draw.random() < 0.5:
            grown = path if name == "r.jsonl" else tmp_path / "r.json.partial"
            for torn in (grown, grown.with_name(grown.name + ".later")):
                if torn.exists():
                    with torn.open("ab") as half:
                        half.write(b'{"prompt": "half' if torn == grown else b'{"place": 3')
    file = ResultsFile(path, jobs, CONDITIONS)
    for place in range(file.finished, 60):
        file.add(file.later[place])
    file.finish()
    text = path.read_text()
    done = [json.loads(line) for line in text.splitlines()] if name == "r.jsonl" else json.loads(text)
    assert done == [record(place) for place in range(60)]
    assert list(tmp_path.iterdir()) == [path]


def test_results_beside_are_compared_like_all_others(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    file = ResultsFile(path, Jobs(Many(9), 1), CONDITIONS)
    file.add_later(4, record(4))
    file.close()
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}
    for jobs, conditions, why in (
        (Jobs(Many(9), 1), {"refine_iter": 3}, "refine_iter was 2"),
        (Jobs(Many(3), 3), CONDITIONS, "Its result 5 is for another prompt"),
        (Jobs(Many(4), 1), CONDITIONS, "It holds 5 results, and this run has 4"),
    ):
        for refused in (check_results, ResultsFile):
            with pytest.raises(UsageError, match=why):
                refused(path, jobs, conditions)
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_half_a_line_that_is_no_result_is_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("precious words")
    with pytest.raises(UsageError, match="is not a results file"):
        ResultsFile(path, Jobs(Many(2), 1), CONDITIONS)
    assert path.read_text() == "precious words"


def test_going_on_with_a_long_output_takes_little_memory(tmp_path: Path) -> None:
    path, jobs = tmp_path / "r.json", Jobs(Many(4000), 1)
    lines = [json.dumps(record(place)) for place in range(3999)]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    tracemalloc.start()
    try:
        file = ResultsFile(path, jobs, CONDITIONS)
        assert file.finished == 3999
        file.add(record(3999))
        file.finish()
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
    assert len(json.loads(path.read_text())) == 4000


def test_a_death_loses_no_result_that_came_out_of_order(
    tmp_path: Path,
    tokenizer: ChatTokenizer,
) -> None:
    path, output = json_lines(tmp_path / "p.jsonl", 6), tmp_path / "r.jsonl"

    def die(number: int) -> None:
        if number == 70:
            raise RankError("Rank 1 died.")

    def run(**engine: object) -> ScriptedEngine:
        options = parse_options(["--prompts_file", str(path), "--output_file", str(output), "--batch_size", "6"])
        scripted = ScriptedEngine(tokenizer, **engine)  # type: ignore[arg-type]
        run_batch(scripted, tokenizer, options, SETTINGS, read(path), Texts(), FACTS, interrupted=never)
        return scripted

    with pytest.raises(RankError):
        run(order=reversed, before_pass=die)
    assert output.read_text() == ""
    kept = len((tmp_path / "r.jsonl.later").read_text().splitlines())
    assert kept >= 2
    assert sum(len(turn.prompts) for turn in run().turns) == 6 - kept
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == [
        f"question {number}" for number in range(6)
    ]


# A million of them: what the whole costs in memory, and when the first result is there.

MILLION = 1_000_000


@pytest.mark.long
@pytest.mark.timeout(600)
@MAKERS
def test_a_million_prompts_take_no_memory_and_the_first_result_comes_at_once(
    tmp_path: Path, make: Callable[[Path, int], Path]
) -> None:
    suffix = {json_lines: ".jsonl", parquet: ".parquet"}[make]
    path = make(tmp_path / f"p{suffix}", MILLION)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/long_prompts.py"), str(path), str(tmp_path / "r.jsonl")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    reported = json.loads(done.stdout)
    print(reported)
    assert reported["results"] == MILLION
    assert reported["first_result_s"] < 20
    assert reported["grown_mib"] < 64
