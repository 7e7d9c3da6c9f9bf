"""Opening a checkpoint: every layout is found, and every fault is reported with a way to fix it."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dist.checkpoint.open import open_checkpoint
from dist.errors import CheckpointError

SHARD = "model_world_size_2_rank_{}.pt"


@pytest.fixture
def run(tiny_checkpoint, tmp_path) -> Path:
    """A run root to be changed; its step folder is `step(run)`."""
    return shutil.copytree(tiny_checkpoint("fsdp1", 2), tmp_path / "run")


def step(run: Path) -> Path:
    return run / "global_step_3"


def refusal(path: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


# Where things are.


def test_a_run_stands_for_the_step_that_it_names(run):
    shutil.copytree(step(run), run / "global_step_20")
    checkpoint = open_checkpoint(run)
    assert (checkpoint.path, checkpoint.step) == (step(run), 3)
    assert [(one.number, one.path) for one in checkpoint.steps] == [(3, step(run)), (20, run / "global_step_20")]


@pytest.mark.parametrize("named", [None, "garbage"])
def test_a_run_without_a_usable_name_stands_for_its_newest_step(run, named):
    shutil.copytree(step(run), run / "global_step_20")
    latest = run / "latest_checkpointed_iteration.txt"
    latest.unlink() if named is None else latest.write_text(named)
    assert open_checkpoint(run).step == 20


def missing_shard(step: Path) -> None:
    (step / "model_world_size_2_rank_1.pt").unlink()


def torn_shard(step: Path) -> None:
    path = step / "model_world_size_2_rank_0.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (missing_shard, "It is half written: 1 of 2 shards are missing."),
        (torn_shard, "It is half written: model_world_size_2_rank_0.pt is cut short."),
        (shutil.rmtree, "It is not there."),
    ],
)
def test_a_run_whose_named_step_is_not_whole_names_the_newest_complete_one(run, spoil, why):
    shutil.copytree(step(run), run / "global_step_20")
    (run / "latest_checkpointed_iteration.txt").write_text("20")
    spoil(run / "global_step_20")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(run)
    assert str(caught.value) == (
        f"latest_checkpointed_iteration.txt names global_step_20, which cannot be opened: {run}. {why} "
        f"The newest complete step is global_step_3. Give {step(run)} to open that one."
    )
    assert open_checkpoint(step(run)).step == 3


def test_a_newest_step_that_is_half_written_is_not_opened_in_place_of_a_named_one(run):
    (run / "global_step_20").mkdir()
    named = open_checkpoint(run)
    assert named.step == 3
    assert list(named.ledger.warnings()) == ["global_step_20 (it has no weights)"]
    (run / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(CheckpointError, match="The newest step is global_step_20, which cannot be opened"):
        open_checkpoint(run)


def test_a_broken_link_is_named_as_that(tmp_path):
    (tmp_path / "latest").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "latest" / "global_step_3")
    assert str(caught.value).startswith(
        f"{tmp_path / 'latest'} is a broken link. It leads to {tmp_path / 'gone'}, which does not exist."
    )


def test_a_step_stands_for_its_actor(tiny_checkpoint):
    root = tiny_checkpoint("fsdp2", 2)
    actor = root / "global_step_3" / "actor"
    for place in (root, root / "global_step_3", actor, actor / "huggingface", str(actor)):
        checkpoint = open_checkpoint(place)
        assert (checkpoint.path, checkpoint.step) == (actor, 3)


def test_the_policy_of_verls_kin_is_found(run):
    (step(run) / "policy").mkdir()
    for child in list(step(run).iterdir()):
        if child.name != "policy":
            child.rename(step(run) / "policy" / child.name)
    assert open_checkpoint(run).path == step(run) / "policy"


def test_a_shard_stands_for_its_folder(run):
    assert open_checkpoint(step(run) / SHARD.format(1)).path == step(run)


def test_a_link_and_a_relative_path_will_do(run, monkeypatch):
    (run.parent / "link").symlink_to(run)
    monkeypatch.chdir(run.parent)
    assert open_checkpoint("link").step == 3
    assert open_checkpoint("run/global_step_3").step == 3


def test_config_and_tokenizer_may_lie_beside_the_shards(run):
    for child in (step(run) / "huggingface").iterdir():
        child.rename(step(run) / child.name)
    checkpoint = open_checkpoint(run)
    assert checkpoint.config_dir == checkpoint.tokenizer_dir == step(run)


def test_everything_is_reported(tiny_checkpoint):
    root = tiny_checkpoint("fsdp1", 3)
    checkpoint = open_checkpoint(root)
    assert checkpoint.world_size == len(checkpoint.files) == 3
    assert checkpoint.layout == "FSDP1"
    assert checkpoint.dtype == "float32"
    assert checkpoint.parameters == sum(tensor.elements for tensor in checkpoint.tensors.values()) == 70224
    assert checkpoint.config["model_type"] == "qwen2"
    assert checkpoint.generation_config["eos_token_id"] == 2


def test_garbage_is_collected_again_after_indexing_whether_it_succeeds_or_not(run):
    open_checkpoint(run)
    assert gc.isenabled()
    (step(run) / "model_world_size_2_rank_1.pt").write_bytes(b"PK\3\4")
    with pytest.raises(CheckpointError, match="is incomplete"):
        open_checkpoint(run)
    assert gc.isenabled()


def test_tied_embeddings_count_once(tiny_checkpoint):
    checkpoint = open_checkpoint(tiny_checkpoint("fsdp1_tied", 2))
    tied = checkpoint.tensors["lm_head.weight"].elements
    assert checkpoint.parameters == sum(tensor.elements for tensor in checkpoint.tensors.values()) - tied


def test_a_missing_generation_config_is_no_fault(run):
    (step(run) / "huggingface" / "generation_config.json").unlink()
    assert open_checkpoint(run).generation_config == {}


@pytest.mark.parametrize(
    ("layout", "world_size", "words"),
    [
        ("fsdp2", 1, "FSDP2"),
        ("fsdp1_nomesh", 2, "FSDP1 without mesh"),
        ("fsdp1_no_shard", 2, "FSDP1, not sharded"),
        ("fsdp1_hsdp", 4, "FSDP1, HSDP 2 x 2"),
        ("fsdp2_hsdp", 4, "FSDP2, HSDP 2 x 2"),
    ],
)
def test_the_layout_is_described_in_words(tiny_checkpoint, layout, world_size, words):
    assert open_checkpoint(tiny_checkpoint(layout, world_size)).layout == words


def test_a_hugging_face_folder_opens(tiny_checkpoint):
    folder = tiny_checkpoint("fsdp1", 2) / "reference"
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.path, checkpoint.layout, checkpoint.step) == (folder, "safetensors", None)
    assert checkpoint.parameters == 70224


def test_weights_saved_for_hugging_face_serve_where_there_are_no_shards(run):
    for rank in (0, 1):
        (step(run) / SHARD.format(rank)).unlink()
    shutil.copy(run / "reference" / "model.safetensors", step(run) / "huggingface")
    checkpoint = open_checkpoint(run)
    assert (checkpoint.path, checkpoint.layout, checkpoint.step) == (step(run) / "huggingface", "safetensors", 3)


def test_a_step_that_is_a_hugging_face_folder_opens(run):
    shutil.rmtree(step(run))
    shutil.copytree(run / "reference", step(run))
    checkpoint = open_checkpoint(run)
    assert (checkpoint.path, checkpoint.layout, checkpoint.step) == (step(run), "safetensors", 3)


def test_weights_of_older_hugging_face_folders_open(run):
    folder = run / "reference"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.layout, checkpoint.parameters) == ("pytorch_model.bin", 70224)


def test_the_set_that_fsdp_config_names_counts(run):
    stale = step(run) / "model_world_size_8_rank_0.pt"
    stale.write_bytes(b"left over")
    assert open_checkpoint(run).world_size == 2
    (step(run) / "fsdp_config.json").unlink()
    assert refusal(run) == (
        f"There are several sets of shards: {step(run)}. Found world size 2 (2 files), world size 8 (1 file), "
        f"and no "
        "fsdp_config.json that says which one counts. Move the files of the other sets elsewhere."
    )
    stale.unlink()
    assert open_checkpoint(run).world_size == 2


def test_other_files_of_a_checkpoint_are_never_opened(run):
    for name in ("optim_world_size_2_rank_0.pt", "extra_state_world_size_2_rank_0.pt", "data.pt"):
        os.mkfifo(step(run) / name)  # opening one would wait for ever
    assert open_checkpoint(run).world_size == 2


# What is wrong.


def test_a_missing_shard(run):
    path = step(run) / SHARD.format(1)
    path.unlink()
    assert refusal(run) == f"Shard 1 of 2 is missing: {path}. Copy all 2 shard files."


def test_many_missing_shards(run):
    (step(run) / SHARD.format(0)).rename(step(run) / "model_world_size_4_rank_3.pt")
    (step(run) / SHARD.format(1)).unlink()
    assert refusal(run) == (f"3 of 4 shards are missing: ranks 0, 1, 2 in {step(run)}. Copy all 4 shard files.")


def test_an_empty_shard(run):
    path = step(run) / SHARD.format(1)
    path.write_bytes(b"")
    assert refusal(run) == (
        f"Shard 1 of 2 is empty: {path}. It has 0 bytes. Copy the file again from where training wrote it."
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_shard_copied_in_part(run, share):
    path = step(run) / SHARD.format(0)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert refusal(run) == (
        f"Shard 0 of 2 is incomplete: {path}. It ends after {int(len(data) * share):,} bytes, before the directory "
        "that closes a torch file. Saving or copying was interrupted. Copy the file again from where training "
        "wrote it."
    )


def test_a_shard_whose_copy_was_never_written(run):
    path = step(run) / SHARD.format(1)
    path.write_bytes(bytes(path.stat().st_size))
    assert refusal(run) == (
        f"Shard 1 of 2 is incomplete: {path}. It begins with zero bytes: the copy never wrote them. "
        "Copy the file again from where training wrote it."
    )


def test_a_web_page_in_place_of_a_shard(run):
    path = step(run) / SHARD.format(1)
    path.write_text("\n<!DOCTYPE html>\n<html><body>Sign in</body></html>")
    assert refusal(run) == (
        f"Shard 1 of 2 is a web page, not weights: {path}. It begins with '<!DOCTYPE html>': a download saved "
        f"an error "
        "or login page. Download the file itself again."
    )


def test_a_git_lfs_pointer_in_place_of_a_shard(run):
    path = step(run) / SHARD.format(0)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n")
    assert refusal(run) == (
        f"Shard 0 of 2 is a Git LFS pointer, not weights: {path}. It has {path.stat().st_size} bytes and stands "
        f"for a "
        "file of 988097824 bytes. Fetch the file itself with `git lfs pull`."
    )


def test_something_else_in_place_of_a_shard(run):
    path = step(run) / SHARD.format(0)
    path.write_bytes(b"\x80\x02}q\x00.")
    assert refusal(run) == (
        f"Shard 0 of 2 is not a torch file: {path}. It begins with b'\\x80\\x02}}q\\x00.', a file of torch.save "
        f"with "
        "b'PK\\x03\\x04'. Copy the file again from where training wrote it."
    )


def test_corrupt_bytes_in_the_index_of_a_shard(run):
    path = step(run) / SHARD.format(0)
    data = bytearray(path.read_bytes())
    data[data.index(b"embed_tokens")] ^= 0xFF
    path.write_bytes(data)
    assert refusal(run) == (
        f"Shard 0 of 2 is damaged: {path}. Its index does not match its checksum or its directory (Bad CRC-32 "
        f"for file "
        f"'{path.stem}/data.pkl'). Copy the file again from where training wrote it."
    )


@pytest.mark.parametrize("layout", ["fsdp1", "fsdp1_nomesh"])
def test_swapped_shards(tiny_checkpoint, tmp_path, layout):
    run = shutil.copytree(tiny_checkpoint(layout, 2), tmp_path / "run")
    first, second = (step(run) / SHARD.format(rank) for rank in (0, 1))
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    assert refusal(run) == (
        f"Shard 0 of 2 holds what rank 1 saved: {first}. Its name says rank 0: shard files were swapped or "
        f"renamed. "
        "Give the files their own names again, or copy all of them again."
    )


def test_shards_of_another_world_size_under_a_false_name(tiny_checkpoint, run):
    for rank in (0, 1):
        source = tiny_checkpoint("fsdp1", 3) / "global_step_3" / f"model_world_size_3_rank_{rank}.pt"
        shutil.copy(source, step(run) / SHARD.format(rank))
    assert refusal(run) == (
        f"Shard 0 of 2 was saved by a mesh of 3 ranks: {step(run) / SHARD.format(0)}. The mesh 3 does not span "
        f"the 2 "
        "ranks that the file's name gives, as with expert or tensor parallelism. Save the model with FSDP "
        "alone, or "
        "merge the checkpoint with verl's model_merger first."
    )


def test_a_shard_of_another_model(tiny_checkpoint, run):
    path = step(run) / SHARD.format(1)
    shutil.copy(tiny_checkpoint("fsdp1_tied", 2) / "global_step_3" / path.name, path)
    assert refusal(run) == (
        f"Shard 1 of 2 is not of the same model as shard 0: {path}. 6 names are in only one of the two: "
        "model.layers.0.self_attn.k_proj.bias, model.layers.0.self_attn.q_proj.bias, "
        "model.layers.0.self_attn.v_proj.bias. The files are of different saves. Copy all of them again from "
        "one step."
    )


def test_a_shard_of_the_same_model_in_another_dtype(run):
    torch.save({"a": torch.zeros(2, 3)}, step(run) / SHARD.format(0))
    torch.save({"a": torch.zeros(2, 4).bfloat16()}, step(run) / SHARD.format(1))
    assert refusal(run) == (
        f"Shard 1 of 2 is not of the same model as shard 0: {step(run) / SHARD.format(1)}. a is [2, 4] bfloat16 "
        f"in it "
        "and [2, 3] float32 in shard 0. The files are of different saves. Copy all of them again from one step."
    )


def test_no_tokenizer(run):
    (step(run) / "huggingface" / "tokenizer.json").unlink()
    assert refusal(run) == (
        f"There is no tokenizer for the weights in {step(run)}. None of tokenizer.json, tokenizer.model, "
        f"vocab.json is "
        f"in {step(run) / 'huggingface'} or {step(run)}. "
        "Copy the base model's tokenizer files into that huggingface folder."
    )


def test_no_config(run):
    (step(run) / "huggingface" / "config.json").unlink()
    assert refusal(run) == (
        f"There is no config.json for the weights in {step(run)}. It is in neither {step(run) / 'huggingface'} nor "
        f"{step(run)}; verl 0.3 saved it only with hf_model. "
        "Copy the base model's config.json and tokenizer files into that huggingface folder."
    )


def test_a_config_that_is_no_json(run):
    path = step(run) / "huggingface" / "config.json"
    path.write_text("{")
    assert refusal(run).startswith(f"{path} cannot be read. Expecting property name enclosed in double quotes")


def test_a_critic(run):
    path = step(run) / "huggingface" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["Qwen2ForTokenClassification"]}))
    (run / "global_step_3").rename(run / "critic")
    (run / "actor").mkdir()
    assert refusal(run / "critic") == (
        f"{run / 'critic'} holds a critic or reward model. It outputs values, not text: its architecture is "
        f"Qwen2ForTokenClassification. Give {run / 'actor'}."
    )


def test_a_value_head(run):
    for rank in (0, 1):
        torch.save(
            {"model.norm.weight": torch.ones(2), "score.weight": torch.ones(1, 2)}, step(run) / SHARD.format(rank)
        )
    assert refusal(run) == (
        f"{step(run)} holds a critic or reward model. It outputs values, not text: it has score.weight. "
        "Give the folder of an actor."
    )


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "runs").mkdir()
    assert refusal(tmp_path / "runs" / "typo" / "global_step_1") == (
        f"There is no {tmp_path / 'runs' / 'typo' / 'global_step_1'}. {tmp_path / 'runs'} exists. It is empty. "
        "Give the folder of a run, of one global_step_*, or of a Hugging Face model."
    )


def test_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path) == (
        f"{tmp_path} is not a checkpoint. Neither it nor its actor/ has model_world_size_*_rank_*.pt or "
        f"*.safetensors. "
        "It holds notes.txt. Give the folder of a run, of one global_step_*, or of a Hugging Face model."
    )


def test_a_run_without_weights(tmp_path):
    for number in (1, 2):
        (tmp_path / f"global_step_{number}" / "actor").mkdir(parents=True)
    assert "It holds 2 global_step_* folders, none of which has weights." in refusal(tmp_path)


def test_deepspeed_and_megatron_are_told_apart(tmp_path):
    (tmp_path / "zero_to_fp32.py").touch()
    assert refusal(tmp_path) == (
        f"{tmp_path} is a DeepSpeed checkpoint. Its shards are not FSDP's. Convert it with the zero_to_fp32.py "
        f"that "
        "lies in it; give the folder of the result, with config.json."
    )
    megatron = tmp_path / "megatron"
    (megatron / "actor" / "dist_ckpt").mkdir(parents=True)
    assert refusal(megatron) == (
        f"{megatron} is a Megatron checkpoint. Its shards are cut by tensor and pipeline parallelism. Merge it "
        f"with "
        "`python -m verl.model_merger merge --backend megatron`, then give the merged folder."
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, (1 << 60).to_bytes(8, "little") + b"{}"])
def test_a_safetensors_file_that_is_none(tiny_checkpoint, tmp_path, content):
    folder = shutil.copytree(tiny_checkpoint("fsdp1", 2) / "reference", tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(content)
    assert refusal(folder).startswith(f"The weights file cannot be read: {path}. It is not a safetensors file (it ")


def test_a_safetensors_file_cut_short(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("fsdp1", 2) / "reference", tmp_path / "model")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    message = refusal(folder)
    assert message.startswith(f"The weights file is incomplete: {path}. It has {len(data) - 100:,} bytes; ")
    assert message.endswith("Saving or copying was interrupted. Copy or download the file again.")


def test_a_safetensors_file_that_the_index_names_and_nobody_copied(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("fsdp1", 2) / "reference", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    path = folder / "model-00002-of-00002.safetensors"
    assert refusal(folder) == (
        f"{path.name} is missing: {path}. model.safetensors.index.json names 2 files; 1 of them are not there. "
        "Copy all 2 files."
    )
