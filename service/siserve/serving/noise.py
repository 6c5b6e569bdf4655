"""Noise from a counter, so that each number depends on (seed, response, step, purpose) alone.

Philox-4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11. The key
is the request's seed; the counter is (step or block of dimensions, response, purpose, 0). No state
is kept, so neither neighbours in a batch nor earlier requests can change what a request draws.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Purpose", "Seeds", "normals", "philox", "uniforms"]

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


#: One seed, or one for each response, (R,) uint64.
Seeds = int | NDArray[np.uint64]


class Purpose(IntEnum):
    """What a number is drawn for; no two purposes share a counter."""

    LATENT = 0
    TOKEN = 1
    POSTERIOR = 2
    LAMBDA = 3


def philox(counter: NDArray[np.uint64], seed: Seeds) -> NDArray[np.uint64]:
    """Mix counters with keys by ten rounds.

    Args:
        counter: four 32-bit words each, (..., 4).
        seed: the key, 64 bits, its low word first; or keys that broadcast to (...).

    Returns:
        Four 32-bit words for each counter, (..., 4).
    """
    x0, x1, x2, x3 = (counter[..., i].astype(np.uint64) for i in range(4))
    keys = np.asarray(seed, dtype=np.uint64)
    key0, key1 = keys & _LOW, keys >> _HALF
    for _ in range(10):
        product0 = _MULTIPLIERS[0] * x0
        product1 = _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (product1 >> _HALF) ^ x1 ^ key0,
            product1 & _LOW,
            (product0 >> _HALF) ^ x3 ^ key1,
            product0 & _LOW,
        )
        key0, key1 = (key0 + _KEY_STEPS[0]) & _LOW, (key1 + _KEY_STEPS[1]) & _LOW
    return np.stack([x0, x1, x2, x3], axis=-1)


def uniforms(
    seed: Seeds, responses: NDArray[np.int64], first_step: int, num_steps: int
) -> NDArray[np.float32]:
    """Draw the one number in [0, 1) that each response takes at each step.

    Args:
        seed: the request's seed, or each response's.
        responses: indices of the responses within their request, (R,).
        first_step: number of the first step.
        num_steps: number of steps.

    Returns:
        Multiples of 2^-24, (num_steps, R).
    """
    steps = np.arange(first_step, first_step + num_steps)
    words = philox(_counters(steps[:, None], responses[None, :], Purpose.TOKEN), seed)  # (K, R, 4)
    return ((words[..., 0] >> np.uint64(8)) * 2.0**-24).astype(np.float32)


def normals(
    seed: Seeds, responses: NDArray[np.int64], size: int, purpose: Purpose = Purpose.LATENT
) -> NDArray[np.float32]:
    """Draw a vector of standard normal numbers for each response, by Box and Muller 1958.

    Args:
        seed: the request's seed, or each response's.
        responses: indices of the responses within their request, (R,).
        size: length of a vector.
        purpose: what for.

    Returns:
        Independent N(0, 1) numbers, (R, size).
    """
    blocks = np.arange(-(-size // 4))
    keys = seed if isinstance(seed, int) else seed[:, None]
    words = philox(_counters(blocks[None, :], responses[:, None], purpose), keys)  # (R, blocks, 4)
    radius = np.sqrt(-2.0 * np.log((words[..., 0::2] + 1.0) * 2.0**-32))  # (R, blocks, 2)
    angle = 2.0 * np.pi * (words[..., 1::2] * 2.0**-32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    flat = pairs.reshape(len(responses), -1)[:, :size]  # (R, size)
    return flat.astype(np.float32)


def _counters(
    first: NDArray[np.int64], responses: NDArray[np.int64], purpose: Purpose
) -> NDArray[np.uint64]:
    first, responses = np.broadcast_arrays(first, responses)
    counters = np.zeros((*first.shape, 4), dtype=np.uint64)
    counters[..., 0] = first
    counters[..., 1] = responses
    counters[..., 2] = purpose
    return counters
