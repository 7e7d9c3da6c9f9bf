"""Small sums over the GPUs of one host through memory that they share, where that works. Knows no model.

torch's symmetric memory gives every rank an inbox that the others can write into; `dist/kernels/peer_sum.py` does
the rest. Of torch's own operations, the one that copies and sums in one kernel tells the others before its copy is
made (a __syncthreads is missing, up to torch 2.13 at least), and the others need copies beside them. NVLink
multicast stays off: nothing here needs it. Nothing here ends by itself when a rank dies: rank 0's watch kills the
others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as torch_dist

from dist.kernels.limits import kernel_errors
from dist.protocol import Group

# What a rank sends at most in one sum; with more, a sum takes as long as its words take to travel.
MOST_SENT_BYTES = 2 << 20
MOST_RANKS = 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 16
PROBE_ELEMENTS, PROBE_ROUNDS = 5000, 3
# What other versions of torch and Triton raise, beside kernel_errors().
VERSION_ERRORS = (AssertionError, AttributeError, TypeError, ValueError)
# Looks at memory, each of about a microsecond: enough for a rank that comes late, and an end if words never come.
PROBE_PATIENCE = 1 << 24


class NoPeerSums(Exception):
    """The ranks cannot sum through shared memory; why, in words."""


class Run(Protocol):
    """`peer_sum.sum_among_peers` with all bound but the tensor."""

    def __call__(
        self,
        tensor: torch.Tensor,
        added: torch.Tensor | None = ...,
        *,
        patience: int = ...,
        compile_only: bool = ...,
    ) -> None: ...


class PeerSums:
    """Sums of tensors of up to `most_bytes` on `device`, in place. The host does not wait; graphs can hold them."""

    def __init__(self, run: Run, device: torch.device, most_bytes: int, memory: torch.Tensor) -> None:
        self._run = run
        self._device = device
        self._most_bytes = most_bytes
        # Others write into it for as long as this rank takes part.
        self._memory = memory

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether it can sum this; the same on all ranks for tensors of one shape and dtype."""
        size = tensor.numel() * tensor.element_size()
        fits = 0 < size <= self._most_bytes and size % ALIGNMENT == 0
        return fits and tensor.dtype in DTYPES and tensor.device == self._device

    def sum_in_place(self, tensor: torch.Tensor, added: torch.Tensor | None = None) -> None:
        """The sum of what all ranks bring, contiguous, the same bits on all, and then this rank's `added`."""
        summed = tensor if _aligned(tensor) else tensor.clone()
        joined = (
            added is not None and added.dtype == tensor.dtype and added.shape == tensor.shape and _aligned(added)
        )
        self._run(summed, added if joined else None)
        if summed is not tensor:
            tensor.copy_(summed)
        if added is not None and not joined:
            tensor += added


def _aligned(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0


def open_peer_sums(group: Group, process_group: torch_dist.ProcessGroup, devices: Sequence[int]) -> PeerSums:
    """All ranks together, outside a capture: sums through shared memory, tried out.

    `devices`: the GPU of each rank, all of this host. Raises NoPeerSums on every rank if any of them is refused.
    """
    capacity = group.smallest(_agreed(group, lambda: _capacity(group, devices)))
    memory = _agreed(group, lambda: _inbox(group, capacity))
    addresses = _agreed(group, lambda: _addresses(memory, group.rank, process_group))
    run = _agreed(group, lambda: _compiled(group, addresses, capacity))
    _agreed(group, lambda: _probe(run, group))
    return PeerSums(run, group.device, 4 * capacity, memory)


def _agreed(group: Group, work: Callable[[], Any]) -> Any:
    """What `work` gives; NoPeerSums on all ranks where it fails on any."""
    result, problem = None, None
    refusals: tuple[type[Exception], ...] = (*VERSION_ERRORS, *kernel_errors())
    try:
        result = work()
    except refusals as error:
        problem = f"{type(error).__name__}: {(str(error) or 'no words').splitlines()[0]}"
    problems = group.gather_errors(problem)
    if problems:
        raise NoPeerSums(problems[min(problems)])
    return result


def _capacity(group: Group, devices: Sequence[int]) -> int:
    """How many 4-byte words this rank could sum at once."""
    from dist.kernels.peer_sum import PROGRAM_BYTES, PROGRAM_WORDS, programs_together

    if group.size > MOST_RANKS:
        raise RuntimeError(f"{group.size} ranks, more than {MOST_RANKS}")
    own = group.device.index
    for other in devices:
        if other != own and not torch.cuda.can_device_access_peer(own, other):
            raise RuntimeError(f"GPU {own} cannot reach the memory of GPU {other}")
    processors = torch.cuda.get_device_properties(own).multi_processor_count
    programs = MOST_SENT_BYTES // (group.size - 1) // PROGRAM_BYTES
    return PROGRAM_WORDS * min(programs, processors * programs_together(group.size))


def _inbox(group: Group, capacity: int) -> torch.Tensor:
    from dist.kernels.peer_sum import inbox_words

    # Before torch sets up what belongs to the memory, of which multicast would be a part.
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    inbox: torch.Tensor = _symmetric_memory().empty(
        inbox_words(group.size, capacity), dtype=torch.int64, device=group.device
    )
    inbox.zero_()
    torch.cuda.synchronize(group.device)
    return inbox


def _symmetric_memory() -> Any:
    import torch.distributed._symmetric_memory as symmetric_memory

    if not hasattr(symmetric_memory, "empty") or not hasattr(symmetric_memory, "rendezvous"):
        raise ImportError(f"torch {torch.__version__} has no symmetric memory")
    return symmetric_memory


def _addresses(memory: torch.Tensor, rank: int, process_group: torch_dist.ProcessGroup) -> tuple[int, ...]:
    """Where this rank finds each rank's inbox."""
    handle = _symmetric_memory().rendezvous(memory, process_group.group_name)
    bases = handle.buffer_ptrs
    # Some versions tell where the allocation begins, which may lie before the tensor, by the same on all ranks.
    offset = memory.data_ptr() - bases[rank]
    return tuple(base + offset for base in bases)


def _compiled(group: Group, addresses: tuple[int, ...], capacity: int) -> Run:
    """Before any rank waits for another on the GPU, and before anything is captured."""
    from dist.kernels.peer_sum import PROGRAM_WORDS, sum_among_peers

    calls = torch.zeros(capacity // PROGRAM_WORDS, dtype=torch.int32, device=group.device)
    run = functools.partial(sum_among_peers, inboxes=addresses, calls=calls, rank=group.rank, capacity=capacity)
    for dtype in DTYPES:
        tensor = torch.empty(PROBE_ELEMENTS, dtype=dtype, device=group.device)
        run(tensor, compile_only=True)
        run(tensor, tensor, compile_only=True)
    return run


def _probe(run: Run, group: Group) -> None:
    """Raise RuntimeError where sums of numbers that all ranks know are not right to the bit."""
    generator = torch.Generator().manual_seed(0)
    for index in range(PROBE_ROUNDS * len(DTYPES)):
        dtype = DTYPES[index // PROBE_ROUNDS]
        shares = torch.randn((group.size, PROBE_ELEMENTS), generator=generator).to(dtype)
        total = torch.zeros(PROBE_ELEMENTS)
        for share in shares:
            total += share.float()
        right, mine, added = total.to(dtype), shares[group.rank].to(group.device, copy=True), None
        if index % 2:
            right, added = right + shares[0], shares[0].to(group.device)
        run(mine, added, patience=PROBE_PATIENCE)
        if not torch.equal(mine.cpu(), right):
            raise RuntimeError(f"sums through shared memory are wrong in {dtype}")
