"""Reads boxes of saved tensors straight into torch tensors. Knows no model, no config and no rank.

Bytes that need no change go from the file to where they stay. Casts, column cuts and copies to a GPU go through
a scratch buffer of SCRATCH_BYTES a thread, so that peak memory is what is kept and little more.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

import torch

from dist.checkpoint.boxes import ITEM_BYTES, Box, LowRank, Piece, Read, SavedTensor, reads_for, split_read
from dist.errors import CheckpointError

SCRATCH_BYTES = 8 << 20
CALL_BYTES = 64 << 20
OPEN_FILES = 64
# What one thread can read and hand on is less than a GPU can take.
GPU_THREADS = 8
# What a thread takes at a time: a round may have fewer tensors than there are threads.
PART_BYTES = 32 << 20

OnBytes = Callable[[int], None]
Job = tuple[SavedTensor, Box, torch.Tensor]


class TensorReader:
    """Reads from checkpoint files; a context manager that closes them. `on_bytes(n)` is called for every read.

    `bytes_read` counts what came from the files.
    """

    def __init__(self, on_bytes: OnBytes | None = None) -> None:
        self.bytes_read = 0
        self._on_bytes = on_bytes
        self._files: dict[str, int] = {}
        self._scratch: torch.Tensor | None = None
        self._helpers: list[TensorReader] = []
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._scratch = None
        if self._pool is not None:
            self._pool.shutdown()
        for helper in self._helpers:
            helper.__exit__(kind, problem, trace)

    def read_all(self, jobs: Sequence[Job]) -> None:
        """`read_into` for every (tensor, box, target); onto a GPU by several threads at once."""
        parts = [part for job in jobs for part in _parts(job)] if jobs and jobs[0][2].is_cuda else jobs
        if parts is jobs or len(parts) < 2:
            for job in jobs:
                self.read_into(*job)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(GPU_THREADS)
            self._helpers = [TensorReader(self._count) for _ in range(GPU_THREADS)]
            for helper in self._helpers:
                # Here, since a new thread would lock the pages by way of the first GPU, whichever is meant.
                helper._scratch_for(jobs[0][2].device)
        left = iter(parts)
        for done in [self._pool.submit(self._work, helper, left) for helper in self._helpers]:
            done.result()

    def _work(self, helper: TensorReader, left: Iterator[Job]) -> None:
        while True:
            with self._lock:
                job = next(left, None)
            if job is None:
                return
            helper.read_into(*job)

    def _count(self, count: int) -> None:
        """Bytes that a helper has read."""
        with self._lock:
            self.bytes_read += count
            if self._on_bytes is not None:
                self._on_bytes(count)

    def read_into(self, tensor: SavedTensor, box: Box, target: torch.Tensor) -> None:
        """Fill `target`, of shape box.sizes, any dtype and device, with `box` of `tensor`, cast as `copy_` casts.

        An adapter's update is added in float32 before the cast. Raises CheckpointError if a file ends early or
        cannot be read.
        """
        if tensor.update is not None:
            self._read_updated(tensor, tensor.update, box, target)
            return
        for read in reads_for(tensor, box):
            part = target
            for dim, (start, size) in enumerate(zip(read.at, read.sizes)):
                part = part.narrow(dim, start, size)
            self._fill(read, tensor.dtype, part)

    def _read_updated(self, tensor: SavedTensor, update: LowRank, box: Box, target: torch.Tensor) -> None:
        """Some rows at a time: the base in float32, plus scale * up @ down."""
        base = replace(tensor, update=None)
        (first, left), (rows, columns) = box.offsets, box.sizes
        rank = update.down.shape[0]
        down = torch.empty(rank, columns)
        self.read_into(update.down, Box((0, left), (rank, columns)), down)
        step = max(1, SCRATCH_BYTES // (4 * max(1, columns)))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            values, up = torch.empty(count, columns), torch.empty(count, rank)
            self.read_into(base, Box((first + start, left), (count, columns)), values)
            self.read_into(update.up, Box((first + start, 0), (count, rank)), up)
            values += (up @ down) * update.scale
            target.narrow(0, start, count).copy_(values)

    def _fill(self, read: Read, dtype_name: str, part: torch.Tensor) -> None:
        dtype = getattr(torch, dtype_name)
        if part.dtype == dtype and part.device.type == "cpu" and part.is_contiguous() and read.is_dense:
            self._pread(read.path, read.start, part.reshape(-1).view(torch.uint8))
            return
        item = ITEM_BYTES[dtype_name]
        for step in split_read(read, item, SCRATCH_BYTES):
            block = self._scratch_for(part.device)[: step.extent * item]
            self._pread(step.path, step.start, block)
            values = block.view(dtype).as_strided(step.sizes, step.strides)
            place = part
            for dim, (start, size, origin) in enumerate(zip(step.at, step.sizes, read.at)):
                place = place.narrow(dim, start - origin, size)
            place.copy_(values)

    def _scratch_for(self, device: torch.device) -> torch.Tensor:
        if self._scratch is None:
            # Page-locked memory makes copies to a GPU several times faster.
            self._scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
        return self._scratch

    def _pread(self, path: str, start: int, target: torch.Tensor) -> None:
        """Fill `target`, contiguous bytes on the CPU, from byte `start` of the file."""
        view = target.numpy().data
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._open(path), [view[done : done + CALL_BYTES]], start + done)
            except OSError as problem:
                raise CheckpointError(
                    f"{path} cannot be read.",
                    f"{problem.strerror} at byte {start + done:,}.",
                    "Check the disk and the permissions.",
                ) from problem
            if not got:
                raise CheckpointError(
                    f"{path} is incomplete.",
                    f"It ends at byte {start + done:,}; {len(view) - done:,} more are needed there.",
                    "Copy the file again from where training wrote it.",
                )
            done += got
            self.bytes_read += got
            if self._on_bytes is not None:
                self._on_bytes(got)

    def _open(self, path: str) -> int:
        file = self._files.get(path)
        if file is None:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            file = self._files[path] = os.open(path, os.O_RDONLY)
        return file


def _parts(job: Job) -> Iterator[Job]:
    """The same in boxes of some rows each."""
    tensor, box, target = job
    rows = box.sizes[0] if box.sizes else 0
    if tensor.update is not None or not rows or not target.numel():
        yield job
        return
    step = max(1, PART_BYTES * rows // (box.elements * ITEM_BYTES[tensor.dtype]))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        part = Box((box.offsets[0] + start, *box.offsets[1:]), (count, *box.sizes[1:]))
        yield tensor, part, target.narrow(0, start, count)


def same_values(one: SavedTensor, other: SavedTensor) -> bool:
    """Whether two saved tensors hold the same values, updates included. Reads no more than it takes to tell."""
    if (one.shape, one.dtype, one.update) != (other.shape, other.dtype, other.update):
        return False
    if sorted(one.pieces, key=_place) == sorted(other.pieces, key=_place) or not one.shape:
        return True
    row = math.prod(one.shape[1:]) * ITEM_BYTES[one.dtype]
    step = max(1, SCRATCH_BYTES // max(1, row))
    plain = [replace(tensor, update=None) for tensor in (one, other)]
    with TensorReader() as reader:
        for start in range(0, one.shape[0], step):
            count = min(step, one.shape[0] - start)
            box = Box((start, *(0 for _ in one.shape[1:])), (count, *one.shape[1:]))
            parts = [torch.empty(box.sizes, dtype=getattr(torch, one.dtype)) for _ in plain]
            for tensor, part in zip(plain, parts, strict=True):
                reader.read_into(tensor, box, part)
            if not torch.equal(*parts):
                return False
    return True


def _place(piece: Piece) -> tuple[str, int]:
    return piece.path, piece.start
