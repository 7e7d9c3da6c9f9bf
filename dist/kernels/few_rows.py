"""Products of few rows with weights read once, and the small steps between products, in Triton. Knows no model.

With few rows a product takes as long as its weights take to arrive. A program streams a few rows of the weights
through shared memory, several steps ahead of the sums. Norms and gates are one launch each: taking them into the
products as well was slower (measured on an H100), since every program would repeat them.

Shape suffixes: L rows (tokens), I inputs, O outputs.
"""

from __future__ import annotations

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

from dist.kernels.limits import stages_that_fit

# (outputs, inputs) that a program holds at once. From so many inputs on it is better to have more programs.
AT_ONCE, LONG_AT_ONCE, LONG_INPUT = (64, 128), (32, 256), 8192
STAGES = 6


def few_rows_product(
    x_LI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, added_LO: torch.Tensor | None
) -> torch.Tensor:
    """x @ weight.T + bias + added, [L, O], for a few rows of 16-bit numbers; sums are float32.

    The last dimension of x and added is contiguous, the weight is contiguous.
    """
    rows, inputs = x_LI.shape
    outputs = weight_OI.shape[0]
    outputs_at_once, inputs_at_once = LONG_AT_ONCE if inputs >= LONG_INPUT else AT_ONCE
    result_LO = torch.empty((rows, outputs), dtype=x_LI.dtype, device=x_LI.device)
    padded = max(16, triton.next_power_of_2(rows))
    most = STAGES if padded == 16 else STAGES // 2
    _few_rows_product[(triton.cdiv(outputs, outputs_at_once),)](
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
        OUTPUTS=outputs_at_once,
        INPUTS=inputs_at_once,
        EVEN=inputs % inputs_at_once == 0,
        BIASED=bias_O is not None,
        ADDED=added_LO is not None,
        STAGES=stages_that_fit(x_LI.device, most, (outputs_at_once + padded) * inputs_at_once * x_LI.itemsize),
        num_warps=4,
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
):
    """A few outputs of all rows."""
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, column = tl.arange(0, ROWS), tl.arange(0, INPUTS)
    is_row, is_output = row < rows, output < outputs
    # Behind the last output the first ones are computed once more, and not stored: loads need no mask.
    weights = weight + (output % outputs).to(tl.int64)[:, None] * inputs + column[None, :]
    values = x + row[:, None] * x_stride + column[None, :]
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
        more = tl.load(added + row[None, :] * added_stride + output[:, None], mask=stored, other=0.0)
        # Rounded where two steps would round.
        total = total.to(kind).to(tl.float32) + more.to(tl.float32)
    tl.store(result + row[None, :] * outputs + output[:, None], total.to(kind), mask=stored)


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
):
    """One row of one head."""
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
    _silu_product[grid](both_LI, result_LO, width, AT_ONCE=SILU_AT_ONCE, num_warps=8)
    return result_LO


@triton.jit
def _silu_product(both, result, width, AT_ONCE: tl.constexpr):
    """A stretch of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = column < width
    source = both + row * 2 * width + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    kind = result.dtype.element_ty
    silu = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(result + row * width + column, (silu * other).to(kind), mask=inside)
