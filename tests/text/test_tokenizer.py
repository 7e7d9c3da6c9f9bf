"""The tokenizer of a checkpoint: what is taken, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import save_tokenizer

from chat.text.tokenizer import TokenizerOptions, load_tokenizer, read_tokenizer
from chat.text.tokenizer_checks import check_rows
from chat.text.tokenizer_file import read_tokenizer_file
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


def test_the_template_is_used_where_there_is_one_unless_set_otherwise(folder: Path) -> None:
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


def test_a_token_of_the_class_s_own_is_no_reason_to_refuse_a_template_early(folder: Path) -> None:
    # The files name no UNK token, and the template would fail on what is not there; the class may know one.
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token + unk_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert "unk_token" not in config
    change_config(folder, bos_token="<|im_start|>", tokenizer_class="Qwen2Tokenizer")
    files = read_tokenizer(folder, TokenizerOptions())
    assert files.trial is not None and files.trial.lacks()


@pytest.mark.parametrize("name", ["<image>", "<|vision_start|>"])
def test_tokens_for_images_need_no_embedding(folder: Path, name: str) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    size = max(one["id"] for one in content["added_tokens"]) + max(content["model"]["vocab"].values()) + 2
    content["added_tokens"].append({**content["added_tokens"][0], "id": size, "content": name})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    read_tokenizer(folder, TokenizerOptions(rows=size))
    with pytest.raises(CheckpointError, match=f"Its ids go up to {size} \\(.*; vocab_size is 2, the last row 1"):
        check_rows(folder, {name: size}, 2, special=())


@pytest.mark.parametrize(
    "content",
    [
        {"model": "BPE"},
        {"model": {"vocab": [1, [], ["a", 0.5]]}},
        {"added_tokens": {"a": 1}},
        {"added_tokens": ["a", {"id": "7", "content": None}, {"id": 7}]},
    ],
)
def test_files_of_any_shape_can_be_looked_at(tmp_path: Path, content: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"x": 3, "9" * 5000: {"content": "b"}}, "eos_token": {"content": 3}})
    )
    file = read_tokenizer_file(tmp_path)
    assert file.eos is None and set(file.ids) <= {"a", "b"}
