"""What of this machine the process may use: cores and memory, within the limits of containers and cluster jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MEMORY = Path("/proc/meminfo")
_SPINS = 1000  # instead of GNU OpenMP's 300,000


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # which macOS lacks
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores() -> None:
    """Let threads that wait for each other sleep soon, unless ``GOMP_SPINCOUNT`` or ``OMP_WAIT_POLICY`` is set.

    PyTorch's threads meet at every operator. With GNU's OpenMP, which its wheels for Linux bring, those that wait
    keep their cores busy, and where another program wants the same cores, they hold up the very ones that they wait
    for: a training step beside another may take many times as long instead of twice (``scripts/bench_sharing.py``).
    Acts on the whole process, and only before PyTorch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))


def free_memory() -> int | None:
    """Bytes that are free, or that the process's control groups allow in all where that is less; None if unknown."""
    known = [value for value in (_meminfo("MemAvailable"), *_limits()) if value]
    return min(known) if known else None


def _limits() -> Iterator[int]:
    """Limits of the process's own control groups and of those above, in bytes."""
    places = {_CGROUPS / "memory.max", _CGROUPS / "memory" / "memory.limit_in_bytes"}
    for line in _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.is_file() else ():
        _, controllers, name = line.split(":", 2)
        within = Path(name.lstrip("/"))
        for group in (within, *within.parents):
            if not controllers:
                places.add(_CGROUPS / group / "memory.max")
            elif "memory" in controllers.split(","):
                places.add(_CGROUPS / "memory" / group / "memory.limit_in_bytes")
    for place in places:
        if place.is_file() and (text := place.read_text().strip()).isdigit():
            yield int(text)


def _meminfo(key: str) -> int:
    """Bytes of an entry of /proc/meminfo; 0 where there is none (not Linux)."""
    for line in _MEMORY.read_text().splitlines() if _MEMORY.is_file() else ():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0
