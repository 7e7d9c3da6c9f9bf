"""Stop texts in runs over prompts: what the results say, and what is printed on the way."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pytest
import torch
from pieces import pieces_tokenizer
from tiny_models import tiny_model

from chat.batch.prompts import read_prompts
from chat.batch.run import run_batch
from chat.start.options import parse_options
from chat.text.stops import stop_finder
from dist.decode.engine import Engine
from dist.group.group import SoloGroup
from dist.settings import GenerationSettings

TOKENIZER = pieces_tokenizer()
RULE = ("--add_eos_length", "3", "--refine_iter", "auto", "--max_new_tokens", "40")


class Printed(io.StringIO):
    """What was printed, after each piece of it."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[str] = []

    def flush(self) -> None:
        self.states.append(self.getvalue())


@dataclass
class Streams:
    replies: TextIO = field(default_factory=Printed)
    notices: TextIO = field(default_factory=io.StringIO)
    progress: bool = False


def run(*argv: str) -> Streams:
    options, streams = parse_options([*RULE, *argv]), Streams()
    ends = stop_finder(lambda: TOKENIZER)
    engine = Engine(tiny_model(), SoloGroup(torch.device("cpu")), max_positions=512, ends=ends)
    prompts, settings = read_prompts(options, io.BytesIO()), GenerationSettings(**options.settings)
    assert run_batch(engine, TOKENIZER, options, settings, prompts, streams, {}, interrupted=lambda: False) == 0
    return streams


@pytest.mark.slow
def test_results_are_cut_at_the_stop_text_and_say_which(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"prompt number {number}\n" for number in range(12)))

    def results(name: str, *argv: str) -> list[dict]:
        run("--prompts_file", str(prompts), "--output_file", str(tmp_path / name), *argv)
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    whole, cut = results("whole.jsonl"), results("cut.jsonl", "--stop", "xyz", "--stop=cb", "--stop", "<|turn|>")
    assert {one.get("stop_reason") for one in cut} > {"cb"}
    for before, now in zip(whole, cut, strict=True):
        assert now["settings"]["stop"] == ["xyz", "cb", "<|turn|>"]
        assert before["token_ids"][: len(now["token_ids"])] == now["token_ids"]
        if now.get("stop_reason") == "cb":
            assert now["finish_reason"] == "stop"
            assert now["response"] == before["response"].partition("cb")[0]
        assert "cb" not in now["response"]
        assert now["full_text"].endswith(now["response"])
        assert before["full_text"].startswith(now["full_text"])


def test_results_hold_the_log_probabilities_that_were_asked_for(tmp_path: Path) -> None:
    printed = run("--prompt", "prompt number 3", "--json", "--logprobs", "2", "--prefill", "aa").replies.getvalue()  # type: ignore[attr-defined]
    record = json.loads(printed)
    assert [one["token_id"] for one in record["logprobs"]] == record["token_ids"]
    for one in record["logprobs"]:
        assert len(one["top"]) == 2
        assert one["top"][0]["logprob"] >= max(one["top"][1]["logprob"], one["logprob"])
        assert one["token"] == TOKENIZER.decode([one["token_id"]], False)
    assert record["token_ids"][:2] == list(TOKENIZER.encode("aa"))
    assert record["settings"]["logprobs"] == 2
    plain = json.loads(run("--prompt", "prompt number 3", "--json").replies.getvalue())  # type: ignore[attr-defined]
    assert "logprobs" not in plain


def test_what_is_printed_while_it_is_made_holds_nothing_of_the_stop_text() -> None:
    prompt = ("--prompt", "prompt number 3")
    text = run(*prompt).replies.getvalue().removesuffix("\n")  # type: ignore[attr-defined]
    at = len(text) // 2
    stop = text[at : at + 4]
    printed = run(*prompt, "--stop", json.dumps(stop)).replies
    right = text.partition(stop)[0] + "\n"
    assert isinstance(printed, Printed)
    assert printed.getvalue() == right
    assert all(right.startswith(state) for state in printed.states)
    assert len(printed.states) > 2
