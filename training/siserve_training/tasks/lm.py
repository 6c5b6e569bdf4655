"""The language-modelling task: corpus to sentences, batch to loss, a split to numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from siserve.bundle.text import Text
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.corpus import SPLITS
from siserve_training.data.pairs import Features, Ints
from siserve_training.data.sentence_batches import (
    SentenceBatch,
    SentenceOrder,
    collate_sentences,
    one_length_batches,
)
from siserve_training.data.sentences import (
    SentenceCorpus,
    SentenceSet,
    build_sentence_vocabulary,
)
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.errors import CorpusError
from siserve_training.evaluation.information import mutual_information
from siserve_training.evaluation.language_metrics import active_units
from siserve_training.evaluation.sentence_system import SentenceSystem
from siserve_training.methods import load_method
from siserve_training.models.draws import Noise, NoiseWidths
from siserve_training.models.language import LanguageModel
from siserve_training.models.posterior import draw_latents
from siserve_training.models.text_model import TextModel
from siserve_training.nets.output import WordSample
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.bound import mean_bound
from siserve_training.tasks.prepared import (
    RANKING,
    VALIDATION,
    PreparedBatch,
    StepNoise,
    spread,
)
from siserve_training.tasks.task import BatchWish, Task

__all__ = [
    "TASK",
    "DrawnPosteriors",
    "SentenceData",
    "build_language_model",
    "draw_posteriors",
    "load_sentence_data",
    "posterior_means",
    "sentence_batches",
    "validate_sentences",
]

_ROWS = 256  # rows of a batch without gradients, J a sentence
_NOISE_ROWS = 4096  # rows of the posterior's network
_INFORMATION_OF = 256  # sentences, of MI and of active units while a run goes on
_MEAN_OF = 100  # noise draws behind their posterior means


@dataclass(frozen=True)
class SentenceData:
    """A corpus made ready.

    Attributes:
        text: vocabulary and tokeniser, built on the training split.
        train: training sentences.
        valid: validation sentences.
        notes: what a user should know of the corpus, a line each.
    """

    text: Text
    train: SentenceSet
    valid: SentenceSet
    notes: tuple[str, ...]
    features: Features = Features()
    encoder: None = None


def load_sentence_data(
    folder: Path, config: TrainConfig, skip_bad_lines: bool, text: Text | None = None
) -> SentenceData:
    """Read a corpus; counts that differ from those of Mikolov's release are noted.

    Args:
        folder: of the corpus.
        config: sizes.
        skip_bad_lines: count malformed lines instead of refusing the corpus.
        text: the vocabulary of a run that is resumed; built on the training split if None.

    Raises:
        CorpusError: if a line is malformed, or all sentences of a split are too long.
    """
    corpus = SentenceCorpus(folder, skip_bad_lines)
    notes: list[str] = []
    read = {}
    for name in SPLITS:  # the test split is read only to be checked
        read[name], skipped = corpus.read(name)
        if skipped:
            notes.append(f"{corpus.path(name)}: {skipped} malformed lines skipped")
        different = corpus.unlike_ptb(name, read[name])
        if different:
            notes.append(different)
    if text is None:
        text = build_sentence_vocabulary(
            read["train"], config.vocabulary_size, config.max_utterance_tokens
        )
    sets = {name: SentenceSet.of(read[name], text) for name in ("train", "valid")}
    for name, found in sets.items():
        if not len(found):
            raise CorpusError(
                f"{corpus.path(name)}: every sentence has more than "
                f"{config.max_utterance_tokens} tokens; raise max_utterance_tokens"
            )
        if found.left_out:
            notes.append(
                f"{corpus.path(name)}: {found.left_out} sentences of more than "
                f"{config.max_utterance_tokens} tokens left out (max_utterance_tokens)"
            )
    return SentenceData(text, sets["train"], sets["valid"], tuple(notes))


def build_language_model(config: TrainConfig, data: SentenceData) -> LanguageModel:
    """Make the model of a configuration, its weights drawn from the configuration's seed."""
    method = load_method(config.method)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model: LanguageModel = method.model_class(
            method.model_config(config, data.text.size, data.features)
        )
    return model


