"""The graphs of DialogWAE and DialogWAE-GMP: generated latents, a decoder that starts at [z, c].

Batch normalisation stands there as in training's evaluation mode, by running statistics, and is
computed from the stored numbers, so that weights rounded to float16 give what the rounded model
gives. Neither prior nor posterior has a density: the sampler says NaN.
"""

from __future__ import annotations

import math

import onnx
from siserve.bundle.tensors import PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graphs
from siserve_training.export.dense import Gaussian, linear, normal_cdf, sample
from siserve_training.export.encoder import (
    begin,
    condition_size,
    finished,
    told_utterances,
)
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.recurrent import utterance_vectors
from siserve_training.export.sizes import AxisSizes
from siserve_training.export.steps import word_step
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["graphs"]

_TRAINING_ONLY = "critic."
_EPSILON = 1e-5  # of batch normalisation
_UNIFORM_MARGIN = 1e-6  # as in training


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of a DialogWAE (Gu et al. 2019).

    Args:
        model: its weights have the names of the training package's DialogWAE.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing, has no place in the graphs, or does not fit.
    """
    arrays = {n: a for n, a in model.arrays.items() if not n.endswith(".num_batches_tracked")}
    p = Parameters(arrays)
    sizes = _read_sizes(model, p)
    own = {
        PRIOR: _prior(model, weights, p, sizes),
        SI_SAMPLER: _si_sampler(model, weights, p, sizes),
        **_decoders(model, weights, p, sizes),
    }
    return finished(model, weights, p, sizes, own, _TRAINING_ONLY)


def _read_sizes(model: TrainedModel, p: Parameters) -> AxisSizes:
    latent = p.shape("prior_generator.out.bias")[0]
    components = p.shape("prior_net.mu.bias")[0] // latent
    return AxisSizes(
        condition=condition_size(model, p),
        latent=latent,
        noise=1,
        state=p.shape("decoder.gru.weight_hh_l0")[1],
        prior=latent + (components if components > 1 else 0),
    )


def _prior(
    model: TrainedModel, weights: WeightStore, p: Parameters, sizes: AxisSizes
) -> onnx.ModelProto:
    g, given = begin(weights, PRIOR)
    eps, components = given["eps_z"], sizes.prior - sizes.latent
    hidden = _hidden(g, p, "prior_net", given["c"])
    gaussian = _gaussian(g, p, "prior_net", hidden, sizes.latent, model.logvar_clamp)
    if components:
        eps, of_choice = g.ops("Split", 2, eps, g.integers(sizes.latent, components), axis=1)
        share = g.op("Tanh", _normed_linear(g, p, "prior_net.share", hidden))
        logits = linear(g, p, "prior_net.share_out", share)  # (R, K)
        gaussian = _choose(g, gaussian, components, g.op("Add", logits, _gumbel(g, of_choice)))
    z = _generator(g, p, "prior_generator", sample(g, gaussian, eps))
    return g.build(PRIOR, {"z": z}, sizes.by_axis())


def _si_sampler(
    model: TrainedModel, weights: WeightStore, p: Parameters, sizes: AxisSizes
) -> onnx.ModelProto:
    """Emit a draw of q(z|x,c) from eps_z alone; eps_lam is not looked at."""
    g, given = begin(weights, SI_SAMPLER)
    response = utterance_vectors(g, p, told_utterances(g, model, given["response"]))  # (R, F)
    hidden = _hidden(g, p, "posterior_net", response, given["c"])
    gaussian = _gaussian(g, p, "posterior_net", hidden, sizes.latent, model.logvar_clamp)
    z = _generator(g, p, "posterior_generator", sample(g, gaussian, given["eps_z"]))
    rows = g.op("Shape", given["c"], start=0, end=1)
    none = g.op("Expand", g.real(math.nan), rows)  # (R,)
    outputs = {"z": z, "log_q_z": none, "log_p_z": none}
    return g.build(SI_SAMPLER, outputs, sizes.by_axis())


def _decoders(
    model: TrainedModel, weights: WeightStore, p: Parameters, sizes: AxisSizes
) -> dict[Graph, onnx.ModelProto]:
    def first_state(g: GraphBuilder, c: Value, z: Value) -> Value:
        return g.op("Concat", z, c, axis=1)

    axes = sizes.by_axis()
    return decoder_graphs(weights, p, model.tokens, axes, first_state, word_step(p), False)


def _hidden(g: GraphBuilder, p: Parameters, name: str, *features: Value) -> Value:
    """Emit the two tanh layers of a noise network, (R, D)."""
    first = g.op("Tanh", _normed_linear(g, p, f"{name}.first", *features))
    return g.op("Tanh", _normed_linear(g, p, f"{name}.second", first))


def _gaussian(
    g: GraphBuilder, p: Parameters, name: str, hidden: Value, latent: int, clamp: float
) -> Gaussian:
    """Emit the parameters of K Gaussians side by side, (R, K*D)."""
    mu, logvar = (linear(g, p, f"{name}.{part}", hidden) for part in ("mu", "logvar"))
    if clamp:
        logvar = g.op("Clip", logvar, g.real(-clamp), g.real(clamp))
    return Gaussian(mu, logvar, latent)


def _choose(g: GraphBuilder, q: Gaussian, components: int, scores: Value) -> Gaussian:
    """Take the Gaussian with the highest score, (R, K*D) and (R, K) to (R, D)."""
    place = g.op("ArgMax", scores, axis=1, keepdims=1)  # (R, 1)
    mu, logvar = (
        g.op("GatherND", g.reshape(v, 0, components, q.latent), place, batch_dims=1)
        for v in (q.mu, q.logvar)
    )
    return Gaussian(mu, logvar, q.latent)


def _gumbel(g: GraphBuilder, eps: Value) -> Value:
    """Turn N(0, 1) numbers into standard Gumbel ones."""
    bounds = (g.real(_UNIFORM_MARGIN), g.real(1 - _UNIFORM_MARGIN))
    exponential = g.op("Neg", g.op("Log", g.op("Clip", normal_cdf(g, eps), *bounds)))
    return g.op("Neg", g.op("Log", exponential))


def _generator(g: GraphBuilder, p: Parameters, name: str, noise: Value) -> Value:
    """Emit a generator, (R, D) to (R, D)."""
    first = g.op("Relu", _normed_linear(g, p, f"{name}.first", noise))
    second = g.op("Relu", _normed_linear(g, p, f"{name}.second", first))
    return linear(g, p, f"{name}.out", second)


def _normed_linear(g: GraphBuilder, p: Parameters, name: str, *inputs: Value) -> Value:
    """Emit a linear layer and batch normalisation by running statistics.

    In float64 up to the subtraction of the mean, as in the model, and for the same reason.
    """

    def of_norm(part: str) -> Value:
        return g.weight(f"{name}.norm.{part}", p[f"{name}.norm.{part}"])

    joined = inputs[0] if len(inputs) == 1 else g.op("Concat", *inputs, axis=-1)
    kernel = g.weight(f"{name}.linear.kernel", p[f"{name}.linear.weight"].T)
    product = g.op("MatMul", g.cast(joined, "float64"), g.cast(kernel, "float64"))
    mean = g.cast(of_norm("running_mean"), "float64")
    centred = g.cast(g.op("Sub", product, mean), "float32")
    variance = g.op("Add", of_norm("running_var"), g.real(_EPSILON))
    scale = g.op("Div", of_norm("weight"), g.op("Sqrt", variance))
    return g.op("Add", g.op("Mul", centred, scale), of_norm("bias"))
