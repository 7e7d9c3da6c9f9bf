"""How many bytes of the host's memory are free, to all processes together. Knows no rank."""

from __future__ import annotations

import os
from pathlib import Path

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
