"""How a model is spread over the ranks: which of them keeps what, and whether there is room. Reads no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dist.checkpoint.boxes import Box
from dist.errors import CheckpointError
from dist.model.fill import FillPlan, Placement
from dist.model.gather import layer_parameters
from dist.model.memory import free_bytes, gib
from dist.model.tensor_parallel import Cut, plan_cut
from dist.protocol import Group

HEADROOM_BYTES = 1 << 30

Keep = Literal["auto", "resident", "sharded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the model is spread over the ranks: in words that say why, and who keeps what."""

    words: str
    placement: Placement
    cut: Cut | None = None

    @property
    def boxes(self) -> Mapping[str, Box]:
        return self.cut.boxes if self.cut else {}


def choose_layout(parallel: str, keep: Keep, plan: FillPlan, group: Group) -> Layout:
    """Who keeps what, and why. Raises CheckpointError if tp is asked for and the model cannot be cut."""
    if group.size == 1:
        return Layout(words="none: one process", placement="whole")
    if parallel == "none":
        return Layout(words="none: every rank reads and keeps all of it", placement="whole")
    if parallel == "tp" or (parallel, keep, group.device.type) == ("auto", "auto", "cuda"):
        try:
            cut = plan_cut(plan.module, group.rank, group.size)
        except CheckpointError as refusal:
            if parallel == "tp":
                raise
            without = _fsdp(keep, plan, group)
            return replace(without, words=f"{without.words}; no tp: {refusal.why}")
        why = "as asked" if parallel == "tp" else "the fastest on GPUs"
        return Layout(words=f"tp, each layer split over {group.size} ranks: {why}", placement="boxes", cut=cut)
    return _fsdp(keep, plan, group)


def _fsdp(keep: Keep, plan: FillPlan, group: Group) -> Layout:
    if keep == "resident":
        return Layout(words="fsdp, all-gathered once and kept: as asked", placement="exchanged")
    if keep == "sharded":
        return Layout(words="fsdp, all-gathered per forward pass: as asked", placement="shares")
    room = group.smallest(free_bytes(group.device))
    need = plan.bytes + HEADROOM_BYTES
    if need <= room:
        words = f"fsdp, all-gathered once and kept: it fits ({gib(need)} of {gib(room)} free)"
        return Layout(words=words, placement="exchanged")
    words = f"fsdp, all-gathered per forward pass: no room for all of it ({gib(need)} of {gib(room)} free)"
    return Layout(words=words, placement="shares")


def check_room(plan: FillPlan, layout: Layout, group: Group) -> None:
    """Raise CheckpointError, on all ranks, before the first byte is read, if a rank has no room for its part."""
    shared = layer_parameters(plan.module) if layout.placement == "shares" else {}
    need = 0
    for name, tensor in plan.wanted.items():
        box = layout.boxes.get(name)
        elements = tensor.numel() if box is None else box.elements
        need += (-(-elements // group.size) if name in shared else elements) * tensor.element_size()
    free = group.smallest(free_bytes(group.device))
    if need > free:
        where, more = ("a GPU", "more GPUs") if group.device.type == "cuda" else ("this machine", "more machines")
        raise CheckpointError(
            f"The model does not fit into the memory of {where}.",
            f"Each of {group.size} ranks would keep {gib(need)}, and {gib(free)} are free for it.",
            f"Free memory, use {more}, or lower it with --dtype bfloat16 or --parallel fsdp.",
        )
