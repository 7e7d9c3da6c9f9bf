"""A process group's first collective, made on a thread: by NCCL it takes most of a second. Knows no other one."""

from __future__ import annotations

import threading

import torch
import torch.distributed as torch_dist


class Connection:
    """From its making on, all ranks of the default group are being connected; meanwhile a model is built and read.

    Nobody may use the group before `wait` has returned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._make, name="connect", daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            torch_dist.all_reduce(torch.zeros(1, device=self._device))
        except Exception as problem:  # noqa: BLE001  (the edge of a thread: whoever waits gets it)
            self._problem = problem

    def wait(self) -> None:
        """Until it is there. Raises what the library said if it cannot be."""
        self._thread.join()
        if self._problem is not None:
            raise self._problem
