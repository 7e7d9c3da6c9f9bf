"""Rotary position embedding in one launch, where a model's own function rotates halves. Knows no decoding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dist.kernels.closeness import alike

ROTARY = "apply_rotary_pos_emb"


class FusedRotary:
    """The function by which a model's file rotates queries and keys, and one kernel that does the same.

    `usual` says whether it does: transformers' usual rotation of halves, on a GPU.
    """

    def __init__(self, module: Any) -> None:
        self._file = sys.modules[type(module).__module__]
        self._original: Any = getattr(self._file, ROTARY, None)
        parameter = next(module.parameters())
        self.usual = parameter.is_cuda and self._original is not None and _rotates_halves(self._original, parameter)

    @contextmanager
    def used(self) -> Iterator[None]:
        """While it lasts, the model's file uses the kernel, if that does the same."""
        if not self.usual:
            yield
            return
        setattr(self._file, ROTARY, self._rotate)
        try:
            yield
        finally:
            setattr(self._file, ROTARY, self._original)

    def _rotate(
        self, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *more: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, heads, L, size] each, cos and sin [1, L, size]; another layout, or a part of each head, as before."""
        if more or named or cos.shape[-1] != q.shape[-1]:
            rotated: tuple[torch.Tensor, torch.Tensor] = self._original(q, k, cos, sin, *more, **named)
            return rotated
        return _rotate(q, k, cos, sin)


def _rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    from dist.kernels.rotary_triton import rotate_halves

    query, key = rotate_halves(q[0], k[0], cos[0], sin[0])
    return query.unsqueeze(0), key.unsqueeze(0)


def _rotates_halves(original: Any, parameter: torch.Tensor) -> bool:
    q, k, angle = (
        torch.linspace(-1, end, heads * 48, dtype=parameter.dtype, device=parameter.device).view(1, heads, 3, 16)
        for heads, end in ((4, 2.0), (2, 3.0), (1, 1.0))
    )
    cos, sin = angle[0].cos(), angle[0].sin()
    try:
        theirs = original(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return all(alike(a, b) for a, b in zip(_rotate(q, k, cos, sin), theirs))
