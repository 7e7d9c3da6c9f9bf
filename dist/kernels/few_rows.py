"""Products of few rows with weights read once, and the small steps between products, in Triton. Knows no model.

With few rows a product takes as long as its weights take to arrive. A program streams a few rows of the weights
through shared memory, several steps ahead of the sums. Norms and gates are one launch each: taking them into the
products as well was slower (measured on an H100), since every program would repeat them.

Shape suffixes: L rows (tokens), I inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.limits import stages_that_fit
from dist.kernels.ops import FEW_ROWS
from dist.kernels.overlap import ask_for, begin, launch_options


@dataclass(frozen=True, slots=True)
class Tile:
    """What a program holds at once of the weights, and how many steps ahead it loads; for up to 16 rows."""

    outputs: int
    inputs: int
    stages: int
    warps: int = 4


# From so many inputs on it is better to have more programs.
LONG_INPUT = 8192
USUAL, LONG = Tile(64, 128, 6), Tile(32, 256, 6)
# Rows that a program takes at most; with more, their values leave no room to load weights ahead.
MOST_ROWS = 128
# Bytes of each output's weights that are asked for while the kernel before still runs.
ASKED_BYTES = 512


def tile_for(outputs: int, inputs: int) -> Tile:
    """The fastest of those tried, by the product's shape alone, so that any number of rows is summed alike."""
    return LONG if inputs >= LONG_INPUT else USUAL


def many_rows_tile(rows: int, outputs: int) -> tuple[Tile, int]:
    """For more rows than a few: the fastest of those tried on an H200, and how many rows a program takes."""
    if rows <= 64 or (rows <= 256 and outputs < 16384):
        return Tile(64, 128, 8), 64
    return Tile(128, 64, 8, 8), 128


