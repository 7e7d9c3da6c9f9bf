"""Experts saved one by one or fused feed models that hold them the other way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist.checkpoint.boxes import Box
from dist.checkpoint.names import Wanted, match_names
from dist.checkpoint.open import open_checkpoint
from dist.checkpoint.read import TensorReader
from dist.checkpoint.shard_file import read_shard_file
from dist.errors import CheckpointError
from dist.group.group import SoloGroup
from dist.model.load import load_model

EXPERTS, WIDE, HIDDEN = 3, 5, 4
CONFIG = Path("config.json")


def single_experts(names: tuple[str, str, str], prefix: str) -> dict[str, torch.Tensor]:
    gate, up, down = names
    tensors = {}
    for number in range(EXPERTS):
        tensors[f"{prefix}.{number}.{gate}.weight"] = torch.randn(WIDE, HIDDEN)
        tensors[f"{prefix}.{number}.{up}.weight"] = torch.randn(WIDE, HIDDEN)
        tensors[f"{prefix}.{number}.{down}.weight"] = torch.randn(HIDDEN, WIDE)
    return tensors


def fused(tensors: dict[str, torch.Tensor], names: tuple[str, str, str], prefix: str) -> dict[str, torch.Tensor]:
    """The same as gate_up_proj [experts, 2 x wide, hidden] and down_proj [experts, hidden, wide]."""
    gate, up, down = (
        torch.stack([tensors[f"{prefix}.{number}.{name}.weight"] for number in range(EXPERTS)]) for name in names
    )
    return {"gate_up_proj": torch.cat([gate, up], 1), "down_proj": down}


def read_as(saved: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], folder: Path) -> None:
    """Check that `wanted` is what the model gets from a file that holds `saved`."""
    torch.save(saved, folder / "x.pt")
    tensors = read_shard_file(folder / "x.pt", "Shard 0 of 1").tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    sources = match_names(tensors, Wanted(shapes=shapes, tied={}, file=CONFIG)).sources
    with TensorReader() as reader:
        for name, expected in wanted.items():
            target = torch.empty(expected.shape)
            reader.read_into(sources[name], Box.whole(expected.shape), target)
            assert torch.equal(target, expected), name


QWEN, MIXTRAL = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")


@pytest.mark.parametrize(
    ("names", "saved_block", "wanted_block"),
    [(QWEN, "mlp", "mlp"), (MIXTRAL, "block_sparse_moe", "mlp"), (MIXTRAL, "mlp", "mlp")],
)
@pytest.mark.parametrize("turned", [False, True])
def test_experts_saved_one_by_one_are_fused(tmp_path, names, saved_block, wanted_block, turned):
    single = single_experts(names, f"model.layers.0.{saved_block}.experts")
    wanted = {
        f"model.layers.0.{wanted_block}.experts.{name}": tensor.mT if turned else tensor
        for name, tensor in fused(single, names, f"model.layers.0.{saved_block}.experts").items()
    }
    read_as(single, wanted, tmp_path)


@pytest.mark.parametrize(
    ("names", "saved_block", "wanted_block"), [(QWEN, "mlp", "mlp"), (MIXTRAL, "mlp", "block_sparse_moe")]
)
@pytest.mark.parametrize("turned", [False, True])
def test_fused_experts_are_taken_apart(tmp_path, names, saved_block, wanted_block, turned):
    prefix = f"model.layers.0.{wanted_block}.experts"
    single = single_experts(names, prefix)
    saved = {
        f"model.layers.0.{saved_block}.experts.{name}": tensor.mT.contiguous() if turned else tensor
        for name, tensor in fused(single, names, prefix).items()
    }
    read_as(saved, single, tmp_path)


def test_a_missing_expert_is_named(tmp_path):
    prefix = "model.layers.0.mlp.experts"
    single = single_experts(QWEN, prefix)
    wanted = {f"{prefix}.{name}": tuple(tensor.shape) for name, tensor in fused(single, QWEN, prefix).items()}
    del single[f"{prefix}.1.up_proj.weight"]
    torch.save(single, tmp_path / "x.pt")
    tensors = read_shard_file(tmp_path / "x.pt", "Shard 0 of 1").tensors
    with pytest.raises(CheckpointError) as caught:
        match_names(tensors, Wanted(shapes=wanted, tied={}, file=CONFIG))
    assert f"{prefix}.gate_up_proj is not in the file" in str(caught.value)


@pytest.mark.parametrize("place", ["global_step_3", "reference"])
def test_a_mixture_of_experts_answers_as_it_did(tiny_checkpoint, place):
    root = tiny_checkpoint("fsdp1_moe", 2)
    ids = torch.arange(5, 25)[None]
    loaded = load_model(open_checkpoint(root / place), SoloGroup(torch.device("cpu")))
    reference = AutoModelForCausalLM.from_pretrained(root / "reference", dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(loaded.module(input_ids=ids).logits, reference(input_ids=ids).logits)


def test_what_old_versions_saved_and_nobody_needs_is_passed_over(tmp_path):
    torch.save(
        {"a": torch.zeros(2), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}, tmp_path / "x.pt"
    )
    tensors = read_shard_file(tmp_path / "x.pt", "Shard 0 of 1").tensors
    matched = match_names(tensors, Wanted(shapes={"a": (2,)}, tied={}, file=CONFIG))
    assert matched.sources.keys() == {"a"}
    assert [(one.name, one.used, one.why) for one in matched.entries][1] == (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        False,
        "computed from the config",
    )
