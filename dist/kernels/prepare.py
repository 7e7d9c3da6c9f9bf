"""Makes a GPU's kernels ready while a start waits for files. Knows no model."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from dist.kernels.limits import kernel_errors
from dist.kernels.ops import kernels_run

OURS = "best_token", "few_rows", "peer_sum", "rotary_triton", "split_kv"
# What sums over ranks import, and what torch imports in a call of theirs.
FOR_SUMS = "torch.distributed._symmetric_memory", "torch.fx.experimental.symbolic_shapes"
SIDE = 128


@contextmanager
def prepared_meanwhile(device: torch.device, ranks: int) -> Iterator[None]:
    """While it lasts, a thread does what the first kernels would wait for.

    Its errors are left to whoever needs a kernel.
    """
    if device.type != "cuda":
        yield
        return
    thread = threading.Thread(target=_prepare, args=(device, ranks), name="prepare", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _prepare(device: torch.device, ranks: int) -> None:
    with suppress(*kernel_errors()):
        for name in (*(f"dist.kernels.{name}" for name in OURS), *(FOR_SUMS if ranks > 1 else ())):
            importlib.import_module(name)
        torch.cuda.set_device(device)
        _first_products(device)


@torch.inference_mode()
def _first_products(device: torch.device) -> None:
    """torch's libraries open their handles, Triton reads itself through, and code is loaded, at their first use."""
    rows = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    heads = (rows @ rows).view(1, 2, -1, SIDE // 2)
    torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    heads.float().norm(dim=-1)
    kernels_run(rows)
