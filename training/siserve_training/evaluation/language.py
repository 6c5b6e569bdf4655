"""`siserve evaluate` of a sentence VAE: likelihoods, a KL between two bounds, AU and MI."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from siserve.bundle.text import Text

from siserve_training.config import TrainConfig
from siserve_training.data.sentence_batches import collate_sentences, one_length_batches
from siserve_training.data.sentences import Ints, SentenceCorpus, SentenceSet
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.errors import ConfigError
from siserve_training.evaluation.information import mutual_information
from siserve_training.evaluation.language_metrics import active_units, gaussian_information
from siserve_training.evaluation.likelihood import chunk_sizes, log_weights
from siserve_training.evaluation.sentence_system import SentenceSystem
from siserve_training.methods import load_method
from siserve_training.models.draws import Noise
from siserve_training.models.language import LanguageModel
from siserve_training.models.posterior import draw_latents
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.lm import draw_posteriors, posterior_means
from siserve_training.tasks.prepared import RANKING, VALIDATION, StepNoise, spread

__all__ = [
    "LanguageSubject",
    "LanguageWish",
    "impossible",
    "measure_language",
    "open_language_model",
    "open_language_run",
]

_BATCH = 32
_CHUNK = 100  # importance samples that share auxiliaries
_ROWS = 800  # rows of the decoder at a time
_FRESH = 50  # auxiliaries of the KL's lower bound, at least
#: Differences count as noise up to so many standard errors.
_ERRORS = 3.0


@dataclass(frozen=True)
class LanguageWish:
    """What is measured, and with how many samples.

    Attributes:
        sentences: evenly spread ones that are importance-weighted; 0 for all.
        samples: S of log p(x).
        mi_batch: sentences among which z must find its own; 0 for all.
        noise_draws: M, noise draws behind the posterior means of active units.
    """

    sentences: int = 500
    samples: int = 500
    mi_batch: int = 1000
    noise_draws: int = 1000

    def __post_init__(self) -> None:
        """Check numbers where a wrong one would measure something else than was meant."""
        for name in ("sentences", "mi_batch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("samples", "noise_draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class LanguageSubject:
    """A sentence VAE with the split that it is measured on.

    Attributes:
        name: of the run.
        checkpoint: which state of it.
        config: of its training.
        model: in evaluation mode.
        text: its vocabulary.
        sentences: the split.
    """

    name: str
    checkpoint: str
    config: TrainConfig
    model: SentenceSystem
    text: Text
    sentences: SentenceSet

    @property
    def device(self) -> torch.device:
        """Where the model takes its tensors."""
        return self.model.device


def open_language_model(folder: Path, checkpoint: str = "best") -> tuple[LanguageModel, RunFolder]:
    """Open a checkpoint of a run of task lm, in evaluation mode, on a GPU where there is one.

    Raises:
        RunError: if the folder holds no run or no checkpoint.
        ConfigError: if the run is of another task.
    """
    run = RunFolder(folder)
    config = run.config()
    if config.task != "lm":
        raise ConfigError(f"{folder} is a run of task {config.task}; expected one of task lm")
    at = run.checkpoint(checkpoint)
    model: LanguageModel = load_method(config.method).model_class.from_pretrained(at)
    torch.nn.Module.to(model, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return model.train(False), run


def open_language_run(
    folder: Path, data: Path, split: str, checkpoint: str = "best", skip_bad_lines: bool = False
) -> LanguageSubject:
    """Open a checkpoint of a run and read a split with its vocabulary.

    Raises:
        ConfigError: if the split or the checkpoint cannot be meant.
        RunError, CorpusError: if the run or the corpus cannot be read.
    """
    if split not in ("valid", "test"):
        raise ConfigError(f"--split must be valid or test, got {split!r}")
    if checkpoint not in ("best", "last"):
        raise ConfigError(f"--checkpoint must be best or last, got {checkpoint!r}")
    model, run = open_language_model(folder, checkpoint)
    text = run.text()
    sentences = SentenceSet.of(SentenceCorpus(data, skip_bad_lines).read(split)[0], text)
    name, state = folder.resolve().name, run.checkpoint(checkpoint).name
    return LanguageSubject(name, state, run.config(), model, text, sentences)


@torch.no_grad()
def measure_language(
    subject: LanguageSubject, wish: LanguageWish, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure likelihoods and latents of a sentence VAE; numbers in nats a sentence or as named.

    Returns:
        Flat values by name; `warnings` holds a line for each pair of numbers that cannot be.
    """
    config, sentences, model = subject.config, subject.sentences, subject.model
    say("bound and KL")
    everyone = np.arange(len(sentences))
    parts = _bounds(subject, everyone)
    chosen = spread(everyone, wish.sentences)
    say("log p(x) by importance weighting")
    iw_log_p, left = _importance(subject, chosen, wish.samples)
    say("mutual information and active units")
    information, batch = _information(subject, wish.mi_batch)
    units = active_units(
        posterior_means(model, sentences, config, subject.device, wish.noise_draws)
    )
    tokens = (sentences.lengths - 1).astype(float)
    elbo = parts["elbo"]
    values: dict[str, Any] = {
        "system": subject.name,
        "task": "lm",
        "method": config.method,
        "checkpoint": subject.checkpoint,
        "sentences": len(sentences),
        "left_out": sentences.left_out,
        "tokens": int(tokens.sum()),
        "num_latents": config.num_latents,
        "num_aux": config.num_aux,
        **{name: float(found.mean()) for name, found in parts.items()},
        "nll": float(-elbo.mean()),
        "perplexity": math.exp(-elbo.sum() / tokens.sum()),
        "iw_sentences": len(chosen),
        "iw_samples": wish.samples,
        "iw_nll": float(-iw_log_p.mean()),
        "iw_estimate_error": left,
        "iw_perplexity": math.exp(-iw_log_p.sum() / tokens[chosen].sum()),
        "perplexity_of_iw_sentences": math.exp(-elbo[chosen].sum() / tokens[chosen].sum()),
        "active_units": units.count,
        "latent": model.config.latent,
        "au_noise_draws": wish.noise_draws if model.config.noise else 1,
        "mutual_information": information,
        "mi_batch": batch,
        "mutual_information_ceiling": math.log(batch),
    }
    return {**values, "warnings": impossible(values, parts["kl"], elbo[chosen] - iw_log_p)}


