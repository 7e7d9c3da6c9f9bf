"""Box arithmetic: which bytes of which saved pieces make up which box of which tensor. Knows no file and no torch.

A box is a rectangle of a tensor: offsets and sizes, one number a dimension. A target (the whole tensor, an fsdp
share of its rows, a tensor-parallel share of its columns) is a box; so is what one rank saved. The same
arithmetic therefore serves every way of cutting, and renaming, fusing or splitting tensors moves boxes only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

Numbers = tuple[int, ...]

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
WORTH_SKIPPING = 64 << 10


@dataclass(frozen=True, slots=True)
class Box:
    """The elements offsets[d] to offsets[d] + sizes[d] in every dimension d."""

    offsets: Numbers
    sizes: Numbers

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """All of a tensor."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    def overlap(self, other: Box) -> Box | None:
        """What both boxes hold, or None if they hold nothing together."""
        offsets = tuple(max(a, b) for a, b in zip(self.offsets, other.offsets))
        ends = (min(a + n, b + m) for a, n, b, m in zip(self.offsets, self.sizes, other.offsets, other.sizes))
        sizes = tuple(end - start for start, end in zip(offsets, ends))
        return Box(offsets, sizes) if all(size > 0 for size in sizes) else None


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor that lies in one file.

    start    byte of the file at which the box's first element stands
    strides  how many elements apart neighbours stand in the file, one number a dimension
    """

    path: str
    start: int
    box: Box
    strides: Numbers


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter adds: scale * up @ down, with `up` [rows, r] and `down` [r, columns]."""

    up: SavedTensor
    down: SavedTensor
    scale: float


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of the checkpoint: its full shape, its dtype's name, where its pieces lie, what is added to it."""

    shape: Numbers
    dtype: str
    pieces: tuple[Piece, ...]
    update: LowRank | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Read:
    """A strided block of one file and where it belongs: `at` is its offset within the target box."""

    path: str
    start: int
    sizes: Numbers
    strides: Numbers
    at: Numbers

    @property
    def extent(self) -> int:
        """Elements from the first to the last one wanted, in the file."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.sizes, self.strides))

    @property
    def is_dense(self) -> bool:
        """Whether the block is one run of the file, in row-major order."""
        return all(
            size == 1 or stride == step
            for size, stride, step in zip(self.sizes, self.strides, row_major(self.sizes))
        )


def row_major(sizes: Sequence[int]) -> Numbers:
    """Strides of a contiguous tensor."""
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


def even_bounds(length: int, parts: int) -> list[int]:
    """Where the shares of `length` rows begin and end, `parts` + 1 numbers.

    Each has ceil(length / parts) rows, the last ones fewer or none: this is torch's rule for FSDP and DTensor.
    """
    step = -(-length // parts)
    return [min(part * step, length) for part in range(parts + 1)]


def local_box(shape: Sequence[int], splits: Iterable[tuple[int, int, int]]) -> Box:
    """The box that one rank holds after `splits`: (dimension, parts, which part), applied one after the other."""
    offsets, sizes = [0] * len(shape), list(shape)
    for dim, parts, part in splits:
        length = sizes[dim]
        step = -(-length // parts)
        start = min(part * step, length)
        offsets[dim] += start
        sizes[dim] = min(start + step, length) - start
    return Box(tuple(offsets), tuple(sizes))


def reads_for(tensor: SavedTensor, box: Box) -> list[Read]:
    """The reads that fill `box` of `tensor`, one for each piece that has part of it."""
    item = ITEM_BYTES[tensor.dtype]
    reads = []
    for piece in tensor.pieces:
        common = piece.box.overlap(box)
        if common is None:
            continue
        inside = zip(common.offsets, piece.box.offsets, piece.strides)
        start = piece.start + item * sum((offset - origin) * stride for offset, origin, stride in inside)
        at = tuple(offset - origin for offset, origin in zip(common.offsets, box.offsets))
        reads.append(Read(piece.path, start, common.sizes, piece.strides, at))
    return reads


def split_read(read: Read, item: int, most: int) -> Iterator[Read]:
    """The same block as reads that each span at most `most` bytes of the file, in order of the target's rows.

    Gaps are read along where that saves calls, skipped where they are long.
    """
    dim = max(range(len(read.sizes)), key=lambda d: (read.sizes[d] > 1, read.strides[d]), default=-1)
    if dim < 0 or read.sizes[dim] == 1:
        yield read
        return
    row = replace(read, sizes=(*read.sizes[:dim], 1, *read.sizes[dim + 1 :]))
    gap = (read.strides[dim] - row.extent) * item
    if read.extent * item <= most and gap < WORTH_SKIPPING:
        yield read
        return
    step = 1 if gap >= WORTH_SKIPPING else max(1, most // (read.strides[dim] * item))
    for first in range(0, read.sizes[dim], step):
        part = replace(
            read,
            start=read.start + first * read.strides[dim] * item,
            sizes=(*read.sizes[:dim], min(step, read.sizes[dim] - first), *read.sizes[dim + 1 :]),
            at=(*read.at[:dim], read.at[dim] + first, *read.at[dim + 1 :]),
        )
        yield from split_read(part, item, most)


def distinct(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """One piece for each box that holds anything: replicas save the same box several times."""
    by_box: dict[Box, Piece] = {}
    for piece in pieces:
        if piece.box.elements:
            by_box.setdefault(piece.box, piece)
    return tuple(by_box.values())


def first_gap(shape: Sequence[int], boxes: Iterable[Box]) -> Numbers | None:
    """The first element of a tensor that no box holds, or None if the boxes cover it."""
    if not all(shape):
        return None
    return _gap(tuple(shape), [(box.offsets, box.sizes) for box in boxes if box.elements])


def _gap(shape: Numbers, boxes: list[tuple[Numbers, Numbers]]) -> Numbers | None:
    if not shape:
        return None if boxes else ()
    cuts = sorted({0, shape[0]}.union(*({offsets[0], offsets[0] + sizes[0]} for offsets, sizes in boxes)))
    here: dict[int, list[tuple[Numbers, Numbers]]] = {cut: [] for cut in cuts}
    places = {cut: place for place, cut in enumerate(cuts)}
    for offsets, sizes in boxes:
        for place in range(places[offsets[0]], places[offsets[0] + sizes[0]]):
            here[cuts[place]].append((offsets[1:], sizes[1:]))
    for cut in cuts[:-1]:
        rest = _gap(shape[1:], here[cut])
        if rest is not None:
            return (cut, *rest)
    return None
