"""A run over a prompt file that something befalls, and what must be in its results for all that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

# What a clock said, and how much of a prompt was read with another one's.
BY_CHANCE = ("ttft_s", "decode_s", "tokens_per_s", "prefill_forwards")
STOPS = ("--stop", "zz", "--stop", "<|im_start|>", "--stop", "t")
TOO_LONG = "word " * 3000 + "end"
PROMPTS = [TOO_LONG if number == 12 else f"Question {number}: what is {number} * 4?" for number in range(200)]
SETTINGS = (
    *("--add_eos_length", "3", "--refine_iter", "2", "--max_new_tokens", "24", "--dtype", "float32"),
    *("--temperature", "0.8", "--seed", "5", "--batch_size", "8"),
)


def write_prompts(path: Path) -> Path:
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    return path


def wait_for_results(growing: Path, count: int, goes_on: Callable[[], bool], seconds: float = 120) -> None:
    """Until so many are in the file that grows."""
    end = time.monotonic() + seconds
    while not growing.exists() or growing.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "no results in time"
        assert goes_on(), "the run ended early"
        time.sleep(0.02)


def results(path: Path) -> list[dict[str, Any]]:
    """The results, without what depends on the clock and on which prompts shared a batch."""
    text = path.read_text()
    found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    for record in found:
        record["stats"] = {name: value for name, value in (record["stats"] or {}).items() if name not in BY_CHANCE}
    return list(found)


def finished(path: Path) -> list[dict[str, Any]]:
    """The first results of a run that did not end, before one that was cut short."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    (copy := path.with_name("finished.jsonl")).write_bytes(whole + b"\n")
    return list(takewhile(lambda record: record["finish_reason"] != "cancelled", results(copy)))


def is_complete(made: list[dict[str, Any]], kept: list[dict[str, Any]], steps: tuple[int, ...] = ()) -> None:
    """Every line once and in order, what was kept as it was; the prompt that is too long has one, too."""
    assert made[: len(kept)] == kept
    stopped = [one for one in made if one.get("stop_reason") == "t"]
    assert len(stopped) > 20
    assert not any("t" in one["response"] for one in made)
    assert [(one.get("step"), one["prompt"]) for one in made] == [
        (step, prompt) for step in steps or (None,) for prompt in PROMPTS
    ]
    assert [one["finish_reason"] == "error" for one in made] == [prompt == TOO_LONG for prompt in PROMPTS] * max(
        1, len(steps)
    )
