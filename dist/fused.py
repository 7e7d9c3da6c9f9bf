"""Fewer and larger kernels for a model on a GPU, with the weights where they are. Knows no decoding.

With few rows a forward is as fast as its weights are read, and every small kernel between the products costs. So
products of one input (queries, keys and values; gate and up) become one over joined weights; norms that are plain
RMS norms are computed by torch's own kernel, and rotary embeddings by one of ours, each after a comparison with
what it replaces. While products are joined, one layer's weights are held twice.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
ROTARY = "apply_rotary_pos_emb"


class JointProduct:
    """Linears that read the same input: computed together at the first call, handed out part by part."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self._sizes = [linear.weight.shape[0] for linear in linears]
        self._weight = torch.cat([linear.weight for linear in linears])
        self._bias = torch.cat([linear.bias for linear in linears]) if linears[0].bias is not None else None
        # The parameters become views, so that other weights read into them arrive here.
        for linear, weight in zip(linears, torch.split(self._weight, self._sizes)):
            linear.weight = nn.Parameter(weight, requires_grad=False)
        if self._bias is not None:
            for linear, bias in zip(linears, torch.split(self._bias, self._sizes)):
                linear.bias = nn.Parameter(bias, requires_grad=False)
        self._input: torch.Tensor | None = None
        self._parts: dict[int, torch.Tensor] = {}

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What linear `index` gives for `x`."""
        if self._input is not x or index not in self._parts:
            self._input = x
            product = F.linear(x, self._weight, self._bias)
            self._parts = dict(enumerate(torch.split(product, self._sizes, dim=-1)))
        result = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return result


class JointLinear(nn.Module):
    """One of the linears of a JointProduct, under its own name and with its own parameters."""

    def __init__(self, linear: nn.Linear, product: JointProduct, index: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._product = product
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product.part(self._index, x)


class FusedNorm(nn.Module):
    """An RMS norm by torch's own kernel."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@torch.no_grad()
def fuse(module: Any) -> None:
    """Join products and replace norms in place. Names and values of all parameters stay."""
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for names in JOINED:
            linears = [children[name] for name in names if name in children]
            if len(linears) == len(names) and _can_join(linears):
                product = JointProduct(linears)
                for index, name in enumerate(names):
                    setattr(parent, name, JointLinear(linears[index], product, index))
        for name, child in children.items():
            norm = _fused_norm(child)
            if norm is not None:
                setattr(parent, name, norm)


def _can_join(linears: Sequence[nn.Module]) -> bool:
    """Plain linears, held whole and without hooks, of one input size."""
    return all(
        type(linear) is nn.Linear
        and linear.weight.shape == (linear.out_features, linear.in_features)
        and linear.in_features == linears[0].in_features
        and (linear.bias is None) == (linears[0].bias is None)
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        for linear in linears
    )


def _fused_norm(norm: nn.Module) -> FusedNorm | None:
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or weight is None or weight.dim() != 1 or epsilon is None:
        return None
    fused = FusedNorm(weight, float(epsilon))
    x = torch.linspace(-3, 5, 2 * weight.numel(), dtype=weight.dtype, device=weight.device).view(2, -1)
    return fused if _alike(fused(x), norm(x)) else None


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
    from dist.attention_kernels import rotate_halves

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
    return all(_alike(a, b) for a, b in zip(_rotate(q, k, cos, sin), theirs))


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    tolerance = 1e-5 if a.dtype == torch.float32 else 2e-2
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())
