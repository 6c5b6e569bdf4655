"""Emitters of q(z|x): a Gaussian, an explicit mixture, or a semi-implicit posterior's estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
from siserve.bundle.tensors import POSTERIOR, Graph

from siserve_training.export.dense import (
    Gaussian,
    Noise,
    choose_component,
    first_draw,
    gaussian_head,
    log_density,
    log_mean_exp,
    log_sum_exp,
    mixture_head,
    normal_cdf,
)
from siserve_training.export.encoder import begin
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["drawn_posterior", "mixture_graph"]

#: (z) to log q(z|x), (R, D) to (R,).
LogDensity = Callable[[Value], Value]
#: (graph, its inputs by name) to the inputs of the posterior's head, each (R, ...).
Features = Callable[[GraphBuilder, Mapping[str, Value]], Sequence[Value]]

_NET = "posterior_net"


def drawn_posterior(
    g: GraphBuilder, p: Parameters, features: Sequence[Value], noise: Noise, clamp: float
) -> tuple[Gaussian, LogDensity]:
    """Return the component that makes z, and the density; the weights tell which posterior it is.

    Args:
        g: the graph.
        p: the model's weights, the head's under ``posterior_net``.
        features: inputs that stand side by side, each (R, ...).
        noise: eps_lam, (R, A1, E), of size 0 for a Gaussian; a mixture chooses by its first number.
        clamp: bound on the absolute log-variances, 0 for none.
    """
    if _is_mixture(p):
        return _explicit(g, p, features, noise.value, clamp)
    if not noise.size:
        q = gaussian_head(g, p, _NET, features, logvar_clamp=clamp)
        return q, lambda z: log_density(g, q, z)
    mixture = gaussian_head(g, p, _NET, features, noise, clamp)

    def log_q(z: Value) -> Value:
        return log_mean_exp(g, log_density(g, mixture, g.unsqueeze(z, 1)))  # (R, A1) to (R,)

    return first_draw(g, mixture), log_q


def mixture_graph(
    weights: WeightStore, p: Parameters, features: Features, clamp: float, sizes: Mapping[str, int]
) -> dict[Graph, onnx.ModelProto]:
    """Emit posterior.onnx of an explicit mixture; no graph for another posterior.

    Args:
        weights: the store that all graphs share.
        p: the model's weights, the head's under ``posterior_net``.
        features: what the head is told.
        clamp: bound on the absolute log-variances, 0 for none.
        sizes: of the model, by axis name.
    """
    if not _is_mixture(p):
        return {}
    g, given = begin(weights, POSTERIOR)
    mixture, log_weights = mixture_head(g, p, _NET, features(g, given), clamp)
    outputs = {"mu": mixture.mu, "logvar": mixture.logvar, "log_weights": log_weights}
    count = p.shape(f"{_NET}.weight.bias")[0]
    return {POSTERIOR: g.build(POSTERIOR, outputs, {**sizes, "S": count})}


def _is_mixture(p: Parameters) -> bool:
    return f"{_NET}.weight.weight" in p


def _explicit(
    g: GraphBuilder, p: Parameters, features: Sequence[Value], eps_lam: Value, clamp: float
) -> tuple[Gaussian, LogDensity]:
    mixture, log_weights = mixture_head(g, p, _NET, features, clamp)  # (R, S), (R, S)
    first = g.op("Gather", g.op("Gather", eps_lam, g.integer(0), axis=1), g.integer(0), axis=1)
    own = choose_component(g, mixture, log_weights, normal_cdf(g, first))  # (R,)

    def log_q(z: Value) -> Value:
        each = g.op("Add", log_density(g, mixture, g.unsqueeze(z, 1)), log_weights)
        return log_sum_exp(g, each)

    return own, log_q
