"""The model of a checkpoint: bit-equal on any number of ranks, computed buffers as in a fresh model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoint_cases import USUAL
from ranks import rank_environment
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from dist.checkpoint.open import open_checkpoint
from dist.errors import CheckpointError, UsageError
from dist.group.group import SoloGroup
from dist.model.build import build_model, choose_dtype, position_limit
from dist.model.load import load_model
from dist.model.memory import report_oom


@pytest.fixture(scope="module")
def solo() -> SoloGroup:
    return SoloGroup(torch.device("cpu"))


def reference_logits(root: Path) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(root / "reference", dtype=torch.float32)
    with torch.inference_mode():
        return model(input_ids=torch.arange(5, 25)[None]).logits[0, -1].tolist()


@pytest.fixture(scope="module")
def loaded_by_ranks(tiny_checkpoint, tmp_path_factory) -> dict:
    """{count of ranks: {run root: {"resident" or "sharded": what came out}}} of all usual checkpoints."""
    broken = tmp_path_factory.mktemp("broken") / "run"
    shutil.copytree(tiny_checkpoint("fsdp1", 2), broken)
    (broken / "global_step_3" / "model_world_size_2_rank_1.pt").unlink()
    roots = sorted({tiny_checkpoint(layout, world_size) for layout, world_size in USUAL})
    return json_of("ranks_model.py", "1,2,3", "resident,sharded,torn", *map(str, roots), str(broken))


def json_of(script: str, *arguments: str) -> dict:
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / script), *arguments]
    done = subprocess.run(command, env=rank_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_without_room_is_refused_before_the_first_byte_is_read(tiny_checkpoint, solo, monkeypatch):
    checkpoint = open_checkpoint(tiny_checkpoint("fsdp1", 2))
    monkeypatch.setattr("dist.model.layout.free_bytes", lambda device: 5 << 10)
    with pytest.raises(CheckpointError) as refusal:
        load_model(checkpoint, solo, progress=lambda done, total: pytest.fail("read"))
    assert refusal.value.what == "The model does not fit into the memory of this machine."
    assert "would keep 0.0 GiB, and 0.0 GiB are free" in refusal.value.why
    assert "--dtype bfloat16" in refusal.value.hint


@pytest.mark.parametrize(("more", "error"), [({}, CheckpointError), ({"parallel": "verl"}, UsageError)])
def test_exactness_that_cannot_be_promised_is_refused(tiny_checkpoint, more, error):
    checkpoint = open_checkpoint(tiny_checkpoint("fsdp1", 1))
    with pytest.raises(error, match="--exact is not possible here"):
        load_model(checkpoint, SoloGroup(torch.device("cpu")), exact=True, **more)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_checkpoint_loads_bit_equal_on_any_number_of_ranks(loaded_by_ranks, size):
    results = {root: ways for root, ways in loaded_by_ranks[str(size)].items() if "broken" not in root}
    assert len(results) == len(USUAL)
    for root, ways in results.items():
        expected = pytest.approx(reference_logits(Path(root)), abs=1e-4)
        for keep in ("resident", "sharded"):
            result = ways[keep]
            assert result.get("differing") == {}, (root, keep, result)
            assert result["logits"] == expected
            assert result["steady"]


def test_a_rank_reads_its_share_and_holds_all_or_its_share(loaded_by_ranks, tiny_checkpoint):
    root = str(tiny_checkpoint("fsdp1", 3))
    whole = loaded_by_ranks["1"][root]["resident"]
    ways = loaded_by_ranks["2"][root]
    assert whole["parallel"] == "none: one process"
    assert ways["resident"]["held"] == whole["held"]
    assert ways["resident"]["most_bytes_read"] < 0.51 * whole["most_bytes_read"]
    assert ways["sharded"]["most_bytes_read"] < 0.51 * whole["most_bytes_read"]
    assert ways["sharded"]["held"] < 0.75 * whole["held"]


def test_a_missing_file_is_the_error_of_every_rank(loaded_by_ranks):
    for results in loaded_by_ranks.values():
        (ways,) = (ways for root, ways in results.items() if "broken" in root)
        assert ways["resident"]["error"].startswith("Shard 1 of 2 is missing: ")


def test_what_one_rank_cannot_read_soon_reaches_rank_0_as_that(loaded_by_ranks, tiny_checkpoint):
    root = str(tiny_checkpoint("fsdp1", 2))
    result = loaded_by_ranks["3"][root]["torn"]
    file = Path(root) / "global_step_3" / "model_world_size_2_rank_1.pt"
    assert result["error"].startswith(f"Rank 2 cannot load the model. {file} is incomplete. It ends at byte ")
    assert result["error"].endswith("Copy the file again from where training wrote it.")
    assert result["seconds"] < 3


def test_verls_own_loader_gives_the_same_model_at_the_same_world_size(tiny_checkpoint):
    pytest.importorskip("verl")
    roots = [str(tiny_checkpoint(layout, 2)) for layout in ("fsdp1", "fsdp1_nomesh", "fsdp1_tied")]
    other = str(tiny_checkpoint("fsdp1", 3))
    results = json_of("ranks_model.py", "2", "resident,verl", *roots, other)["2"]
    for root in roots:
        assert results[root]["verl"]["logits"] == results[root]["resident"]["logits"]
        assert results[root]["verl"]["held"] < 0.55 * results[root]["resident"]["held"]
        assert (
            results[root]["verl"]["parallel"] == "verl: FSDP1 and verl's own loader, all-gathered per forward pass"
        )
    assert results[other]["verl"]["error"] == (
        "--parallel verl needs the 3 processes that saved the checkpoint. There are 2 here. "
        "Leave out --parallel verl: the default reads the checkpoint on any number of processes."
    )


def test_verls_own_loader_reads_nothing_but_its_shards(tiny_checkpoint, solo):
    pytest.importorskip("verl")
    with pytest.raises(
        CheckpointError, match=r"^--parallel verl reads shards of FSDP only\. This checkpoint is safet"
    ):
        load_model(open_checkpoint(tiny_checkpoint("fsdp1", 2) / "reference"), solo, parallel="verl")


def test_weights_are_held_in_the_dtype_that_was_asked_for(tiny_checkpoint, solo):
    root = tiny_checkpoint("fsdp1", 2)
    loaded = load_model(open_checkpoint(root), solo, dtype="bfloat16")
    saved = load_file(root / "reference" / "model.safetensors")
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, saved[name].bfloat16())
    assert loaded.facts.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("asked", "saved", "config", "device", "chosen"),
    [
        ("auto", "bfloat16", {}, "cpu", torch.float32),
        ("auto", "float32", {"dtype": "float16"}, "cuda", torch.float16),
        ("auto", "float32", {"torch_dtype": "bfloat16"}, "cuda", torch.bfloat16),
        ("auto", "float32", {"dtype": "float32"}, "cuda", torch.bfloat16),
        ("auto", "float16", {}, "cuda", torch.float16),
        ("float32", "bfloat16", {}, "cuda", torch.float32),
    ],
)
def test_the_dtype_fits_the_device_and_the_checkpoint(asked, saved, config, device, chosen):
    assert choose_dtype(asked, saved, config, torch.device(device)) == chosen


def test_an_unknown_dtype_or_mode_is_refused(tiny_checkpoint, solo):
    with pytest.raises(UsageError, match=r"^--dtype cannot be int8\. It takes auto, float32, bfloat16, float16\.$"):
        choose_dtype("int8", "float32", {}, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"^--parallel cannot be pp\."):
        load_model(open_checkpoint(tiny_checkpoint("fsdp1", 2)), solo, parallel="pp")


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "max_position_embeddings": 2048, "num_key_value_heads": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, rope_scaling=dict(LLAMA3)),
        Qwen2Config(**SMALL, rope_scaling=dict(YARN)),
        Qwen2Config(**SMALL),
    ],
    ids=["llama3", "yarn", "default"],
)
def test_rotary_frequencies_are_those_of_a_fresh_model(tmp_path, config, dtype):
    config.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    built = build_model(tmp_path, raw, dtype, trust_remote_code=False)
    fresh = AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert not built.training
    computed = dict(built.named_buffers())
    assert computed.keys() == dict(fresh.named_buffers()).keys() != set()
    for name, buffer in fresh.named_buffers():
        assert torch.equal(computed[name], buffer) and computed[name].dtype == buffer.dtype


def test_positions_reach_as_far_as_the_scaling_says(solo):
    assert position_limit(Qwen2Config(**SMALL)) == 2048
    assert position_limit(LlamaConfig(**SMALL, rope_scaling=dict(LLAMA3))) == 2048
    assert position_limit(Qwen2Config(**{**SMALL, "max_position_embeddings": 512}, rope_scaling=dict(YARN))) == 2048


def test_a_config_of_transformers_5_keeps_its_rotary_base_under_version_4(tmp_path):
    raw = {"model_type": "llama", **SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    built = build_model(tmp_path, raw, torch.float32, trust_remote_code=False)
    frequencies = dict(built.named_buffers())["model.rotary_emb.inv_freq"]
    assert frequencies[1].item() == pytest.approx(500000.0 ** (-2 / 8))


def test_tied_embeddings_stay_one_tensor(tiny_checkpoint, solo):
    module = load_model(open_checkpoint(tiny_checkpoint("fsdp1_tied", 2)), solo).module
    assert module.lm_head.weight is module.model.embed_tokens.weight


def with_config(checkpoint, folder: Path, **changes):
    """The checkpoint as if its config.json said something else."""
    config = {**checkpoint.config, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return replace(checkpoint, config=config, config_dir=folder)


def refusal(checkpoint, solo) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(checkpoint, solo)
    return str(caught.value)


def test_weights_of_another_size_are_named(tiny_checkpoint, tmp_path, solo):
    checkpoint = with_config(open_checkpoint(tiny_checkpoint("fsdp1", 2)), tmp_path, intermediate_size=96)
    assert refusal(checkpoint, solo) == (
        f"The weights are not those of the model that {tmp_path / 'config.json'} describes. "
        "model.layers.0.mlp.gate_proj.weight is [84, 48] in the file, [96, 48] by the config; "
        "model.layers.0.mlp.up_proj.weight is [84, 48] in the file, [96, 48] by the config; "
        "model.layers.0.mlp.down_proj.weight is [48, 84] in the file, [48, 96] by the config; and 3 more. "
        "The names agree and the sizes do not: config.json is of another size of the same model. "
        "Put the config.json of the trained model there."
    )


def test_weights_with_other_layers_are_named(tiny_checkpoint, tmp_path, solo):
    checkpoint = with_config(
        open_checkpoint(tiny_checkpoint("fsdp1", 2)), tmp_path, num_hidden_layers=3, layer_types=None
    )
    assert "The file has 2 layers, the config 3." in refusal(checkpoint, solo)


def test_weights_of_another_architecture_are_named(tiny_checkpoint, tmp_path, solo):
    checkpoint = with_config(open_checkpoint(tiny_checkpoint("fsdp1", 2)), tmp_path, model_type="llama")
    message = refusal(checkpoint, solo)
    assert "model.layers.0.self_attn.q_proj.bias is not in the config's model" in message
    assert "config.json is of another architecture." in message


def test_a_model_that_transformers_does_not_know_is_named(tiny_checkpoint, tmp_path, solo):
    checkpoint = with_config(open_checkpoint(tiny_checkpoint("fsdp1", 2)), tmp_path, model_type="newmodel")
    message = refusal(checkpoint, solo)
    assert "does not know the model type newmodel." in message
    assert message.endswith("Install a transformers that knows it.")


def test_a_config_whose_values_do_not_go_together_is_named(tiny_checkpoint, tmp_path, solo):
    checkpoint = with_config(open_checkpoint(tiny_checkpoint("fsdp1", 2)), tmp_path, num_attention_heads="four")
    assert f"cannot build the model of {tmp_path / 'config.json'}. Its model_type is qwen2. " in refusal(
        checkpoint, solo
    )


def test_remote_code_runs_only_when_trusted(tiny_checkpoint, tmp_path, solo):
    checkpoint = with_config(
        open_checkpoint(tiny_checkpoint("fsdp1", 2)),
        tmp_path,
        model_type="newmodel",
        auto_map={"AutoConfig": "new.NewConfig", "AutoModelForCausalLM": "new.NewModel"},
    )
    (tmp_path / "new.py").write_text("raise SystemExit('ran')")
    assert refusal(checkpoint, solo) == (
        f"The model in {tmp_path} brings its own code. Its config.json names new.NewConfig, new.NewModel. "
        "Read that code; if you trust it, add --trust_remote_code."
    )


def test_running_out_of_a_gpus_memory_is_reported_with_torchs_numbers_where_one_process_can(solo):
    def runs_out(group):
        with report_oom(group, "linear layers were joined", "Use more GPUs."):
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.\nIf reserved but unallocated memory is large")

    with pytest.raises(CheckpointError) as reported:
        runs_out(solo)
    assert str(reported.value) == (
        "Out of GPU memory while linear layers were joined. Tried to allocate 2.00 GiB. Use more GPUs."
    )
    # One of two: the other one waits for it, so the run must end.
    with pytest.raises(torch.OutOfMemoryError):
        runs_out(SimpleNamespace(size=2))
