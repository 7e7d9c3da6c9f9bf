"""The original way: a model wrapped by FSDP1 and filled by verl's FSDPCheckpointManager, same world size only.

For those who want exactly that. verl unpickles the shard files without restriction, which runs code that a hostile
file may hold, and gathers the weights again in every forward. verl is imported only here.
"""

from __future__ import annotations

import importlib.util
import pickle
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as torch_dist

from dist.checkpoint.open import Checkpoint
from dist.errors import CheckpointError, UsageError
from dist.model.build import build_model, put_tensor
from dist.protocol import Group

DEFAULT_WAY = "Leave out --parallel verl: the default reads the checkpoint on any number of processes."


class WrappedModel(torch.nn.Module):
    """An FSDP1 model as the engine knows models: a forward with names, a config, embeddings with a shape."""

    def __init__(self, wrapped: Any, config: Any, embedding_shape: torch.Size) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.config = config
        self._embedding_shape = embedding_shape

    def forward(self, input_ids: torch.Tensor, *, logits_to_keep: int = 0, **more: Any) -> Any:
        return self.wrapped(input_ids=input_ids, logits_to_keep=logits_to_keep, **more)

    def get_input_embeddings(self) -> Any:
        """The embeddings' shape; their weights are spread over the ranks."""
        return SimpleNamespace(weight=torch.empty(self._embedding_shape, device="meta"))


def check_verl_can(checkpoint: Checkpoint, group: Group) -> None:
    """Refuse what verl's loader cannot do, before anything is loaded.

    Raises CheckpointError for a checkpoint that another number of ranks saved or that holds no FSDP1 shards, and
    UsageError where verl is not installed.
    """
    if importlib.util.find_spec("verl") is None:
        raise UsageError("--parallel verl needs verl.", "It is not installed.", f"Install it, or: {DEFAULT_WAY}")
    if not checkpoint.layout.startswith("FSDP"):
        raise CheckpointError(
            "--parallel verl reads shards of FSDP only.", f"This checkpoint is {checkpoint.layout}.", DEFAULT_WAY
        )
    if checkpoint.world_size != group.size:
        raise CheckpointError(
            f"--parallel verl needs the {checkpoint.world_size} processes that saved the checkpoint.",
            f"There {'is' if group.size == 1 else 'are'} {group.size} here.",
            DEFAULT_WAY,
        )


def load_by_verl(
    checkpoint: Checkpoint, group: Group, dtype: torch.dtype, *, trust_remote_code: bool
) -> WrappedModel:
    """The model on all ranks, as verl loads it. Raises CheckpointError with verl's words if it cannot."""
    check_verl_can(checkpoint, group)
    if group.size == 1 and not torch_dist.is_initialized():
        # FSDP wants a process group even where there is one process.
        store = torch_dist.HashStore()  # type: ignore[attr-defined]
        torch_dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    module = build_model(checkpoint.config_dir, checkpoint.config, dtype, trust_remote_code=trust_remote_code)
    shape = module.get_input_embeddings().weight.shape
    config = module.config
    for name, parameter in list(module.named_parameters()):
        put_tensor(module, name, torch.empty(parameter.shape, dtype=parameter.dtype, device=group.device))
    module.tie_weights()
    wrapped = _wrap(module.to(group.device), checkpoint, group)
    _fill(wrapped, checkpoint)
    return WrappedModel(wrapped, config, shape)


def _wrap(module: Any, checkpoint: Checkpoint, group: Group) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel

    kinds = set(getattr(module, "_no_split_modules", None) or ())
    without_mesh = "without mesh" in checkpoint.layout
    mesh = None if without_mesh else init_device_mesh(group.device.type, (group.size,), mesh_dim_names=("fsdp",))

    def is_layer(module: torch.nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or type(module).__name__ in kinds

    return FullyShardedDataParallel(
        module, device_id=group.device, device_mesh=mesh, auto_wrap_policy=is_layer, use_orig_params=False
    )


def _fill(wrapped: Any, checkpoint: Checkpoint) -> None:
    from omegaconf import OmegaConf
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    contents = OmegaConf.create({"load_contents": ["model"], "save_contents": ["model"]})
    try:
        manager = FSDPCheckpointManager(
            model=wrapped, optimizer=None, processing_class=None, checkpoint_config=contents
        )
        manager.load_checkpoint(str(checkpoint.path))
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as problem:
        said = " ".join((str(problem) or repr(problem)).split())[:300]
        raise CheckpointError(f"verl cannot load {checkpoint.path}.", f"It says: {said}", DEFAULT_WAY) from problem
