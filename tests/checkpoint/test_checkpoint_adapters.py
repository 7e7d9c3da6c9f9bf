"""Adapters: merged while they are read, with alpha from wherever it is recorded."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dist.checkpoint.boxes import Box, local_box
from dist.checkpoint.open import Checkpoint, open_checkpoint
from dist.checkpoint.read import TensorReader
from dist.checkpoint.verify import verify
from dist.errors import CheckpointError

# Importing peft takes as long as all other imports of the tests.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")

ALPHA = 12
LAYOUTS = [("fsdp1_lora", 2), ("fsdp2_lora", 3)]


def actor(run: Path) -> Path:
    step = run / "global_step_3"
    return step / "actor" if (step / "actor").is_dir() else step


@pytest.fixture
def run(tiny_checkpoint, tmp_path) -> Path:
    return shutil.copytree(tiny_checkpoint("fsdp1_lora", 2), tmp_path / "run")


def read(checkpoint: Checkpoint, name: str, box: Box | None = None, dtype=torch.float32) -> torch.Tensor:
    source = checkpoint.tensors[name]
    box = box or Box.whole(source.shape)
    target = torch.full(box.sizes, 7, dtype=dtype)
    with TensorReader() as reader:
        reader.read_into(source, box, target)
    return target


def adapters(run: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors as peft names them, put together from the shards by the reader."""
    from dist.checkpoint.shards import read_shards

    shards = read_shards(actor(run))
    found = {}
    with TensorReader() as reader:
        for name, source in shards.tensors.items():
            if ".lora_" in name:
                found[name] = torch.empty(source.shape)
                reader.read_into(source, Box.whole(source.shape), found[name])
    return found


def expected(run: Path, alpha: float = ALPHA) -> dict[str, torch.Tensor]:
    """The base model with peft's arithmetic: weight + (B @ A) * (alpha / r)."""
    weights = load_file(run / "reference" / "model.safetensors")
    parts = adapters(run)
    for name, down in parts.items():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            weights[f"{module}.weight"] += (parts[name.replace("lora_A", "lora_B")] @ down) * (alpha / len(down))
    return weights


@pytest.mark.drawn
@pytest.mark.parametrize(("layout", "world_size"), LAYOUTS)
def test_adapters_are_merged_as_peft_merges_them(tiny_checkpoint, layout, world_size):
    run = tiny_checkpoint(layout, world_size)
    checkpoint = open_checkpoint(run)
    weights = expected(run)
    assert checkpoint.tensors.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(read(checkpoint, name), weight), name
        assert torch.equal(read(checkpoint, name, dtype=torch.bfloat16), weight.bfloat16())
    base = load_file(run / "reference" / "model.safetensors")
    assert sum(not torch.equal(base[name], weights[name]) for name in base) == 14
    assert checkpoint.adapters == "LoRA, alpha 12 (lora_train_meta.json), merged while reading"
    assert checkpoint.parameters == 70224


@pytest.mark.slow
def test_peft_itself_agrees(tiny_checkpoint):
    from checkpoints import CASES, _with_adapter
    from transformers import AutoModelForCausalLM

    run = tiny_checkpoint(*LAYOUTS[0])
    assert CASES["fsdp1_lora"].model.endswith("_lora")
    model = _with_adapter(AutoModelForCausalLM.from_pretrained(run / "reference", dtype=torch.float32))
    merged = model.merge_and_unload().state_dict()
    checkpoint = open_checkpoint(run)
    for name, weight in merged.items():
        assert torch.allclose(read(checkpoint, name), weight, atol=1e-6), name


@pytest.mark.drawn
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_shares_of_merged_weights_are_those_of_the_whole(tiny_checkpoint, parts):
    run = tiny_checkpoint(*LAYOUTS[0])
    checkpoint = open_checkpoint(run)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        whole = read(checkpoint, name)
        for dim in (0, 1):
            boxes = [local_box(whole.shape, [(dim, parts, part)]) for part in range(parts)]
            assert torch.equal(torch.cat([read(checkpoint, name, box) for box in boxes], dim), whole)


