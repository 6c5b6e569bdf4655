"""The least time that a decoder step can take on this machine, out of rates measured beside it.

A step reads every weight of the recurrent layer and of the output layer once and multiplies it with
every row. So it takes at least the bytes over the read bandwidth of a working set of that size, and
the operations over the best rate at which onnxruntime, or a kernel of our own that does nothing
else, multiplies matrices in that precision.
Sampling, tanh and the embedding's rows are left out, which makes the floor lower.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnxruntime

from siserve.bench.onnx_bytes import product_model
from siserve.serving.fused.cpu import CpuDecoder

__all__ = ["Rates", "StepWork", "floor_seconds", "measure_rates"]

Precision = Literal["fp32", "int8"]

_BYTES_OF_WEIGHT = {"fp32": 4, "int8": 1}
#: (rows, inner, columns): the output layer's shape at several batches, and a friendly cube.
_SHAPES = ((80, 400, 10_000), (320, 400, 10_000), (1024, 1024, 1024))
_ROWS_OF_KERNELS = (80, 320)
_Read = Callable[[], object]


@dataclass(frozen=True)
class StepWork:
    """What one step of one row multiplies.

    Attributes:
        weights: numbers that every step reads.
    """

    weights: int

    def bytes(self, precision: Precision) -> int:
        """Bytes of weights that a step reads, whatever the rows."""
        return self.weights * _BYTES_OF_WEIGHT[precision]

    def operations(self, rows: int) -> int:
        """Multiplications and additions of a step."""
        return 2 * self.weights * rows


@dataclass(frozen=True)
class Rates:
    """What the machine did at best.

    Attributes:
        bandwidth: bytes read a second.
        arithmetic: operations a second; a multiplication and an addition are two.
    """

    bandwidth: float
    arithmetic: float


def floor_seconds(work: StepWork, rows: int, precision: Precision, rates: Rates) -> float:
    """Return the least time of a step."""
    return max(work.bytes(precision) / rates.bandwidth, work.operations(rows) / rates.arithmetic)


def measure_rates(
    size: int,
    precision: Precision,
    threads: int,
    seconds: float = 0.05,
    kernels: CpuDecoder | None = None,
) -> dict[str, Any]:
    """Measure both rates.

    Args:
        size: bytes of the working set that is read.
        precision: of the products.
        threads: of either.
        seconds: each single measurement takes about as long.
        kernels: in that precision, if they run on this machine.

    Returns:
        The fields of Rates.
    """
    bandwidth = max(
        *(_read_rate(read, size, threads, seconds) for read in (_read_largest, _read_dot)),
        _stream_rate(size, precision, threads, seconds),
    )
    rates = [_product_rate(*shape, precision, threads, seconds) for shape in _SHAPES]
    if kernels is not None:
        rates += [_kernel_rate(kernels, rows, threads, seconds) for rows in _ROWS_OF_KERNELS]
    arithmetic = max(rates)
    return asdict(Rates(bandwidth, arithmetic))


def _read_largest(size: int) -> _Read:
    values = np.ones(size // 4, dtype=np.float32)
    return values.max


def _read_dot(size: int) -> _Read:
    one, other = (np.ones(size // 8, dtype=np.float32) for _ in range(2))
    return lambda: np.dot(one, other)


def _read_rate(make: Callable[[int], _Read], size: int, threads: int, seconds: float) -> float:
    """Read a working set again and again, each thread its own part; numpy lets go of the GIL."""
    reads = [make(size // threads) for _ in range(threads)]
    return size / threads * _calls_a_second(reads, seconds)


def _kernel_rate(kernels: CpuDecoder, rows: int, threads: int, seconds: float) -> float:
    """Multiply in each thread as many rows with the output layer's weights."""
    calls = _calls_a_second([partial(kernels.multiply, rows)] * threads, seconds)
    return calls * kernels.operations(rows)


def _calls_a_second(works: Sequence[_Read], seconds: float) -> float:
    """Call in as many threads, each again and again; return the sum of their best rates."""
    rates: list[float] = []

    def run(work: _Read) -> None:
        rates.append(1 / _seconds_of(work, seconds))

    runners = [threading.Thread(target=run, args=(work,)) for work in works]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    return sum(rates)


def _stream_rate(size: int, precision: Precision, threads: int, seconds: float) -> float:
    """Let onnxruntime multiply one row with weights of this size: it reads them once."""
    weights = size // _BYTES_OF_WEIGHT[precision]
    inner = 400
    run = _product(1, inner, weights // inner, precision, threads)
    return size / _seconds_of(run, seconds)


def _product_rate(
    rows: int, inner: int, columns: int, precision: Precision, threads: int, seconds: float
) -> float:
    run = _product(rows, inner, columns, precision, threads)
    return 2 * rows * inner * columns / _seconds_of(run, seconds)


def _product(rows: int, inner: int, columns: int, precision: Precision, threads: int) -> _Read:
    rng = np.random.default_rng(0)
    x: np.ndarray[Any, Any]
    if precision == "int8":
        x = rng.integers(0, 255, (rows, inner), dtype=np.uint8)
        model = product_model(rng.integers(-127, 127, (inner, columns), dtype=np.int8))
    else:
        x = rng.standard_normal((rows, inner), dtype=np.float32)
        model = product_model(rng.standard_normal((inner, columns), dtype=np.float32))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _seconds_of(run: _Read, seconds: float) -> float:
    """Return the least time of a call within a while: a floor is what can be had."""
    run()
    return min(_times(run, seconds))


def _times(run: _Read, seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        run()
        now = time.perf_counter()
        yield now - started
        if now > end:
            return
