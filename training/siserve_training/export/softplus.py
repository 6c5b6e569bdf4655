"""Emitter of Gaussian heads whose variance is 0.1 softplus of a linear layer.

onnxruntime's own Softplus and Log treat the last few numbers of a tensor otherwise than those
before, so that a row's answer would depend on how many rows there are, if by the last bit only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from siserve_training.export.dense import Gaussian, linear
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.weights import Parameters

__all__ = ["softplus_head"]

_LOG_SCALE = math.log(0.1)
_LEAST_INPUT = -80.0
#: Terms of the series of artanh; what is left out at its end, 1/3, is below 1e-8.
_TERMS = 8


def softplus_head(
    g: GraphBuilder, p: Parameters, name: str, features: Sequence[Value], logvar_clamp: float
) -> Gaussian:
    """Emit the parameters of a Gaussian, two tanh layers before them.

    Args:
        g: the graph.
        p: the model's weights; `name` is the path of a SoftplusHead.
        name: path of the head in the model.
        features: inputs that stand side by side, each (R, ...).
        logvar_clamp: bound on the absolute log-variance, 0 for none.
    """
    hidden = g.op("Tanh", linear(g, p, f"{name}.first", *features))
    hidden = g.op("Tanh", linear(g, p, f"{name}.second", hidden))
    softplus = _softplus(g, g.op("Max", linear(g, p, f"{name}.variance", hidden), _least(g)))
    logvar = g.op("Add", _log(g, softplus), g.real(_LOG_SCALE))
    if logvar_clamp:
        logvar = g.op("Clip", logvar, g.real(-logvar_clamp), g.real(logvar_clamp))
    mu = linear(g, p, f"{name}.mean", hidden)
    return Gaussian(mu, logvar, p.shape(f"{name}.mean.bias")[0])


def _least(g: GraphBuilder) -> Value:
    return g.real(_LEAST_INPUT)


def _softplus(g: GraphBuilder, x: Value) -> Value:
    """Emit max(x, 0) + log(1 + u) with u = exp(-|x|) and log(1 + u) = 2 artanh(u / (2 + u))."""
    u = g.op("Exp", g.op("Neg", g.op("Abs", x)))
    t = g.op("Div", u, g.op("Add", u, g.real(2.0)))  # 0 to 1/3
    square = g.op("Mul", t, t)
    series = g.real(1 / (2 * _TERMS - 1))
    for term in range(_TERMS - 2, -1, -1):
        series = g.op("Add", g.op("Mul", series, square), g.real(1 / (2 * term + 1)))
    log_1_u = g.op("Mul", g.op("Mul", series, t), g.real(2.0))
    return g.op("Add", g.op("Relu", x), log_1_u)


def _log(g: GraphBuilder, value: Value) -> Value:
    """Emit the logarithm, (R, D), as that of a sum over one number, which is taken one by one."""
    return g.reduce("ReduceLogSum", g.unsqueeze(value, 2), 2)