def prepare_sentences(
    config: TrainConfig, data: SentenceData, items: Ints, wish: BatchWish
) -> PreparedBatch:
    """Collate one batch, or a process's share of it, and draw its noise.

    A process that gets no sentence of a small batch takes its first one with a share of 0.
    """
    count, noise = len(items), wish.noise
    rows = slice(wish.rank, None, wish.world) if wish.rank < count else slice(0, 1)
    share = len(items[rows]) * wish.world / count if wish.rank < count else 0.0
    eps = Noise.draw(noise.normal, count, config.num_latents, wish.num_aux, wish.widths).rows(rows)
    batch = collate_sentences(data.train, items[rows])
    sample = None
    if wish.sample_from:
        sample = WordSample.draw(
            wish.sample_from,
            config.frequent_words,
            config.sampled_words,
            torch.unique(batch.ids),
            noise.rng,
        )
    return PreparedBatch(batch, eps, sample, share, int(noise.rng.integers(2**62)))


def sentence_batches(
    sentences: SentenceSet, config: TrainConfig, widths: NoiseWidths, limit: int = 0
) -> Iterator[PreparedBatch]:
    """Yield every sentence of a split once, with the same noise every time.

    Args:
        sentences: the split.
        config: J, K and the seed.
        widths: of the model's noise.
        limit: sentences to use, evenly spread; 0 for all.
    """
    rows = spread(np.arange(len(sentences)), limit)
    size = max(1, _ROWS // config.num_latents)
    for number, chosen in enumerate(one_length_batches(sentences, rows, size)):
        noise = StepNoise.of(config.seed, VALIDATION, number)
        eps = Noise.draw(noise.normal, len(chosen), config.num_latents, config.num_aux, widths)
        yield PreparedBatch(collate_sentences(sentences, chosen), eps, None, 1.0)


def validate_sentences(
    model: LanguageModel, sentences: SentenceSet, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Measure a split: the ELBO at beta 1, its parts in nats a sentence, PPL with the KL in it."""
    was_training = model.training
    model.train(False)
    batches = sentence_batches(sentences, config, model.config.widths, config.valid_pairs)
    values = mean_bound(model, batches, device)
    model.train(was_training)
    return values


@dataclass(frozen=True)
class DrawnPosteriors:
    """Posteriors of N sentences with a latent of each, all on the CPU.

    Attributes:
        z: J latents each, (N, J, D).
        mixture: q(z|x), its estimate by own and auxiliary lambda where it is semi-implicit, batch
            shape (N, S, D).
        tokens: predicted tokens of each, (N,).
    """

    z: Tensor
    mixture: Mixture
    tokens: Tensor


@torch.no_grad()
def draw_posteriors(
    model: SentenceSystem,
    sentences: SentenceSet,
    config: TrainConfig,
    device: torch.device,
    limit: int = 0,
) -> DrawnPosteriors:
    """Draw from the posterior of evenly spread sentences; J and K are the configuration's.

    The own lambda of the first latent comes first in the mixture, those of the others follow, so
    with J = 1 it is the mixture that the bound estimates log q(z|x) by.
    """
    was_training = model.training
    model.train(False)
    found: list[tuple[Tensor, ...]] = []
    for batch in sentence_batches(sentences, config, model.config.widths, limit):
        batch = batch.to(device)
        encoded = model.encode(cast(SentenceBatch, batch.pairs))
        mixture = model.posterior_mixture(encoded, batch.noise)
        z = draw_latents(mixture, model.is_explicit, batch.noise).z
        parts = mixture.components
        tokens = batch.pairs.response_lengths
        found.append((z, parts.mu, parts.logvar, mixture.log_weights, tokens))
    model.train(was_training)
    z, mu, logvar, log_weights, tokens = (
        torch.cat([part.cpu() for part in column]) for column in zip(*found, strict=True)
    )
    return DrawnPosteriors(z, Mixture(DiagonalNormal(mu, logvar), log_weights), tokens)


@torch.no_grad()
def posterior_means(
    model: SentenceSystem,
    sentences: SentenceSet,
    config: TrainConfig,
    device: torch.device,
    draws: int,
    limit: int = 0,
) -> Tensor:
    """Return posterior means over the same noise for all sentences, on the CPU, (N, D).

    Noise of each sentence's own would leave Var(mu)/draws in the variance over sentences.

    Args:
        model: of the sentences.
        sentences: the split.
        config: the seed.
        device: where the model is.
        draws: of the noise of a semi-implicit posterior.
        limit: sentences to use, evenly spread; 0 for all.
    """
    was_training = model.training
    model.train(False)
    count = draws if model.config.noise and not model.is_explicit else 1
    widths = model.config.widths
    shared = StepNoise.of(config.seed, RANKING, 0).normal(1, count, widths.lam).to(device)
    means = []
    rows = spread(np.arange(len(sentences)), limit)
    for chosen in one_length_batches(sentences, rows, max(1, _NOISE_ROWS // count)):
        batch = collate_sentences(sentences, chosen).to(device)
        eps = shared.expand(len(batch), -1, -1)
        noise = Noise(eps, eps[:, :, :0], eps[:, :, :0])
        mixture = model.posterior_mixture(model.encode(batch), noise)
        shares = mixture.log_weights.exp().unsqueeze(-1)
        means.append((shares * mixture.components.mu).sum(1).cpu())
    model.train(was_training)
    return torch.cat(means).double()


def _load(
    folder: Path, config: TrainConfig, skip_bad_lines: bool, run: RunFolder | None
) -> SentenceData:
    return load_sentence_data(folder, config, skip_bad_lines, run.text() if run else None)


def _facts(folder: Path, data: SentenceData) -> dict[str, Any]:
    return {
        "folder": folder.name,
        "vocabulary": data.text.size,
        "topics": [],
        "profile": False,
        "train": _counts(data.train),
        "valid": _counts(data.valid),
        "notes": list(data.notes),
    }


def _counts(sentences: SentenceSet) -> dict[str, int]:
    return {
        "sentences": len(sentences),
        "tokens": sentences.tokens,
        "left_out": sentences.left_out,
    }


def _training_batches(
    config: TrainConfig, data: SentenceData, first: int, inner: bool
) -> Iterator[tuple[int, Ints]]:
    seed = config.seed + (1_000_003 if inner else 0)
    order = SentenceOrder(data.train, config.batch_size, seed)
    yield from enumerate(order.batches(first), start=first)


def _validate(
    model: TextModel, config: TrainConfig, data: SentenceData, device: torch.device
) -> dict[str, float]:
    assert isinstance(model, LanguageModel)
    means = posterior_means(model, data.valid, config, device, _MEAN_OF, _INFORMATION_OF)
    return {
        **validate_sentences(model, data.valid, config, device),
        "mutual_information": _information(model, config, data, device),
        "active_units": float(active_units(means).count),
    }


def _information(
    model: TextModel, config: TrainConfig, data: SentenceData, device: torch.device
) -> float:
    assert isinstance(model, LanguageModel)
    one_each = replace(config, num_latents=model.config.components if model.is_explicit else 1)
    drawn = draw_posteriors(model, data.valid, one_each, device, _INFORMATION_OF)
    return mutual_information(drawn.z[:, 0], drawn.mixture)


TASK = Task(
    load=_load,
    facts=_facts,
    summary=lambda data: f"{len(data.train)} training and {len(data.valid)} valid sentences",
    build_model=build_language_model,
    batches_per_pass=lambda config, data: float(
        SentenceOrder(data.train, config.batch_size, config.seed).steps_per_pass
    ),
    training_batches=_training_batches,
    prepare=prepare_sentences,
    validate=_validate,
    latent_information=_information,
)
