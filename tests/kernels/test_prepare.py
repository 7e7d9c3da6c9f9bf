"""What is made ready while a start waits for files."""

from __future__ import annotations

import importlib

import torch

from dist.kernels.prepare import FOR_SUMS, OURS, prepared_meanwhile


def test_what_is_prepared_can_be_imported() -> None:
    for name in (*(f"dist.kernels.{name}" for name in OURS), *FOR_SUMS):
        importlib.import_module(name)


def test_a_cpu_has_nothing_to_prepare() -> None:
    with prepared_meanwhile(torch.device("cpu"), 2):
        pass
