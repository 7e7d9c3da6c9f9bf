"""Hugging Face folder -> verl FSDP shards, by verl's own FSDPCheckpointManager on gloo ranks.

Run by `prepare` as one process a rank: `python -m chat.demo.shard RANK WORLD RENDEZVOUS SOURCE FOLDER`.
The calls are those of verl's trainer (FSDP1 over a device mesh, one unit a decoder layer).
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from chat.terminal.process import die_with_parent


def write_shards(rank: int, world_size: int, rendezvous: Path, source: Path, folder: Path) -> None:
    """Write this rank's shard of the model in `source` into `folder`; rank 0 also writes `huggingface/`.

    `rendezvous` is a file that does not exist yet, the same for all ranks.
    """
    import torch
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
    from verl.utils.fsdp_utils import get_fsdp_wrap_policy

    init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=get_fsdp_wrap_policy(model),
        device_id=torch.device("cpu"),
        sharding_strategy=ShardingStrategy.FULL_SHARD,
        device_mesh=init_device_mesh("cpu", (world_size,), mesh_dim_names=("fsdp",)),
    )
    manager = FSDPCheckpointManager(
        wrapped,
        processing_class=AutoTokenizer.from_pretrained(source),
        checkpoint_config={"save_contents": ["model"], "load_contents": ["model"]},
    )
    manager.save_checkpoint(str(folder))
    destroy_process_group()


if __name__ == "__main__":
    die_with_parent(signal.SIGKILL)
    write_shards(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:6]))
