"""How many bytes are free, of a GPU or of the host's memory. Knows no model.

torch is imported when it is needed: files are read ahead while it still loads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dist.errors import CheckpointError
from dist.protocol import Group

if TYPE_CHECKING:
    import torch

CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)


def host_free() -> int:
    """Free memory of the host, cgroup limits included; what only caches files is free."""
    return min(_available(), _cgroup_free())


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_free() -> int:
    """What the memory cgroup still allows; file cache that can be dropped counts as free."""
    for limit, usage, stat in CGROUP_LIMITS:
        if not limit.is_file() or not limit.read_text().strip().isdigit():
            continue
        reclaimable = sum(
            int(line.split()[1])
            for line in stat.read_text().splitlines()
            if line.split()[0] in ("inactive_file", "active_file")
        )
        return int(limit.read_text()) - int(usage.read_text()) + reclaimable
    return 1 << 62


def free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, or this rank's share of the host's (by LOCAL_WORLD_SIZE), cgroup limits included."""
    if device.type == "cuda":
        import torch

        # What torch's allocator holds and does not use is free to this process.
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + spare
    return host_free() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def report_oom(group: Group, doing: str, hint: str) -> Iterator[None]:
    """Turn running out of a GPU's memory into a CheckpointError that says so, with torch's numbers.

    Of several ranks the one whose memory runs out ends, and with it the run: the others wait for it within a pass.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        if group.size > 1:
            raise
        raise CheckpointError(f"Out of GPU memory while {doing}.", str(error).splitlines()[0], hint) from error


def gib(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 2**30:.1f} GiB"
