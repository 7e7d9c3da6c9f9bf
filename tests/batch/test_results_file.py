"""The results file between two runs: neither erases what the other wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chat.batch import results_file
from chat.batch.jobs import Jobs
from chat.batch.prompts import Prompt
from chat.batch.results_file import ResultsFile
from chat.text.transcript import Transcript
from dist.errors import UsageError

JOBS = Jobs([Prompt(given=f"prompt {place}", transcript=Transcript()) for place in range(3)], 1)
CONDITIONS = {"refine_iter": 2}


def record(place: int) -> dict[str, object]:
    return {"prompt": f"prompt {place}", "response": "r", "finish_reason": "stop", "settings": CONDITIONS}


@pytest.mark.parametrize("name", ["o.jsonl", "o.json"])
def test_a_second_run_never_erases_what_the_first_adds_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first = ResultsFile(tmp_path / name, JOBS, CONDITIONS)
    first.add(record(0))
    really_there = results_file._what_is_there

    def then_the_first_goes_on(path: Path) -> bytes:
        read = really_there(path)
        first.add(record(1))
        first.close()
        return read

    monkeypatch.setattr(results_file, "_what_is_there", then_the_first_goes_on)
    with pytest.raises(UsageError, match="Another run is writing"):
        ResultsFile(tmp_path / name, JOBS, CONDITIONS)
    monkeypatch.undo()
    first.add(record(1))
    first.close()
    third = ResultsFile(tmp_path / name, JOBS, CONDITIONS)
    assert third.finished == 2
    third.add(record(2))
    third.finish()
    text = (tmp_path / name).read_text()
    done = [json.loads(line) for line in text.splitlines()] if name == "o.jsonl" else json.loads(text)
    assert [one["prompt"] for one in done] == ["prompt 0", "prompt 1", "prompt 2"]


def test_a_refused_run_leaves_no_file_behind(tmp_path: Path) -> None:
    finished = tmp_path / "o.json"
    finished.write_text(json.dumps([record(0)]))
    with pytest.raises(UsageError, match="holds results of another run"):
        ResultsFile(finished, JOBS, {"refine_iter": 1})
    assert list(tmp_path.iterdir()) == [finished]


def test_an_empty_partial_file_does_not_hide_finished_results(tmp_path: Path) -> None:
    finished = tmp_path / "o.json"
    finished.write_text(json.dumps([record(0)]))
    (tmp_path / "o.json.partial").touch()
    again = ResultsFile(finished, JOBS, CONDITIONS)
    assert again.finished == 1
    again.close()
