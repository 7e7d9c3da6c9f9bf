"""What is made ready while a start waits for files."""

from __future__ import annotations

import importlib

import torch

from dist.kernels.prepare import DIGEST_IN, OURS, digest_triton, prepared_meanwhile


def test_triton_has_read_itself_and_every_kernel_can_be_imported() -> None:
    digest_triton()
    found = [getattr(importlib.import_module(name), "triton_key", None) for name in DIGEST_IN]
    assert any(digest is not None and digest.cache_info().currsize for digest in found)
    for name in OURS:
        importlib.import_module(f"dist.kernels.{name}")


def test_a_cpu_has_nothing_to_prepare() -> None:
    with prepared_meanwhile(torch.device("cpu")):
        pass
