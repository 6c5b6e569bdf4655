"""What is kept and what is looked through: malloc's memory, and Python's objects.

What a model took in many small parts stays with malloc unless it is given back.
"""

from __future__ import annotations

import ctypes
import gc

__all__ = ["give_back", "hold_little", "keep_all"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_..., malloc.h
_LARGE = 4 << 20  # bytes of an array that goes back to the system as soon as it is let go


def hold_little() -> None:
    """Have glibc's malloc keep no large arrays that were let go.

    Left alone it takes the largest of them as a measure of what to keep, and what loading a model
    leaves at the end of its thread's arena is not even given back by `give_back`.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    set_option(_MMAP_THRESHOLD, _LARGE)
    set_option(_TRIM_THRESHOLD, 2 * _LARGE)


def keep_all() -> None:
    """Look for cycles of objects from now on, but among new ones alone.

    What is loaded stays, and to look through it holds all calls up for 30 ms.
    """
    gc.freeze()
    gc.enable()


def give_back() -> None:
    """Return free pages of malloc's arenas to the system, where it is glibc's; cheap and rare."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    trim(0)
