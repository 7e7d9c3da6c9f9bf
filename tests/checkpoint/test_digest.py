"""Digests of checkpoints: the same for a copy, another for any change, without reading the weights."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoints import can_make, save_tokenizer
from safetensors.torch import save_file
from tiny_models import tiny_model

from dist.checkpoint.boxes import Box
from dist.checkpoint.digest import Digests, _add_samples, _Content, digests, tokenizer_digest
from dist.checkpoint.open import open_checkpoint
from dist.checkpoint.read import TensorReader
from dist.checkpoint.verify import verify


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
        content = _Content()
        _add_samples(path, content)
        return content.word

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


def saved_shard(run: Path, rank: int, *, with_sums: bool) -> Path:
    """One shard of a run saved again as it is, with or without checksums."""
    shard = next(run.rglob(f"model_world_size_3_rank_{rank}.pt"))
    weights = torch.load(shard, map_location="cpu", weights_only=False)
    torch.serialization.set_crc32_options(with_sums)
    try:
        torch.save(weights, shard)
    finally:
        torch.serialization.set_crc32_options(True)
    return shard


@pytest.mark.skipif(not can_make("fsdp2"), reason="verl is not installed")
@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="torch always writes checksums")
def test_a_shard_saved_without_checksums_opens_and_counts_by_samples(tiny_checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint("fsdp2", 3), run)
    before = open_checkpoint(tiny_checkpoint("fsdp2", 3))
    shard = saved_shard(run, 1, with_sums=False)
    with pytest.raises(zipfile.BadZipFile), zipfile.ZipFile(shard) as archive:
        archive.read(archive.infolist()[0])  # what a reader that trusts the sums makes of it
    checkpoint = open_checkpoint(run)
    with TensorReader() as reader:
        for name, tensor in checkpoint.tensors.items():
            mine, right = torch.empty(tensor.shape), torch.empty(tensor.shape)
            reader.read_into(tensor, Box.whole(tensor.shape), mine)
            reader.read_into(before.tensors[name], Box.whole(tensor.shape), right)
            assert torch.equal(mine, right)
    first = digests(checkpoint).checkpoint
    assert first.endswith(" (sampled)")
    verified = verify(checkpoint)
    assert verified.words == (
        "every byte of 2 files matches its CRC-32; 1 file without checksums (.pt) read, but not compared"
    )
    pieces = (piece for tensor in checkpoint.tensors.values() for piece in tensor.pieces)
    flip(shard, next(piece.start for piece in pieces if piece.path == str(shard)))
    assert digests_of(run).checkpoint not in (first, digests(before).checkpoint)
    assert verify(open_checkpoint(run)).digest != verified.digest


def test_every_byte_counts_in_the_digest_of_all(whole: Path, tmp_path: Path) -> None:
    before = verify(open_checkpoint(whole))
    assert before.words == "1 file without checksums (.safetensors) read, but not compared"
    shutil.copytree(whole, tmp_path / "copy")
    assert verify(open_checkpoint(tmp_path / "copy")) == before
    path = whole / "model.safetensors"
    flip(path, path.stat().st_size - 3 * 4096 - 17)
    assert verify(open_checkpoint(whole)).digest != before.digest
