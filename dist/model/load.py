"""The model of a checkpoint on all ranks: built, checked, filled bit-equal, ready for inference. Knows no text.

fsdp, the default on several CPU ranks: each rank reads its share of the rows of every parameter. Where the whole
model fits into every rank's memory the shares are exchanged once and kept, since gathering them again for every
forward took seven times as long on two CPU ranks. Where it does not fit, each layer is all-gathered on demand.

tp, the default on several GPUs: each rank holds its part of every layer and computes with that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist.checkpoint.boxes import Box
from dist.checkpoint.ledger import Entry, Ledger
from dist.checkpoint.model_config import Described, describe
from dist.checkpoint.names import Matched, Wanted, match_names
from dist.checkpoint.open import Checkpoint
from dist.checkpoint.read import same_values
from dist.errors import CheckpointError, UsageError, either
from dist.kernels.prepare import prepared_meanwhile
from dist.model.build import build_described, choose_dtype, position_limit, tied_names, untie, wanted_tensors
from dist.model.conversions import convert_names
from dist.model.fill import Filler, FillPlan, OnProgress, Placement, together
from dist.model.fuse import fuse
from dist.model.fused_modules import is_exact
from dist.model.head import Head, WholeHead
from dist.model.layout import Keep, Layout, check_room, choose_layout
from dist.model.memory import report_oom
from dist.model.tensor_parallel import finish_cut
from dist.protocol import SUMS_BY_NCCL, Group

MODES = ("auto", "tp", "fsdp", "none", "verl")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What `/model` tells. Sizes in bytes; `load_bytes` and `bytes_per_rank` are this rank's.

    `load_seconds` is the time of reading, all ranks together, without building the model.
    """

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
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A causal LM ready for inference.

    `max_positions`: tokens that its positions reach, None if unknown. `placement`: who keeps what, None if the
    weights are held in a form that other weights cannot be read into. `boxes`: what this rank holds of the tensors
    that it does not hold whole, where that is fixed by tensor parallelism. `head`: which logits this rank computes.
    """

    module: Any
    facts: ModelFacts
    max_positions: int | None
    device: torch.device
    placement: Placement | None = None
    boxes: Mapping[str, Box] = field(default_factory=dict)
    head: Head = field(default_factory=WholeHead)


def load_model(
    checkpoint: Checkpoint,
    group: Group,
    *,
    parallel: str = "auto",
    dtype: str = "auto",
    keep: Keep = "auto",
    progress: OnProgress | None = None,
    trust_remote_code: bool = False,
    exact: bool = False,
) -> LoadedModel:
    """The model, on all ranks together. `progress(done, total)` counts all ranks' bytes.

    `keep` decides what becomes of fsdp shares: gathered once (resident), gathered in every forward (sharded), or
    resident where every rank has room for it. `exact`: a token gets the same bits whatever else a pass holds.
    Raises CheckpointError, the same on every rank, if any rank cannot build or read the model or has no room for
    it, or it cannot be split for tp or made exact; UsageError for a mode or dtype that does not exist.
    """
    if parallel not in MODES:
        raise UsageError(f"--parallel cannot be {parallel}.", f"It takes {either(MODES)}.")
    torch_dtype = choose_dtype(dtype, checkpoint.dtype, checkpoint.config, group.device)
    if parallel == "verl":
        return _load_by_verl(checkpoint, group, torch_dtype, trust_remote_code, exact=exact)
    group.connect()
    planned = together(group, lambda: plan_fill(checkpoint, torch_dtype, trust_remote_code))
    plan = planned.fill
    layout = together(group, lambda: choose_layout(parallel, keep, plan, group))
    check_room(plan, layout, group)
    filler = Filler(group, replace(plan, boxes=layout.boxes), progress)
    started = time.monotonic()
    with prepared_meanwhile(group.device, group.size):
        filler.fill(layout.placement)
    seconds = time.monotonic() - started
    head: Head = WholeHead()
    sums = None
    if layout.cut is not None:
        head, sums = finish_cut(plan.module, layout.cut, group), group.open_sums()
    if group.device.type == "cuda" and layout.placement != "shares":
        with report_oom(group, "linear layers were joined", "Use more GPUs, or free memory."):
            head.kernels = fuse(plan.module, group, exact=exact)
    if exact:
        _check_exact(plan.module, layout, group, sums)
    return LoadedModel(
        module=plan.module,
        facts=model_facts(
            checkpoint,
            plan.module,
            planned=planned,
            dtype=str(torch_dtype).removeprefix("torch."),
            parallel="; ".join(filter(None, (layout.words, sums, "exact" if exact else None))),
            load_seconds=seconds,
            load_bytes=filler.bytes_read,
        ),
        max_positions=position_limit(plan.module.config),
        device=group.device,
        placement=layout.placement,
        boxes=layout.boxes,
        head=head,
    )


def _check_exact(module: Any, layout: Layout, group: Group, sums: str | None) -> None:
    """Raise CheckpointError, on all ranks, if what was asked for cannot be promised."""
    why = None
    if group.device.type != "cuda" or next(module.parameters()).dtype.itemsize != 2:
        why = "It is for weights of 16 bits on GPUs."
    elif not is_exact(module):
        why = "The model has parts that add in an order of their own, or its layers are all-gathered on demand."
    elif layout.cut is not None and sums == SUMS_BY_NCCL:
        why = "The GPUs cannot sum through memory that they share, and NCCL adds in orders that change."
    if why is not None:
        raise CheckpointError("--exact is not possible here.", why, "Leave --exact out.")


def _load_by_verl(
    checkpoint: Checkpoint, group: Group, dtype: torch.dtype, trust_remote_code: bool, *, exact: bool
) -> LoadedModel:
    """The model as verl itself loads it; its weights are gathered in every forward. UsageError if `exact`."""
    if exact:
        raise UsageError("--exact is not possible here.", "verl's loader leaves the model as transformers made it.")
    from dist.model.verl_loader import load_by_verl

    started = time.monotonic()
    module = together(group, lambda: load_by_verl(checkpoint, group, dtype, trust_remote_code=trust_remote_code))
    return LoadedModel(
        module=module,
        facts=model_facts(
            checkpoint,
            module,
            dtype=str(dtype).removeprefix("torch."),
            parallel="verl: FSDP1 and verl's own loader, all-gathered per forward pass",
            load_seconds=time.monotonic() - started,
            load_bytes=sum(path.stat().st_size for path in checkpoint.files) // group.size,
        ),
        max_positions=position_limit(module.config),
        device=group.device,
    )


def model_facts(
    checkpoint: Checkpoint,
    module: Any,
    *,
    dtype: str,
    parallel: str,
    load_seconds: float,
    load_bytes: int,
    planned: Planned | None = None,
) -> ModelFacts:
    """What there is to tell of `module`, filled from `checkpoint`."""
    return ModelFacts(
        path=checkpoint.path.absolute(),
        step=checkpoint.step,
        saved_world_size=checkpoint.world_size,
        layout=checkpoint.layout,
        torch_family=checkpoint.torch_family,
        adapters=checkpoint.adapters,
        model_type=str(module.config.model_type) if planned is None else planned.words,
        parameters=checkpoint.parameters,
        saved_dtype=checkpoint.dtype,
        dtype=dtype,
        parallel=parallel,
        bytes_per_rank=_held_bytes(module),
        load_seconds=load_seconds,
        load_bytes=load_bytes,
        ledger=checkpoint.ledger if planned is None else planned.ledger,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model on meta, what feeds it, and what of the checkpoint is used. `words`: its type, for messages."""

    fill: FillPlan
    words: str
    ledger: Ledger


