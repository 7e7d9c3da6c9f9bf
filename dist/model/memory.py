"""How many bytes this rank may still take, of a GPU or of the host's memory. Knows no model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dist.errors import CheckpointError
from dist.host_memory import host_free
from dist.protocol import Group


def free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, or this rank's share of the host's (by LOCAL_WORLD_SIZE), cgroup limits included."""
    if device.type == "cuda":
        # What torch's allocator holds and does not use is free to this process.
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + spare
    return host_free() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def shortage_told(group: Group, doing: str, mend: str) -> Iterator[None]:
    """Turn running out of a GPU's memory into a CheckpointError that says so, with torch's numbers.

    Of several ranks the one whose memory runs out ends, and with it the run: the others wait for it within a pass.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if group.size > 1:
            raise
        raise CheckpointError(f"Out of GPU memory while {doing}.", str(error).splitlines()[0], mend) from error


def gib(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 2**30:.1f} GiB"
