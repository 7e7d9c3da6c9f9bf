"""Each file, tensor and key of a checkpoint altered in turn: the reply, the ledger or a refusal changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from field_models import change_json, copy_of_base, save_as_verl_shards

from chat.loading.opening import open_asked, open_tokenizer
from chat.start.config_file import ConfigFile
from chat.start.options import LaunchOptions, resolve_settings
from dist.checkpoint.__main__ import main
from dist.checkpoint.ledger import FILES, TENSORS, Entry, Ledger
from dist.errors import ChatError
from dist.group.group import SoloGroup
from dist.model.load import load_model

PROMPT = torch.arange(5, 35)[None]
TEXT = " The capital of  France, isn't it?\n"
# Keys that only count together with another one, which says so by its name.
TOGETHER = {
    "config.json": {
        "max_window_layers",
        "sliding_window",
        "use_sliding_window",
        "rope_scaling",
        "torch_dtype",
        "dtype",
    },
    "generation_config.json": set(),
    # What the files beside it say too, or what only other kinds of tokenizers read.
    "tokenizer_config.json": {"pad_token", "tokenizer_class", "add_prefix_space", "errors", "extra_special_tokens"},
}


def outcome(folder: Path) -> tuple[Any, Ledger]:
    """Everything that decides replies to this checkpoint, or the words of a refusal; and the ledger."""
    options = LaunchOptions(checkpoint_dir=str(folder), dtype="float32")
    try:
        checkpoint = open_asked(options)
        settings, origins = resolve_settings(
            options, ConfigFile(path=folder / "none.toml"), checkpoint.generation_config, checkpoint.defaults
        )
        tokenizer = open_tokenizer(options, checkpoint)
        loaded = load_model(checkpoint, SoloGroup(torch.device("cpu")), dtype="float32")
    except ChatError as error:
        return str(error).replace(str(folder), ""), Ledger()
    with torch.inference_mode():
        logits = loaded.module(input_ids=PROMPT, use_cache=False).logits
    rendered = tokenizer.template.render([("user", TEXT)]) if tokenizer.template else TEXT
    decides = (
        logits.flatten().tolist(),
        loaded.max_positions,
        settings.as_dict(),
        origins,
        tokenizer.stop_ids,
        tokenizer.eos_id,
        tokenizer.encode(TEXT, special=True),
        tokenizer.encode(rendered),
    )
    return decides, loaded.facts.ledger.plus(tokenizer.entries)


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value * 2 + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [*value, *value]
    if isinstance(value, dict):
        return {key: other(one) for key, one in value.items()}
    return 3


def lines(ledger: Ledger) -> list[str]:
    return list(ledger.lines(all_names=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = copy_of_base(tmp_path / "checkpoint")
    generation = {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "repetition_penalty": 1.2,
        "min_p": 0.1,
    }
    change_json(folder / "generation_config.json", max_length=200, **generation)
    change_json(folder / "config.json", mystery=1, attn_implementation="sdpa")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(TOGETHER))
def test_an_altered_key_changes_the_reply_the_ledger_or_is_refused(folder: Path, name: str) -> None:
    before, ledger = outcome(folder)
    held = json.loads((folder / name).read_text())
    of_file = {one.name: one for one in ledger.entries if one.place == name}
    assert of_file.keys() >= held.keys()
    silent = []
    for key, value in held.items():
        change_json(folder / name, **{**held, key: other(value)})
        after, altered = outcome(folder)
        if after == before and lines(altered) == lines(ledger):
            silent.append(key)
    assert set(silent) <= TOGETHER[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_file_and_tensor_has_an_entry_and_counts_if_it_says_so(folder: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_as_verl_shards(state, folder)
    (folder / "optim_world_size_2_rank_0.pt").write_bytes(b"x")
    (folder / "huggingface").mkdir()
    _, ledger = outcome(folder)
    files = {one.name.rstrip("/"): one for one in ledger.entries if one.place == FILES}
    assert files.keys() == {path.name for path in folder.iterdir()}
    assert not files["optim_world_size_2_rank_0.pt"].used
    tensors = {one.name: one for one in ledger.entries if one.place == TENSORS}
    assert tensors.keys() == state.keys()
    before, _ = outcome(folder)
    for name in list(state)[::5]:
        save_as_verl_shards({**state, name: state[name].flip(0) + 1}, folder)
        assert outcome(folder)[0] != before, name


def test_the_report_tells_template_stop_tokens_and_what_is_not_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "optimizer.pt").write_bytes(b"x")
    change_json(folder / "generation_config.json", eos_token_id=0)
    change_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert main([str(folder)]) == 0
    reported = capsys.readouterr().out
    assert "chat template   chat_template.jinja\n" in reported
    assert "replies end at  <|endoftext|> (EOS), [0] (generation_config.json), <|im_end|> (the chat" in reported
    assert "repetition_penalty 1.2, min_p 0.1 (not supported: replies are made without it)" in reported
    assert "mystery 1 (not known to transformers' Qwen2Config)" in reported
    assert "optimizer.pt (optimizer state, for training)" in reported
    change_json(folder / "config.json", model_type="t5")
    assert main([str(folder)]) == 3
    assert capsys.readouterr().err.startswith("t5 is an encoder-decoder model: ")


def test_lines_group_what_is_not_used_by_place_and_reason() -> None:
    ledger = Ledger(
        (
            Entry("config.json", "use_cache", False, "the program has its own way", "true"),
            Entry("config.json", "hidden_size", True, "read"),
            Entry("generation_config.json", "min_p", False, "not supported", "0.1", matters=True),
            Entry("generation_config.json", "num_beams", False, "not supported", "4", matters=True),
            Entry(FILES, "data.pt", False, "for training"),
        )
    )
    assert list(ledger.lines()) == [
        "generation_config.json: min_p 0.1, num_beams 4 (not supported)",
        "config.json: use_cache true (the program has its own way)",
        "data.pt (for training)",
    ]
    assert list(ledger.short_lines()) == [
        "generation_config.json: min_p 0.1, num_beams 4 (not supported)",
        "data.pt (for training)",
        "keys without effect on replies: 1 of config.json (python -m dist.checkpoint lists them)",
    ]
    assert list(ledger.warnings()) == ["generation_config.json: min_p 0.1, num_beams 4 (not supported)"]
    assert ledger.counts() == "0 files, 0 tensors, 1 key"
    twice = ledger.plus([Entry("config.json", "use_cache", True, "read")])
    assert len(twice.entries) == len(ledger.entries)
