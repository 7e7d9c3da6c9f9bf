"""The ranks of one run: orders, verdicts, errors and weights between them. Knows no model and no text.

The only file with hand-written collectives, but for small sums through memory that GPUs share
(`dist/group/peer_sums.py`). Up to three process groups, because their waits differ:

default   NCCL on GPUs, gloo on CPUs: weights, and what tensor parallel layers exchange. Ordinary timeout.
orders    gloo, a timeout of years: followers wait here for the next turn; an idle NCCL wait would hold the GPU.
verdicts  gloo, ordinary timeout: one small broadcast per iteration, so that a hang is found. Only across hosts:
          on one host verdicts go through shared memory (`dist/group/shared_control.py`), which is far quicker.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as torch_dist

from dist.errors import RankError
from dist.group.connection import Connection
from dist.group.members import Members
from dist.group.peer_sums import NoPeerSums, PeerSums, open_peer_sums
from dist.group.ranks import Ranks, local_device
from dist.group.shared_control import Ended, SharedControl, open_control
from dist.group.wire import order_from_bytes, order_to_bytes
from dist.protocol import SUMS_BY_NCCL, Order

FRAME_BYTES = 4096
LENGTH_BYTES = 8
ERROR_BYTES = 2048
YEARS = timedelta(days=3650)
HANG = timedelta(minutes=10)
GRACE_S = 0.05
# Its name since torch 2.13, and before.
_all_gather = getattr(torch_dist, "all_gather_single", torch_dist.all_gather_into_tensor)


class SoloGroup:
    """The group of a program that runs on one process: nothing to send, nothing to wait for."""

    rank = 0
    size = 1

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or local_device()

    def publish(self, order: Order) -> None:
        pass

    def receive(self) -> Order:
        raise RuntimeError("a single process has no follower")

    def agree(self, verdict: torch.Tensor) -> torch.Tensor:
        return verdict

    def gather_errors(self, error: str | None) -> dict[int, str]:
        return {} if error is None else {0: error}

    def smallest(self, value: int) -> int:
        return value

    def connect(self) -> None:
        pass

    def spread_rows(self, tensor: torch.Tensor, bounds: Sequence[int]) -> None:
        pass

    def open_sums(self) -> str | None:
        return None

    def sum_in_place(self, tensor: torch.Tensor, added: torch.Tensor | None = None) -> None:
        if added is not None:
            tensor += added

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unsqueeze(0)

    def open_counter(self) -> Callable[[int], int]:
        total = 0

        def add(count: int) -> int:
            nonlocal total
            total += count
            return total

        return add

    def close(self) -> None:
        pass


class TorchGroup:
    """The ranks that torchrun started, or some of them, seen from one.

    Every collective raises RankError when a peer is gone or does not answer in time.
    """

    def __init__(self, ranks: Members | None = None) -> None:
        """Open the groups among `ranks`, by default those of torchrun's environment variables."""
        self._ranks: Members = ranks or Ranks().meet()
        self.rank, self.size, self.device = self._ranks.rank, self._ranks.size, self._ranks.device
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._store = torch_dist.PrefixStore(  # type: ignore[attr-defined]
            "groups", self._ranks.store
        )
        try:
            torch_dist.init_process_group(
                backend, store=self._store, rank=self.rank, world_size=self.size, timeout=HANG
            )
            self._orders = torch_dist.new_group(backend="gloo", timeout=YEARS)
            self._counters = 0
            self._control = self._open_control()
            self._verdicts = None if self._control else torch_dist.new_group(backend="gloo", timeout=HANG)
        except RuntimeError as problem:
            raise self._ranks.lost(problem) from problem
        self._connection: Connection | None = None
        self._sums: PeerSums | None = None
        self._sum_backend: str | None = None

    def publish(self, order: Order) -> None:
        """Rank 0: one frame of 4 KiB, length first; a longer order sends its tail in a second broadcast."""
        data = order_to_bytes(order)
        first = len(data).to_bytes(LENGTH_BYTES, "little") + data[: FRAME_BYTES - LENGTH_BYTES]
        self._broadcast(_bytes_tensor(first.ljust(FRAME_BYTES, b"\0")), self._orders)
        tail = data[FRAME_BYTES - LENGTH_BYTES :]
        if tail:
            self._broadcast(_bytes_tensor(tail), self._orders)

    def receive(self) -> Order:
        """Followers: the next order, however long it takes."""
        frame = self._broadcast(torch.empty(FRAME_BYTES, dtype=torch.uint8), self._orders).numpy().tobytes()
        length = int.from_bytes(frame[:LENGTH_BYTES], "little")
        data = frame[LENGTH_BYTES : LENGTH_BYTES + length]
        if length > len(data):
            tail = torch.empty(length - len(data), dtype=torch.uint8)
            data += self._broadcast(tail, self._orders).numpy().tobytes()
        return order_from_bytes(data)

    def agree(self, verdict: torch.Tensor) -> torch.Tensor:
        if self._control is None:
            return self._broadcast(verdict, self._verdicts)
        try:
            if self.rank == 0:
                self._control.write(verdict.numpy().tobytes())
                return verdict
            data = self._control.read(verdict.numel() * verdict.element_size())
        except Ended as problem:
            raise RankError("Contact between the ranks was lost.", str(problem)) from problem
        return torch.frombuffer(bytearray(data), dtype=verdict.dtype)

    def gather_errors(self, error: str | None) -> dict[int, str]:
        # On the patient group: ranks may finish reading a checkpoint minutes apart.
        mine = (error or "").encode()[:ERROR_BYTES].ljust(ERROR_BYTES, b"\0")
        frames = [torch.empty(ERROR_BYTES, dtype=torch.uint8) for _ in range(self.size)]
        try:
            torch_dist.all_gather(frames, _bytes_tensor(mine), group=self._orders)
        except RuntimeError as problem:
            raise self._ranks.lost(problem) from problem
        texts = [frame.numpy().tobytes().rstrip(b"\0").decode(errors="ignore") for frame in frames]
        return {rank: text for rank, text in enumerate(texts) if text}

    def smallest(self, value: int) -> int:
        least = torch.tensor([value], dtype=torch.int64)
        try:
            torch_dist.all_reduce(least, op=torch_dist.ReduceOp.MIN, group=self._orders)
        except RuntimeError as problem:
            raise self._ranks.lost(problem) from problem
        return int(least.item())

    def connect(self) -> None:
        if self.device.type == "cuda":
            self._connection = Connection(self.device)

    def spread_rows(self, tensor: torch.Tensor, bounds: Sequence[int]) -> None:
        for source in range(self.size):
            rows = tensor[bounds[source] : bounds[source + 1]]
            if rows.numel():
                # As bytes: gloo does not know every dtype.
                self._broadcast(rows.reshape(-1).view(torch.uint8), None, source)

    def open_sums(self) -> str | None:
        if self.device.type == "cuda" and self._sum_backend is None:
            self._sum_backend = SUMS_BY_NCCL
            self._connected()
            if len(self._ranks.process_ids()) == self.size:
                with contextlib.suppress(NoPeerSums):
                    self._sums = open_peer_sums(
                        self, torch_dist.distributed_c10d._get_default_group(), self._ranks.devices
                    )
                    self._sum_backend = "sums through shared GPU memory"
        return self._sum_backend

    def sum_in_place(self, tensor: torch.Tensor, added: torch.Tensor | None = None) -> None:
        if self._sums is not None and self._sums.takes(tensor):
            self._sums.sum_in_place(tensor, added)
            return
        try:
            self._connected()
            torch_dist.all_reduce(tensor)
        except RuntimeError as problem:
            raise self._ranks.lost(problem) from problem
        if added is not None:
            tensor += added

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False):
            # An ordinary tensor: gloo's own threads, which know no inference mode, write into it.
            gathered = torch.empty((self.size, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
        try:
            self._connected()
            _all_gather(gathered.view(-1), tensor.view(-1))
        except RuntimeError as problem:
            raise self._ranks.lost(problem) from problem
        return gathered

    def open_counter(self) -> Callable[[int], int]:
        # The store counts, so nobody waits for anybody. Ranks open their counters in the same order.
        self._counters += 1
        key = f"counter/{self._counters}"

        def add(count: int) -> int:
            try:
                return int(self._store.add(key, count))
            except RuntimeError as problem:
                raise self._ranks.lost(problem) from problem

        return add

    def close(self) -> None:
        """Leave the run. Without this, gloo can abort the process at exit.

        NCCL waits here for as long as a CUDA graph lives that captured one of its collectives (`Engine.close`).
        """
        self._ranks.close()
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):
                self._connected()
            torch.cuda.synchronize(self.device)
        # Gloo's threads need Python's lock once more to drop their last tensors. In torch 2.5 a group that is taken
        # apart before holds the lock and waits for them for ever.
        time.sleep(GRACE_S)
        torch_dist.destroy_process_group()

    def _connected(self) -> None:
        """To be called before anything by the default group, which would get in the way. Raises RuntimeError."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.wait()

    def _open_control(self) -> SharedControl | None:
        """All ranks: shared memory for verdicts, if all of them are on one host and can reach it."""
        processes = self._ranks.process_ids()
        if len(processes) < self.size:
            return None
        return open_control(self.rank, processes, HANG.total_seconds(), self._store, self.gather_errors)

    def _broadcast(
        self, tensor: torch.Tensor, group: torch_dist.ProcessGroup | None, source: int = 0
    ) -> torch.Tensor:
        try:
            if group is None:
                self._connected()
            torch_dist.broadcast(tensor, src=source, group=group)
        except RuntimeError as problem:
            raise self._ranks.lost(problem) from problem
        return tensor


def _bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
