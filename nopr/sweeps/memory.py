"""The memory available for a block of cases on one device."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from jax.sharding import Mesh

_OF_A_HOST = 0.5  # of the free memory; a host has other uses for it
_OF_A_DEVICE = 0.9
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_bytes(mesh: Mesh) -> int:
    """Memory for a block on each device of a mesh: 90% of what is free, half of it on a host."""
    devices = list(mesh.devices.flat)
    stats = [device.memory_stats() for device in devices]
    if all(found and "bytes_limit" in found for found in stats):
        free = min(found["bytes_limit"] - found.get("bytes_in_use", 0) for found in stats)
        return int(free * _OF_A_DEVICE)
    return int(_free_on_host() * _OF_A_HOST / len(devices))


def _free_on_host() -> int:
    bounds = [_available()]
    for limit, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            bounds.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(min(bounds), 0)


def _available() -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS has no /proc
