"""How many cores this process may use, and who of its threads goes first."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

__all__ = ["give_way", "take_turns", "usable_cores"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: Niceness added: less than a third of the share of a thread that does not give way.
_GIVE_WAY = 5
#: For how long a thread keeps Python's lock once another waits for it; Python's own 5 ms, each time
#: a call is touched and for each decoder, would make half a second of a queue of refusals.
_TURN_SECONDS = 1e-4


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
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(own + _GIVE_WAY, 19))


def take_turns() -> None:
    """Let no thread of this process keep Python's lock for long while another waits for it."""
    sys.setswitchinterval(_TURN_SECONDS)
