"""Fewer and faster kernels for a model on a GPU, with the weights where they are. Knows no decoding.

With few rows a forward is as fast as its weights are read, and every small kernel between the products costs. So
products of one input (queries, keys and values; gate and up) become one over joined weights; RMS norms, gates and
the sums between a layer's halves take one launch each or none (dist/kernels/ops.py). What a model computes is not
taken for granted: each norm, MLP and layer is replaced only if the replacement gives the same, for numbers of
several sizes, since a few large weights can hide a difference at any one. While products are joined, one layer's
weights are held twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dist.kernels.closeness import alike
from dist.kernels.ops import kernels_run, product
from dist.model.fused_modules import EXACT, FusedNorm, GatedMLP, JointLinear, JointProduct, QuickLinear, UsualLayer
from dist.model.tensor_parallel import SummedLinear
from dist.protocol import Group

ATTENTION, MLP = "self_attn", "mlp"
FIRST_NORM, SECOND_NORM = "input_layernorm", "post_attention_layernorm"
GATE, UP, DOWN = "gate_proj", "up_proj", "down_proj"
JOINED = (("q_proj", "k_proj", "v_proj"), (GATE, UP))
PROBE_TOKENS = ((0, 1), (2, 3))
PROBE_SCALES = (1.0, 1 / 4, 1 / 16, 1 / 64)
# What GPUs that write into each other's memory sum at once, up to eight of them (dist/group/peer_sums.py).
EXACT_SUM_BYTES = 256 << 10
# So small that what a layer adds to it is far larger.
FAINT = 1e-3


@torch.no_grad()
def fuse(module: Any, group: Group, *, exact: bool = False) -> bool:
    """All ranks: replace what can be replaced, in place. Names and values of all parameters stay.

    Returns whether our kernels run on all ranks. If they do not, the model stays as it is, since its parts may wait
    for each other. With `exact` a model of 16 bits on GPUs, of which all that could add in another order has been
    replaced, gives a token the same bits whatever else a forward pass holds; `is_exact` then says so.
    """
    if not group.smallest(kernels_run(next(module.parameters()))):
        return False
    _join_products(module, exact)
    _use_sums(module, exact)
    # Each checks what it replaces, and builds on those before it.
    for rewrite in (_fused_norm, functools.partial(_quick_linear, exact=exact), _gated_mlp):
        _replace(module, rewrite)
    _replace_layers(module)
    # Single weights leave gaps that joined ones do not fit into, and a capture cannot reclaim them.
    torch.cuda.empty_cache()
    parameter = next(module.parameters())
    if exact and parameter.is_cuda and parameter.dtype.itemsize == 2 and not _left_over(module):
        setattr(module, EXACT, True)
    return True


def _replace(module: nn.Module, rewrite: Callable[[Any], nn.Module | None]) -> None:
    """Replace every part by what `rewrite` returns for it, if anything."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            replacement = rewrite(child)
            if replacement is not None:
                setattr(parent, name, replacement)


def _left_over(module: Any) -> list[str]:
    """The names of modules that may sum in an order of their own."""
    return [
        name
        for name, child in module.named_modules()
        if type(child) is nn.Linear
        # What shared memory does not take would be summed by NCCL.
        or (isinstance(child, SummedLinear) and child.out_features % 8)
        or (type(child).__name__.endswith("Norm") and not isinstance(child, FusedNorm))
        or (type(child).__name__.endswith("DecoderLayer") and not isinstance(child, UsualLayer))
    ]


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


def _join_products(module: Any, exact: bool) -> None:
    """Linears of one input over joined weights."""
    for parent in list(module.modules()):
        children = dict(parent.named_children())
        for names in JOINED:
            linears: list[Any] = [children[name] for name in names if name in children]
            if len(linears) == len(names) and _can_join(linears):
                joint = JointProduct(linears, exact=exact)
                for index, name in enumerate(names):
                    setattr(parent, name, JointLinear(linears[index], joint, index))


