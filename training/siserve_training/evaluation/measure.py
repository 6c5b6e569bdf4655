"""`siserve evaluate`: everything that is measured of a trained system on a split."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siserve_training.errors import ConfigError
from siserve_training.evaluation.bundle_system import BundleSystem
from siserve_training.evaluation.dump import vectors_path, write_dump, write_vectors
from siserve_training.evaluation.embedding import load_word_vectors
from siserve_training.evaluation.generation import Sampling, respond
from siserve_training.evaluation.information import TellsMixture, information_of
from siserve_training.evaluation.likelihood import importance_weighted, prior_sampled, retrieval
from siserve_training.evaluation.noise_use import bounds_by_num_aux, noise_use
from siserve_training.evaluation.responses import ResponseSet, responses_to_pairs, words_of
from siserve_training.evaluation.scores import score_responses
from siserve_training.evaluation.subject import Subject, open_run, open_subject
from siserve_training.evaluation.system import ModelSystem, System
from siserve_training.models.cvae import CVAE
from siserve_training.tasks.dialog import bound
from siserve_training.tasks.prepared import spread

__all__ = ["Measurement", "Subject", "measure", "open_run", "open_subject", "to_json"]

#: Auxiliaries at which the bound is told; its rise with K is a law of semi-implicit posteriors.
BOUND_AT = (0, 1, 5, 30, 100)
_MI_PAIRS = 256
_NOISE_PAIRS = 100


@dataclass(frozen=True)
class Measurement:
    """What is measured, and with how many samples.

    Attributes:
        sampling: of the responses that are scored.
        contexts: contexts that are answered, evenly spread; 0 for all.
        pairs: pairs of the likelihood side, evenly spread; 0 for all.
        samples: S of log p(x|c), by importance weighting and over the prior.
        ranking_samples: S of the log p(x|c) that contexts are ranked by.
        vectors: GloVe text file for embedding scores; None leaves them out.
    """

    sampling: Sampling = Sampling()
    contexts: int = 0
    pairs: int = 500
    samples: int = 100
    ranking_samples: int = 10
    vectors: Path | None = None

    def __post_init__(self) -> None:
        """Check numbers where a wrong one would measure something else than was meant."""
        for name in ("samples", "ranking_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("contexts", "pairs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")


def measure(
    subject: Subject,
    asked: Measurement,
    dump: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure responses, likelihoods and latents of a system.

    Args:
        subject: the system and the split.
        asked: what to measure.
        dump: file to write the responses to, JSON lines; vocabulary and word vectors beside it.
        say: told of each stage before it begins.

    Returns:
        Flat values by name, NaN or absent where a system has no such number.
    """
    # read first: a wrong file is told before the work
    vectors = load_word_vectors(asked.vectors, words_of(subject.text)) if asked.vectors else None
    say("answering contexts")
    responses = answer(subject, asked)
    if dump is not None:
        write_dump(dump, responses)
        if vectors is not None:
            write_vectors(vectors_path(dump), vectors)
    say("scoring responses")
    scores = score_responses(responses, vectors)
    return {
        "system": subject.name,
        "method": subject.config.method,
        "checkpoint": subject.checkpoint,
        "vectors": asked.vectors.name if asked.vectors else None,
        "contexts": len(responses),
        "responses": asked.sampling.num_responses,
        "temperature": asked.sampling.decoding.temperature,
        "tail": "pad" if asked.sampling.decoding.stop_at_end else "decoder",
        "diversity": asked.sampling.diversity,
        "noise_seed": asked.sampling.seed,
        **scores.corpus,
        "sacrebleu_signature": scores.sacrebleu_signature,
        **_likelihoods(subject, asked, say),
        **_latents(subject, asked, say),
    }


def answer(subject: Subject, asked: Measurement) -> ResponseSet:
    """Draw responses to the contexts of the split."""
    positions = spread(subject.pairs.responses, asked.contexts)
    rows = respond(subject.system, subject.pairs, positions, asked.sampling)
    return responses_to_pairs(subject.pairs, subject.dialogs, subject.text, rows, positions)


