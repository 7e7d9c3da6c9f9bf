"""Modules of ours that compute what a model's own compute, in fewer launches, over the same parameters.

`dist/model/fuse.py` finds where they fit and puts them there. Knows no decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dist.kernels.ops import product, rms_norm, silu_product

EXACT = "dllm_exact"


def is_exact(module: nn.Module) -> bool:
    """Whether the model gives a token the same bits whatever else a forward pass holds (`fuse.fuse`)."""
    return bool(getattr(module, EXACT, False))


class QuickLinear(nn.Module):
    """A linear by the faster of the kernels there are; its parameters are those of the linear given."""

    def __init__(self, linear: nn.Linear, *, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """The product, plus `added`, which may be overwritten."""
        return product(x, self.weight, self.bias, added, exact=self.exact)


class JointProduct:
    """Linears that read the same input: computed together at the first call, handed out part by part."""

    def __init__(self, linears: Sequence[nn.Linear], *, exact: bool) -> None:
        self._exact = exact
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

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """What all linears give for `x`, concatenated."""
        return product(x, self._weight, self._bias, exact=self._exact)

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What linear `index` gives for `x`."""
        if self._input is not x or index not in self._parts:
            self._input = x
            self._parts = dict(enumerate(torch.split(self.whole(x), self._sizes, dim=-1)))
        result = self._parts.pop(index)
        if not self._parts:
            self._input = None
        return result


class JointLinear(nn.Module):
    """One of the linears of a JointProduct, under its own name and with its own parameters."""

    def __init__(self, linear: nn.Linear, joint: JointProduct, index: int) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.joint = joint
        self._index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.joint.part(self._index, x)


class FusedNorm(nn.Module):
    """An RMS norm in one launch."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.of_sum(x, None)[1]

    def of_sum(self, x: torch.Tensor, added: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x + added, and the norm of that."""
        return rms_norm(x, self.weight, self.epsilon, added)


class GatedMLP(nn.Module):
    """down(SiLU(gate(x)) * up(x)), gate and up joined; holds the linears of the MLP given."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """The MLP's result, plus `added`, which may be overwritten."""
        result: torch.Tensor = self.down_proj(silu_product(self.gate_proj.joint.whole(x)), added)
        return result


class UsualLayer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): the layer given, its sums made in other kernels.

    All arguments but x go to the attention, by name.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Models ask their layers for attributes of many names.
        self.__dict__.update(layer.__dict__)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        layer: Any = self
        attended = layer.self_attn(layer.input_layernorm(hidden_states), **kwargs)[0]
        hidden_states, normed = layer.post_attention_layernorm.of_sum(hidden_states, attended)
        result: torch.Tensor = layer.mlp(normed, hidden_states)
        return result
