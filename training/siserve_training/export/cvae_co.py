"""The graphs of CVAE-CO: the decoder carries v = G(z) and c beside its state."""

from __future__ import annotations

import onnx
from siserve.bundle.tensors import PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graphs
from siserve_training.export.dense import Gaussian, linear, log_density, sample
from siserve_training.export.encoder import (
    begin,
    condition_size,
    finished,
)
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.recurrent import gates_of, gru_step, utterance_vectors
from siserve_training.export.sizes import AxisSizes
from siserve_training.export.softplus import softplus_head
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["graphs"]


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of a CVAE-CO (Shen et al. 2018).

    Args:
        model: its weights have the names of the training package's CVAECO.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing or has no place in the graphs.
    """
    emitter = _CVAECO(model, weights)
    p, sizes = emitter.parameters, emitter.sizes
    own = {
        PRIOR: emitter.prior(),
        SI_SAMPLER: emitter.sampler(),
        **emitter.decoders(),
    }
    return finished(model, weights, p, sizes, own)


class _CVAECO:
    """Emits one graph a method; all draw on the same weights."""

    def __init__(self, model: TrainedModel, weights: WeightStore) -> None:
        self._model = model
        self._weights = weights
        self.parameters = p = Parameters(model.arrays)
        latent = p.shape("prior_net.mean.bias")[0]
        self._hidden = p.shape("decoder.gru.weight_hh_l0")[1]
        self._constant = p.shape("decoder.init.weight")[1]  # [v, c]
        self.sizes = AxisSizes(
            condition=condition_size(model, p),
            latent=latent,
            noise=1,
            state=self._hidden + self._constant,
            prior=latent,
        )

    def prior(self) -> onnx.ModelProto:
        g, given = begin(self._weights, PRIOR)
        z = sample(g, self._prior(g, given["c"]), given["eps_z"])
        return g.build(PRIOR, {"z": z}, self.sizes.by_axis())

    def sampler(self) -> onnx.ModelProto:
        """Draw from q(z|x,c), a Gaussian: the noise of its parameters is not looked at."""
        g, given = begin(self._weights, SI_SAMPLER)
        response = utterance_vectors(g, self.parameters, given["response"])  # (R, F)
        q = self._head(g, "posterior_net", response, given["c"])
        z = sample(g, q, given["eps_z"])
        outputs = {
            "z": z,
            "log_q_z": log_density(g, q, z),
            "log_p_z": log_density(g, self._prior(g, given["c"]), z),
        }
        return g.build(SI_SAMPLER, outputs, self.sizes.by_axis())

    def decoders(self) -> dict[Graph, onnx.ModelProto]:
        p = self.parameters

        def first_state(g: GraphBuilder, c: Value, z: Value) -> Value:
            v = g.op("Tanh", linear(g, p, "rebuild_net", z))  # (R, F)
            told = g.op("Concat", v, c, axis=1)
            return g.op("Concat", g.op("Tanh", linear(g, p, "decoder.init", told)), told, axis=1)

        def step(b: GraphBuilder, token: Value, state: Value) -> tuple[Value, Value]:
            embedded = b.rows_of("embedding.weight", p["embedding.weight"], token)  # (R, W)
            parts = b.integers(self._hidden, self._constant)
            hidden, told = b.ops("Split", 2, state, parts, axis=1)
            given = b.op("Concat", embedded, told, axis=1)
            gates = gates_of(b, p, "decoder.gru", given)
            hidden = gru_step(b, p, "decoder.gru", gates, hidden, is_bounded=True)
            return hidden, b.op("Concat", hidden, told, axis=1)

        tokens, axes = self._model.tokens, self.sizes.by_axis()
        return decoder_graphs(self._weights, p, tokens, axes, first_state, step, True)

    def _prior(self, g: GraphBuilder, c: Value) -> Gaussian:
        return self._head(g, "prior_net", c)

    def _head(self, g: GraphBuilder, name: str, *features: Value) -> Gaussian:
        return softplus_head(g, self.parameters, name, features, self._model.logvar_clamp)
