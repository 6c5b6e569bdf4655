"""Noise from a counter, so that each number depends on (seed, response, step, purpose) alone.

Philox-4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11. The key
is the request's seed; the counter is (step or block of dimensions, response, purpose, 0). No state
is kept, so neither neighbours in a batch nor earlier requests can change what a request draws.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from siserve.serving.fused.native import CpuLibrary, cpu_library
from siserve.serving.fused.weights import NotFused

__all__ = ["Purpose", "Seeds", "normals", "normals_and_uniforms", "philox", "uniforms"]

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_ROUNDS = np.arange(10, dtype=np.uint64)[:, None] * _KEY_STEPS  # (10, 2)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_AT_ONCE = 1 << 14  # counters that are mixed together

Words = NDArray[np.uint64]


#: One seed, or one for each response, (R,) uint64.
Seeds = int | NDArray[np.uint64]


class Purpose(IntEnum):
    """What a number is drawn for; no two purposes share a counter."""

    LATENT = 0
    TOKEN = 1
    POSTERIOR = 2
    LAMBDA = 3


def philox(counter: Words, seed: Seeds) -> Words:
    """Mix counters with keys by ten rounds.

    Args:
        counter: four 32-bit words each, (..., 4).
        seed: the key, 64 bits, its low word first; or keys that broadcast to (...).

    Returns:
        Four 32-bit words for each counter, (..., 4).
    """
    words = np.moveaxis(counter, -1, 0)
    even, odd = _mix(words[0::2], words[1::2], seed)
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1)


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
    return _draw(seed, responses, 0, Purpose.LATENT, first_step, num_steps)[1]


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
    return _draw(seed, responses, size, purpose, 0, 0)[0]


def normals_and_uniforms(
    seed: Seeds, responses: NDArray[np.int64], size: int, num_steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw the latent noise of responses and what they take at their first steps.

    The same numbers as `normals` and `uniforms` give, in half of the operations, whose number, not
    their length, is what a few rows cost.

    Returns:
        (R, size) and (num_steps, R).
    """
    return _draw(seed, responses, size, Purpose.LATENT, 0, num_steps)


@cache
def _kernels() -> CpuLibrary | None:
    """Return what draws the same in less time, where the CPU can."""
    try:
        return cpu_library()
    except NotFused:
        return None


def _draw(
    seed: Seeds,
    responses: NDArray[np.int64],
    size: int,
    purpose: Purpose,
    first_step: int,
    num_steps: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw normal numbers for a purpose, (R, size), and those of steps, (num_steps, R)."""
    kernels = _kernels()
    if kernels is not None:
        keys = np.empty(len(responses), np.uint64)
        keys[:] = seed
        return kernels.draw(keys, responses, size, purpose, first_step, num_steps)
    blocks = -(-size // 4)  # each counter gives four numbers
    first = np.concatenate([np.arange(blocks), np.arange(first_step, first_step + num_steps)])
    purposes = np.repeat([purpose, Purpose.TOKEN], [blocks, num_steps])
    even, odd = _mix_all(seed, responses, first, purposes)
    return (
        _as_normals(even[..., :blocks], odd[..., :blocks], size),
        _as_uniforms(even[..., blocks:]),
    )


def _mix_all(
    seed: Seeds,
    responses: NDArray[np.int64],
    first: NDArray[np.int64],
    purposes: NDArray[np.int64],
) -> tuple[Words, Words]:
    """Mix the counter (first, response, purpose, 0) of each response and each `first`.

    Returns:
        Words 0 and 2, and words 1 and 3, each (2, R, N).
    """
    even = np.zeros((2, 1, len(first)), np.uint64)
    even[0], even[1] = first, purposes
    odd = np.zeros((2, len(responses), 1), np.uint64)
    odd[0, :, 0] = responses
    size = max(1, _AT_ONCE // max(1, len(first)))  # a round's arrays stay in the cache
    parts = [
        _mix(even, odd[:, rows], seed if isinstance(seed, int) else seed[rows, None])
        for rows in (slice(at, at + size) for at in range(0, max(1, len(responses)), size))
    ]
    if len(parts) == 1:
        return parts[0]
    evens, odds = zip(*parts, strict=True)
    return np.concatenate(evens, axis=1), np.concatenate(odds, axis=1)


def _mix(even: Words, odd: Words, seed: Seeds) -> tuple[Words, Words]:
    """Mix counters, given and returned as words 0 and 2 and words 1 and 3, each (2, ...)."""
    key = np.asarray(seed, dtype=np.uint64)
    axes = (1,) * (even.ndim - 1)
    keys = np.stack([key & _LOW, key >> _HALF]).reshape(2, *axes[key.ndim :], *key.shape)
    multipliers = _MULTIPLIERS.reshape(2, *axes)
    for round_key in (keys + _ROUNDS.reshape(10, 2, *axes)) & _LOW:
        product = multipliers * even
        even = (product >> _HALF)[::-1] ^ odd ^ round_key
        odd = (product & _LOW)[::-1]
    return even, odd


def _as_uniforms(even: Words) -> NDArray[np.float32]:
    """Turn words 0 of counters (2, R, K) into numbers in [0, 1), (K, R)."""
    drawn: NDArray[np.float32] = ((even[0].T >> np.uint64(8)) * 2.0**-24).astype(np.float32)
    return drawn


def _as_normals(even: Words, odd: Words, size: int) -> NDArray[np.float32]:
    """Turn the words of counters (2, R, blocks) into normal numbers, (R, size)."""
    radius = np.sqrt(-2.0 * np.log((even + 1.0) * 2.0**-32))
    angle = 2.0 * np.pi * (odd * 2.0**-32)
    drawn = np.empty((*even.shape[1:], 4), np.float32)  # (R, blocks, 4)
    drawn[..., 0::2] = np.moveaxis(radius * np.cos(angle), 0, -1)
    drawn[..., 1::2] = np.moveaxis(radius * np.sin(angle), 0, -1)
    return drawn.reshape(len(drawn), -1)[:, :size]
