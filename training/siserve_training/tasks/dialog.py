"""The dialog task: corpus to pairs, batch to loss, a split to numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from siserve.bundle.text import Text

from siserve_training.config import TrainConfig
from siserve_training.data.batches import DialogBatch
from siserve_training.data.corpus import SPLITS, DialogCorpus
from siserve_training.data.pairs import (
    Features,
    Ints,
    PairSet,
    build_vocabulary,
    find_features,
)
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.data.word_vectors import start_from_vectors
from siserve_training.evaluation.information import information_of
from siserve_training.evaluation.noise_use import noise_shares
from siserve_training.evaluation.system import Scorer
from siserve_training.methods import load_method
from siserve_training.models.cvae import CVAE
from siserve_training.models.dialog_model import DialogModel
from siserve_training.models.draws import NoiseWidths
from siserve_training.models.pretrained import load_sentence_encoder
from siserve_training.models.text_model import TextModel
from siserve_training.run_folder import RunFolder
from siserve_training.tasks.bound import mean_bound
from siserve_training.tasks.prepared import (
    PreparedBatch,
    prepare_batch,
    training_batches,
    validation_batches,
)
from siserve_training.tasks.task import BatchWish, Task
from siserve_training.tasks.told import tell_pairs

__all__ = [
    "TASK",
    "DialogData",
    "bound",
    "build_model",
    "latent_information",
    "load_dialog_data",
    "validate",
]


_PRIOR_DRAWS = 10  # fewer make the best checkpoint a matter of luck


@dataclass(frozen=True)
class DialogData:
    """A corpus made ready: its text module, its features and its pairs.

    Attributes:
        text: vocabulary and tokeniser, built on the training split.
        features: what the model is told besides words.
        train: training pairs.
        valid: validation pairs.
        notes: what a user should know of the corpus, a line each.
        encoder: the pretrained encoder of context utterances, None for the model's own.
    """

    text: Text
    features: Features
    train: PairSet
    valid: PairSet
    notes: tuple[str, ...]
    encoder: SentenceFolder | None = None


def load_dialog_data(
    folder: Path,
    config: TrainConfig,
    skip_bad_lines: bool,
    text: Text | None = None,
    encoder: SentenceFolder | None = None,
) -> DialogData:
    """Read a corpus and see what it offers; switched-off features are noted.

    Args:
        folder: of the corpus.
        config: sizes and wishes.
        skip_bad_lines: count malformed lines instead of refusing the corpus.
        text: the vocabulary of a run that is resumed; built on the training split if None.
        encoder: the copy of a pretrained encoder that a resumed run has; opened if None.
    """
    if encoder is None and config.pretrained_folder is not None:
        encoder = SentenceFolder.open(config.pretrained_folder)
    corpus = DialogCorpus(folder, skip_bad_lines)
    notes: list[str] = []
    splits = {}
    for name in SPLITS:  # the test split is read only to be checked
        splits[name], skipped = corpus.read(name)
        if skipped:
            notes.append(f"{corpus.path(name)}: {skipped} malformed lines skipped")
    features = _wanted_features(config, find_features(splits["train"]), notes)
    if text is None:
        text = build_vocabulary(
            splits["train"], config.vocabulary_size, config.max_utterance_tokens
        )
    train, valid = (
        tell_pairs(
            PairSet.from_dialogs(splits[name], text, features, config.context_utterances),
            encoder,
            config.tune_context_encoder,
        )
        for name in ("train", "valid")
    )
    return DialogData(text, features, train, valid, tuple(notes), encoder)


def _wanted_features(config: TrainConfig, found: Features, notes: list[str]) -> Features:
    """Choose among what a corpus offers; what is wanted and not offered is noted."""
    for wanted, offered, what in (
        (config.use_topic, bool(found.topics), "topic"),
        (config.use_profile, found.profile, "speaker profile"),
    ):
        if wanted and not offered:
            notes.append(f"the corpus has no {what}: that feature is off")
    return Features(
        topics=found.topics if config.use_topic else (),
        profile=found.profile and config.use_profile,
    )


def build_model(config: TrainConfig, data: DialogData) -> DialogModel:
    """Make the model of a configuration, its weights drawn from the configuration's seed."""
    method = load_method(config.method)
    sizes = method.model_config(config, data.text.size, data.features)
    if data.encoder is not None:
        sizes.sentence_encoder = data.encoder.shape.to_dict()
        sizes.tunes_sentence_encoder = config.tune_context_encoder
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model: DialogModel = method.model_class(sizes)
    if data.encoder is not None and config.tune_context_encoder:
        model.sentence_encoder = load_sentence_encoder(data.encoder)
    if config.word_vectors:
        start_from_vectors(model.embedding.weight, data.text, Path(config.word_vectors))
    return model


