"""What both attention kernels do alike: a tile of query rows against a part of the keys. Knows no model.

The query heads that share a key head are folded into the rows of one matrix product.

Shape suffixes: T tokens of the forward, H query heads, D head size, P parts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.limits import stages_that_fit

KEYS_AT_ONCE = 64
STAGES = 3


def padded_size(size: int) -> int:
    """A head's size as matrix products take it."""
    return max(16, int(triton.next_power_of_2(size)))


def partial_softmaxes(parts: int, query_HTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for what the parts of the keys give: sums [P, H, T, D], peak scores and weights [P, H, T]."""
    heads, tokens, size = query_HTD.shape
    sums_PHTD = query_HTD.new_empty((parts, heads, tokens, size), dtype=torch.float32)
    peaks_PHT = query_HTD.new_empty((parts, heads, tokens), dtype=torch.float32)
    return sums_PHTD, peaks_PHT, torch.empty_like(peaks_PHT)


def tile_options(query_HTD: torch.Tensor, rows: int, window: int, softcap: float) -> dict[str, Any]:
    """Arguments of a launch whose programs take so many rows each, and as many keys at once as fit beside them."""
    size = query_HTD.shape[2]
    padded = padded_size(size)
    is_float32 = query_HTD.dtype == torch.float32
    keys_at_once = KEYS_AT_ONCE // 2 if is_float32 or padded > 128 else KEYS_AT_ONCE
    row_bytes = padded * query_HTD.itemsize
    return {
        "WINDOW": window,
        "SOFTCAP": softcap,
        "SIZE": size,
        "PADDED": padded,
        "ROWS": rows,
        "KEYS": keys_at_once,
        "PRECISION": "ieee" if is_float32 else "tf32",
        "num_stages": stages_that_fit(query_HTD.device, STAGES, 2 * keys_at_once * row_bytes, rows * row_bytes),
    }


@triton.jit
def segment_of(table, segment):
    """A segment's first row among the tokens, its rows, how many slots come before them, and its first slot."""
    first_row = tl.load(table + 4 * segment).to(tl.int32)
    rows = tl.load(table + 4 * segment + 1).to(tl.int32)
    start = tl.load(table + 4 * segment + 2).to(tl.int32)
    return first_row, rows, start, tl.load(table + 4 * segment + 3)


@triton.jit
def folded_rows(first_row, rows, start, tile, key_head, group, ROWS: tl.constexpr):
    """The rows of one tile: which of them there are, of which query head, of which token, at which slot."""
    folded = tile * ROWS + tl.arange(0, ROWS)
    is_row = folded < rows * group
    head = key_head * group + folded // rows
    return is_row, head, first_row + folded % rows, start + folded % rows


@triton.jit
def load_rows(query, is_row, head, row, head_stride, row_stride, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """The queries of a tile's rows."""
    column = tl.arange(0, PADDED)
    return tl.load(
        query + head[:, None] * head_stride + row[:, None] * row_stride + column[None, :],
        mask=is_row[:, None] & (column < SIZE)[None, :],
        other=0.0,
    )


@triton.jit
def store_part(
    sums,
    peaks,
    weights,
    peak,
    weight,
    total,
    place,
    is_row,
    has_keys,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    """What one part of the keys gives for a tile; sums are written only if it has any."""
    column = tl.arange(0, PADDED)
    tl.store(peaks + place, peak, mask=is_row)
    tl.store(weights + place, weight, mask=is_row)
    if has_keys:
        target = sums + place.to(tl.int64)[:, None] * SIZE + column[None, :]
        tl.store(target, total, mask=is_row[:, None] & (column < SIZE)[None, :])


@triton.jit
def over_keys(
    q,
    keys,
    values,
    low,
    high,
    used,
    own,
    scale,
    key_slot_stride,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows of queries over the keys from `low` to `high`: peak scores, weights and unnormalised sums.

    Keys that a row does not see change none of its bits.
    """
    column = tl.arange(0, PADDED)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, PADDED), tl.float32)
    for first in range(low, high, KEYS):
        slot = first + tl.arange(0, KEYS)
        place = slot.to(tl.int64)[:, None] * key_slot_stride + column[None, :]
        in_use = (slot < used)[:, None] & (column < SIZE)[None, :]
        k = tl.load(keys + place, mask=in_use, other=0.0)
        v = tl.load(values + place, mask=in_use, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if SOFTCAP > 0:
            score = SOFTCAP * (2 * tl.sigmoid(2 * score / SOFTCAP) - 1)
        seen = slot[None, :] <= own[:, None]
        if WINDOW > 0:
            seen = seen & (slot[None, :] > own[:, None] - WINDOW)
        score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        # A row that has seen no key yet: keep -inf out of the differences.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp(score - base[:, None])
        fade = tl.exp(peak - base)
        weight = weight * fade + tl.sum(share, 1)
        total = total * fade[:, None] + tl.dot(share.to(v.dtype), v, input_precision=PRECISION)
        peak = higher
    return peak, weight, total
