"""Makes a GPU's kernels ready while a start waits for files. Knows no model."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from dist.kernels.limits import kernel_errors

OURS = "best_token", "few_rows", "peer_sum", "rotary_triton", "split_kv"
# Where Triton's digest of itself is, which it makes before it looks for a compiled kernel; newest versions first.
DIGEST_IN = "triton.runtime.cache", "triton.compiler.compiler"
SIDE = 128


@contextmanager
def prepared_meanwhile(device: torch.device) -> Iterator[None]:
    """While it lasts, a thread does what the first kernels would wait for.

    Its errors are left to whoever needs a kernel.
    """
    if device.type != "cuda":
        yield
        return
    thread = threading.Thread(target=_prepare, args=(device,), name="prepare", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _prepare(device: torch.device) -> None:
    with suppress(*kernel_errors()):
        for name in OURS:
            importlib.import_module(f"dist.kernels.{name}")
        digest_triton()
        _first_products(device)


def digest_triton() -> None:
    """Let Triton read its own files through; it keeps the result."""
    for name in DIGEST_IN:
        digest = getattr(importlib.import_module(name), "triton_key", None)
        if digest is not None:
            digest()
            return


@torch.inference_mode()
def _first_products(device: torch.device) -> None:
    """torch's libraries open their handles, and load their code, at their first use."""
    torch.cuda.set_device(device)
    rows = torch.ones(SIDE, SIDE, dtype=torch.bfloat16, device=device)
    heads = (rows @ rows).view(1, 2, -1, SIDE // 2)
    torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
    heads.float().norm(dim=-1)
