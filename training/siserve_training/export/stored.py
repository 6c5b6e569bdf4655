"""Weights of a bundle back to a model's own names and layouts: what the emitters do, undone.

Every layout is a transposition, a reordering of gates or a cut, so nothing is lost, and weights
that are stored in float16 come out as the numbers that they went in as.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import safetensors.numpy

from siserve_training.export.errors import ExportError
from siserve_training.export.weights import DType, FloatArray

__all__ = ["read_stored_weights"]

Arrays = dict[str, FloatArray]

#: Where ONNX's gates z, r, h and i, o, f, g are torch's r, z, n and i, f, g, o.
_GATES = {3: (1, 0, 2), 4: (0, 2, 3, 1)}
_EMBEDDINGS = ("word_embeddings", "position_embeddings")


def read_stored_weights(path: Path) -> tuple[Arrays, DType]:
    """Read weights.safetensors.

    Returns:
        Weights in float32 by their names in the model's state dict, those that only training needs
        left out, and the type that they are stored in.

    Raises:
        ExportError: if they are stored in several types or in another one.
    """
    stored = safetensors.numpy.load_file(path)
    types = {str(array.dtype) for array in stored.values()}
    if len(types) != 1 or not types <= {"float32", "float16"}:
        raise ExportError(
            f"{path.name} holds numbers of type {', '.join(sorted(types))}; expected all in "
            "float32 or all in float16, as this siserve writes them"
        )
    floats = {name: array.astype(np.float32) for name, array in stored.items()}
    arrays: Arrays = {}
    for name in floats:
        path_of_layer, _, kind = name.rpartition(".")
        arrays |= _LAYOUTS.get(kind, _as_it_is)(floats, path_of_layer, kind)
    return arrays, cast(DType, types.pop())


def _as_it_is(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    return {f"{layer}.{kind}": stored[f"{layer}.{kind}"]}


def _kernel(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    return {f"{layer}.weight": stored[f"{layer}.{kind}"].T}


def _divided_kernel(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    parts = [stored[f"{layer}.kernel_{part}"] for part in ("features", "noise")]
    return {f"{layer}.weight": np.concatenate(parts).T}


def _step_kernel(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    return {f"{layer}.weight_{kind[-2:]}_l0": stored[f"{layer}.{kind}"].T}


def _step_bias(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    return {f"{layer}.{kind}_l0": stored[f"{layer}.{kind}"]}


def _operator_weight(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    part = "ih" if kind == "W" else "hh"
    hidden = stored[f"{layer}.R"].shape[-1]
    both = zip(("", "_reverse"), stored[f"{layer}.{kind}"], strict=False)
    return {f"{layer}.weight_{part}_l0{suffix}": _in_order(rows, hidden) for suffix, rows in both}


def _operator_biases(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    hidden = stored[f"{layer}.R"].shape[-1]
    return {
        f"{layer}.bias_{part}_l0{suffix}": _in_order(half, hidden)
        for suffix, biases in zip(("", "_reverse"), stored[f"{layer}.B"], strict=False)
        for part, half in zip(("ih", "hh"), np.split(biases, 2), strict=True)
    }


def _in_order(rows: FloatArray, hidden: int) -> FloatArray:
    """Put gates into torch's order; a GRU has three, an LSTM four."""
    gates = np.split(rows, len(rows) // hidden)
    return np.concatenate([gates[place] for place in _GATES[len(gates)]])


def _table(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    return {f"{layer}.{kind}.weight": stored[f"{layer}.{kind}"]}


def _first_row(stored: Mapping[str, FloatArray], layer: str, kind: str) -> Arrays:
    return {f"{layer}.token_type_embeddings.weight": stored[f"{layer}.{kind}"][None]}


_LAYOUTS: dict[str, Callable[[Mapping[str, FloatArray], str, str], Arrays]] = {
    "kernel": _kernel,
    "kernel_features": _divided_kernel,
    "kernel_noise": _divided_kernel,
    "kernel_ih": _step_kernel,
    "kernel_hh": _step_kernel,
    "bias_ih": _step_bias,
    "bias_hh": _step_bias,
    "W": _operator_weight,
    "R": _operator_weight,
    "B": _operator_biases,
    **dict.fromkeys(_EMBEDDINGS, _table),
    "first_token_type": _first_row,
}
