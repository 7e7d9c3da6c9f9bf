"""Makes small verl checkpoints for the tests: random tiny models, a tiny tokenizer, real gloo ranks.

Run as a program it writes the cases named on its command line. One process imports torch and verl once, then
forks the ranks of each case in turn, which is far quicker than starting every rank afresh. With verl installed
its own FSDPCheckpointManager writes the files; without it the torch calls that the manager makes do.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = 3
VOCABULARY = 331
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "The capital of France is Paris. Solve: 25 * 4 = 100. A block of placeholders is refined in a few passes. "
    "You are a kind, helpful assistant. Answer in plain words. What is it? It is what it is, user and system."
)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 84,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.25,
}
# 0.9 GB in float32, for measurements.
LARGE = {"vocab_size": 32003, "hidden_size": 1024, "intermediate_size": 3000, "num_hidden_layers": 14}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of checkpoint: which model, held in which dtype, sharded how."""

    model: str
    sharding: str
    dtype: str = "float32"


CASES = {
    "fsdp1": Case(model="qwen2", sharding="fsdp1"),
    "fsdp2": Case(model="qwen2", sharding="fsdp2"),
    "fsdp1_nomesh": Case(model="qwen2", sharding="fsdp1_nomesh"),
    "fsdp1_no_shard": Case(model="qwen2", sharding="fsdp1_no_shard"),
    "fsdp1_tied": Case(model="llama_tied", sharding="fsdp1", dtype="bfloat16"),
    "fsdp2_tied": Case(model="llama_tied", sharding="fsdp2", dtype="bfloat16"),
    "fsdp2_shard1": Case(model="qwen2", sharding="fsdp2_shard1"),
    "fsdp1_moe": Case(model="qwen3_moe", sharding="fsdp1"),
    "fsdp1_lora": Case(model="qwen2_lora", sharding="fsdp1_orig"),
    "fsdp2_lora": Case(model="qwen2_lora", sharding="fsdp2"),
    "fsdp1_hsdp": Case(model="qwen2", sharding="fsdp1_hsdp"),
    "fsdp2_hsdp": Case(model="qwen2", sharding="fsdp2_hsdp"),
    "large": Case(model="qwen2_large", sharding="fsdp1"),
}


def can_make(layout: str) -> bool:
    """Whether the packages installed here can write this layout."""
    if layout.endswith("lora"):
        return importlib.util.find_spec("peft") is not None
    major, minor = map(int, importlib.metadata.version("torch").split(".")[:2])
    return layout != "fsdp2_shard1" or (major, minor) >= (2, 6)


def run_root(base: Path, layout: str, world_size: int) -> Path:
    """Where `make_checkpoints` puts one case: the folder that holds latest_checkpointed_iteration.txt."""
    return base / f"{layout}_w{world_size}"


def make_checkpoints(base: Path, wanted: list[tuple[str, int]]) -> None:
    """Write the (layout, world size) cases below `base`, in a process of their own. See `run_root`.

    Each run root also holds `reference/`, the same model as transformers saves it (safetensors, config, tokenizer).
    """
    names = [f"{layout}:{world_size}" for layout, world_size in wanted]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(base), *names],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"making {names} failed:\n{done.stdout}")


def save_tokenizer(folder: Path) -> Any:
    """A byte-level BPE tokenizer with a ChatML template and `<|im_end|>` as EOS, saved in `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_model(case: Case, folder: Path) -> Any:
    """A tiny random model, the same whenever it is called; saved in `folder` with its tokenizer and config."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3MoeConfig

    tokenizer = save_tokenizer(folder)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    configs = {
        "qwen2": lambda: Qwen2Config(**SIZES, **special, tie_word_embeddings=False),
        "qwen2_large": lambda: Qwen2Config(**{**SIZES, **LARGE}, **special, tie_word_embeddings=False),
        "llama_tied": lambda: LlamaConfig(**{**SIZES, "hidden_size": 40}, **special, tie_word_embeddings=True),
        "qwen3_moe": lambda: Qwen3MoeConfig(
            **SIZES, **special, head_dim=12, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20
        ),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[case.model.removesuffix("_lora")]())
    model.to(getattr(torch, case.dtype)).save_pretrained(folder)
    # As verl does: from_pretrained leaves the folder's name in the config, without which
    # the manager saves no generation_config.json.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, case.dtype))
    return _with_adapter(model) if case.model.endswith("_lora") else model


def _with_adapter(model: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, target_modules=targets))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return adapted