def plan_fill(checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool) -> Planned:
    """The checkpoint's model on meta, and which saved tensor feeds which of its tensors; reads no weight.

    Where a head that the config ties to the embeddings was saved with values of its own, both are compared, and
    what was saved counts. Raises CheckpointError if transformers cannot build it or the weights are not its.
    """
    file = checkpoint.config_dir / "config.json"
    described = describe(checkpoint.config_dir, checkpoint.config, trust_remote_code=trust_remote_code)
    module = build_described(described, file, dtype, trust_remote_code=trust_remote_code)
    matched = _match(checkpoint, described, module)
    first = {name: matched.sources[tied_names(module)[name]] for name in matched.tied_too}
    own = [name for name, saved in matched.tied_too.items() if not same_values(saved, first[name])]
    for name in own:
        untie(module, name)
    if own:
        matched = _match(checkpoint, described, module)
    fill = FillPlan(module=module, wanted=wanted_tensors(module), sources=matched.sources, tied=tied_names(module))
    entries = [*described.entries, *matched.entries]
    if own:
        why = f"{own[0]} was saved with values of its own, which count"
        entries.append(Entry("config.json", "tie_word_embeddings", False, why, "true", matters=True))
    return Planned(fill=fill, words=described.words, ledger=checkpoint.ledger.plus(entries))


def _match(checkpoint: Checkpoint, described: Described, module: Any) -> Matched:
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted_tensors(module).items()}
    wanted = Wanted(
        shapes=shapes,
        tied=tied_names(module),
        file=checkpoint.config_dir / "config.json",
        harmless=tuple(getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()),
        text_part=described.is_text_part,
    )
    tensors = dict(checkpoint.tensors)
    if checkpoint.assumed_head and not described.config.get_text_config().tie_word_embeddings:
        del tensors["lm_head.weight"]
    return match_names(tensors, wanted, partial(convert_names, module))


def _held_bytes(module: Any) -> int:
    """Bytes of this rank's parameters and buffers; what several of them share counts once."""
    storages = [tensor.untyped_storage() for tensor in [*module.parameters(), *module.buffers()]]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
