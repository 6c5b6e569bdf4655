"""How many cores this process may use, and who of its threads goes first."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

__all__ = ["give_way", "usable_cores"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: Niceness: less than half the share of a thread that does not give way.
_GIVE_WAY = 5


def usable_cores(quota_file: Path = _QUOTA) -> int:
    """Count the cores that the process may be scheduled on, within a container's quota; at least 1.

    Args:
        quota_file: microseconds of processor time and of the period they are for (cgroup v2).
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max"
        return cores


def give_way() -> None:
    """Let other threads of this process have the core first when there is not enough for all.

    A decoder takes every core that it gets; under overload who says no must not wait for it.
    """
    if sys.platform == "linux":  # where a thread has a niceness of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _GIVE_WAY)
