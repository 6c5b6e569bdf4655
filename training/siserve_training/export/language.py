"""The graphs of a sentence VAE: no context, prior N(0, I), an LSTM on each side of the latent.

A semi-amortised model's sampler is its encoder's posterior, since refinement wants gradients;
sampling from the prior is the whole model's.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from siserve.bundle.tensors import CONTEXT_ENCODER, PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graphs
from siserve_training.export.dense import Gaussian, Noise, log_density, sample
from siserve_training.export.encoder import begin, finished
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.lstm import lstm_last_state, lstm_step
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.posterior import drawn_posterior, mixture_graph
from siserve_training.export.recurrent import count_real
from siserve_training.export.sizes import AxisSizes
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["graphs"]


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of a sentence VAE.

    Args:
        model: its weights have the names of the training package's LanguageModel.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing or has no place in the graphs.
    """
    emitter = _SentenceVAE(model, weights)
    own = {
        CONTEXT_ENCODER: emitter.no_context(),
        PRIOR: emitter.prior(),
        SI_SAMPLER: emitter.sampler(),
        **emitter.posterior(),
        **emitter.decoders(),
    }
    return finished(model, weights, emitter.parameters, emitter.sizes, own)


class _SentenceVAE:
    """Emits one graph a method; all draw on the same weights."""

    def __init__(self, model: TrainedModel, weights: WeightStore) -> None:
        self._model = model
        self._weights = weights
        self.parameters = p = Parameters(model.arrays)
        hidden, self._latent = p.shape("decoder.init.weight")
        self._hidden = hidden
        is_mixture = "posterior_net.weight.weight" in p
        first = "hidden" if "posterior_net.hidden.weight" in p else "out"
        encoded = p.shape("reader.lstm.weight_hh_l0")[1]
        extra = p.shape(f"posterior_net.{first}.weight")[1] - encoded
        self._noise = 0 if is_mixture else extra
        self.sizes = AxisSizes(
            condition=1,
            latent=self._latent,
            noise=max(1, self._noise),
            state=2 * hidden + self._latent,
            prior=self._latent,
        )

    def no_context(self) -> onnx.ModelProto:
        """Give 0 for every context, whatever it holds, (B, 1)."""
        g, given = begin(self._weights, CONTEXT_ENCODER)
        used = g.cast(g.op("Mul", given["topic"], g.integer(0)), "float32")
        return g.build(CONTEXT_ENCODER, {"c": g.unsqueeze(used, 1)}, self.sizes.by_axis())

    def prior(self) -> onnx.ModelProto:
        """Give the noise itself."""
        g, given = begin(self._weights, PRIOR)
        return g.build(PRIOR, {"z": g.op("Identity", given["eps_z"])}, self.sizes.by_axis())

    def sampler(self) -> onnx.ModelProto:
        """Draw from q(z|x)."""
        g, given = begin(self._weights, SI_SAMPLER)
        noise = Noise(given["eps_lam"], self._noise, self._model.noise_multiplies)
        features, clamp = self._features(g, given), self._model.logvar_clamp
        own, log_q = drawn_posterior(g, self.parameters, features, noise, clamp)
        z = sample(g, own, given["eps_z"])  # (R, D)
        zeros = g.op("Mul", z, g.real(0.0))
        log_p = log_density(g, Gaussian(zeros, zeros, self._latent), z)
        outputs = {"z": z, "log_q_z": log_q(z), "log_p_z": log_p}
        return g.build(SI_SAMPLER, outputs, self.sizes.by_axis())

    def posterior(self) -> dict[Graph, onnx.ModelProto]:
        """Tell q(z|x) where it is an explicit mixture."""
        clamp, axes = self._model.logvar_clamp, self.sizes.by_axis()
        return mixture_graph(self._weights, self.parameters, self._features, clamp, axes)

    def _features(self, g: GraphBuilder, given: Mapping[str, Value]) -> list[Value]:
        """Read the sentence, (R, H)."""
        p, ids = self.parameters, given["response"]
        lengths = g.op("Max", count_real(g, ids), g.integers(1))
        by_time = g.op("Transpose", ids, perm=[1, 0])  # (T, R)
        table = p["reader.embedding.weight"]
        words = g.rows_of("reader.embedding.weight", table, by_time)  # (T, R, W)
        return [lstm_last_state(g, p, "reader.lstm", words, lengths)]

    def decoders(self) -> dict[Graph, onnx.ModelProto]:
        """Carry [state, cell, z] from step to step."""
        p = self.parameters
        kernel = p["decoder.init.weight"].T

        def first_state(g: GraphBuilder, c: Value, z: Value) -> Value:
            cell = g.op("MatMul", z, g.weight("decoder.init.kernel", kernel))
            return g.op("Concat", g.op("Tanh", cell), cell, z, axis=1)

        def step(b: GraphBuilder, token: Value, carried: Value) -> tuple[Value, Value]:
            embedded = b.rows_of("embedding.weight", p["embedding.weight"], token)  # (R, W)
            parts = b.integers(self._hidden, self._hidden, self._latent)
            state, cell, z = b.ops("Split", 3, carried, parts, axis=1)
            told = b.op("Concat", embedded, z, axis=1)
            state, cell = lstm_step(b, p, "decoder.lstm", told, state, cell)
            return state, b.op("Concat", state, cell, z, axis=1)

        tokens, axes = self._model.tokens, self.sizes.by_axis()
        return decoder_graphs(self._weights, p, tokens, axes, first_state, step, True)
