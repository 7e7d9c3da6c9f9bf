"""Split-KV attention in Triton: one launch for any number of keys, the cost follows how many are in use.

The keys in use are cut into parts that are worked on side by side (few query rows alone would leave most of a GPU
idle), and a second kernel merges the parts' softmaxes. The query heads that share a key head are folded into the
rows of one matrix product. How many keys are in use is read on the device, so that one captured CUDA graph serves
every length. The idea is FlashDecoding's (Dao, Haziza, Massa, Sizov, 2023). Knows no model and no cache.

Shape suffixes: T tokens of the forward, L query rows, H query heads, K key heads, C stored slots, D head size,
P parts.
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

PROGRAMS = 256  # about two for each multiprocessor of a large GPU
FEW_PARTS, MOST_PARTS = 4, 64


def split_kv_attention(
    query_HTD: torch.Tensor,
    key_KCD: torch.Tensor,
    value_KCD: torch.Tensor,
    table_S4: torch.Tensor,
    longest: int,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """A token sees its segment's slots up to its own (with a `window` only the last so many of them); [T, H, D].

    `table_S4` and `longest` are those of `attention.Segments`; what other slots hold does not matter. The last
    dimension of all tensors is contiguous, keys and values have equal strides.
    """
    heads, tokens, size = query_HTD.shape
    key_heads = key_KCD.shape[0]
    group = heads // key_heads
    count = table_S4.shape[0]
    block_rows = min(64, max(16, triton.next_power_of_2(group * longest)))
    tiles = triton.cdiv(group * longest, block_rows)
    parts = min(MOST_PARTS, triton.next_power_of_2(max(1, PROGRAMS // (key_heads * tiles * count))))
    sums_PHTD, peaks_PHT, weights_PHT = partial_softmaxes(parts, query_HTD)
    result_THD = query_HTD.new_empty((tokens, heads, size))
    options = launch_options(query_HTD)
    # Only the first dimension of a grid takes as many programs as long prompts have tiles.
    _attend_to_part[(tiles * count, key_heads, parts)](
        query_HTD,
        key_KCD,
        value_KCD,
        table_S4,
        sums_PHTD,
        peaks_PHT,
        weights_PHT,
        scale,
        tokens,
        tiles,
        group,
        query_HTD.stride(0),
        query_HTD.stride(1),
        key_KCD.stride(0),
        key_KCD.stride(1),
        **tile_options(query_HTD, block_rows, window, softcap),
        **options,
    )
    _merge_parts[(tokens, heads)](
        sums_PHTD,
        peaks_PHT,
        weights_PHT,
        result_THD,
        parts,
        SIZE=size,
        PADDED=padded_size(size),
        # Two kinds of it, and not one for each number of parts, so that no prompt waits for a compiler.
        PARTS=FEW_PARTS if parts <= FEW_PARTS else MOST_PARTS,
        num_warps=2,
        **options,
    )
    return result_THD


@triton.jit(do_not_specialize=["tokens", "tiles"])
def _attend_to_part(
    query,
    key,
    value,
    table,
    sums,
    peaks,
    weights,
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
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One tile of folded rows against one part of the keys: unnormalised sums, their peak score and weight."""
    begin(EARLY)
    key_head, part = tl.program_id(1), tl.program_id(2)
    segment, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    first_row, rows, start, first_slot = segment_of(table, segment)
    if tile * ROWS >= rows * group:
        return  # a shorter segment than the longest
    used = start + rows
    is_row, head, row, own = folded_rows(first_row, rows, start, tile, key_head, group, ROWS)

    length = tl.cdiv(tl.cdiv(used, tl.num_programs(2)), KEYS) * KEYS
    low = part * length
    # No further than the last of these rows sees.
    high = tl.minimum(low + length, tl.max(tl.where(is_row, own, 0)) + 1)
    if WINDOW > 0:
        low = tl.maximum(low, (start - WINDOW + 1) // KEYS * KEYS)
        low = tl.maximum(low, 0)

    q = load_rows(query, is_row, head, row, query_head_stride, query_row_stride, SIZE, PADDED)
    keys = key + key_head.to(tl.int64) * key_head_stride + first_slot * key_slot_stride
    values = value + key_head.to(tl.int64) * key_head_stride + first_slot * key_slot_stride
    peak, weight, total = over_keys(
        *(q, keys, values, low, high, used, own, scale, key_slot_stride),
        *(WINDOW, SOFTCAP, SIZE, PADDED, ROWS, KEYS, PRECISION),
    )
    place = (part * (tl.num_programs(1) * group) + head) * tokens + row
    store_part(sums, peaks, weights, peak, weight, total, place, is_row, low < high, SIZE, PADDED)


@triton.jit(do_not_specialize=["parts"])
def _merge_parts(
    sums,
    peaks,
    weights,
    result,
    parts,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One row of one head: the softmax over all parts from those of each."""
    begin(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    rows, heads = tl.num_programs(0), tl.num_programs(1)
    part, column = tl.arange(0, PARTS), tl.arange(0, PADDED)
    place = (part * heads + head) * rows + row
    peak = tl.load(peaks + place, mask=part < parts, other=float("-inf"))
    # Parts without keys have not written their sums.
    has_keys = peak > float("-inf")
    factor = tl.exp(peak - tl.max(peak, 0))
    weight = tl.sum(factor * tl.load(weights + place, mask=has_keys, other=0.0), 0)
    total = tl.load(
        sums + place.to(tl.int64)[:, None] * SIZE + column[None, :],
        mask=has_keys[:, None] & (column < SIZE)[None, :],
        other=0.0,
    )
    mean = tl.sum(total * factor[:, None], 0) / weight
    tl.store(result + (row * heads + head) * SIZE + column, mean.to(result.dtype.element_ty), mask=column < SIZE)


def store_rows(
    key_KCD: torch.Tensor,
    value_KCD: torch.Tensor,
    new_key_KLD: torch.Tensor,
    new_value_KLD: torch.Tensor,
    slots_L: torch.Tensor,
) -> None:
    """Write new keys and values into their slots of the storage, in one launch."""
    heads, rows, size = new_key_KLD.shape
    _store_row[(rows, heads)](
        key_KCD,
        value_KCD,
        new_key_KLD,
        new_value_KLD,
        slots_L,
        key_KCD.stride(0),
        key_KCD.stride(1),
        new_key_KLD.stride(0),
        new_key_KLD.stride(1),
        new_value_KLD.stride(0),
        new_value_KLD.stride(1),
        SIZE=size,
        PADDED=triton.next_power_of_2(size),
        num_warps=1,
        **launch_options(key_KCD),
    )


@triton.jit
def _store_row(
    key,
    value,
    new_key,
    new_value,
    slots,
    head_stride,
    slot_stride,
    new_key_head_stride,
    new_key_row_stride,
    new_value_head_stride,
    new_value_row_stride,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One token's key and value of one head."""
    begin(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, PADDED)
    inside = column < SIZE
    place = head.to(tl.int64) * head_stride + tl.load(slots + row) * slot_stride + column
    k = tl.load(new_key + head * new_key_head_stride + row * new_key_row_stride + column, mask=inside)
    v = tl.load(new_value + head * new_value_head_stride + row * new_value_row_stride + column, mask=inside)
    tl.store(key + place, k, mask=inside)
    tl.store(value + place, v, mask=inside)