def test_alpha_is_taken_from_the_adapter_folder_that_verl_saves(run):
    (actor(run) / "lora_adapter").mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 20, "use_rslora": True}
    (actor(run) / "lora_adapter" / "adapter_config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(run)
    assert checkpoint.adapters == "LoRA, alpha 20 (adapter_config.json), merged while reading"
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(read(checkpoint, name), expected(run, alpha=40)[name])  # 20 / sqrt(4) = 40 / 4


def test_alpha_may_be_given(run):
    checkpoint = open_checkpoint(run, lora_alpha=8)
    assert checkpoint.adapters == "LoRA, alpha 8 (--lora_alpha), merged while reading"
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(read(checkpoint, name), expected(run, alpha=8)[name])


def test_an_alpha_that_is_recorded_nowhere_is_asked_for(run):
    (actor(run) / "lora_train_meta.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(run)
    assert str(caught.value) == (
        f"The strength of the adapters in {actor(run)} is not recorded. Neither "
        "lora_adapter/adapter_config.json nor lora_train_meta.json is there; the shards do not say. "
        "Give the lora_alpha of the training run with --lora_alpha."
    )
    assert open_checkpoint(run, lora_alpha=ALPHA).adapters


def adapter_folder(run: Path, folder: Path, **config) -> Path:
    """A folder as peft's save_pretrained writes it."""
    folder.mkdir()
    save_file(
        {name.replace(".default", ""): tensor for name, tensor in adapters(run).items()},
        folder / "adapter_model.safetensors",
    )
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": ALPHA,
        "base_model_name_or_path": "org/tiny-7B",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_folder_needs_its_base(run, tmp_path):
    folder = adapter_folder(run, tmp_path / "adapter")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert str(caught.value) == (
        f"{folder} holds adapters only. They were trained on org/tiny-7B, which is not a folder here. "
        "Give the folder of their base model with --base_model."
    )
    checkpoint = open_checkpoint(folder, base_model=run / "reference")
    assert (checkpoint.layout, checkpoint.config_dir) == ("PEFT adapter", run / "reference")
    for name, weight in expected(run).items():
        assert torch.equal(read(checkpoint, name), weight), name


def test_an_adapter_folder_may_name_a_base_that_is_here(run, tmp_path):
    folder = adapter_folder(run, tmp_path / "adapter", base_model_name_or_path=str(run / "reference"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(read(open_checkpoint(folder), name), expected(run)[name])


def test_patterns_of_alpha_count_for_their_modules(run, tmp_path):
    folder = adapter_folder(run, tmp_path / "adapter", alpha_pattern={"mlp.up_proj": 24})
    checkpoint = open_checkpoint(folder, base_model=run / "reference")
    up, down = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(read(checkpoint, up), expected(run, alpha=24)[up])
    assert torch.equal(read(checkpoint, down), expected(run)[down])


def test_an_adapter_of_another_model_is_refused(run, tiny_checkpoint, tmp_path):
    folder = adapter_folder(run, tmp_path / "adapter")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, base_model=tiny_checkpoint("fsdp1_tied", 2) / "reference")
    assert str(caught.value) == (
        f"The adapters in {folder} do not fit their base model. The weight model.layers.0.mlp.down_proj.weight "
        f"is [40, 84] "
        f"and its "
        "adapter [48, 4] x [4, 84]. Give the model that they were trained on with --base_model."
    )


def test_shards_that_hold_adapters_only_need_their_base(run):
    parts = adapters(run)
    for rank in (0, 1):
        torch.save(parts, actor(run) / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(CheckpointError, match=r"holds adapters only\. It does not say what they belong to\."):
        open_checkpoint(run)
    checkpoint = open_checkpoint(run, base_model=run / "reference")
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(read(checkpoint, name), expected(run)[name])
    assert checkpoint.config_dir == actor(run) / "huggingface"
    assert verify(checkpoint).words == (
        "every byte of 2 files matches its CRC-32; 1 file without checksums (.safetensors) read, but not compared"
    )


@pytest.mark.parametrize(("change", "why"), [({"use_dora": True}, "use_dora is true.")])
def test_other_kinds_of_adapters_are_refused(run, tmp_path, change, why):
    folder = adapter_folder(run, tmp_path / "adapter", **change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, base_model=run / "reference")
    assert caught.value.why == why


def test_adapters_of_embeddings_and_modules_trained_whole(run, tmp_path):
    folder = adapter_folder(run, tmp_path / "adapter")
    down, up, norm = torch.randn(4, 331), torch.randn(48, 4), torch.randn(48)
    parts = {
        "base_model.model.model.embed_tokens.lora_embedding_A": down,
        "base_model.model.model.embed_tokens.lora_embedding_B": up,
        "base_model.model.model.norm.modules_to_save.default.weight": norm,
    }
    save_file(parts, folder / "adapter_model.safetensors")
    checkpoint = open_checkpoint(folder, base_model=run / "reference")
    base = load_file(run / "reference" / "model.safetensors")
    embedding = base["model.embed_tokens.weight"] + (up @ down).T * 3
    assert torch.allclose(read(checkpoint, "model.embed_tokens.weight"), embedding, atol=1e-6)
    assert torch.equal(read(checkpoint, "model.norm.weight"), norm)
