"""How times become figures: who goes first, ratios, percentiles, and the floor."""

import math

import numpy as np
import onnxruntime
import pytest
from siserve.bench.onnx_bytes import product_model
from siserve.bench.roofline import Rates, StepWork, floor_seconds, measure_rates
from siserve.bench.rounds import alternating, median_ratio, percentile


def test_every_round_visits_all_and_turns_the_order_round() -> None:
    assert list(alternating("ABC", 3)) == [(0, "A"), (0, "B"), (0, "C")] + [
        (1, "C"),
        (1, "B"),
        (1, "A"),
    ] + [(2, "A"), (2, "B"), (2, "C")]


def test_a_ratio_is_of_one_round_and_a_machine_that_slows_down_changes_none() -> None:
    assert median_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == 2.0
    assert median_ratio([3.0, 40.0, 500.0], [1.0, 10.0, 100.0]) == 4.0
    with pytest.raises(ValueError):
        median_ratio([1.0, 2.0], [1.0])


def test_a_percentile_is_a_value_that_enough_values_do_not_exceed() -> None:
    values = sorted(float(value) for value in range(1, 101))
    assert [percentile(values, share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [
        1.0,
        50.0,
        95.0,
        99.0,
        100.0,
    ]
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))
    assert percentile([1.0, 2.0], 0.51) == 2.0  # half of the values is less than 51 %


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_product_that_is_timed_is_a_product(dtype: str) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-9, 9, (5, 130)).astype(dtype)
    x = rng.integers(0, 9, (3, 5)).astype("float32" if dtype == "float32" else "uint8")
    session = onnxruntime.InferenceSession(
        product_model(weights), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(y, x.astype(np.int64) @ weights.astype(np.int64))


def test_the_floor_is_bandwidth_for_few_rows_and_arithmetic_for_many() -> None:
    work, rates = StepWork(1_000_000), Rates(bandwidth=4e9, arithmetic=20e9)
    assert floor_seconds(work, 1, "fp32", rates) == 1e-3  # 4 MB at 4 GB/s
    assert floor_seconds(work, 1, "int8", rates) == 0.25e-3
    assert floor_seconds(work, 100, "fp32", rates) == 10e-3  # 200 million operations at 20 a ns
    times = [floor_seconds(work, rows, "fp32", rates) for rows in (1, 10, 100, 1000)]
    assert times == sorted(times)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rates_are_of_this_machine(precision: str) -> None:
    rates = Rates(**measure_rates(1 << 20, precision, 1, seconds=0.001))  # type: ignore[arg-type]
    assert 1e7 < rates.bandwidth < 1e13
    assert 1e7 < rates.arithmetic < 1e15
