"""The tokenizer of a checkpoint: what is taken, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import save_tokenizer

from chat.text.tokenizer import load_tokenizer
from dist.errors import CheckpointError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


def refusal(folder: Path, generation_config: dict[str, object] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder, generation_config)
    return str(caught.value)


def change_config(folder: Path, **values: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_text_comes_back_as_it_was(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    text = "The capital of France , is Paris. \u00e9\u4e16\U0001f600\n\n  x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_kept_or_left_out_on_decoding(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("<|im_start|>user\nWhat<|im_end|>")
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == "user\nWhat"
    assert tokenizer.decode(ids, False) == "<|im_start|>user\nWhat<|im_end|>"


@pytest.mark.parametrize(("named", "more"), [(None, ()), (0, (0,)), ([0, 2, 5], (0, 5)), ([], ())])
def test_stop_ids_are_eos_and_those_of_the_generation_config(
    folder: Path, named: object, more: tuple[int, ...]
) -> None:
    tokenizer = load_tokenizer(folder, {"eos_token_id": named})
    assert tokenizer.eos_id == 2
    assert tokenizer.stop_ids == (2, *more)


def test_only_a_stop_token_at_the_end_is_taken_off(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, {"eos_token_id": 0})
    assert tokenizer.without_stop((2, 5, 0)) == (2, 5)
    assert tokenizer.without_stop((2, 5)) == (2, 5)
    assert tokenizer.without_stop(()) == ()


def test_bad_stop_ids_are_named(folder: Path) -> None:
    assert "eos_token_id cannot be 'x'. It takes a token id or a list of token ids." in refusal(
        folder, {"eos_token_id": "x"}
    )


def test_the_template_is_used_where_there_is_one_unless_told_otherwise(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.has_chat_template
    assert [tokenizer.wants_template(asked) for asked in (None, True, False)] == [True, True, False]
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change_config(folder, chat_template=None)
    bare = load_tokenizer(folder)
    assert not bare.has_chat_template
    assert not bare.wants_template(None)
    with pytest.raises(UsageError, match="has no chat template"):
        bare.wants_template(True)


def test_a_tokenizer_without_eos_is_refused_by_name(folder: Path) -> None:
    change_config(folder, eos_token=None)
    assert "has no EOS token." in refusal(folder)


@pytest.mark.parametrize("content", [None, "", "version https://git-lfs.github.com/spec/v1\noid sha256:12\n"])
def test_a_tokenizer_file_that_is_no_json_is_named(folder: Path, content: str | None) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:500] if content is None else content)
    said = refusal(folder)
    assert f"The tokenizer in {folder} cannot be loaded. tokenizer.json is not JSON (" in said
    assert "it may be cut short, or a Git LFS pointer." in said


def test_a_tokenizer_of_an_unknown_kind_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": {"type": "Unheard"}}))
    assert f"The tokenizer in {folder} cannot be loaded." in refusal(folder)


def test_a_tokenizer_that_turns_text_into_nothing_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    path.write_text(json.dumps(content))
    assert "turns text into no tokens at all." in refusal(folder)
