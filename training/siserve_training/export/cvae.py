"""The graphs of the CVAE family, made of the component emitters.

Which member it is shows in the weights: noise in the input of posterior or prior, or a mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
from siserve.bundle.manifest import Sizes
from siserve.bundle.tensors import CONTEXT_ENCODER, DECODER, PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graph
from siserve_training.export.dense import (
    Gaussian,
    Noise,
    choose_component,
    first_draw,
    gaussian_head,
    linear,
    log_density,
    log_mean_exp,
    log_sum_exp,
    mixture_head,
    normal_cdf,
    sample,
)
from siserve_training.export.errors import ExportError
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.recurrent import context_state, gru_step, utterance_vectors
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["graphs"]

_PROFILE_SIZE = 8
#: Used in training only.
_NOT_EXPORTED = ("bow_head.",)


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of a conditional VAE (Zhao et al. 2017; paper, section 4).

    Args:
        model: its weights have the names of the training package's CVAE.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing, has no place in the graphs, or does not fit.
    """
    emitter = _CVAE(model, weights)
    built = {
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
    return GraphSet(built, emitter.sizes.manifest(emitter.parameters.count_used()))


@dataclass(frozen=True)
class _AxisSizes:
    """Sizes as the weights tell them."""

    vocabulary: int
    word_embedding: int
    condition: int
    latent: int
    noise: int
    prior_noise: int
    state: int

    @property
    def sampler_noise(self) -> int:
        """E of the sampler: noise of the posterior's parameters, then of the prior's."""
        return max(1, self.noise + self.prior_noise)

    def by_axis(self) -> dict[str, int]:
        axes = {"C": self.condition, "D": self.latent, "E": self.sampler_noise}
        return {**axes, "H": self.state, "P": self.latent + self.prior_noise}

    def manifest(self, num_parameters: int) -> Sizes:
        return Sizes(
            vocabulary=self.vocabulary,
            word_embedding=self.word_embedding,
            context=self.condition,
            latent=self.latent,
            noise=self.sampler_noise,
            prior_noise=self.latent + self.prior_noise,
            state=self.state,
            num_parameters=num_parameters,
        )


class _CVAE:
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
        eps, sizes = given["eps_z"], self.sizes
        if sizes.prior_noise:
            eps, of_lam = g.ops(
                "Split", 2, eps, g.integers(sizes.latent, sizes.prior_noise), axis=1
            )
            drawn = self._prior(g, given["c"], g.unsqueeze(of_lam, 1))  # (R, 1)
            z = sample(g, first_draw(g, drawn), eps)
        else:
            z = sample(g, self._prior(g, given["c"]), eps)
        return g.build(PRIOR, {"z": z}, sizes.by_axis())

    def si_sampler(self) -> onnx.ModelProto:
        """Draw from q(z|x,c); its density is the mixture that holds the own component."""
        g, given = self._begin(SI_SAMPLER)
        response = utterance_vectors(g, self.parameters, given["response"])  # (R, F)
        features = [given["c"], response]
        eps_post, eps_prior = self._split_noise(g, given["eps_lam"])
        if "posterior_net.weight.weight" in self.parameters:
            own, log_q = self._explicit_posterior(g, features, eps_post)
        else:
            own, log_q = self._posterior(g, features, eps_post)
        z = sample(g, own, given["eps_z"])  # (R, D)
        outputs = {"z": z, "log_q_z": log_q(z), "log_p_z": self._log_p(g, given["c"], eps_prior, z)}
        return g.build(SI_SAMPLER, outputs, self.sizes.by_axis())

    def _split_noise(self, g: GraphBuilder, eps_lam: Value) -> tuple[Value, Value | None]:
        """Divide the sampler's noise into that of the posterior and that of the prior."""
        if not self.sizes.prior_noise:
            return eps_lam, None
        widths = g.integers(self.sizes.noise, self.sizes.prior_noise)
        own, of_prior = g.ops("Split", 2, eps_lam, widths, axis=2)
        return own, of_prior

    def _posterior(
        self, g: GraphBuilder, features: list[Value], eps_lam: Value
    ) -> tuple[Gaussian, Callable[[Value], Value]]:
        """Return the own component, and q(z): of a semi-implicit posterior, or a Gaussian one."""
        clamp = self._model.logvar_clamp
        if not self.sizes.noise:
            q = gaussian_head(g, self.parameters, "posterior_net", features, logvar_clamp=clamp)
            return q, lambda z: log_density(g, q, z)
        noise = Noise(eps_lam, self.sizes.noise)
        mixture = gaussian_head(g, self.parameters, "posterior_net", features, noise, clamp)

        def log_q(z: Value) -> Value:
            return log_mean_exp(g, log_density(g, mixture, g.unsqueeze(z, 1)))  # (R, A1) to (R,)

        return first_draw(g, mixture), log_q

    def _explicit_posterior(
        self, g: GraphBuilder, features: list[Value], eps_lam: Value
    ) -> tuple[Gaussian, Callable[[Value], Value]]:
        """Return the component that eps_lam chooses by its first number, and the mixture's q(z)."""
        mixture, log_weights = mixture_head(
            g, self.parameters, "posterior_net", features, self._model.logvar_clamp
        )  # (R, S), (R, S)
        first = g.op("Gather", g.op("Gather", eps_lam, g.integer(0), axis=1), g.integer(0), axis=1)
        own = choose_component(g, mixture, log_weights, normal_cdf(g, first))  # (R,)

        def log_q(z: Value) -> Value:
            each = g.op("Add", log_density(g, mixture, g.unsqueeze(z, 1)), log_weights)
            return log_sum_exp(g, each)

        return own, log_q

    def _log_p(self, g: GraphBuilder, c: Value, eps_prior: Value | None, z: Value) -> Value:
        """Emit log p(z|c), for a semi-implicit prior by a mixture of all its draws, fresh to z."""
        if eps_prior is None:
            return log_density(g, self._prior(g, c), z)
        each = log_density(g, self._prior(g, c, eps_prior), g.unsqueeze(z, 1))  # (R, A1)
        return log_mean_exp(g, each)

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

    def _prior(self, g: GraphBuilder, c: Value, eps_prior: Value | None = None) -> Gaussian:
        """Emit p(z|c), or p(z|lambda) for draws of the prior's noise, (R, A1, E)."""
        noise = None if eps_prior is None else Noise(eps_prior, self.sizes.prior_noise)
        clamp = self._model.logvar_clamp
        return gaussian_head(g, self.parameters, "prior_net", [c], noise, clamp)

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
        is_mixture = "posterior_net.weight.weight" in p
        sizes = _AxisSizes(
            vocabulary=vocabulary,
            word_embedding=word_embedding,
            condition=condition,
            latent=p.shape("prior_net.out.bias")[0] // 2,
            noise=1
            if is_mixture
            else p.shape(f"posterior_net.{posterior}.weight")[1] - condition - response,
            prior_noise=p.shape(f"prior_net.{prior}.weight")[1] - condition,
            state=p.shape("decoder.gru.weight_hh_l0")[1],
        )
        noise = 0 if is_mixture else max(sizes.noise, 0)
        for name, inputs in (
            (f"prior_net.{prior}.weight", condition + max(sizes.prior_noise, 0)),
            (f"posterior_net.{posterior}.weight", condition + response + noise),
            ("decoder.init.weight", condition + sizes.latent),
        ):
            if p.shape(name)[1] != inputs:
                raise ExportError(
                    f"{name} takes {p.shape(name)[1]} inputs; the condition vector has {condition} "
                    f"numbers, so {inputs} are expected: check the features named for the export"
                )
        return sizes
