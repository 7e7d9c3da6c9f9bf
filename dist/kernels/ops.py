"""The steps of a decoder layer: product, norm, gate. Our kernels where they are faster, torch everywhere else.

Knows no model. Shape suffixes: I inputs, O outputs; ... stands for any leading dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dist.kernels.limits import kernel_errors

# With more rows cuBLAS is at least as fast.
FEW_ROWS = 32


def kernels_run(like: torch.Tensor) -> bool:
    """Whether the kernels can be compiled and started for this dtype and device."""
    try:
        x = like.new_ones((1, 64))
        _, normed = rms_norm(silu_product(product(x, like.new_ones((128, 64)), None)), x[0], 1e-6)
        if like.is_cuda:
            from dist.kernels.best_token import best_tokens

            best_tokens(normed, not_a_number=-1)
    except kernel_errors():
        return False
    return True


def product(
    x: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    added: torch.Tensor | None = None,
    *,
    exact: bool = False,
) -> torch.Tensor:
    """x [..., I] @ weight.T + bias + added [..., O]. `added` may be overwritten.

    `exact`: in 16 bits on a GPU a row's result has the same bits whatever other rows there are.
    """
    outputs, inputs = weight_OI.shape
    count = x.numel() // inputs
    if x.is_cuda and x.dtype.itemsize == 2 and weight_OI.is_contiguous() and (exact or count <= FEW_ROWS):
        from dist.kernels.few_rows import few_rows_product

        rows = _side_by_side(x.reshape(-1, inputs))
        flat = None if added is None else _side_by_side(added.reshape(-1, outputs))
        return few_rows_product(rows, weight_OI, bias_O, flat).view(*x.shape[:-1], outputs)
    if added is None:
        return F.linear(x, weight_OI, bias_O)
    if bias_O is None and added.is_contiguous():
        # In place: the product adds to what is there, without a launch of its own.
        return added.view(-1, outputs).addmm_(x.reshape(-1, inputs), weight_OI.t()).view_as(added)
    return added + F.linear(x, weight_OI, bias_O)


def rms_norm(
    x: torch.Tensor, gain_I: torch.Tensor, epsilon: float, added: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + added, and the same over its root mean square, times the gain; [..., I] each."""
    if x.is_cuda:
        from dist.kernels.few_rows import rms_norm as one_launch

        # Heads are parts of wider rows (of the joined product): no copy of them is made.
        rows = _side_by_side(x.flatten(0, -3) if x.dim() > 3 else x.reshape(-1, 1, x.shape[-1]))
        more = None if added is None else added.reshape(rows.shape).contiguous()
        total, normed = one_launch(rows, more, gain_I, epsilon)
        return total.view(x.shape) if added is not None else x, normed.view(x.shape)
    total = x if added is None else x + added
    return total, F.rms_norm(total, gain_I.shape, gain_I, epsilon)


def silu_product(both: torch.Tensor) -> torch.Tensor:
    """SiLU of the first half of the last dimension, times the second half."""
    if both.is_cuda:
        from dist.kernels.few_rows import silu_product as one_launch

        # The width by name: a pass may have no rows.
        return one_launch(both.reshape(-1, both.shape[-1])).view(*both.shape[:-1], both.shape[-1] // 2)
    gate, other = both.chunk(2, dim=-1)
    return F.silu(gate) * other


def _side_by_side(rows: torch.Tensor) -> torch.Tensor:
    """The same with the numbers of each row next to each other, as kernels read them."""
    return rows if rows.stride(-1) == 1 else rows.contiguous()