def impossible(
    values: dict[str, Any], kl: np.ndarray[Any, Any], gap: np.ndarray[Any, Any]
) -> list[str]:
    """Name pairs of numbers that cannot both be right: MI <= KL and IWP <= PPL hold for any model.

    Args:
        values: as `measure_language` finds them.
        kl: of each sentence.
        gap: ELBO less the importance-weighted log p(x) of the same sentence, at most 0 on average.
    """
    found = []
    mi, mean_kl = values["mutual_information"], values["kl"]
    if mi > mean_kl + _ERRORS * _error(kl) + _ERRORS * math.sqrt(1 / values["mi_batch"]):
        found.append(
            f"impossible: MI {mi:.3f} > KL {mean_kl:.3f}; the mean KL holds MI and KL(q(z)||p)"
        )
    if gap.mean() > _ERRORS * _error(gap):
        found.append(
            f"impossible: IW-PPL {values['iw_perplexity']:.2f} > PPL "
            f"{values['perplexity_of_iw_sentences']:.2f} on the same sentences; take more samples"
        )
    return found


def _error(values: np.ndarray[Any, Any]) -> float:
    return float(np.std(values) / math.sqrt(len(values)))


def _bounds(subject: LanguageSubject, rows: Ints) -> dict[str, np.ndarray[Any, Any]]:
    """Return the ELBO and its parts for each sentence; `kl_lower` leaves a z's own lambda out."""
    model, config = subject.model, subject.config
    semi = model.config.noise > 0 and not model.is_explicit
    num_aux = max(config.num_aux, _FRESH) if semi else config.num_aux
    order, found = [], []
    for number, chosen in enumerate(one_length_batches(subject.sentences, rows, _BATCH)):
        batch = collate_sentences(subject.sentences, chosen).to(subject.device)
        draw = StepNoise.of(config.seed, VALIDATION, number).normal
        noise = Noise.draw(draw, len(batch), config.num_latents, num_aux, model.config.widths)
        noise = noise.to(subject.device)
        encoded = model.encode(batch)
        mixture = model.posterior_mixture(encoded, noise)
        all_aux = noise.eps_lam.shape[1]
        counted = Mixture.uniform(mixture.components.draws(0, config.num_latents + config.num_aux))
        drawn = draw_latents(mixture if model.is_explicit else counted, model.is_explicit, noise)
        log_p_z, log_q_z = model.prior(encoded.c).log_prob(drawn.z), drawn.density.log_prob(drawn.z)
        log_p_x = model.log_p_x(batch, encoded.c, drawn.z)
        lower = log_q_z
        if semi:
            fresh = mixture.components.draws(config.num_latents, all_aux)
            lower = Mixture.uniform(fresh).log_prob(drawn.z)
        gain = drawn.own.log_prob(drawn.z) - log_q_z
        columns = (log_p_x + log_p_z - log_q_z, -log_p_x, log_q_z - log_p_z, lower - log_p_z, gain)
        found.append(torch.stack([column.mean(1) for column in columns], dim=1).cpu())
        order.append(chosen)
    table = np.empty((len(rows), 5))
    table[np.concatenate(order)] = torch.cat(found).double().numpy()
    return dict(zip(("elbo", "rec", "kl", "kl_lower", "b_k"), table.T, strict=True))


