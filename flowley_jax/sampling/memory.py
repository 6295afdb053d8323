"""Refuse work that needs more memory than is free, before the operating system kills the process."""

import os
from pathlib import Path

import jax

from flowley_jax.errors import FlowleyError

GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
# Limit of the container, and what this process uses of it.
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_OWN_PAGES = Path("/proc/self/statm")


def check_memory(needed: int, free: int | None, what: str) -> None:
    """Check an estimate against the free memory.

    Args:
      needed: bytes.
      free: bytes; None if unknown, and then everything passes.
      what: what needs them, for the message.

    Raises:
      FlowleyError: there is less memory than needed.
    """
    if free is not None and needed > free:
        raise FlowleyError(
            f"{what} needs about {needed / GIB:.1f} GiB of memory, and only {free / GIB:.1f} GiB are free; "
            "use a shorter --window"
        )


def free_device_memory() -> int | None:
    """Return the bytes that programs can still take on a device, or None if it does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return free_host_memory()
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def free_host_memory() -> int | None:
    """Return the bytes that this process can still take on the host, or None if unknown (not Linux)."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit = int(_CONTAINER_LIMIT.read_text())
        used = int(_OWN_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        # No container, or one without a limit ("max").
        return free
    return min(free, limit - used)
