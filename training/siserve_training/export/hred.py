"""The graphs of HRED: a latent that is always 0, and a decoder that starts from c alone."""

from __future__ import annotations

import onnx
from siserve.bundle.tensors import PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graphs
from siserve_training.export.dense import linear
from siserve_training.export.encoder import (
    begin,
    condition_size,
    finished,
)
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.sizes import AxisSizes
from siserve_training.export.steps import word_step
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["graphs"]


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of an HRED.

    Args:
        model: its weights have the names of the training package's HRED.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing or has no place in the graphs.
    """
    p = Parameters(model.arrays)
    state = p.shape("decoder.gru.weight_hh_l0")[1]
    sizes = AxisSizes(condition=condition_size(model, p), latent=1, noise=1, state=state, prior=1)
    own = {
        PRIOR: _prior(weights, sizes),
        SI_SAMPLER: _sampler(weights, sizes),
        **_decoders(model, weights, p, sizes),
    }
    return finished(model, weights, p, sizes, own)


def _prior(weights: WeightStore, sizes: AxisSizes) -> onnx.ModelProto:
    g, given = begin(weights, PRIOR)
    return g.build(PRIOR, {"z": _zeros_like(g, given["eps_z"])}, sizes.by_axis())


def _sampler(weights: WeightStore, sizes: AxisSizes) -> onnx.ModelProto:
    g, given = begin(weights, SI_SAMPLER)
    z = _zeros_like(g, given["eps_z"])  # (R, 1)
    certain = g.op("Squeeze", z, g.integers(1))  # (R,)
    outputs = {"z": z, "log_q_z": certain, "log_p_z": certain}
    return g.build(SI_SAMPLER, outputs, sizes.by_axis())


def _zeros_like(g: GraphBuilder, value: Value) -> Value:
    return g.op("Expand", g.real(0.0), g.op("Shape", value))


def _decoders(
    model: TrainedModel, weights: WeightStore, p: Parameters, sizes: AxisSizes
) -> dict[Graph, onnx.ModelProto]:
    def first_state(g: GraphBuilder, c: Value, z: Value) -> Value:
        return linear(g, p, "decoder.init", c)

    axes = sizes.by_axis()
    return decoder_graphs(weights, p, model.tokens, axes, first_state, word_step(p), False)
