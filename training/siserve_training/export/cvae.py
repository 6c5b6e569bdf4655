"""The graphs of the CVAE family, made of the component emitters.

Which member it is shows in the weights: noise in the input of posterior or prior, or a mixture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from siserve.bundle.tensors import PRIOR, SI_SAMPLER, Graph

from siserve_training.export.decoder import decoder_graphs
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
from siserve_training.export.encoder import (
    begin,
    condition_size,
    finished,
)
from siserve_training.export.errors import ExportError
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.model import GraphSet, TrainedModel
from siserve_training.export.posterior import drawn_posterior, mixture_graph
from siserve_training.export.recurrent import utterance_vectors
from siserve_training.export.sizes import AxisSizes
from siserve_training.export.steps import word_step
from siserve_training.export.weights import Parameters, WeightStore

__all__ = ["graphs"]

_TRAINING_ONLY = "bow_head."


def graphs(model: TrainedModel, weights: WeightStore) -> GraphSet:
    """Emit the four graphs of a conditional VAE (Zhao et al. 2017; paper, section 4).

    Args:
        model: its weights have the names of the training package's CVAE.
        weights: receives every weight once.

    Raises:
        ExportError: if a weight is missing, has no place in the graphs, or does not fit.
    """
    emitter = _CVAE(model, weights)
    p, sizes = emitter.parameters, emitter.sizes
    own = {
        PRIOR: emitter.prior(),
        SI_SAMPLER: emitter.si_sampler(),
        **emitter.posterior(),
        **emitter.decoders(),
    }
    return finished(model, weights, p, sizes, own, _TRAINING_ONLY)


@dataclass(frozen=True)
class _Noise:
    """Numbers that a draw of parameters takes, as the weights tell them.

    Attributes:
        posterior: 0 for a Gaussian posterior, 1 for a mixture, which chooses by it.
        prior: 0 for a Gaussian prior.
    """

    posterior: int
    prior: int


class _CVAE:
    """Emits one graph a method; all draw on the same weights."""

    def __init__(self, model: TrainedModel, weights: WeightStore) -> None:
        self._model = model
        self._weights = weights
        self.parameters = Parameters(model.arrays)
        self.noise, self.sizes = self._read_sizes()

    def prior(self) -> onnx.ModelProto:
        g, given = begin(self._weights, PRIOR)
        eps, sizes, noise = given["eps_z"], self.sizes, self.noise
        if noise.prior:
            eps, of_lam = g.ops("Split", 2, eps, g.integers(sizes.latent, noise.prior), axis=1)
            drawn = self._prior(g, given["c"], g.unsqueeze(of_lam, 1))  # (R, 1)
            z = sample(g, first_draw(g, drawn), eps)
        else:
            z = sample(g, self._prior(g, given["c"]), eps)
        return g.build(PRIOR, {"z": z}, sizes.by_axis())

    def si_sampler(self) -> onnx.ModelProto:
        """Draw from q(z|x,c); its density is the mixture that holds the own component."""
        g, given = begin(self._weights, SI_SAMPLER)
        features = self._features(g, given)
        eps_post, eps_prior = self._split_noise(g, given["eps_lam"])
        size, clamp = self.noise.posterior, self._model.logvar_clamp
        noise = Noise(eps_post, size, self._model.noise_multiplies)
        own, log_q = drawn_posterior(g, self.parameters, features, noise, clamp)
        z = sample(g, own, given["eps_z"])  # (R, D)
        outputs = {"z": z, "log_q_z": log_q(z), "log_p_z": self._log_p(g, given["c"], eps_prior, z)}
        return g.build(SI_SAMPLER, outputs, self.sizes.by_axis())

    def posterior(self) -> dict[Graph, onnx.ModelProto]:
        """Tell q(z|x,c) where it is an explicit mixture."""
        clamp, axes = self._model.logvar_clamp, self.sizes.by_axis()
        return mixture_graph(self._weights, self.parameters, self._features, clamp, axes)

    def _features(self, g: GraphBuilder, given: Mapping[str, Value]) -> list[Value]:
        """Put the response's vector, (R, F), beside the condition."""
        return [given["c"], utterance_vectors(g, self.parameters, given["response"])]

    def _split_noise(self, g: GraphBuilder, eps_lam: Value) -> tuple[Value, Value | None]:
        """Divide the sampler's noise into that of the posterior and that of the prior."""
        if not self.noise.prior:
            return eps_lam, None
        widths = g.integers(self.noise.posterior, self.noise.prior)
        own, of_prior = g.ops("Split", 2, eps_lam, widths, axis=2)
        return own, of_prior

    def _log_p(self, g: GraphBuilder, c: Value, eps_prior: Value | None, z: Value) -> Value:
        """Emit log p(z|c), for a semi-implicit prior by a mixture of all its draws, fresh to z."""
        if eps_prior is None:
            return log_density(g, self._prior(g, c), z)
        each = log_density(g, self._prior(g, c, eps_prior), g.unsqueeze(z, 1))  # (R, A1)
        return log_mean_exp(g, each)

    def decoders(self) -> dict[Graph, onnx.ModelProto]:
        p = self.parameters

        def first_state(g: GraphBuilder, c: Value, z: Value) -> Value:
            return linear(g, p, "decoder.init", c, z)

        tokens, axes = self._model.tokens, self.sizes.by_axis()
        return decoder_graphs(self._weights, p, tokens, axes, first_state, word_step(p), False)

    def _prior(self, g: GraphBuilder, c: Value, eps_prior: Value | None = None) -> Gaussian:
        """Emit p(z|c), or p(z|lambda) for draws of the prior's noise, (R, A1, E)."""
        noise = None if eps_prior is None else Noise(eps_prior, self.noise.prior)
        clamp = self._model.logvar_clamp
        return gaussian_head(g, self.parameters, "prior_net", [c], noise, clamp)

    def _read_sizes(self) -> tuple[_Noise, AxisSizes]:
        p = self.parameters
        condition = condition_size(self._model, p)
        latent = p.shape("prior_net.out.bias")[0] // 2
        is_mixture = "posterior_net.weight.weight" in p
        prior, posterior = (
            f"{net}.{'hidden' if f'{net}.hidden.weight' in p else 'out'}.weight"
            for net in ("prior_net", "posterior_net")
        )
        features = condition + 2 * p.shape("utterance_encoder.gru.weight_hh_l0")[1]
        of_posterior = 0 if is_mixture else max(0, p.shape(posterior)[1] - features)
        of_prior = p.shape(prior)[1] - condition
        for name, inputs in (
            (prior, condition + max(of_prior, 0)),
            (posterior, features + of_posterior),
            ("decoder.init.weight", condition + latent),
        ):
            if p.shape(name)[1] != inputs:
                raise ExportError(
                    f"{name} takes {p.shape(name)[1]} inputs; the condition vector has {condition} "
                    f"numbers, so {inputs} are expected: check the features named for the export"
                )
        noise = _Noise(1 if is_mixture else of_posterior, of_prior)
        return noise, AxisSizes(
            condition=condition,
            latent=latent,
            noise=max(1, noise.posterior + noise.prior),
            state=p.shape("decoder.gru.weight_hh_l0")[1],
            prior=latent + noise.prior,
        )