def few_rows_product(
    x_LI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    added_LO: torch.Tensor | None,
    tile: Tile | None = None,
    most_rows: int = MOST_ROWS,
) -> torch.Tensor:
    """x @ weight.T + bias + added, [L, O], of 16-bit numbers, fast for a few rows; sums are float32.

    Every output is summed over the inputs in one and the same order: its bits do not depend on the other rows, on
    how many there are, or on the tile (checked on a GPU by tests/bench/gpu_check.py). The last dimension of x and
    added is contiguous, the weight is contiguous.
    """
    rows, inputs = x_LI.shape
    outputs = weight_OI.shape[0]
    if tile is None and rows > FEW_ROWS:
        tile, most_rows = many_rows_tile(rows, outputs)
    tile = tile or tile_for(outputs, inputs)
    result_LO = torch.empty((rows, outputs), dtype=x_LI.dtype, device=x_LI.device)
    padded = min(most_rows, max(16, triton.next_power_of_2(rows)))
    most = tile.stages if padded <= 32 else max(2, tile.stages // 2)
    options = launch_options(x_LI)
    row_bytes = inputs * x_LI.itemsize
    asked = min(ASKED_BYTES, row_bytes) if options["EARLY"] and row_bytes % 16 == 0 else 0
    _few_rows_product[(triton.cdiv(outputs, tile.outputs), triton.cdiv(rows, padded))](
        x_LI,
        weight_OI,
        bias_O,
        added_LO,
        result_LO,
        rows,
        outputs,
        inputs,
        x_LI.stride(0),
        0 if added_LO is None else added_LO.stride(0),
        ROWS=padded,
        OUTPUTS=tile.outputs,
        INPUTS=tile.inputs,
        EVEN=inputs % tile.inputs == 0,
        BIASED=bias_O is not None,
        ADDED=added_LO is not None,
        STAGES=stages_that_fit(x_LI.device, most, (tile.outputs + padded) * tile.inputs * x_LI.itemsize),
        ASKED=asked,
        num_warps=tile.warps,
        **options,
    )
    return result_LO


@triton.jit(do_not_specialize=["rows"])
def _few_rows_product(
    x,
    weight,
    bias,
    added,
    result,
    rows,
    outputs,
    inputs,
    x_stride,
    added_stride,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
    STAGES: tl.constexpr,
    ASKED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A few outputs of all rows."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, column = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, INPUTS)
    is_row, is_output = row < rows, output < outputs
    # Behind the last output the first ones are computed once more, and not stored: loads need no mask.
    weights = weight + (output % outputs).to(tl.int64)[:, None] * inputs + column[None, :]
    if ASKED > 0:
        ask_for(weight + (output % outputs).to(tl.int64) * inputs, ASKED)
    begin(EARLY)
    values = x + row.to(tl.int64)[:, None] * x_stride + column[None, :]
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for first in tl.range(0, inputs, INPUTS, num_stages=STAGES):
        if EVEN:
            w = tl.load(weights + first, eviction_policy="evict_first")
            v = tl.load(values + first, mask=is_row[:, None], other=0.0)
        else:
            inside = (first + column < inputs)[None, :]
            w = tl.load(weights + first, mask=inside, other=0.0, eviction_policy="evict_first")
            v = tl.load(values + first, mask=is_row[:, None] & inside, other=0.0)
        total = tl.dot(w, tl.trans(v), total)
    stored = is_output[:, None] & is_row[None, :]
    kind = result.dtype.element_ty
    if BIASED:
        total += tl.load(bias + output, mask=is_output, other=0.0)[:, None].to(tl.float32)
    if ADDED:
        more = tl.load(added + row.to(tl.int64)[None, :] * added_stride + output[:, None], mask=stored, other=0.0)
        # Rounded where two steps would round.
        total = total.to(kind).to(tl.float32) + more.to(tl.float32)
    tl.store(result + row.to(tl.int64)[None, :] * outputs + output[:, None], total.to(kind), mask=stored)


def rms_norm(
    x_LHI: torch.Tensor, added_LHI: torch.Tensor | None, gain_I: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, and its rows over their root mean square, times the gain; computed in float32.

    What is added is contiguous; x may have any strides but the last dimension's. The results are contiguous.
    """
    rows, heads, inputs = x_LHI.shape
    total_LHI = x_LHI if added_LHI is None else torch.empty_like(added_LHI)
    normed_LHI = torch.empty(x_LHI.shape, dtype=x_LHI.dtype, device=x_LHI.device)
    padded = triton.next_power_of_2(inputs)
    _rms_norm[(rows, heads)](
        x_LHI,
        added_LHI,
        gain_I,
        total_LHI,
        normed_LHI,
        inputs,
        x_LHI.stride(0),
        x_LHI.stride(1),
        epsilon,
        PADDED=padded,
        ADDED=added_LHI is not None,
        num_warps=min(16, max(1, padded // 512)),
        **launch_options(x_LHI),
    )
    return total_LHI, normed_LHI


@triton.jit
def _rms_norm(
    x,
    added,
    gain,
    total,
    normed,
    inputs,
    row_stride,
    head_stride,
    epsilon,
    PADDED: tl.constexpr,
    ADDED: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One row of one head."""
    begin(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, PADDED)
    inside = column < inputs
    place = (row * tl.num_programs(1) + head) * inputs + column
    kind = normed.dtype.element_ty
    value = tl.load(x + row * row_stride + head * head_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        rounded = (value + tl.load(added + place, mask=inside, other=0.0).to(tl.float32)).to(kind)
        tl.store(total + place, rounded, mask=inside)
        value = rounded.to(tl.float32)
    factor = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    # Rounded before the gain, as the models do.
    scaled = (value * tl.rsqrt(tl.sum(value * value, 0) / inputs + epsilon)).to(kind).to(tl.float32)
    tl.store(normed + place, (scaled * factor).to(kind), mask=inside)


SILU_AT_ONCE = 2048


def silu_product(both_LI: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of each row, times the second half: [L, I / 2]. Contiguous."""
    rows, width = both_LI.shape[0], both_LI.shape[1] // 2
    result_LO = torch.empty((rows, width), dtype=both_LI.dtype, device=both_LI.device)
    # Only the first dimension of a grid takes as many programs as a long prompt has tokens.
    grid = (rows, triton.cdiv(width, SILU_AT_ONCE))
    options = launch_options(both_LI)
    _silu_product[grid](both_LI, result_LO, width, AT_ONCE=SILU_AT_ONCE, num_warps=8, **options)
    return result_LO


@triton.jit
def _silu_product(both, result, width, AT_ONCE: tl.constexpr, EARLY: tl.constexpr):
    """A stretch of one row."""
    begin(EARLY)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = column < width
    source = both + row * 2 * width + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    kind = result.dtype.element_ty
    silu = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(result + row * width + column, (silu * other).to(kind), mask=inside)
