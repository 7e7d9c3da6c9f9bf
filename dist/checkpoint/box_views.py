"""Cuts, joins and turns saved tensors without reading them: only boxes, strides and start bytes change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dist.checkpoint.boxes import Box, Numbers, Piece, SavedTensor, reads_for


def narrow(tensor: SavedTensor, dim: int, start: int, length: int) -> SavedTensor:
    """Rows `start` to `start` + `length` of dimension `dim`, as a tensor of their own."""
    target = Box(
        tuple(start if d == dim else 0 for d in range(len(tensor.shape))),
        tuple(length if d == dim else size for d, size in enumerate(tensor.shape)),
    )
    pieces = tuple(
        Piece(read.path, read.start, Box(read.at, read.sizes), read.strides) for read in reads_for(tensor, target)
    )
    return SavedTensor(target.sizes, tensor.dtype, pieces)


def drop_dim(tensor: SavedTensor, dim: int) -> SavedTensor:
    """Without dimension `dim`, whose size is 1."""

    def rest(numbers: Numbers) -> Numbers:
        return (*numbers[:dim], *numbers[dim + 1 :])

    pieces = tuple(
        Piece(p.path, p.start, Box(rest(p.box.offsets), rest(p.box.sizes)), rest(p.strides)) for p in tensor.pieces
    )
    return SavedTensor(rest(tensor.shape), tensor.dtype, pieces)


def add_dim(tensor: SavedTensor) -> SavedTensor:
    """With a new first dimension of size 1."""
    pieces = tuple(
        Piece(p.path, p.start, Box((0, *p.box.offsets), (1, *p.box.sizes)), (0, *p.strides)) for p in tensor.pieces
    )
    return SavedTensor((1, *tensor.shape), tensor.dtype, pieces)


def join(tensors: Sequence[SavedTensor], dim: int) -> SavedTensor:
    """The tensors one after the other along `dim`. They agree in dtype and in the other dimensions."""
    pieces: list[Piece] = []
    length = 0
    for tensor in tensors:
        for piece in tensor.pieces:
            at = piece.box.offsets
            moved = Box((*at[:dim], at[dim] + length, *at[dim + 1 :]), piece.box.sizes)
            pieces.append(replace(piece, box=moved))
        length += tensor.shape[dim]
    first = tensors[0]
    return SavedTensor((*first.shape[:dim], length, *first.shape[dim + 1 :]), first.dtype, tuple(pieces))


def swap_dims(tensor: SavedTensor, a: int, b: int) -> SavedTensor:
    """The transpose of two dimensions."""

    def swapped(numbers: Numbers) -> Numbers:
        order = list(range(len(numbers)))
        order[a], order[b] = order[b], order[a]
        return tuple(numbers[place] for place in order)

    pieces = tuple(
        Piece(p.path, p.start, Box(swapped(p.box.offsets), swapped(p.box.sizes)), swapped(p.strides))
        for p in tensor.pieces
    )
    return SavedTensor(swapped(tensor.shape), tensor.dtype, pieces)
