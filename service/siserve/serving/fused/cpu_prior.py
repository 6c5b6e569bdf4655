"""A Gaussian prior by kernels of our own on CPUs with AVX-512, in float32."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Sizes
from siserve.serving.fused.native import (
    LANES,
    CpuLibrary,
    CpuMemory,
    in_blocks,
    kind_of,
    place_of,
    up_to,
)
from siserve.serving.fused.weights import Floats, NotFused, filled
from siserve.serving.graphs import AnyArray, Runs

__all__ = ["CpuPrior"]

_VECTORS = 2  # of a block, as in prior.cpp
_TOLERANCE = 1e-4  # of z, of its size where that is above 1; the embedded model shows 1e-6
_SCALES = (0.3, 1.0, 10.0)  # of the c that are tried
_ROWS = 16  # of each


class CpuPrior:
    """Answers as prior.onnx does; several threads may share it.

    Graphs may bound log-variances, by a bound that no weight tells. So a few c are tried, and for
    rows of which a log-variance is larger than those the graph answers: for them alone, so that no
    row's bits depend on the others.

    Args:
        library: the kernels.
        weights: the content of weights.safetensors, in float32.
        sizes: of the model.
        graph: prior.onnx.

    Raises:
        NotFused: if the prior is no Gaussian with one tanh layer, or the graph says otherwise.
    """

    def __init__(
        self, library: CpuLibrary, weights: Mapping[str, Floats], sizes: Sizes, graph: Runs
    ) -> None:
        self._library, self._graph, self._memory = library, graph, CpuMemory()
        self._latent = sizes.latent
        first, second = _layers(weights, sizes)
        hidden, columns = (up_to(len(bias), LANES * _VECTORS) for _, bias in (first, second))
        kind = kind_of(first[0], second[0])

        def hold(layer: tuple[Floats, Floats], columns: int, inputs: int) -> int:
            matrix, bias = filled(layer[0], columns, inputs), filled(layer[1], columns)
            return self._memory.hold(in_blocks(matrix, bias, _VECTORS, kind))

        self._prior = _Prior(
            context=sizes.context,
            hidden=hidden,
            latent=sizes.latent,
            columns=columns,
            kind=kind,
            bound=np.inf,
            of_context=hold(first, hidden, sizes.context),
            of_hidden=hold(second, columns, hidden),
        )
        self._prior.bound = self._try(first, second)

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return z, (R, D), of c, (R, C), and noise, (R, D)."""
        c, noise = (np.ascontiguousarray(inputs[name], np.float32) for name in ("c", "eps_z"))
        if c.shape != (len(noise), self._prior.context) or noise.shape[1] != self._latent:
            return self._graph.run(inputs)  # which tells what is wrong with them
        z, are_beyond = np.empty_like(noise), np.empty(len(c), np.bool_)
        pointers = [place_of(array) for array in (c, noise, z, are_beyond)]
        self._library.draw_prior(self._prior, _Draws(len(c), *pointers))
        if are_beyond.any():
            told = {"c": c[are_beyond], "eps_z": noise[are_beyond]}
            (z[are_beyond],) = self._graph.run(told)
        return [z]

    def _try(self, first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> float:
        """Return the largest log-variance up to which the graph gives the same."""
        rng, shape = np.random.default_rng(0), (_ROWS, self._prior.context)
        c = np.concatenate([scale * rng.standard_normal(shape, np.float32) for scale in _SCALES])
        told = np.tanh(c @ first[0].T + first[1]) @ second[0].T + second[1]
        peaks = np.abs(told[:, self._latent :]).max(axis=1)
        inputs = {"c": c, "eps_z": np.ones((len(c), self._latent), np.float32)}
        got, expected = (each.run(inputs)[0] for each in (self, self._graph))
        off = (np.abs(got - expected) / np.maximum(np.abs(expected), 1)).max(axis=1)
        least_off = peaks[~(off < _TOLERANCE)].min(initial=np.inf)
        bound = float(peaks[peaks < least_off].max(initial=0.0))
        if not bound >= np.sort(peaks[:_ROWS])[_ROWS // 2]:  # np.median loads all of numpy.ma
            raise NotFused(f"they differ from its prior by {off.max():.2g}")
        return bound


class _Prior(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("context", "hidden", "latent", "columns", "kind")),
        ("bound", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("of_context", "of_hidden")),
    ]


class _Draws(ctypes.Structure):
    _fields_ = [
        ("rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("c", "noise", "z", "are_beyond")),
    ]


def _layers(
    weights: Mapping[str, NDArray[Any]], sizes: Sizes
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Return matrix, (outputs, inputs), and bias of the tanh layer and of the linear one."""
    parts = [(layer, part) for layer in ("hidden", "out") for part in ("kernel", "bias")]
    names = {f"prior_net.{layer}.{part}" for layer, part in parts}
    if (found := {name for name in weights if name.startswith("prior_net.")}) != names:
        odd = min(found ^ names)
        raise NotFused(f"the prior {'has' if odd in found else 'has no'} {odd}")
    first, second = (
        (weights[f"prior_net.{layer}.kernel"].T, weights[f"prior_net.{layer}.bias"])
        for layer in ("hidden", "out")
    )
    shapes = first[0].shape[1], second[0].shape, sizes.prior_noise
    if shapes != (sizes.context, (2 * sizes.latent, len(first[1])), sizes.latent):
        raise NotFused("its prior takes or gives something else")
    return first, second
