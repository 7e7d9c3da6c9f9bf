"""Whether two ways of computing the same thing agree up to rounding. Knows no model and no kernel."""

from __future__ import annotations

import torch


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results of the same shape differ by rounding only, each row by the norm of its difference."""
    return a.shape == b.shape and rows_agree(a, b, 1e-5 if a.dtype == torch.float32 else 2e-2)


def logits_agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether logits [..., V] of one model differ by rounding only, each row by the norm of its difference.

    In 16 bits the rounding of many layers adds up: two right ways of computing a random model of 28 layers were
    apart by several percent. Wrong positions or masks give other logits altogether.
    """
    return rows_agree(a, b, 1e-3 if a.dtype == torch.float32 else 0.2)


def rows_agree(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Whether each row of `a` differs from that of `b` by at most this share of its norm; both of one shape."""
    a, b = a.float(), b.float()
    return bool(((a - b).norm(dim=-1) <= tolerance * b.norm(dim=-1)).all())
