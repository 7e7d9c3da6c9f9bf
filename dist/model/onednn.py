"""Linear layers of a float32 model on a CPU in the form that oneDNN's matrix products want. Knows no checkpoint.

MKL picks its kernels by the vendor of the CPU. For 8 tokens with two threads, the layers of a model of 135 M
parameters took 72 ms with MKL and 50 ms with oneDNN on an AMD EPYC with AVX2; on an Intel Xeon with AVX-512 MKL was
the faster (40 ms, oneDNN 49 ms), so nothing is packed there.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dist.model.fill import Placement

CPUINFO = Path("/proc/cpuinfo")
# Rows of a product that the form is chosen for; other counts work with it too.
ROWS = 8
# How much is freed before it is given back: often costs time, seldom memory.
TRIM_ELEMENTS = 8 << 20


class PackedLinear(torch.nn.Module):
    """nn.Linear whose weight [out, in] is held packed, and only so."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, bit-equal to what was packed; made again each time."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(x, self._packed, self.bias)


class SharedLinear(torch.nn.Module):
    """nn.Linear whose weight another module uses too (a tied embedding), so that it stays as it is.

    oneDNN takes it plain as well: for 8 tokens a head of 49,152 x 576 took 14 ms so, and 22 ms with MKL. Packed it
    took 8 ms, which was not worth a second copy of 108 MiB.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(x, self.weight, self.bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def packing_pays(device: torch.device, placement: Placement | None, cpuinfo: Path = CPUINFO) -> bool:
    """Are weights on this device kept for all forwards, and is oneDNN there and the CPU one that MKL is slow on?"""
    backends: Any = torch.backends
    return (
        device.type == "cpu"
        and placement in ("whole", "exchanged")
        and backends.mkl.is_available()
        and backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
        and "AuthenticAMD" in _vendor(cpuinfo)
    )


def _vendor(cpuinfo: Path) -> str:
    if not cpuinfo.is_file():
        return ""
    return next((line for line in cpuinfo.read_text().splitlines() if line.startswith("vendor_id")), "")


def pack(module: Any) -> None:
    """Pack the weights of a model, one at a time, so that no two copies of the model are ever there.

    What is let go of goes back to the system in steps of 32 MiB, which with one layer is what it takes at most.
    Layers that are no plain float32 nn.Linear on a CPU stay as they are, and all at or below a module with hooks,
    which may put weights there for a forward only.
    """
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))

    def packed(linear: Any) -> torch.nn.Module | None:
        if not _is_packable(linear):
            return None
        return PackedLinear(linear) if uses[id(linear.weight)] == 1 else SharedLinear(linear)

    _replace(module, packed)


def unpack(module: Any) -> None:
    """Give a packed model its plain nn.Linear layers back, one at a time, bit-equal."""
    _replace(module, lambda layer: _plain(layer) if isinstance(layer, (PackedLinear, SharedLinear)) else None)


def _plain(layer: PackedLinear | SharedLinear) -> torch.nn.Linear:
    linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    weight = layer.weight
    linear.weight = (
        weight if isinstance(weight, torch.nn.Parameter) else torch.nn.Parameter(weight, requires_grad=False)
    )
    linear.bias = layer.bias
    return linear.eval()


def _is_packable(layer: Any) -> bool:
    if type(layer) is not torch.nn.Linear:
        return False
    weight = layer._parameters["weight"]
    return type(weight) is torch.nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _replace(module: Any, replacement: Callable[[Any], torch.nn.Module | None]) -> None:
    freed = 0
    for owner, name in list(_places(module)):
        new = replacement(getattr(owner, name))
        if new is None:
            continue
        setattr(owner, name, new)
        freed += getattr(new, "in_features", 0) * getattr(new, "out_features", 0)
        if freed >= TRIM_ELEMENTS:
            _trim()
            freed = 0
    _trim()


def _trim() -> None:
    """Have the C library give back what is free between blocks in use, as glibc does not do by itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _places(module: Any) -> Iterator[tuple[Any, str]]:
    """(owner, name) of every layer without layers below it, but for what is at or below a module with hooks."""
    if module._forward_pre_hooks or module._forward_hooks:
        return
    for name, child in module.named_children():
        if any(child.children()):
            yield from _places(child)
        elif not (child._forward_pre_hooks or child._forward_hooks):
            yield module, name
