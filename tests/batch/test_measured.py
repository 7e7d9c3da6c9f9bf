"""A run over prompts where nothing names `refine_iter`: its first prompt that fits is tried out, once."""

from __future__ import annotations

import io
import json

import pytest
from checkpoints import save_tokenizer

from chat.batch.measured import measured
from chat.batch.prompts import read_prompts
from chat.batch.run import check_output
from chat.loading.trial import undecided
from chat.start.options import parse_options
from chat.text.tokenizer import load_tokenizer
from dist.errors import PromptError, UsageError
from dist.protocol import BlockUpdate
from dist.settings import GenerationSettings

DEFAULTS = GenerationSettings(max_length=200)
BOTH = undecided({"refine_iter": "default", "add_eos_length": "default"})


class Engine:
    """Its block stands after two passes, or `never`; keeps what it was asked."""

    max_positions = None
    slow_notice = None
    auto_length = 7

    def __init__(self, stands: bool, error: PromptError | None = None) -> None:
        self.stands, self.error, self.turns = stands, error, []

    def answer(self, turn, poll):
        self.turns.append(turn)
        if self.error is not None:
            raise self.error
        final, other = tuple(range(30, 46)), tuple(range(50, 66))
        for iteration, ids in enumerate((other, final if self.stands else other, final), start=1):
            if poll().cancel:
                return
            done = 16 if iteration == 3 else 0
            yield BlockUpdate(
                index=0,
                iteration=iteration,
                token_ids=ids,
                changed=(True,) * 16,
                exact=done,
                settled=done,
                finish="length" if done else None,
            )

    def rows_that_fit(self, tokens, block):
        return 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return load_tokenizer(folder, {"eos_token_id": [2, 0]})


def measure(tokenizer, engine, lines, names=BOTH, stop=lambda: False):
    options = parse_options(["--prompts_file", "-"])
    prompts = read_prompts(options, io.BytesIO("\n".join(lines).encode()))
    return measured(engine, tokenizer, options, DEFAULTS, prompts, undecided=names, stop=stop)


def test_a_block_that_stands_after_two_passes_keeps_the_published_defaults(tokenizer):
    engine = Engine(True)
    settings, why = measure(tokenizer, engine, ["Hello", "Another"])
    assert (settings, len(engine.turns)) == (DEFAULTS, 1)
    assert "16 of 16 tokens" in why


def test_another_is_decoded_at_auto_and_a_named_length_stays(tokenizer):
    # The first prompt does not fit, the second one is tried out.
    engine = Engine(False)
    settings, why = measure(tokenizer, engine, ["word " * 300, "Hello"])
    assert (settings.refine_iter, settings.add_eos_length) == ("auto", 7)
    assert "0 of 16 tokens" in why and len(engine.turns[0].prompts[0]) < 60
    settings, _ = measure(tokenizer, Engine(False), ["Hello"], names={"refine_iter"})
    assert (settings.refine_iter, settings.add_eos_length) == ("auto", 127)


@pytest.mark.parametrize("lines", [["word " * 300], ["Hello"]])
def test_what_cannot_be_measured_is_decoded_at_auto(tokenizer, lines):
    settings, why = measure(tokenizer, Engine(True, PromptError("No numbers.")), lines)
    assert settings.refine_iter == "auto" and "measured:" not in why
    settings, _ = measure(tokenizer, Engine(True), ["Hello"], stop=lambda: True)
    assert settings.refine_iter == "auto"


def test_an_output_is_not_refused_for_settings_that_are_measured_later(tmp_path):
    output = tmp_path / "r.jsonl"
    made = {**DEFAULTS.as_dict(), "refine_iter": "auto", "add_eos_length": 7, "system": None, "n": 1}
    record = {"prompt": "Hello", "response": "", "finish_reason": "stop"}
    output.write_text(json.dumps({**record, "settings": {**made, "use_chat_template": True}}) + "\n")
    options = parse_options(["--prompt", "Hello", "--output_file", str(output)])
    prompts = read_prompts(options, io.BytesIO())
    check_output(options, DEFAULTS, True, prompts, {}, BOTH)
    with pytest.raises(UsageError, match="refine_iter was 'auto' and is 2 now"):
        check_output(options, DEFAULTS, True, prompts, {})


def test_only_what_nothing_names_is_decided():
    assert {"refine_iter", "add_eos_length"} == BOTH
    assert undecided({"refine_iter": "default", "add_eos_length": "command line"}) == {"refine_iter"}
    assert not undecided({"refine_iter": "command line", "add_eos_length": "default"})
