"""Runs over prompts by an engine that needs no model."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_tokenizer
from scripted_engine import FACTS, SETTINGS, Ran, Run, ScriptedEngine, Texts, never

from chat.batch.prompts import read_prompts
from chat.batch.run import run_batch
from chat.start.options import parse_options
from chat.text.tokenizer import ChatTokenizer, load_tokenizer
from dist.settings import GenerationSettings


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder, {"eos_token_id": [2, 0]})


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


@pytest.fixture(params=["r.jsonl", "r.json"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)
