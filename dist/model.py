"""The model of a checkpoint on all ranks: built, checked, filled bit-equal, ready for inference. Knows no text.

fsdp, the default on several ranks: each rank reads its share of the rows of every parameter. Where the whole
model fits into every rank's memory the shares are exchanged once and kept, since gathering them again for every
forward took seven times as long on two CPU ranks. Where it does not fit, each layer is gathered when it is used.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dist.checkpoint import Checkpoint
from dist.errors import UsageError
from dist.memory import free_bytes
from dist.model_build import build_model, choose_dtype, position_limit, tied_names, wanted_tensors
from dist.model_fill import Filler, FillPlan, OnProgress, Placement, together
from dist.protocol import Group
from dist.saved_names import match_names

HEADROOM_BYTES = 1 << 30

Keep = Literal["auto", "resident", "sharded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What `/model` tells. Sizes in bytes; `load_bytes` and `bytes_per_rank` are this rank's."""

    path: Path
    step: int | None
    saved_world_size: int
    layout: str
    torch_family: str | None
    adapters: str | None
    model_type: str
    parameters: int
    saved_dtype: str
    dtype: str
    parallel: str
    bytes_per_rank: int
    load_seconds: float
    load_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A causal LM ready for inference.

    `max_positions`: tokens that its positions reach, None if unknown. `placement`: who keeps what, None if the
    weights are held in a form that other weights cannot be read into.
    """

    module: Any
    facts: ModelFacts
    max_positions: int | None
    device: torch.device
    placement: Placement | None = None


def load_model(
    checkpoint: Checkpoint,
    group: Group,
    *,
    parallel: str = "auto",
    dtype: str = "auto",
    keep: Keep = "auto",
    progress: OnProgress | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model, on all ranks together. `progress(done, total)` tells of all ranks' bytes.

    `keep` decides what becomes of fsdp shares: gathered once (resident), gathered in every forward (sharded), or
    resident where every rank has room for it. Raises CheckpointError, the same on every rank, if any rank cannot
    build or read the model; UsageError for a mode or dtype that does not exist.
    """
    started = time.monotonic()
    mode = _mode(parallel, group)
    torch_dtype = choose_dtype(dtype, checkpoint.dtype, checkpoint.config, group.device)
    if mode == "verl":
        return _load_by_verl(checkpoint, group, torch_dtype, trust_remote_code)
    plan = together(group, lambda: plan_fill(checkpoint, torch_dtype, trust_remote_code))
    words, placement = _placement(mode, keep, plan, group)
    filler = Filler(group, plan, progress)
    filler.fill(placement)
    return LoadedModel(
        module=plan.module,
        facts=model_facts(
            checkpoint,
            plan.module,
            dtype=str(torch_dtype).removeprefix("torch."),
            parallel=words,
            load_seconds=time.monotonic() - started,
            load_bytes=filler.bytes_read,
        ),
        max_positions=position_limit(plan.module.config),
        device=group.device,
        placement=placement,
    )


def _load_by_verl(checkpoint: Checkpoint, group: Group, dtype: torch.dtype, trust_remote_code: bool) -> LoadedModel:
    """The model as verl itself loads it; its weights are gathered in every forward."""
    from dist.verl_loader import load_by_verl

    started = time.monotonic()
    module = together(group, lambda: load_by_verl(checkpoint, group, dtype, trust_remote_code=trust_remote_code))
    return LoadedModel(
        module=module,
        facts=model_facts(
            checkpoint,
            module,
            dtype=str(dtype).removeprefix("torch."),
            parallel="verl: FSDP1 and verl's own loader, gathered per forward",
            load_seconds=time.monotonic() - started,
            load_bytes=sum(path.stat().st_size for path in checkpoint.files) // group.size,
        ),
        max_positions=position_limit(module.config),
        device=group.device,
    )


def model_facts(
    checkpoint: Checkpoint, module: Any, *, dtype: str, parallel: str, load_seconds: float, load_bytes: int
) -> ModelFacts:
    """What there is to tell of `module`, filled from `checkpoint`."""
    return ModelFacts(
        path=checkpoint.path,
        step=checkpoint.step,
        saved_world_size=checkpoint.world_size,
        layout=checkpoint.layout,
        torch_family=checkpoint.torch_family,
        adapters=checkpoint.adapters,
        model_type=str(module.config.model_type),
        parameters=checkpoint.parameters,
        saved_dtype=checkpoint.dtype,
        dtype=dtype,
        parallel=parallel,
        bytes_per_rank=_held_bytes(module),
        load_seconds=load_seconds,
        load_bytes=load_bytes,
    )


def _mode(parallel: str, group: Group) -> str:
    if parallel == "verl":
        return parallel
    if parallel not in ("auto", "fsdp", "none"):
        raise UsageError(f"--parallel cannot be {parallel}.", "It takes auto, fsdp, none or verl.")
    return "none" if group.size == 1 or parallel == "none" else "fsdp"


def plan_fill(checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool) -> FillPlan:
    """The checkpoint's model on meta, and which saved tensor feeds which of its tensors; reads no weight.

    Raises CheckpointError if transformers cannot build it or the weights are not those of its config.
    """
    module = build_model(checkpoint.config_dir, checkpoint.config, dtype, trust_remote_code=trust_remote_code)
    wanted, tied = wanted_tensors(module), tied_names(module)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    sources = match_names(checkpoint.tensors, shapes, tied, checkpoint.config_dir / "config.json")
    return FillPlan(module=module, wanted=wanted, sources=sources, tied=tied)


def _placement(mode: str, keep: Keep, plan: FillPlan, group: Group) -> tuple[str, Placement]:
    """The mode in words, and who keeps what."""
    if mode == "none":
        return ("none: one process" if group.size == 1 else "none: every rank reads and keeps all of it"), "whole"
    if keep == "resident":
        return "fsdp, gathered once and kept: as asked", "exchanged"
    if keep == "sharded":
        return "fsdp, gathered per forward: as asked", "shares"
    room = group.smallest(free_bytes(group.device))
    need = plan.bytes + HEADROOM_BYTES
    if need <= room:
        return f"fsdp, gathered once and kept: it fits ({_gib(need)} of {_gib(room)} free)", "exchanged"
    return f"fsdp, gathered per forward: no room for all of it ({_gib(need)} of {_gib(room)} free)", "shares"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _held_bytes(module: Any) -> int:
    """Bytes of this rank's parameters and buffers, each tied group once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])
