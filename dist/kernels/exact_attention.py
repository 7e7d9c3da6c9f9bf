"""Attention whose every row has the same bits whatever else the forward pass holds, in Triton. Knows no model.

Keys are cut into spans of fixed length, and a row's spans are merged one after the other, so that neither the
number of keys in use, nor that of rows, nor other sequences decide in which order anything is added. Few tokens
are worked on span by span side by side, as in split_kv.py; many by one program a tile, which merges as it goes by
the very same steps.

Shape suffixes: T tokens of the forward, H query heads, K key heads, C stored slots, D head size, P spans.
"""

from __future__ import annotations

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.overlap import begin, launch_options
from dist.kernels.tiles import (
    folded_rows,
    load_rows,
    over_keys,
    padded_size,
    partial_softmaxes,
    segment_of,
    store_part,
    tile_options,
)

SPAN = 256
# A tile of one size, since its layout decides how a row is summed.
ROWS = 64
# Of more tokens the spans' sums would take too much memory.
FEW_TOKENS = 64


def exact_attention(
    query_HTD: torch.Tensor,
    key_KCD: torch.Tensor,
    value_KCD: torch.Tensor,
    table_S4: torch.Tensor,
    longest: int,
    most_keys: int,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """As `split_kv.split_kv_attention`; no sequence has more than `most_keys` keys. [T, H, D]."""
    heads, tokens, size = query_HTD.shape
    key_heads = key_KCD.shape[0]
    group = heads // key_heads
    tiles = triton.cdiv(group * longest, ROWS)
    side_by_side = tokens <= FEW_TOKENS
    spans = triton.cdiv(most_keys, SPAN) if side_by_side else 1
    sums_PHTD, peaks_PHT, weights_PHT = partial_softmaxes(spans if side_by_side else 0, query_HTD)
    result_THD = query_HTD.new_empty((tokens, heads, size))
    options = launch_options(query_HTD)
    _attend_to_spans[(tiles * table_S4.shape[0], key_heads, spans)](
        query_HTD,
        key_KCD,
        value_KCD,
        table_S4,
        sums_PHTD,
        peaks_PHT,
        weights_PHT,
        result_THD,
        scale,
        tokens,
        tiles,
        group,
        query_HTD.stride(0),
        query_HTD.stride(1),
        key_KCD.stride(0),
        key_KCD.stride(1),
        SPAN=SPAN,
        SIDE_BY_SIDE=side_by_side,
        **tile_options(query_HTD, ROWS, window, softcap),
        **options,
    )
    if side_by_side:
        _merge_spans[(tokens, heads)](
            sums_PHTD,
            peaks_PHT,
            weights_PHT,
            result_THD,
            spans,
            SIZE=size,
            PADDED=padded_size(size),
            SPANS=triton.next_power_of_2(spans),
            num_warps=2,
            **options,
        )
    return result_THD


@triton.jit
def _merged(peak, weight, other_peak, other_weight):
    """Peaks and weights of two stretches of keys as one: the higher peak, and what scales either side's sums."""
    higher = tl.maximum(peak, other_peak)
    base = tl.where(higher == float("-inf"), 0.0, higher)
    fade, other_fade = tl.exp(peak - base), tl.exp(other_peak - base)
    # As one operation, so that no compiler chooses another rounding.
    return higher, tl.fma(weight, fade, other_weight * other_fade), fade, other_fade


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _attend_to_spans(
    query,
    key,
    value,
    table,
    sums,
    peaks,
    weights,
    result,
    scale,
    tokens,
    tiles,
    group,
    query_head_stride,
    query_row_stride,
    key_head_stride,
    key_slot_stride,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPAN: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One tile of folded rows against one span of the keys, or against all of them."""
    begin(EARLY)
    key_head, span = tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1) * group
    segment, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    first_row, rows, start, first_slot = segment_of(table, segment)
    if tile * ROWS >= rows * group:
        return  # a shorter segment than the longest
    used = start + rows
    is_row, head, row, own = folded_rows(first_row, rows, start, tile, key_head, group, ROWS)
    column = tl.arange(0, PADDED)
    end = tl.max(tl.where(is_row, own, 0)) + 1
    begin_key = 0
    if WINDOW > 0:
        begin_key = tl.maximum(start - WINDOW + 1, 0)

    q = load_rows(query, is_row, head, row, query_head_stride, query_row_stride, SIZE, PADDED)
    keys = key + key_head.to(tl.int64) * key_head_stride + first_slot * key_slot_stride
    values = value + key_head.to(tl.int64) * key_head_stride + first_slot * key_slot_stride
    if SIDE_BY_SIDE:
        low = tl.maximum(span * SPAN, begin_key // KEYS * KEYS)
        high = tl.minimum(span * SPAN + SPAN, end)
        peak, weight, total = over_keys(
            *(q, keys, values, low, high, used, own, scale, key_slot_stride),
            *(WINDOW, SOFTCAP, SIZE, PADDED, ROWS, KEYS, PRECISION),
        )
        place = (span * heads + head) * tokens + row
        store_part(sums, peaks, weights, peak, weight, total, place, is_row, low < high, SIZE, PADDED)
    else:
        peak = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, PADDED), tl.float32)
        for first in range(begin_key // SPAN * SPAN, end, SPAN):
            low = tl.maximum(first, begin_key // KEYS * KEYS)
            high = tl.minimum(first + SPAN, end)
            other_peak, other_weight, other_total = over_keys(
                *(q, keys, values, low, high, used, own, scale, key_slot_stride),
                *(WINDOW, SOFTCAP, SIZE, PADDED, ROWS, KEYS, PRECISION),
            )
            peak, weight, fade, other_fade = _merged(peak, weight, other_peak, other_weight)
            total = tl.fma(
                total,
                tl.broadcast_to(fade[:, None], (ROWS, PADDED)),
                other_total * tl.broadcast_to(other_fade[:, None], (ROWS, PADDED)),
            )
        place = (row * heads + head) * SIZE
        mean = total / weight[:, None]
        tl.store(
            result + place.to(tl.int64)[:, None] + column[None, :],
            mean.to(result.dtype.element_ty),
            mask=is_row[:, None] & (column < SIZE)[None, :],
        )


@triton.jit(do_not_specialize=["spans"])
def _merge_spans(
    sums,
    peaks,
    weights,
    result,
    spans,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SPANS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One row of one head: its spans, one after the other."""
    begin(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    rows, heads = tl.num_programs(0), tl.num_programs(1)
    column = tl.arange(0, PADDED)
    span = tl.arange(0, SPANS)
    known = tl.load(peaks + (span * heads + head) * rows + row, mask=span < spans, other=float("-inf"))
    # Spans with keys lie side by side.
    last = tl.max(tl.where(known > float("-inf"), span, 0), 0)
    first = tl.min(tl.where(known > float("-inf"), span, last), 0)
    peak = tl.full((PADDED,), float("-inf"), tl.float32)
    weight = tl.zeros((PADDED,), tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    for one in range(first, last + 1):
        place = (one * heads + head) * rows + row
        other_peak = tl.load(peaks + place + column * 0)
        other_weight = tl.load(weights + place + column * 0)
        other_total = tl.load(sums + place.to(tl.int64) * SIZE + column, mask=column < SIZE, other=0.0)
        peak, weight, fade, other_fade = _merged(peak, weight, other_peak, other_weight)
        total = tl.fma(total, fade, other_total * other_fade)
    mean = total / weight
    tl.store(result + (row * heads + head) * SIZE + column, mean.to(result.dtype.element_ty), mask=column < SIZE)
