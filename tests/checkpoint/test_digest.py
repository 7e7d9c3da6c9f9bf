"""Digests of checkpoints: the same for a copy, another for any change, without reading the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import can_make, save_tokenizer
from safetensors.torch import save_file
from tiny_models import tiny_model

from dist.checkpoint.digest import Digests, digests, tokenizer_digest
from dist.checkpoint.open import open_checkpoint


def digests_of(folder: Path) -> Digests:
    return digests(open_checkpoint(folder))


def flip(path: Path, at: int) -> None:
    """Change one byte where it lies."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A model as safetensors with a tokenizer."""
    folder = tmp_path / "whole"
    tiny_model().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_a_copy_elsewhere_has_the_same_digest(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy" / "other")
    assert digests_of(whole) == digests_of(tmp_path / "copy" / "other")
    assert digests_of(whole).checkpoint.endswith(" (sampled)")


def test_every_file_beside_the_weights_counts(whole: Path) -> None:
    before = digests_of(whole)
    (whole / "generation_config.json").write_text('{"refine_iter": 4}')
    changed = digests_of(whole)
    assert changed.checkpoint != before.checkpoint
    assert changed.tokenizer == before.tokenizer
    tokenizer = json.loads((whole / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["special"] = False
    (whole / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert digests_of(whole).checkpoint != changed.checkpoint
    assert digests_of(whole).tokenizer != changed.tokenizer


def test_another_template_leaves_the_tokenizer_what_it_is(whole: Path) -> None:
    before = digests_of(whole)
    (whole / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert digests_of(whole).tokenizer == before.tokenizer == tokenizer_digest(whole)
    assert digests_of(whole).checkpoint != before.checkpoint


def test_the_beginning_middle_and_end_of_every_tensor_of_safetensors_count(whole: Path) -> None:
    path = whole / "model.safetensors"
    tensors = {"a": torch.arange(100_000.0), "b": torch.ones(5)}
    config = whole / "config.json"

    def word() -> str:
        from dist.checkpoint.digest import _samples

        return str(hash(b"".join(_samples(path))))

    save_file(tensors, path)
    assert config.exists()
    size = path.stat().st_size
    before = word()
    begin = size - 5 * 4 - 100_000 * 4
    for at in (begin, begin + 200_000, size - 21, size - 1):
        flip(path, at)
        assert word() != before
        flip(path, at)
    assert word() == before


@pytest.mark.skipif(not can_make("fsdp2"), reason="verl is not installed")
def test_any_changed_byte_of_a_shard_shows_if_its_checksum_does(tiny_checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), run)
    before = digests_of(run)
    assert "sampled" not in before.checkpoint
    shard = next(run.rglob("model_world_size_3_rank_1.pt"))
    weights = torch.load(shard, map_location="cpu", weights_only=False)
    name = next(name for name, value in weights.items() if value.numel() > 10)
    local = weights[name].to_local() if hasattr(weights[name], "to_local") else weights[name]
    with torch.no_grad():
        local.view(-1)[5] += 1e-3
    torch.save(weights, shard)
    assert digests_of(run).checkpoint != before.checkpoint