def _likelihoods(
    subject: Subject, asked: Measurement, say: Callable[[str], None]
) -> dict[str, Any]:
    system, pairs, config = subject.system, subject.pairs, subject.config
    say("log p(x|c) over the prior")
    found = prior_sampled(system, pairs, config, asked.pairs, asked.samples)
    values: dict[str, Any] = {
        "pairs": found.pairs,
        "prior_log_p_x": found.log_p_x,
        "prior_std_error": found.std_error,
        "prior_estimate_error": found.estimate_error,
        "prior_perplexity": found.perplexity,
        "prior_samples": found.samples,
    }
    if system.has_densities:
        say("log p(x|c) by importance weighting")
        found = importance_weighted(system, pairs, config, asked.pairs, asked.samples)
        values |= {
            "iw_log_p_x": found.log_p_x,
            "iw_std_error": found.std_error,
            "iw_estimate_error": found.estimate_error,
            "iw_perplexity": found.perplexity,
            "iw_samples": found.samples,
        }
    ranked_pairs = spread(pairs.responses, asked.pairs)
    if len(np.unique(pairs.dialog_of[ranked_pairs])) < 2:
        say("contexts are not ranked: that takes pairs of two dialogs or more")
        return values
    say("ranking contexts")
    ranked = retrieval(system, pairs, config, asked.pairs, asked.ranking_samples)
    return {
        **values,
        "recall_at_1_of_10": ranked.recall_10,
        "recall_at_1_of_10_std_error": _std_error(ranked.is_first_10),
        "recall_at_1_of_20": ranked.recall_20,
        "recall_at_1_of_20_std_error": _std_error(ranked.is_first_20),
        "ranking_samples": ranked.samples,
    }


def _latents(subject: Subject, asked: Measurement, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure latents; what asks for more than draws and densities, where it can be told."""
    system, model, pairs = subject.system, subject.model, subject.pairs
    if not system.has_densities:
        return {}
    say("bound and KL")
    device = system.device
    config = dataclasses.replace(subject.config, valid_pairs=asked.pairs)
    values = bound(system, system.widths, pairs, config, device)
    measured: dict[str, Any] = {
        "elbo": values["elbo"],
        "rec": values["rec"],
        "kl": values["kl"],
        "elbo_perplexity": values["perplexity"],
        "num_aux": config.num_aux,
    }
    if math.isfinite(values["b_k"]):  # most bundles do not tell the own component's density
        measured["b_k"] = values["b_k"]
    teller = _teller(system)
    if teller is None:
        return measured
    say("mutual information")
    count = min(_MI_PAIRS, len(pairs))
    measured |= {
        "mutual_information": information_of(teller, system.widths, pairs, config, device, count),
        "mutual_information_ceiling": math.log(count),
    }
    if not isinstance(model, CVAE) or not model.config.noise:
        return measured
    say("use of the noise")
    use = noise_use(model, pairs, config, min(asked.pairs or _NOISE_PAIRS, _NOISE_PAIRS))
    at_each = bounds_by_num_aux(model, pairs, config, BOUND_AT, asked.pairs)
    return {
        **measured,
        "log_b_k": math.log(measured["b_k"]) if measured["b_k"] > 0 else math.nan,
        "noise_share_of_mu": use.share_of_mu,
        "noise_share_of_width": use.share_of_width,
        "non_gaussian": use.non_gaussian,
        **{f"bound_at_{num_aux}": value for num_aux, value in at_each.items()},
    }


def _teller(system: System) -> TellsMixture | None:
    """Return what tells the posterior as a mixture, if anything does."""
    if isinstance(system, BundleSystem):
        return system if system.is_explicit else None
    model = system.model if isinstance(system, ModelSystem) else None
    return model if isinstance(model, CVAE) else None


def to_json(measured: dict[str, Any], indent: int | None = None) -> str:
    """Write values as JSON; what is not a number becomes null."""
    clean = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in measured.items()
    }
    return json.dumps(clean, indent=indent)


def _std_error(values: tuple[float, ...]) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
