"""The processors and the memory that this process may use."""

import math
import os
import pathlib

_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")  # where a container sees its own limits


def processors() -> int:
    """Returns how many processors this process may use: those that it may run on, or a container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(allowed, _quota()))


def _quota() -> float:
    """Returns the processors' time that a container may use, in processors; infinity if there is no limit."""
    for path in (_CGROUP / "cpu.max", _CGROUP / "cpu" / "cpu.cfs_quota_us"):  # of versions 2 and 1
        try:
            limit, *period = path.read_text().split()
            period = period or [(path.parent / "cpu.cfs_period_us").read_text()]
            if float(limit) > 0:  # version 1 says -1 for no limit, version 2 says "max"
                return float(limit) / float(period[0])
        except (OSError, ValueError):
            continue
    return math.inf


def available_memory() -> int | None:
    """Returns the bytes that programs can still take, those that cache files too; None where there is no Linux."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:  # macOS
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
