"""The highest logit of each row in two launches, also over ranks with parts of the vocabulary. Knows no model.

Between the launches the ranks add what they have found: each fills its own places and leaves zeros in the others'.
Token ids travel as float32, which holds them up to 2^24.

Shape suffixes: N rows, V tokens, R ranks, S parts of a rank's tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.overlap import begin, launch_options

AT_ONCE = 4096
NONE = tl.constexpr(1 << 30)


def best_tokens(
    logits_NV: torch.Tensor,
    *,
    not_a_number: int,
    first_token: int = 0,
    rank: int = 0,
    ranks: int = 1,
    most_tokens: int | None = None,
    add: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """The id of each row's highest logit, int64 [N]: the lowest of equals, `not_a_number` for a row with a NaN.

    This rank's logits are those of the tokens from `first_token` on; no rank has more than `most_tokens` of them.
    `add` sums a float32 tensor over the ranks, in place. The last dimension of the logits is contiguous.
    """
    rows, tokens = logits_NV.shape
    # An even number, so that what is added is a multiple of 16 bytes.
    parts = max(2, 2 * triton.cdiv(most_tokens or tokens, 2 * AT_ONCE))
    found_RNS2 = torch.empty((ranks, rows, parts, 2), dtype=torch.float32, device=logits_NV.device)
    options = launch_options(logits_NV)
    _best_of_part[(rows, parts)](
        *(logits_NV, found_RNS2, tokens, first_token, logits_NV.stride(0)),
        RANK=rank,
        RANKS=ranks,
        AT_ONCE=AT_ONCE,
        num_warps=8,
        **options,
    )
    if add is not None:
        add(found_RNS2)
    result_N = torch.empty(rows, dtype=torch.int64, device=logits_NV.device)
    padded = triton.next_power_of_2(ranks * parts)
    _best_of_all[(rows,)](
        found_RNS2, result_N, parts, not_a_number, RANKS=ranks, PADDED=padded, num_warps=1, **options
    )
    return result_N


@triton.jit
def _best_of_part(
    logits,
    found,
    tokens,
    first_token,
    row_stride,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The highest logit of a stretch of one row, and its token; a NaN is higher than any number."""
    begin(EARLY)
    row, part = tl.program_id(0), tl.program_id(1)
    rows, parts = tl.num_programs(0), tl.num_programs(1)
    column = part * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = column < tokens
    value = tl.load(logits + row.to(tl.int64) * row_stride + column, mask=inside, other=float("-inf")).to(
        tl.float32
    )
    is_nan = tl.max((value != value).to(tl.int32), 0)
    peak = tl.max(tl.where(value != value, float("-inf"), value), 0)
    token = tl.min(tl.where(inside & (value == peak), column, NONE), 0)
    score = tl.where(is_nan > 0, float("nan"), tl.where(token == NONE, float("-inf"), peak))
    place = found + (row * parts + part) * 2
    for rank in tl.static_range(RANKS):
        if rank == RANK:
            tl.store(place, score)
            tl.store(place + 1, (first_token + tl.where(token == NONE, 0, token)).to(tl.float32))
        else:
            tl.store(place, 0.0)
            tl.store(place + 1, 0.0)
        place += rows * parts * 2


@triton.jit
def _best_of_all(
    found, result, parts, not_a_number, RANKS: tl.constexpr, PADDED: tl.constexpr, EARLY: tl.constexpr
):
    """One row's token, from the highest logits of all parts on all ranks, which lie in the order of the tokens."""
    begin(EARLY)
    row, rows = tl.program_id(0), tl.num_programs(0)
    place = tl.arange(0, PADDED)
    inside = place < RANKS * parts
    source = found + (((place // parts) * rows + row) * parts + place % parts) * 2
    score = tl.load(source, mask=inside, other=float("-inf"))
    token = tl.load(source + 1, mask=inside, other=0.0).to(tl.int32)
    is_nan = tl.max((score != score).to(tl.int32), 0)
    first = tl.min(tl.where(inside & (score == tl.max(score, 0)), place, PADDED), 0)
    chosen = tl.sum(tl.where(place == first, token, 0), 0)
    tl.store(result + row, tl.where(is_nan > 0, not_a_number, chosen).to(tl.int64))