def _importance(
    subject: LanguageSubject, rows: Ints, samples: int
) -> tuple[np.ndarray[Any, Any], float]:
    """Return log p(x) of each row by S importance samples, and the mean error that S leaves."""
    model, config = subject.model, subject.config
    chunk = min(_CHUNK, samples)
    order, found = [], []
    size = max(1, _ROWS // chunk)
    for number, chosen in enumerate(one_length_batches(subject.sentences, rows, size)):
        batch = collate_sentences(subject.sentences, chosen).to(subject.device)
        noise = StepNoise.of(config.seed, RANKING, number)
        sizes = chunk_sizes(samples, chunk)
        widths = model.config.widths
        found.append(log_weights(model, batch, widths, noise, config.num_aux, sizes).double())
        order.append(chosen)
    weights = torch.cat(found)  # (N, S)
    log_p = torch.logsumexp(weights, dim=1) - math.log(samples)
    relative = torch.exp(weights - log_p.unsqueeze(1))
    left = float((relative.std(1) / math.sqrt(samples)).mean()) if samples > 1 else math.nan
    place = np.argsort(np.concatenate(order), kind="stable")
    return log_p.numpy()[place], left


def _information(subject: LanguageSubject, wanted: int) -> tuple[float, int]:
    """Estimate the mutual information over one batch of sentences; return its size too."""
    model, config = subject.model, subject.config
    one = replace(config, num_latents=model.config.components if model.is_explicit else 1)
    drawn = draw_posteriors(model, subject.sentences, one, subject.device, wanted)
    z, parts = drawn.z[:, 0].double(), drawn.mixture.components
    parts = DiagonalNormal(parts.mu.double(), parts.logvar.double())
    if model.config.noise or model.is_explicit:
        mixture = Mixture(parts, drawn.mixture.log_weights.double())
        return mutual_information(z, mixture), len(z)
    return gaussian_information(DiagonalNormal(parts.mu[:, 0], parts.logvar[:, 0]), z), len(z)
