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
    "choose_component",
    "first_draw",
    "gaussian_head",
    "linear",
    "log_density",
    "log_mean_exp",
    "log_sum_exp",
    "mixture_head",
    "normal_cdf",
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
    """Noise that a head takes as one more input, several draws a row: (R, A1, size).

    Its part of the first layer is added to that of the features, or multiplies it as 1 + part.
    """

    value: Value
    size: int
    multiplies: bool = False


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
    """Emit log(mean(exp(.))) over the last axis, (R, A1) to (R,)."""
    count = g.cast(g.op("Shape", log_values, start=1, end=2), "float32")
    return g.op("Sub", log_sum_exp(g, log_values), g.op("Log", count))


def log_sum_exp(g: GraphBuilder, log_values: Value) -> Value:
    """Emit log(sum(exp(.))) over the last axis, (R, S) to (R,).

    The largest value's log-softmax is itself minus this, and bit for bit the same whatever the
    other rows are, as onnxruntime's Log is not.
    """
    log_softmax = g.op("LogSoftmax", log_values, axis=-1)
    largest, of_largest = (g.reduce("ReduceMax", v, -1) for v in (log_values, log_softmax))  # (R,)
    return g.op("Sub", largest, of_largest)


def mixture_head(
    g: GraphBuilder, p: Parameters, name: str, features: Sequence[Value], logvar_clamp: float = 0.0
) -> tuple[Gaussian, Value]:
    """Emit an explicit mixture: Gaussians of batch shape (R, S), and log weights, (R, S)."""
    hidden = g.op("Tanh", linear(g, p, f"{name}.hidden", *features))
    count = p.shape(f"{name}.weight.bias")[0]
    latent = p.shape(f"{name}.out.bias")[0] // (2 * count)
    parameters = g.reshape(linear(g, p, f"{name}.out", hidden), 0, count, 2 * latent)
    mu, logvar = g.ops("Split", 2, parameters, g.integers(latent, latent), axis=-1)
    if logvar_clamp:
        logvar = g.op("Clip", logvar, g.real(-logvar_clamp), g.real(logvar_clamp))
    log_weights = g.op("LogSoftmax", linear(g, p, f"{name}.weight", hidden), axis=-1)
    return Gaussian(mu, logvar, latent), log_weights


def normal_cdf(g: GraphBuilder, eps: Value) -> Value:
    """Turn N(0, 1) numbers into uniform ones."""
    erf = g.op("Erf", g.op("Mul", eps, g.real(math.sqrt(0.5))))
    return g.op("Mul", g.op("Add", erf, g.real(1.0)), g.real(0.5))


def choose_component(g: GraphBuilder, q: Gaussian, log_weights: Value, uniform: Value) -> Gaussian:
    """Choose one of S Gaussians a row by inverse CDF, batch shape (R, S) and (R,) to (R,)."""
    ends = g.op("CumSum", g.op("Exp", log_weights), g.integer(1))  # (R, S)
    is_passed = g.op("LessOrEqual", ends, g.unsqueeze(uniform, 1))
    place = g.reduce("ReduceSum", g.cast(is_passed, "int64"), 1, keep=True)  # (R, 1)
    last = g.op("Sub", g.op("Shape", log_weights, start=1, end=2), g.integers(1))
    place = g.op("Min", place, last)
    mu, logvar = (g.op("GatherND", v, place, batch_dims=1) for v in (q.mu, q.logvar))
    return Gaussian(mu, logvar, q.latent)


def _linear_with_noise(
    g: GraphBuilder, p: Parameters, name: str, features: Sequence[Value], noise: Noise
) -> Value:
    """Form the product with the features once a row, that with the noise once a draw."""
    kernel = p[f"{name}.weight"].T
    of_features, of_noise = kernel[: -noise.size], kernel[-noise.size :]
    bias = p[f"{name}.bias"]
    shared = _affine(g, name, "kernel_features", of_features, bias, features)  # (R, F)
    own = g.op("MatMul", noise.value, g.weight(f"{name}.kernel_noise", of_noise))  # (R, A1, F)
    if noise.multiplies:
        return g.op("Mul", g.unsqueeze(shared, 1), g.op("Add", own, g.real(1.0)))
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
