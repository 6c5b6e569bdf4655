"""Give memory back to the system: what a model took in many small parts stays with malloc else."""

from __future__ import annotations

import ctypes

__all__ = ["give_back"]


def give_back() -> None:
    """Return free pages of malloc's arenas to the system, where it is glibc's; cheap and rare."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    trim(0)
