"""Noise depends on (seed, response, step, purpose) and on nothing else."""

import math

import numpy as np
import pytest
from siserve.serving import noise
from siserve.serving.noise import Purpose, normals, normals_and_uniforms, philox, uniforms

# Salmon et al. 2011: the known answers for philox4x32-10 published with the reference code
# (Random123, kat_vectors): counter, key, result.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    seed = key[0] | key[1] << 32
    assert tuple(philox(np.array(counter, dtype=np.uint64), seed).tolist()) == expected


def test_a_row_draws_the_same_whoever_is_drawn_with_it():
    rows = np.array([6, 1, 4])
    whole = uniforms(7, np.arange(9), 0, 12)
    assert np.array_equal(uniforms(7, rows, 5, 4), whole[5:9][:, rows])
    assert np.array_equal(normals(7, rows, 10), normals(7, np.arange(9), 10)[rows])


def test_drawn_at_once_latents_and_steps_are_those_drawn_apart():
    seeds, rows = np.array([0, 7, 2**64 - 1], dtype=np.uint64), np.array([6, 1, 4])
    latents, steps = normals_and_uniforms(seeds, rows, 13, 9)
    for at, seed in enumerate(map(int, seeds)):
        row = rows[at : at + 1]
        assert np.array_equal(latents[at : at + 1], normals(seed, row, 13))
        assert np.array_equal(steps[:, at : at + 1], uniforms(seed, row, 0, 9))


@pytest.mark.skipif(noise._kernels() is None, reason="no kernels for CPUs here")
@pytest.mark.parametrize("responses", [1, 5, 70])
def test_kernels_draw_the_numbers_that_numpy_does(responses, monkeypatch):
    # By another library's logarithms and cosines: rounding to float32 hides nearly all of it.
    dice = np.random.default_rng(responses)
    rows = dice.integers(0, 2**31, responses)
    seeds = dice.integers(0, 2**64, responses, np.uint64)

    def drawn():
        for size, steps in ((1, 1), (13, 41), (64, 16)):
            yield from normals_and_uniforms(seeds, rows, size, steps)
        yield uniforms(2**64 - 1, rows, 5, 9)
        yield normals(7, rows, 66, Purpose.LAMBDA)

    got = list(drawn())
    monkeypatch.setattr(noise, "_kernels", lambda: None)
    for ours, numpys in zip(got, drawn(), strict=True):
        assert ours.dtype == numpys.dtype
        np.testing.assert_array_max_ulp(ours, numpys, 1)


def test_a_longer_latent_begins_with_the_shorter_one():
    assert np.array_equal(normals(3, np.arange(4), 13)[:, :7], normals(3, np.arange(4), 7))


def test_seed_response_step_and_purpose_each_change_the_numbers():
    rows = np.arange(20)
    drawn = uniforms(1, rows, 0, 50)
    assert len(np.unique(drawn)) > 990  # of 1000: 24 bits leave hardly any to chance
    assert not np.any(drawn == uniforms(2, rows, 0, 50))
    assert not np.any(drawn == uniforms(1 << 32, rows, 0, 50))
    by_purpose = [normals(1, rows, 8, purpose) for purpose in (Purpose.LATENT, Purpose.POSTERIOR)]
    assert not np.any(by_purpose[0] == by_purpose[1])


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_uniforms_fill_the_half_open_unit_interval_evenly(seed):
    drawn = uniforms(seed, np.arange(200), 0, 500)
    assert drawn.dtype == np.float32 and drawn.shape == (500, 200)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=64, range=(0, 1))
    expected = drawn.size / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 115  # 63 degrees of freedom: above it once in 10,000


def test_normals_are_standard_and_independent():
    drawn = normals(11, np.arange(1000), 202).astype(np.float64)
    size = drawn.size
    assert abs(drawn.mean()) < 5 / math.sqrt(size)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / size)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / size)
    correlations = np.corrcoef(drawn[:, :40], rowvar=False) - np.eye(40)
    assert np.abs(correlations).max() < 5.5 / math.sqrt(len(drawn))
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("responses", [1, 1000])
def test_many_responses_get_the_numbers_that_each_gets_alone(responses):
    index = np.arange(responses)
    seeds = index.astype(np.uint64) % 3
    drawn = uniforms(seeds, index, 3, 40)
    latents, first = normals_and_uniforms(seeds, index, 200, 40)
    assert drawn.shape == first.shape == (40, responses) and latents.shape == (responses, 200)
    for one in index[::97]:
        alone = index[one : one + 1]
        assert np.array_equal(drawn[:, [one]], uniforms(int(seeds[one]), alone, 3, 40))
        assert np.array_equal(latents[[one]], normals(int(seeds[one]), alone, 200))
