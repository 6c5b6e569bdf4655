"""An exported bundle as evaluation sees it: the ONNX graphs alone, no torch model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from siserve.bundle.errors import BundleError
from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import (
    CONTEXT_ENCODER,
    DECODER,
    GRAPHS,
    POSTERIOR,
    PRIOR,
    SI_SAMPLER,
    Graph,
)
from siserve.bundle.verify import Bundle
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.batches import DialogBatch
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.errors import ConfigError
from siserve_training.evaluation.system import Decoding
from siserve_training.models.draws import Encoded, Latents, Noise, NoiseWidths, as_uniform

__all__ = ["BundleSystem", "config_of_bundle"]

AnyArray = npt.NDArray[Any]

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
#: Rows of one run of a graph; the decoder holds several (rows, V) arrays at once.
_ROWS_AT_ONCE = 512
_STEPS_AT_ONCE = 8
_PROBE_ROWS = 64
#: Keys of a training configuration that measuring looks at.
_MEASURED_BY = ("seed", "num_aux", "num_latents", "components")


class BundleSystem:
    """A bundle's graphs, on CUDA where onnxruntime offers it; tensors stay on the CPU.

    What the manifest does not tell is seen in the graphs' answers: whether there are densities,
    whether the prior or the posterior looks at its noise.

    Args:
        bundle: one that has been checked.

    Raises:
        BundleError: if onnxruntime refuses a graph.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        graphs = [*GRAPHS, *([POSTERIOR] if bundle.has(POSTERIOR.file) else [])]
        self._sessions = {graph.file: _open(bundle, graph) for graph in graphs}
        self.components = self._count_components()
        self._sizes = manifest.sizes
        self._start, self._end, self._pad = (
            manifest.tokens.start,
            manifest.tokens.end,
            manifest.tokens.pad,
        )
        self.device = torch.device("cpu")
        self.marks: tuple[int, ...] = tuple(manifest.tokens.model_dump().values())
        of_prior = self._sizes.prior_noise - self._sizes.latent
        self._own = max(0, self._sizes.noise - of_prior)
        self.widths = NoiseWidths(self._own, self._sizes.latent, of_prior)
        self.has_densities, self.is_deterministic, looks = self._probe()
        if not (
            looks or self.is_explicit
        ):  # a sampler has a column at least, even where its posterior wants none
            self.widths = NoiseWidths(0, self._sizes.latent, of_prior)

    @property
    def is_explicit(self) -> bool:
        """Whether the posterior is told as an explicit mixture."""
        return self.components > 1

    def encode(self, batch: DialogBatch) -> Encoded:
        """Encode contexts; a response stays as its ids, which is what the sampler takes, (B, T)."""
        used = torch.arange(batch.context.shape[1]) < batch.context_lengths.unsqueeze(1)  # (B, U)
        source = batch.utterances if batch.told is None else batch.told
        said = torch.where(used.unsqueeze(2), source[batch.context], self._pad)
        inputs = {
            "utterances": said.numpy(),  # (B, U, T)
            "floor": batch.floor.numpy(),
            "topic": batch.topic.numpy(),
            "profile": batch.profile.float().numpy(),
        }
        c = _join(self._run(CONTEXT_ENCODER, inputs, rows) for rows in _parts(len(batch)))[0]
        return Encoded(c, batch.utterances[batch.response])

    def draw_prior(self, c: Tensor, eps: Tensor) -> Tensor:
        """Draw from p(z|c)."""
        draws = eps.shape[1]
        inputs = {
            "c": c.repeat_interleave(draws, dim=0).numpy(),  # (B*S, C)
            "eps_z": eps.flatten(0, 1).numpy(),  # (B*S, P)
        }
        z = _join(self._run(PRIOR, inputs, rows) for rows in _parts(len(inputs["c"])))[0]
        return z.view(len(c), draws, -1)

    def draw_posterior(self, encoded: Encoded, noise: Noise) -> Latents:
        """Draw from q(z|x,c); of an explicit mixture alone the own component's density is told."""
        pairs, draws = noise.eps_z.shape[:2]
        own, aux = noise.eps_lam[:, :draws], noise.eps_lam[:, draws:]
        shared = aux.unsqueeze(1).expand(-1, draws, -1, -1)
        lam = torch.cat([own.unsqueeze(2), shared], dim=2)  # (B, J, K+1, E)
        lam = torch.nn.functional.pad(lam, (0, self._own - lam.shape[3]))
        of_prior = noise.eps_prior.unsqueeze(1).expand(-1, draws, -1, -1)
        eps_lam = torch.cat([lam, of_prior], dim=3)[..., : self._sizes.noise]
        inputs = {
            "c": encoded.c.repeat_interleave(draws, dim=0).numpy(),
            "response": encoded.response.repeat_interleave(draws, dim=0).numpy(),
            "eps_lam": eps_lam.flatten(0, 1).contiguous().numpy(),  # (B*J, K+1, E)
            "eps_z": noise.eps_z.flatten(0, 1).numpy(),
        }
        z, log_q_z, log_p_z = _join(
            self._run(SI_SAMPLER, inputs, rows) for rows in _parts(pairs * draws)
        )
        log_q_z, log_p_z = log_q_z.view(pairs, draws), log_p_z.view(pairs, draws)
        z, log_own_z = z.view(pairs, draws, -1), torch.full_like(log_q_z, torch.nan)
        if self.is_explicit:
            chosen = self.mixture(encoded, own).choose(as_uniform(own[..., 0]))
            log_own_z = chosen.log_prob(z)
        return Latents(z, log_q_z, log_p_z, log_own_z)

    def mixture(self, encoded: Encoded, eps_lam: Tensor) -> Mixture:
        """Return q(z|x,c), an explicit mixture, which does not look at its noise."""
        inputs = {"c": encoded.c.numpy(), "response": encoded.response.numpy()}
        mu, logvar, log_weights = _join(
            self._run(POSTERIOR, inputs, rows) for rows in _parts(len(encoded.c))
        )
        return Mixture(DiagonalNormal(mu, logvar), log_weights)

    def log_p_x(self, batch: DialogBatch, c: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z,c) by decoding with every token forced."""
        draws = z.shape[1]
        each = c if c.dim() == 3 else c.unsqueeze(1).expand(-1, draws, -1)
        rows_c, rows_z = each.flatten(0, 1), z.flatten(0, 1)  # (B*J, C), (B*J, D)
        ids = batch.utterances[batch.response].repeat_interleave(draws, dim=0)  # (B*J, T)
        lengths = batch.response_lengths.repeat_interleave(draws)
        sums = []
        for rows in _parts(len(ids)):
            steps = int(lengths[rows].max())
            forced = ids[rows, 1 : steps + 1].T  # (K, R)
            start = torch.full((forced.shape[1],), self._start)
            _, log_probs, _ = self._decode(
                rows_c[rows], rows_z[rows], start, None, forced, torch.zeros(forced.shape), 0.0
            )
            sums.append(log_probs.sum(0))  # 0 after </s>
        return torch.cat(sums).view(-1, draws)

    def decode(self, c: Tensor, z: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
        """Decode by the graph's own choice of tokens; rows that have ended leave the batch."""
        if not decoding.stop_at_end:
            raise ConfigError(
                "--tail decoder needs a run; a bundle's decoder says nothing after </s>, "
                "so measure it with --tail pad"
            )
        rows = [
            self._decode_rows(c[part], z[part], decoding, uniform[:, part])
            for part in _parts(len(c))
        ]
        return torch.cat(rows)

    def _decode_rows(self, c: Tensor, z: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
        ids = torch.full((len(c), decoding.max_tokens), self._pad)
        active, state = torch.arange(len(c)), None
        token = torch.full((len(c),), self._start)
        for first in range(0, decoding.max_tokens, _STEPS_AT_ONCE):
            drawn = uniform[first : first + _STEPS_AT_ONCE, active]  # (K, R)
            free = torch.full(drawn.shape, -1)
            tokens, _, state = self._decode(
                c[active], z[active], token, state, free, drawn, decoding.temperature
            )
            ends = (tokens == self._end).cumsum(0)
            after = (ends > 1) | ((ends == 1) & (tokens != self._end))
            ids[active, first : first + len(drawn)] = tokens.masked_fill(after, self._pad).T
            goes_on = ends[-1] == 0
            active, token, state = active[goes_on], tokens[-1][goes_on], state[goes_on]
            if not len(active):
                break
        return ids

    def _decode(
        self,
        c: Tensor,
        z: Tensor,
        token: Tensor,
        state: Tensor | None,
        forced: Tensor,
        uniform: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a chunk of K steps; tokens and log-probs, (K, R) each, and the states, (R, H)."""
        count = len(z)
        before = torch.zeros(count, self._sizes.state) if state is None else state
        inputs = {
            "c": c.numpy(),
            "z": z.numpy(),
            "state": before.numpy(),  # not looked at in a row that starts
            "token": token.numpy(),
            "uniform": uniform.numpy(),
            "forced": forced.numpy(),
            "temperature": np.full(count, temperature, np.float32),
            "top_k": np.zeros(count, np.int64),
            "top_p": np.ones(count, np.float32),
        }
        tokens, log_probs, following = self._run(DECODER, inputs)
        return tokens, log_probs, following

    def _count_components(self) -> int:
        """Return S of an explicit mixture, 1 for another posterior."""
        if POSTERIOR.file not in self._sessions:
            return 1
        shapes = {out.name: out.shape for out in self._sessions[POSTERIOR.file].get_outputs()}
        return int(shapes["log_weights"][1])

    def _probe(self) -> tuple[bool, bool, bool]:
        """Say whether there are densities, whether the prior ignores its noise, and whether the
        posterior looks at the noise of its parameters.
        """
        sizes, count = self._sizes, _PROBE_ROWS
        generator = torch.Generator().manual_seed(0)
        c = torch.randn(1, sizes.context, generator=generator).expand(count, -1).contiguous()
        eps = torch.randn(count, 1, sizes.prior_noise, generator=generator)
        z = self.draw_prior(c, eps)
        is_deterministic = bool((z == z[0]).all())
        response = torch.tensor([[self._start, self._end]]).repeat(count, 1)
        eps_lam = torch.randn(count, 1, self._own, generator=generator)
        eps_z, of_prior = (torch.zeros(count, 1, n) for n in (sizes.latent, self.widths.prior))
        noise = Noise(eps_lam, eps_z, of_prior)
        drawn = self.draw_posterior(Encoded(c, response), noise)
        has_densities = not bool(torch.isnan(drawn.log_q_z).all())
        return has_densities, is_deterministic, not bool((drawn.z == drawn.z[0]).all())

    def _run(
        self, graph: Graph, inputs: Mapping[str, AnyArray], rows: slice | None = None
    ) -> list[Tensor]:
        chosen = {
            name: np.ascontiguousarray(array if rows is None else array[rows])
            for name, array in inputs.items()
        }
        names = [tensor.name for tensor in graph.outputs]
        return [torch.from_numpy(a) for a in self._sessions[graph.file].run(names, chosen)]


def config_of_bundle(manifest: Manifest, components: int = 1) -> TrainConfig:
    """Return what measuring looks at, from the provenance where it tells it.

    Args:
        manifest: of the bundle.
        components: of an explicit mixture that the graphs tell; 1 for none.
    """
    told = manifest.provenance.get("config")
    known = told if isinstance(told, dict) else {}
    values: dict[str, Any] = {name: known[name] for name in _MEASURED_BY if name in known}
    if components > 1:
        values |= {"components": components, "num_latents": components}
    return TrainConfig.from_values({"task": manifest.task, "method": manifest.method, **values})


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)


def _join(answers: Iterator[list[Tensor]]) -> list[Tensor]:
    """Join the outputs of several runs of a graph, row after row."""
    return [torch.cat(parts) for parts in zip(*answers, strict=True)]


def _open(bundle: Bundle, graph: Graph) -> onnxruntime.InferenceSession:
    """Open a graph on as many threads as torch takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern = False  # shapes differ from run to run
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = [_CPU]
    if _CUDA in onnxruntime.get_available_providers():
        providers.insert(0, (_CUDA, {"use_tf32": "0"}))  # float32 is the reference everywhere
    try:
        return onnxruntime.InferenceSession(bundle.file(graph.file), options, providers=providers)
    except Exception as error:  # onnxruntime has no common base class for what it raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(
            f"{graph.file} is refused by onnxruntime {onnxruntime.__version__} ({reason}); "
            "export the model again",
            graph.file,
        ) from None
