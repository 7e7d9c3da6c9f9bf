"""What kernels in Triton can count on: the shared memory of a GPU, and what their first launch may raise."""

from __future__ import annotations

import functools
import subprocess

import torch


def kernel_errors() -> tuple[type[Exception], ...]:
    """What is raised where no kernel can be compiled or started: no Triton, no C compiler, another kind of GPU.

    A LookupError is Triton 3.1's for bfloat16 on a GPU that has none (sm_75).
    """
    usual = (ImportError, LookupError, OSError, RuntimeError, subprocess.SubprocessError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return usual
    return (*usual, TritonError)


def stages_that_fit(device: torch.device, most: int, stage_bytes: int, other_bytes: int = 0) -> int:
    """How many steps of a loop, up to `most`, can be loaded ahead into a program's shared memory; at least 1."""
    if device.type != "cuda":
        return most  # interpreted
    return max(1, min(most, (_shared_memory(device.index) - other_bytes) // stage_bytes))


@functools.cache
def _shared_memory(device: int) -> int:
    import triton

    room: int = triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"]
    return room