def _shard(model: Any, sharding: str, world_size: int) -> Any:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    if sharding.endswith("hsdp"):
        mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("ddp", "fsdp"))
    else:
        mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("fsdp",))
    layer_class = type(next(module for name, module in model.named_modules() if name.endswith("layers.0")))
    if sharding.startswith("fsdp2"):
        return _shard2(model, mesh, layer_class, dim=1 if sharding.endswith("shard1") else 0)
    strategies = {"fsdp1_no_shard": ShardingStrategy.NO_SHARD, "fsdp1_hsdp": ShardingStrategy.HYBRID_SHARD}
    return FullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        device_mesh=None if sharding in ("fsdp1_nomesh", "fsdp1_no_shard") else mesh,
        sharding_strategy=strategies.get(sharding, ShardingStrategy.FULL_SHARD),
        auto_wrap_policy=lambda module, recurse, nonwrapped_numel: recurse or isinstance(module, layer_class),
        use_orig_params=sharding == "fsdp1_orig",
    )


def _shard2(model: Any, mesh: Any, layer_class: type, dim: int) -> Any:
    import torch.distributed.fsdp as fsdp
    from torch.distributed._composable.fsdp import fully_shard as fully_shard_25
    from torch.distributed.tensor import Shard

    fully_shard = getattr(fsdp, "fully_shard", fully_shard_25)

    def placement(parameter: Any) -> Any:
        even = dim and parameter.ndim > 1 and parameter.shape[1] % mesh.size() == 0
        return Shard(1) if even else Shard(0)

    options = {"shard_placement_fn": placement} if dim else {}
    for module in list(model.modules()):
        if isinstance(module, layer_class):
            fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def _save(model: Any, tokenizer: Any, folder: Path, version: int) -> None:
    if importlib.util.find_spec("verl") is None:
        save_as_verl_does(model, tokenizer, folder, version)
        return
    from omegaconf import OmegaConf
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    contents = OmegaConf.create({"save_contents": ["model"], "load_contents": ["model"]})
    manager = FSDPCheckpointManager(
        model=model, optimizer=None, processing_class=tokenizer, checkpoint_config=contents
    )
    manager.save_checkpoint(str(folder), global_step=STEP)


def save_as_verl_does(model: Any, tokenizer: Any, folder: Path, version: int) -> None:
    import torch
    import torch.distributed as torch_dist
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardedStateDictConfig, StateDictType

    rank, world_size = torch_dist.get_rank(), torch_dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    context: Any = contextlib.nullcontext()
    if version == 1:
        context = FullyShardedDataParallel.state_dict_type(
            model, StateDictType.SHARDED_STATE_DICT, ShardedStateDictConfig(offload_to_cpu=False)
        )
    with context:
        torch.save(model.state_dict(), folder / f"model_world_size_{world_size}_rank_{rank}.pt")
    if rank == 0:
        inner = model.module if version == 1 else model
        inner.config.save_pretrained(folder / "huggingface")
        inner.generation_config.save_pretrained(folder / "huggingface")
        tokenizer.save_pretrained(folder / "huggingface")
        (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": version, "world_size": world_size}))


def _write_case(rank: int, world_size: int, port: int, layout: str, root: Path) -> None:
    """What one rank of one case does."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch
    import torch.distributed as torch_dist
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo")
    case = CASES[layout]
    reference = root / "reference"
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=getattr(torch, case.dtype))
    if case.model.endswith("_lora"):
        model = _with_adapter(model)
    folder = root / f"global_step_{STEP}"
    folder = folder / "actor" if case.sharding.startswith("fsdp2") else folder
    sharded = _shard(model, case.sharding, world_size)
    version = 2 if case.sharding.startswith("fsdp2") else 1
    _save(sharded, PreTrainedTokenizerFast.from_pretrained(reference), folder, version)
    torch_dist.barrier()
    torch_dist.destroy_process_group()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_all(base: Path, wanted: list[tuple[str, int]]) -> None:
    import torch

    torch.set_num_threads(1)
    if importlib.util.find_spec("verl") is not None:
        import verl.utils.checkpoint.fsdp_checkpoint_manager  # noqa: F401  # once, before the ranks are forked
    for layout, world_size in wanted:
        root = run_root(base, layout, world_size)
        unfinished = root.with_name(f".{root.name}-{os.getpid()}")
        (unfinished / "reference").mkdir(parents=True)
        build_model(CASES[layout], unfinished / "reference")
        _fork_ranks(layout, world_size, unfinished)
        (unfinished / "latest_checkpointed_iteration.txt").write_text(str(STEP))
        with contextlib.suppress(OSError):  # another run made it in the meantime
            unfinished.rename(root)


def _fork_ranks(layout: str, world_size: int, root: Path) -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    port = free_port()
    ranks = [
        context.Process(target=_write_case, args=(rank, world_size, port, layout, root))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit(f"{layout} on {world_size} ranks failed")


if __name__ == "__main__":
    _write_all(Path(sys.argv[1]), [(name.split(":")[0], int(name.split(":")[1])) for name in sys.argv[2:]])
