"""The graphs of an SI-CVAE, made of the component emitters."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from siserve.bundle.manifest import Sizes
from siserve.bundle.tensors import CONTEXT_ENCODER, DECODER, PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graph
from siserve_training.export.dense import (
    Gaussian,
    Noise,
    first_draw,
    gaussian_head,
    linear,
    log_density,
    log_mean_exp,
    sample,
)
from siserve_training.export.errors import ExportError
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.recurrent import context_state, gru_step, utterance_vectors
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["si_cvae_graphs"]

_PROFILE_SIZE = 8
#: Used in training only.
_NOT_EXPORTED = ("bow_head.",)


def si_cvae_graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of an SI-CVAE (paper, section 4; Zhao et al. 2017 for the network).

    Args:
        model: its weights have the names of the training package's SI-CVAE.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing, has no place in the graphs, or does not fit.
    """
    emitter = _SICVAE(model, weights)
    graphs = {
        CONTEXT_ENCODER.file: emitter.context_encoder(),
        PRIOR.file: emitter.prior(),
        SI_SAMPLER.file: emitter.si_sampler(),
        DECODER.file: emitter.decoder(),
    }
    unused = [n for n in emitter.parameters.unused() if not n.startswith(_NOT_EXPORTED)]
    if unused:
        raise ExportError(
            f"no graph uses {', '.join(unused)}; the features or the method named for the export "
            "are not those that the model was trained with"
        )
    return GraphSet(graphs, emitter.sizes.manifest(emitter.parameters.count_used()))


@dataclass(frozen=True)
class _AxisSizes:
    """Sizes as the weights tell them."""

    vocabulary: int
    word_embedding: int
    condition: int
    latent: int
    noise: int
    state: int

    def by_axis(self) -> dict[str, int]:
        axes = {"C": self.condition, "D": self.latent, "E": self.noise, "H": self.state}
        return {**axes, "P": self.latent}

    def manifest(self, num_parameters: int) -> Sizes:
        return Sizes(
            vocabulary=self.vocabulary,
            word_embedding=self.word_embedding,
            context=self.condition,
            latent=self.latent,
            noise=self.noise,
            state=self.state,
            num_parameters=num_parameters,
        )


class _SICVAE:
    """Emits one graph a method; all draw on the same weights."""

    def __init__(self, model: TrainedModel, weights: WeightStore) -> None:
        self._model = model
        self._weights = weights
        self.parameters = Parameters(model.arrays)
        self.sizes = self._read_sizes()

    def context_encoder(self) -> onnx.ModelProto:
        g, given = self._begin(CONTEXT_ENCODER)
        p, features = self.parameters, self._model.features
        parts = [context_state(g, p, given["utterances"], given["floor"])]
        if features.profile:
            parts.insert(0, given["profile"])
        if features.topics:
            table = p["topic_embedding.weight"]
            parts.insert(0, g.rows_of("topic_embedding.weight", table, given["topic"]))
        c = parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)  # (B, C)
        return g.build(CONTEXT_ENCODER, {"c": c}, self.sizes.by_axis())

    def prior(self) -> onnx.ModelProto:
        g, given = self._begin(PRIOR)
        z = sample(g, self._prior(g, given["c"]), given["eps_z"])
        return g.build(PRIOR, {"z": z}, self.sizes.by_axis())

    def si_sampler(self) -> onnx.ModelProto:
        """Draw from q(z|x,c); its density is the mixture that holds the own component."""
        g, given = self._begin(SI_SAMPLER)
        response = utterance_vectors(g, self.parameters, given["response"])  # (R, F)
        mixture = gaussian_head(
            g,
            self.parameters,
            "posterior_net",
            [given["c"], response],
            Noise(given["eps_lam"], self.sizes.noise),
            self._model.logvar_clamp,
        )  # (R, A1)
        own = first_draw(g, mixture)  # (R,)
        z = sample(g, own, given["eps_z"])  # (R, D)
        log_components = log_density(g, mixture, g.unsqueeze(z, 1))  # (R, A1)
        outputs = {
            "z": z,
            "log_q_z": log_mean_exp(g, log_components),
            "log_p_z": log_density(g, self._prior(g, given["c"]), z),
        }
        return g.build(SI_SAMPLER, outputs, self.sizes.by_axis())

    def decoder(self) -> onnx.ModelProto:
        p = self.parameters

        def first_state(g: GraphBuilder, c: Value, z: Value) -> Value:
            return linear(g, p, "decoder.init", c, z)

        def step(b: GraphBuilder, token: Value, state: Value) -> tuple[Value, Value]:
            embedded = b.rows_of("embedding.weight", p["embedding.weight"], token)  # (R, W)
            state = gru_step(b, p, "decoder.gru", embedded, state)
            return state, state

        return decoder_graph(
            self._weights, p, self._model.tokens, self.sizes.by_axis(), first_state, step
        )

    def _begin(self, graph: Graph) -> tuple[GraphBuilder, dict[str, Value]]:
        given = {tensor.name: Value(tensor.name) for tensor in graph.inputs}
        return GraphBuilder(self._weights), given

    def _prior(self, g: GraphBuilder, c: Value) -> Gaussian:
        clamp = self._model.logvar_clamp
        return gaussian_head(g, self.parameters, "prior_net", [c], logvar_clamp=clamp)

    def _read_sizes(self) -> _AxisSizes:
        p, features = self.parameters, self._model.features
        vocabulary, word_embedding = p.shape("embedding.weight")
        condition = p.shape("context_encoder.gru.weight_hh_l0")[1]
        if features.profile:
            condition += _PROFILE_SIZE
        if features.topics:
            num_topics, topic_size = p.shape("topic_embedding.weight")
            condition += topic_size
            if num_topics != len(features.topics) + 1:
                raise ExportError(
                    f"topic_embedding.weight has {num_topics} rows; expected "
                    f"{len(features.topics) + 1}, one for each topic and one for none"
                )
        prior = "hidden" if "prior_net.hidden.weight" in p else "out"
        posterior = "hidden" if "posterior_net.hidden.weight" in p else "out"
        response = 2 * p.shape("utterance_encoder.gru.weight_hh_l0")[1]
        sizes = _AxisSizes(
            vocabulary=vocabulary,
            word_embedding=word_embedding,
            condition=condition,
            latent=p.shape("prior_net.out.bias")[0] // 2,
            noise=p.shape(f"posterior_net.{posterior}.weight")[1] - condition - response,
            state=p.shape("decoder.gru.weight_hh_l0")[1],
        )
        for name, inputs in (
            (f"prior_net.{prior}.weight", condition),
            (f"posterior_net.{posterior}.weight", condition + response + max(sizes.noise, 1)),
            ("decoder.init.weight", condition + sizes.latent),
        ):
            if p.shape(name)[1] != inputs:
                raise ExportError(
                    f"{name} takes {p.shape(name)[1]} inputs; the condition vector has {condition} "
                    f"numbers, so {inputs} are expected: check the features named for the export"
                )
        return sizes