@torch.no_grad()
def validate(
    model: DialogModel, pairs: PairSet, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Measure a split: the ELBO at beta 1 and its parts, nats per response.

    A model without densities has no ELBO; for it `score` is log p(x|c) by Monte Carlo over draws
    of the prior, J of them and at least 10, which is a lower bound in expectation too.

    Returns:
        score: what the best checkpoint is chosen by, elbo where there is one; perplexity: of it.
    """
    model.train(False)
    values = bound(model, model.config.widths, pairs, config, device)
    model.train()
    return values


@torch.no_grad()
def bound(
    scorer: Scorer[DialogBatch],
    widths: NoiseWidths,
    pairs: PairSet,
    config: TrainConfig,
    device: torch.device,
) -> dict[str, float]:
    """Compute what `validate` returns of anything that scores responses.

    Args:
        scorer: a model in evaluation mode, or a system.
        widths: of its noise.
        pairs: the split.
        config: J, K, the seed and how many pairs.
        device: where the scorer takes its tensors.
    """
    if not scorer.has_densities:
        draws = max(config.num_latents, _PRIOR_DRAWS)
        config = replace(config, num_latents=draws, num_aux=draws - 1)  # prior noise for each
    batches = validation_batches(pairs, config, widths, config.valid_pairs)
    return mean_bound(scorer, batches, device)


@torch.no_grad()
def latent_information(
    model: DialogModel, pairs: PairSet, config: TrainConfig, device: torch.device, count: int = 256
) -> float:
    """Estimate the mutual information of latents and pairs, in nats, at most log `count`.

    NaN for a model without densities.
    """
    if not isinstance(model, CVAE):
        return math.nan
    model.train(False)
    information = information_of(model, model.config.widths, pairs, config, device, count)
    model.train()
    return information


def _load(
    folder: Path, config: TrainConfig, skip_bad_lines: bool, run: RunFolder | None
) -> DialogData:
    if run is None:
        return load_dialog_data(folder, config, skip_bad_lines)
    text, encoder = run.text(), run.sentence_folder()
    return replace(
        load_dialog_data(folder, config, skip_bad_lines, text, encoder), features=run.features()
    )


def corpus_facts(folder: Path, data: DialogData) -> dict[str, Any]:
    """Collect what a run notes of its corpus."""
    return {
        "folder": folder.name,
        "vocabulary": data.text.size,
        "topics": list(data.features.topics),
        "profile": data.features.profile,
        "train": _counts(data.train),
        "valid": _counts(data.valid),
        "notes": list(data.notes),
        **({"context_encoder_sha256": data.encoder.digest} if data.encoder else {}),
    }


def _counts(pairs: PairSet) -> dict[str, int]:
    lengths = np.array([len(ids) for ids in pairs.texts])
    return {
        "dialogs": len(pairs.first_of),
        "utterances": len(pairs.text_of) - len(pairs.first_of),
        "pairs": len(pairs),
        "tokens": int(lengths[pairs.text_of].sum()),
        "truncated": pairs.truncated,
    }


def _prepare(config: TrainConfig, data: DialogData, items: Ints, wish: BatchWish) -> PreparedBatch:
    return prepare_batch(
        data.train,
        items,
        config,
        wish.widths,
        wish.noise,
        wish.num_aux,
        sample_from=wish.sample_from,
        hide=True,
        rank=wish.rank,
        world=wish.world,
    )


def _validate(
    model: TextModel, config: TrainConfig, data: DialogData, device: torch.device
) -> dict[str, float]:
    assert isinstance(model, DialogModel)
    values = validate(model, data.valid, config, device)
    if isinstance(model, CVAE) and model.config.noise:
        values |= noise_shares(model, data.valid, config)
    return values


def _information(
    model: TextModel, config: TrainConfig, data: DialogData, device: torch.device
) -> float:
    assert isinstance(model, DialogModel)
    return latent_information(model, data.valid, config, device)


TASK = Task(
    load=_load,
    facts=corpus_facts,
    summary=lambda data: f"{len(data.train)} training and {len(data.valid)} valid pairs",
    build_model=build_model,
    batches_per_pass=lambda config, data: len(data.train) / config.batch_size,
    training_batches=lambda config, data, first, inner: training_batches(
        data.train, config, first, inner
    ),
    prepare=_prepare,
    validate=_validate,
    latent_information=_information,
)