def _use_sums(module: nn.Module, exact: bool) -> None:
    """Our products where ranks sum them; what is exact is summed at once up to more bytes."""
    for part in module.modules():
        if isinstance(part, SummedLinear):
            part.product = functools.partial(product, exact=True) if exact else product
            part.sum_bytes = EXACT_SUM_BYTES if exact else None


def _quick_linear(linear: Any, *, exact: bool) -> QuickLinear | None:
    return QuickLinear(linear, exact=exact) if _can_join([linear]) else None


def _fused_norm(norm: nn.Module) -> FusedNorm | None:
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or weight is None or weight.dim() != 1 or epsilon is None:
        return None
    if norm.state_dict().keys() != {"weight"}:
        return None
    fused = FusedNorm(weight, float(epsilon))
    x = _scaled_rows(weight)
    # Each number by itself: beside one large gain, w and 1 + w would be alike.
    return fused if alike(fused(x).unsqueeze(-1), norm(x).unsqueeze(-1)) else None


def _gated_mlp(mlp: Any) -> GatedMLP | None:
    children = dict(mlp.named_children())
    if not {GATE, UP, DOWN} <= children.keys() or not isinstance(children[GATE], JointLinear):
        return None
    if not isinstance(children[DOWN], (QuickLinear, SummedLinear)):
        return None
    x = _scaled_rows(children[GATE].weight)
    fused = GatedMLP(mlp)
    if fused.state_dict().keys() != mlp.state_dict().keys():
        return None
    return fused if alike(fused(x), mlp(x)) else None


def _replace_layers(module: Any) -> None:
    """Each layer of the usual parts, if it then gives the same for what a forward gives it."""
    candidates: dict[nn.Module, tuple[nn.Module, str]] = {}
    for parent in module.modules():
        for name, child in parent.named_children():
            parts = dict(child.named_children())
            if (
                parts.keys() == {ATTENTION, MLP, FIRST_NORM, SECOND_NORM}
                and not list(child.parameters(recurse=False))
                and isinstance(parts[MLP], GatedMLP)
                and isinstance(parts[SECOND_NORM], FusedNorm)
            ):
                candidates[child] = (parent, name)

    seen: dict[nn.Module, tuple[Any, Any]] = {}

    def note(layer: nn.Module, args: Any, kwargs: Any) -> None:
        seen[layer] = args, kwargs

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in candidates]
    ids = torch.tensor(PROBE_TOKENS, device=next(module.parameters()).device)
    if candidates:
        module(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    for layer, (args, kwargs) in seen.items():
        replacement = UsualLayer(layer)
        if len(args) == 1 and _same_layers(replacement, layer, args[0], kwargs):
            parent, name = candidates[layer]
            setattr(parent, name, replacement)


def _same_layers(ours: nn.Module, theirs: nn.Module, x: torch.Tensor, kwargs: Any) -> bool:
    """Whether they give the same both for x and for faint numbers, in which the sums with x do not show."""
    faint = FAINT * _numbers(x.shape[:-1].numel(), x).view_as(x)
    pairs = [(ours(one, **kwargs), theirs(one, **kwargs)) for one in (x, faint)]
    return all(isinstance(right, torch.Tensor) and alike(mine, right) for mine, right in pairs)


def _scaled_rows(weight: torch.Tensor) -> torch.Tensor:
    """Rows of numbers, smaller from row to row, for what takes as many inputs as `weight` has columns."""
    return _numbers(len(PROBE_SCALES), weight) * weight.new_tensor(PROBE_SCALES).unsqueeze(-1)


def _numbers(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Rows as long as those of `like`: numbers of either sign, none near 0, whose norm would be all rounding."""
    x = torch.linspace(0.5, 4, rows * like.shape[-1], dtype=like.dtype, device=like.device)
    x[::2] *= -1
    return x.view(rows, -1)
