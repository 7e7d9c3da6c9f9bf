"""Rotary position embedding in one launch, in Triton. Knows no model.

Shape suffixes: L rows (tokens), H query heads, K key heads, D head size.
"""

from __future__ import annotations

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.overlap import begin, launch_options


def rotate_halves(
    query_HLD: torch.Tensor, key_KLD: torch.Tensor, cos_LD: torch.Tensor, sin_LD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary position embedding of both, in one launch: x * cos + (-second half, first half) * sin."""
    heads, rows, size = query_HLD.shape
    key_heads = key_KLD.shape[0]
    # Laid out by rows, as the next steps read them.
    query_out = torch.empty((rows, heads, size), dtype=query_HLD.dtype, device=query_HLD.device)
    key_out = torch.empty((rows, key_heads, size), dtype=key_KLD.dtype, device=key_KLD.device)
    _rotate[(rows, heads + key_heads)](
        query_HLD,
        key_KLD,
        cos_LD,
        sin_LD,
        query_out,
        key_out,
        heads,
        key_heads,
        query_HLD.stride(0),
        query_HLD.stride(1),
        key_KLD.stride(0),
        key_KLD.stride(1),
        cos_LD.stride(0),
        HALF=size // 2,
        PADDED=triton.next_power_of_2(size // 2),
        num_warps=1,
        **launch_options(query_HLD),
    )
    return query_out.transpose(0, 1), key_out.transpose(0, 1)


@triton.jit
def _rotate(
    query,
    key,
    cos,
    sin,
    query_out,
    key_out,
    heads,
    key_heads,
    query_head_stride,
    query_row_stride,
    key_head_stride,
    key_row_stride,
    cos_row_stride,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One row of one head, of the queries first, then of the keys."""
    begin(EARLY)
    row, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, PADDED)
    inside = column < HALF
    if head < heads:
        source = query + head * query_head_stride + row * query_row_stride
        target = query_out + (row * heads + head) * 2 * HALF
    else:
        source = key + (head - heads) * key_head_stride + row * key_row_stride
        target = key_out + (row * key_heads + head - heads) * 2 * HALF
    angle = row * cos_row_stride + column
    x1 = tl.load(source + column, mask=inside).to(tl.float32)
    x2 = tl.load(source + HALF + column, mask=inside).to(tl.float32)
    c1, s1 = tl.load(cos + angle, mask=inside).to(tl.float32), tl.load(sin + angle, mask=inside).to(tl.float32)
    c2 = tl.load(cos + HALF + angle, mask=inside).to(tl.float32)
    s2 = tl.load(sin + HALF + angle, mask=inside).to(tl.float32)
    # Rounded where transformers' own function rounds.
    kind = target.dtype.element_ty
    y1 = (x1 * c1).to(kind).to(tl.float32) + (-x2 * s1).to(kind).to(tl.float32)
    y2 = (x2 * c2).to(kind).to(tl.float32) + (x1 * s2).to(kind).to(tl.float32)
    tl.store(target + column, y1.to(kind), mask=inside)
    tl.store(target + HALF + column, y2.to(kind), mask=inside)
