"""Fills a model's tensors from a checkpoint, all ranks together. Knows no config and no mode, just who keeps what.

Reading goes in rounds, each ended by asking every rank whether it succeeded: a rank that cannot read makes all
stop with its error, soon, and never leaves the others waiting in an exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dist.checkpoint.boxes import ITEM_BYTES, Box, SavedTensor, even_bounds, local_box
from dist.checkpoint.read import TensorReader
from dist.errors import ChatError, CheckpointError
from dist.model.build import put_tensor
from dist.model.gather import Share, gather_when_used, layer_parameters
from dist.protocol import Group

ROUND_BYTES = 256 << 20
# A GPU's several readers wait for each other at a round's end.
GPU_ROUND_BYTES = 1 << 30
# How often a rank tells the others how far it is.
TELL_S = 0.1

OnProgress = Callable[[int, int], None]

# Every rank reads everything; every rank reads its rows and all keep all; every rank keeps its rows of the layers;
# every rank keeps its boxes and all of the rest.
Placement = Literal["whole", "exchanged", "shares", "boxes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FillPlan:
    """What goes where.

    wanted    the module's tensors to fill, by name
    sources   the saved tensor of each
    tied      {further name: name} of parameters that are one and the same
    in_place  the module holds weights already, placed as they are to be; they are overwritten where they are
    boxes     what this rank keeps of the tensors that it does not keep whole, by name; for the placement "boxes"
    """

    module: Any
    wanted: Mapping[str, torch.Tensor]
    sources: Mapping[str, SavedTensor]
    tied: Mapping[str, str]
    in_place: bool = False
    boxes: Mapping[str, Box] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What all of it takes in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.wanted.values())


def together(group: Group, work: Callable[[], Any]) -> Any:
    """What `work` gives on this rank; if it raises ChatError on any rank, all raise it."""
    result, error = None, None
    try:
        result = work()
    except ChatError as problem:
        error = problem
    failures = group.gather_errors(None if error is None else str(error))
    if error is not None:
        raise error
    if failures:
        rank = min(failures)
        raise CheckpointError(f"Rank {rank} cannot load the model.", failures[rank])
    return result


class Filler:
    """Fills one plan. `progress(done, total)` counts all ranks' bytes; `bytes_read` is this rank's sum."""

    def __init__(self, group: Group, plan: FillPlan, progress: OnProgress | None) -> None:
        self.bytes_read = 0
        self._group = group
        self._plan = plan
        self._progress = progress
        self._total = 0
        # Where nothing is exchanged, so that a round takes no room beside what is kept.
        self._own_round = GPU_ROUND_BYTES if group.device.type == "cuda" else ROUND_BYTES
        self._count_all = group.open_counter()
        self._told = 0
        self._told_at = 0.0

    def fill(self, placement: Placement) -> None:
        """Read everything, all ranks together. Raises CheckpointError, on all ranks, if one of them cannot."""
        ways: dict[Placement, Callable[[], None]] = {
            "whole": self._fill_whole,
            "exchanged": self._fill_exchanged,
            "shares": self._fill_shares,
            "boxes": self._fill_boxes,
        }
        ways[placement]()
        self._place_buffers()

    def _fill_whole(self) -> None:
        """Every rank reads everything."""
        self._total = sum(source.bytes for source in self._plan.sources.values())
        with TensorReader(self._on_bytes) as reader:
            for names in self._rounds(list(self._plan.sources), 1, self._own_round):
                fresh = {name: self._allocate(name) for name in names}
                boxes = {name: Box.whole(self._plan.sources[name].shape) for name in names}
                self._read(reader, boxes, fresh)
                self._put(fresh)

    def _fill_exchanged(self) -> None:
        """Every rank reads its rows of everything; the ranks exchange them, and all keep all."""
        self._total = self._share_of_bytes()
        with TensorReader(self._on_bytes) as reader:
            self._exchange(reader, list(self._plan.sources))

    def _fill_shares(self) -> None:
        """Every rank keeps its rows of the decoder layers, all-gathered on demand; the rest is kept."""
        self._total = self._share_of_bytes()
        layers = layer_parameters(self._plan.module)
        shares: dict[Any, list[Share]] = {layer: [] for layer in layers.values()}
        with TensorReader(self._on_bytes) as reader:
            self._exchange(reader, [name for name in self._plan.sources if name not in layers])
            for names in self._rounds([name for name in self._plan.sources if name in layers], self._group.size):
                boxes = {name: self._my_rows(name) for name in names}
                fresh = {name: self._allocate(name, boxes[name].sizes) for name in names}
                self._read(reader, boxes, fresh)
                for name, rows in fresh.items():
                    owner, _, own_name = name.rpartition(".")
                    module, shape = self._plan.module.get_submodule(owner), self._plan.wanted[name].shape
                    shares[layers[name]].append(Share(owner=module, name=own_name, shape=shape, rows=rows))
        for layer, held in shares.items() if not self._plan.in_place else ():
            gather_when_used(layer, held, self._group)

    def _fill_boxes(self) -> None:
        """Every rank reads its boxes; what is kept whole, or of which all need some of every row, is exchanged."""
        sources, boxes = self._plan.sources, self._plan.boxes
        read = [name for name, box in boxes.items() if box.sizes[1:] == sources[name].shape[1:]]
        exchanged = [name for name in sources if name not in read]
        self._total = sum(sources[name].bytes for name in exchanged) // self._group.size
        self._total += sum(boxes[name].elements * ITEM_BYTES[sources[name].dtype] for name in read)
        with TensorReader(self._on_bytes) as reader:
            for names in self._rounds(read, self._group.size, self._own_round):
                fresh = {name: self._allocate(name, boxes[name].sizes) for name in names}
                self._read(reader, boxes, fresh)
                self._put(fresh)
            # Last, since the ranks' first exchange waits until NCCL has connected them.
            self._exchange(reader, exchanged)

    def _exchange(self, reader: TensorReader, names: list[str]) -> None:
        group = self._group
        for some in self._rounds(names, group.size):
            fresh = {name: self._room_for_all(name) for name in some}
            boxes = {name: self._my_rows(name) for name in some}
            # A tensor without rows (a counter) is rank 0's to read.
            bounds = {name: even_bounds((*fresh[name].shape, 1)[0], group.size) for name in some}
            mine = {
                name: _as_rows(whole)[bounds[name][group.rank] : bounds[name][group.rank + 1]]
                for name, whole in fresh.items()
            }
            self._read(reader, boxes, {name: rows for name, rows in mine.items() if len(rows)})
            for name, whole in fresh.items():
                group.spread_rows(_as_rows(whole), bounds[name])
            self._put({name: self._kept(name, whole) for name, whole in fresh.items()})

    def _room_for_all(self, name: str) -> torch.Tensor:
        """Room for the whole tensor: where it is to stay, or for a moment if only a box of it is kept."""
        if name not in self._plan.boxes:
            return self._allocate(name)
        dtype = self._plan.wanted[name].dtype
        return torch.empty(self._plan.sources[name].shape, dtype=dtype, device=self._group.device)

    def _kept(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """What this rank keeps of a whole tensor."""
        box = self._plan.boxes.get(name)
        if box is None:
            return whole
        part = whole
        for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes)):
            part = part.narrow(dim, offset, size)
        return self._allocate(name, box.sizes).copy_(part)

    def _read(self, reader: TensorReader, boxes: Mapping[str, Box], targets: Mapping[str, torch.Tensor]) -> None:
        """Read one round; a failure on any rank is raised on all."""

        def read() -> None:
            reader.read_all(
                [
                    (self._plan.sources[name], boxes[name], target.reshape(boxes[name].sizes))
                    for name, target in targets.items()
                ]
            )

        together(self._group, read)

    def _my_rows(self, name: str) -> Box:
        shape = self._plan.sources[name].shape
        return local_box(shape, [(0, self._group.size, self._group.rank)]) if shape else Box((), ())

    def _share_of_bytes(self) -> int:
        return sum(source.bytes for source in self._plan.sources.values()) // self._group.size

    def _on_bytes(self, count: int) -> None:
        self.bytes_read += count
        now = time.monotonic()
        if now - self._told_at < TELL_S and self.bytes_read < self._total:
            return
        read_by_all = self._count_all(self.bytes_read - self._told)
        self._told, self._told_at = self.bytes_read, now
        if self._progress is not None:
            self._progress(read_by_all, max(self._total * self._group.size, read_by_all))

    def _rounds(self, names: Sequence[str], parts: int, most: int = ROUND_BYTES) -> Iterator[list[str]]:
        """The names in the model's order, cut where a rank has read about `most` bytes."""
        some: list[str] = []
        size = 0
        for name in names:
            some.append(name)
            size += self._plan.sources[name].bytes // parts
            if size >= most:
                yield some
                some, size = [], 0
        if some:
            yield some

    def _allocate(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor:
        wanted = self._plan.wanted[name]
        if self._plan.in_place:
            return wanted.detach()
        return torch.empty(wanted.shape if shape is None else shape, dtype=wanted.dtype, device=self._group.device)

    def _put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if self._plan.in_place:
            return
        for name, tensor in tensors.items():
            put_tensor(self._plan.module, name, tensor)
            for other, first in self._plan.tied.items():
                if first == name:
                    put_tensor(self._plan.module, other, self._plan.module.get_parameter(name))

    def _place_buffers(self) -> None:
        """Move what was computed rather than read to the device."""
        for name, buffer in list(self._plan.module.named_buffers()):
            if buffer.device != self._group.device:
                put_tensor(self._plan.module, name, buffer.to(self._group.device))


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.ndim else tensor.reshape(1)
