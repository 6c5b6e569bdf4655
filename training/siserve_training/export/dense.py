"""Emitters of feed-forward parts: linear layers, Gaussian heads, log densities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.weights import FloatArray, Parameters

__all__ = [
    "Gaussian",
    "Noise",
    "first_draw",
    "gaussian_head",
    "linear",
    "log_density",
    "log_mean_exp",
    "sample",
]

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussians: means and log-variances, both (..., D), and D."""

    mu: Value
    logvar: Value
    latent: int


@dataclass(frozen=True)
class Noise:
    """Noise that a head takes as one more input, several draws a row: (R, A1, size)."""

    value: Value
    size: int


def linear(g: GraphBuilder, p: Parameters, name: str, *inputs: Value) -> Value:
    """Apply a linear layer to inputs that stand side by side along the last axis.

    The layer's weight, (out, in) in the model, is stored as its transpose, (in, out).
    """
    return _affine(g, name, "kernel", p[f"{name}.weight"].T, p[f"{name}.bias"], inputs)


def gaussian_head(
    g: GraphBuilder,
    p: Parameters,
    name: str,
    features: Sequence[Value],
    noise: Noise | None = None,
    logvar_clamp: float = 0.0,
) -> Gaussian:
    """Emit the parameters of a Gaussian: a linear layer, after a tanh layer if the model has one.

    Args:
        g: the graph.
        p: the model's weights; `name`.hidden is the tanh layer, `name`.out the linear one.
        name: path of the head in the model.
        features: inputs that stand side by side, each (R, ...).
        noise: the last input, or None.
        logvar_clamp: bound on the absolute log-variance, 0 for none.

    Returns:
        Batch shape (R,), or (R, A1) with noise.
    """
    has_hidden = f"{name}.hidden.weight" in p
    first = f"{name}.hidden" if has_hidden else f"{name}.out"
    if noise is None:
        projected = linear(g, p, first, *features)  # (R, F)
    else:
        projected = _linear_with_noise(g, p, first, features, noise)  # (R, A1, F)
    if has_hidden:
        projected = linear(g, p, f"{name}.out", g.op("Tanh", projected))
    latent = p.shape(f"{name}.out.bias")[0] // 2
    mu, logvar = g.ops("Split", 2, projected, g.integers(latent, latent), axis=-1)
    if logvar_clamp:
        logvar = g.op("Clip", logvar, g.real(-logvar_clamp), g.real(logvar_clamp))
    return Gaussian(mu, logvar, latent)


def sample(g: GraphBuilder, q: Gaussian, eps_z: Value) -> Value:
    """Emit mu + sigma * eps_z."""
    sigma = g.op("Exp", g.op("Mul", q.logvar, g.real(0.5)))
    return g.op("Add", q.mu, g.op("Mul", sigma, eps_z))


def first_draw(g: GraphBuilder, q: Gaussian) -> Gaussian:
    """Take the first of several Gaussians a row, batch shape (R, A1) to (R,)."""
    mu, logvar = (g.op("Gather", v, g.integer(0), axis=1) for v in (q.mu, q.logvar))
    return Gaussian(mu, logvar, q.latent)


def log_density(g: GraphBuilder, q: Gaussian, z: Value) -> Value:
    """Emit log q(z) in nats, summed over the last axis; leading axes broadcast.

    The sum is a product with ones: onnxruntime's ReduceSum adds in an order that depends on where
    a row happens to lie in memory.
    """
    shift = g.op("Sub", z, q.mu)
    squares = g.op("Mul", g.op("Mul", shift, shift), g.op("Exp", g.op("Neg", q.logvar)))
    terms = g.op("Add", g.op("Add", squares, q.logvar), g.real(_LOG_2PI))  # (..., D)
    ones = g.op("Expand", g.real(-0.5), g.integers(q.latent, 1))
    return g.op("Squeeze", g.op("MatMul", terms, ones), g.integers(-1))


def log_mean_exp(g: GraphBuilder, log_values: Value) -> Value:
    """Emit log(mean(exp(.))) over the last axis by way of the largest value, (R, A1) to (R,).

    The largest value's log-softmax is itself minus the log of the sum, and bit for bit the same
    whatever the other rows are, as onnxruntime's Log is not.
    """
    log_softmax = g.op("LogSoftmax", log_values, axis=-1)
    largest, of_largest = (g.reduce("ReduceMax", v, -1) for v in (log_values, log_softmax))  # (R,)
    count = g.cast(g.op("Shape", log_values, start=1, end=2), "float32")
    return g.op("Sub", g.op("Sub", largest, of_largest), g.op("Log", count))


def _linear_with_noise(
    g: GraphBuilder, p: Parameters, name: str, features: Sequence[Value], noise: Noise
) -> Value:
    """Form the product with the features once a row, that with the noise once a draw."""
    kernel = p[f"{name}.weight"].T
    of_features, of_noise = kernel[: -noise.size], kernel[-noise.size :]
    bias = p[f"{name}.bias"]
    shared = _affine(g, name, "kernel_features", of_features, bias, features)  # (R, F)
    own = g.op("MatMul", noise.value, g.weight(f"{name}.kernel_noise", of_noise))  # (R, A1, F)
    return g.op("Add", g.unsqueeze(shared, 1), own)


def _affine(
    g: GraphBuilder,
    name: str,
    stored_as: str,
    kernel: FloatArray,
    bias: FloatArray,
    inputs: Sequence[Value],
) -> Value:
    joined = inputs[0] if len(inputs) == 1 else g.op("Concat", *inputs, axis=-1)
    product = g.op("MatMul", joined, g.weight(f"{name}.{stored_as}", kernel))
    return g.op("Add", product, g.weight(f"{name}.bias", bias))
