"""Box arithmetic: any cut of any tensor is put together again from any other cut."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist.checkpoint.box_views import add_dim, drop_dim, join, narrow, swap_dims
from dist.checkpoint.boxes import (
    Box,
    Piece,
    Read,
    SavedTensor,
    distinct,
    even_bounds,
    first_gap,
    local_box,
    reads_for,
    row_major,
    split_read,
)

SHAPES = st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)
PARTS = st.integers(1, 5)


def saved(tensor: torch.Tensor, parts: int, dim: int) -> tuple[SavedTensor, torch.Tensor]:
    """An int32 tensor as `parts` ranks would save it along `dim`, and the one file it lies in, as a flat tensor."""
    pieces, file, start = [], [], 0
    for part in range(parts):
        box = local_box(tensor.shape, [(dim, parts, part)])
        if not box.elements:
            continue
        local = cut(tensor, box).contiguous()
        pieces.append(Piece("file", start * 4, box, local.stride()))
        file.append(local.reshape(-1))
        start += local.numel()
    flat = torch.cat(file) if file else torch.empty(0, dtype=torch.int32)
    return SavedTensor(tuple(tensor.shape), "int32", tuple(pieces)), flat


def cut(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    for dim, (offset, size) in enumerate(zip(box.offsets, box.sizes)):
        tensor = tensor.narrow(dim, offset, size)
    return tensor


def read(tensor: SavedTensor, flat: torch.Tensor, box: Box) -> torch.Tensor:
    """What the reads for `box` give; -1 where nothing was read. Checks that no element is read twice."""
    result = torch.full(box.sizes, -1, dtype=torch.int32)
    for one in reads_for(tensor, box):
        place = cut(result, Box(one.at, one.sizes))
        assert (place == -1).all()
        place.copy_(flat.as_strided(one.sizes, one.strides, one.start // 4))
    return result


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)


@given(SHAPES, PARTS, PARTS, st.integers(0, 2), st.integers(0, 2))
def test_every_share_is_read_from_every_way_of_saving(shape, saved_parts, wanted_parts, saved_dim, wanted_dim):
    tensor = numbered(shape)
    source, flat = saved(tensor, saved_parts, saved_dim % len(shape))
    for part in range(wanted_parts):
        box = local_box(shape, [(wanted_dim % len(shape), wanted_parts, part)])
        assert torch.equal(read(source, flat, box), cut(tensor, box))


@given(SHAPES, PARTS, st.integers(0, 2), st.randoms(use_true_random=False))
def test_any_box_is_read_from_any_way_of_saving(shape, parts, dim, random_source):
    tensor = numbered(shape)
    source, flat = saved(tensor, parts, dim % len(shape))
    offsets = tuple(random_source.randint(0, size) for size in shape)
    box = Box(offsets, tuple(random_source.randint(0, size - offset) for size, offset in zip(shape, offsets)))
    assert torch.equal(read(source, flat, box), cut(tensor, box))


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_of_rows_follow_torch(length, parts):
    bounds = even_bounds(length, parts)
    rows = [len(chunk) for chunk in torch.arange(length).chunk(parts)] if length else []
    assert [b - a for a, b in itertools.pairwise(bounds)] == rows + [0] * (parts - len(rows))


@given(st.integers(0, 50), st.integers(1, 9))
def test_the_box_of_one_share_is_that_of_all_shares(length, parts):
    bounds = even_bounds(length, parts)
    for part in range(parts):
        box = local_box((length,), [(0, parts, part)])
        assert (box.offsets[0], box.offsets[0] + box.sizes[0]) == (bounds[part], bounds[part + 1])


@given(SHAPES, st.integers(1, 64), st.randoms(use_true_random=False))
def test_a_block_is_split_into_reads_within_the_limit(shape, most, random_source):
    tensor = numbered(shape)
    order = list(range(len(shape)))
    random_source.shuffle(order)
    turned = tensor.permute(order)
    if not turned.numel():
        return
    whole = Read("file", 0, tuple(turned.shape), turned.stride(), (0,) * len(shape))
    result = torch.full(turned.shape, -1, dtype=torch.int32)
    for part in split_read(whole, 4, most * 4):
        assert part.extent <= most
        place = cut(result, Box(part.at, part.sizes))
        assert (place == -1).all()
        place.copy_(tensor.reshape(-1).as_strided(part.sizes, part.strides, part.start // 4))
    assert torch.equal(result, turned)


def test_long_gaps_are_not_read_along():
    columns = Read("file", 0, (3, 1024), (1 << 20, 1), (0, 0))
    parts = list(split_read(columns, 4, 64 << 20))
    assert [(part.start, part.extent) for part in parts] == [(row << 22, 1024) for row in range(3)]
    near = Read("file", 0, (3, 1024), (2048, 1), (0, 0))
    assert list(split_read(near, 4, 64 << 20)) == [near]


@given(SHAPES, PARTS, st.integers(0, 2))
def test_a_missing_piece_is_found(shape, parts, dim):
    source, _ = saved(numbered(shape), parts, dim % len(shape))
    boxes = [piece.box for piece in source.pieces]
    assert first_gap(shape, boxes) is None
    for missing in range(len(boxes)):
        gap = first_gap(shape, boxes[:missing] + boxes[missing + 1 :])
        assert gap == boxes[missing].offsets


def test_a_scalar_is_missing_only_if_nobody_has_it():
    assert first_gap((), []) == ()
    assert first_gap((), [Box((), ())]) is None


def test_gaps_are_found_in_a_grid_with_overlaps():
    quarters = [Box((row, column), (2, 2)) for row in (0, 2) for column in (0, 2)]
    assert first_gap((4, 4), quarters) is None
    assert first_gap((4, 4), quarters[:3]) == (2, 2)
    assert first_gap((4, 4), [Box((0, 0), (3, 4)), Box((1, 0), (3, 4))]) is None


def test_replicas_count_once():
    piece = Piece("a", 0, Box((0,), (3,)), (1,))
    replica = Piece("b", 0, Box((0,), (3,)), (1,))
    empty = Piece("c", 0, Box((3,), (0,)), (1,))
    assert distinct([piece, replica, empty]) == (piece,)


def test_nested_splits_of_one_dimension_follow_each_other():
    boxes = [local_box((7, 2), [(0, 2, outer), (0, 2, inner)]) for outer in range(2) for inner in range(2)]
    assert [(box.offsets[0], box.sizes[0]) for box in boxes] == [(0, 2), (2, 2), (4, 2), (6, 1)]


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dim", [0, 1])
def test_views_move_boxes_as_torch_moves_elements(parts, dim):
    tensor = numbered((5, 7))
    source, flat = saved(tensor, parts, dim)

    def whole(view: SavedTensor) -> torch.Tensor:
        return read(view, flat, Box.whole(view.shape))

    assert torch.equal(whole(narrow(source, 1, 2, 4)), tensor[:, 2:6])
    assert torch.equal(whole(add_dim(source)), tensor[None])
    assert torch.equal(whole(drop_dim(narrow(source, 0, 3, 1), 0)), tensor[3])
    assert torch.equal(whole(join([source, narrow(source, 0, 1, 2)], 0)), torch.cat([tensor, tensor[1:3]]))
    assert torch.equal(whole(swap_dims(source, -2, -1)), tensor.T)


def test_strides_of_a_contiguous_tensor():
    for _ in range(20):
        shape = [random.randint(1, 5) for _ in range(random.randint(0, 4))]
        assert row_major(shape) == torch.empty(shape).stride()
