"""Layers whose weights are sharded over the ranks and all-gathered on demand. Knows no checkpoint.

For models that do not fit into one rank's memory: between forwards a rank holds its rows of every decoder layer,
and embeddings, head and norms whole. torch's FSDP2 does the same, but not on CPUs before torch 2.6, and for
inference a pair of hooks is all it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dist.checkpoint.boxes import even_bounds
from dist.protocol import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """This rank's rows of one parameter, and where the whole of it belongs."""

    owner: Any
    name: str
    shape: torch.Size
    rows: torch.Tensor


def layer_parameters(module: Any) -> dict[str, Any]:
    """{parameter's full name: the decoder layer it is in}, for the parameters that are worth sharing."""
    kinds = set(getattr(module, "_no_split_modules", None) or ())
    layers = {name: layer for name, layer in module.named_modules() if type(layer).__name__ in kinds}
    return {
        f"{layer_name}.{name}": layer
        for layer_name, layer in layers.items()
        for name, parameter in layer.named_parameters()
        if parameter.ndim
    }


def gather_when_used(layer: Any, shares: list[Share], group: Group) -> None:
    """Make `layer` put its whole parameters together before each forward and let go of them after it."""

    def gather(*_: Any) -> None:
        for share in shares:
            bounds = even_bounds(share.shape[0], group.size)
            whole = torch.empty(share.shape, dtype=share.rows.dtype, device=share.rows.device)
            whole[bounds[group.rank] : bounds[group.rank + 1]] = share.rows
            group.spread_rows(whole, bounds)
            share.owner._parameters[share.name] = torch.nn.Parameter(whole, requires_grad=False)

    def release(*_: Any) -> None:
        for share in shares:
            share.owner._parameters[share.name] = torch.nn.Parameter(share.rows, requires_grad=False)

    release()
    layer.register_forward_pre_hook(gather)
    layer.register_forward_hook(release, always_call=True)
