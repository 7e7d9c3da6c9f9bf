"""Starting kernels while the one before still runs, where GPU and Triton can (programmatic dependent launch).

Between two kernels a GPU idles for about a microsecond, which hundreds of small kernels a forward pass make a large
part of. A kernel started early waits in `begin` until all that came before is finished and visible. Every kernel
must call it first, before it reads what another one writes and before it writes anything, since only then does its
own end say that what came before it has ended, too. Weights may be asked for before.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton  # comes with torch where there are GPUs
import triton.language as tl

HOPPER = 9


def launch_options(like: torch.Tensor) -> dict[str, Any]:
    """Arguments of a launch: whether the kernel is started early, for itself (`EARLY`) and for Triton."""
    if like.is_cuda and _can_overlap(like.device.index):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@functools.cache
def _can_overlap(device: int) -> bool:
    if torch.cuda.get_device_capability(device)[0] < HOPPER:
        return False
    try:
        from triton.backends.nvidia.compiler import CUDAOptions
        from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: F401
    except ImportError:
        return False
    return "launch_pdl" in CUDAOptions.__dataclass_fields__


@triton.jit
def begin(EARLY: tl.constexpr):
    """Let the next kernel be started, then wait for the one before."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def ask_for(addresses, BYTES: tl.constexpr):
    """Bring so many bytes from each address, which 16 divides as it does BYTES, into the GPU's cache."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [addresses.to(tl.int64), tl.full(addresses.shape, BYTES, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
