"""The dialog task: corpus to pairs, batch to loss, a split to numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from siserve.bundle.text import Text
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.corpus import SPLITS, DialogCorpus
from siserve_training.data.pairs import Features, PairSet, build_vocabulary, find_features
from siserve_training.data.word_vectors import start_from_vectors
from siserve_training.evaluation.information import mutual_information
from siserve_training.models.draws import Draws
from siserve_training.models.si_cvae import SICVAE, SICVAEConfig
from siserve_training.objectives.surrogate import surrogate_bound
from siserve_training.tasks.prepared import validation_batches

__all__ = [
    "DialogData",
    "LossReport",
    "batch_loss",
    "build_model",
    "latent_information",
    "load_dialog_data",
    "validate",
]


@dataclass(frozen=True)
class DialogData:
    """A corpus made ready: its text module, its features and its pairs.

    Attributes:
        text: vocabulary and tokeniser, built on the training split.
        features: what the model is told besides words.
        train: training pairs.
        valid: validation pairs.
        notes: what a user should know of the corpus, a line each.
    """

    text: Text
    features: Features
    train: PairSet
    valid: PairSet
    notes: tuple[str, ...]


def load_dialog_data(
    folder: Path, config: TrainConfig, skip_bad_lines: bool, text: Text | None = None
) -> DialogData:
    """Read a corpus and see what it offers; switched-off features are noted.

    Args:
        folder: of the corpus.
        config: sizes and wishes.
        skip_bad_lines: count malformed lines instead of refusing the corpus.
        text: the vocabulary of a run that is resumed; built on the training split if None.
    """
    corpus = DialogCorpus(folder, skip_bad_lines)
    notes: list[str] = []
    splits = {}
    for name in SPLITS:  # the test split is read only to be checked
        splits[name], skipped = corpus.read(name)
        if skipped:
            notes.append(f"{corpus.path(name)}: {skipped} malformed lines skipped")
    found = find_features(splits["train"])
    for wanted, offered, what in (
        (config.use_topic, bool(found.topics), "topic"),
        (config.use_profile, found.profile, "speaker profile"),
    ):
        if wanted and not offered:
            notes.append(f"the corpus has no {what}: that feature is off")
    features = Features(
        topics=found.topics if config.use_topic else (),
        profile=found.profile and config.use_profile,
    )
    if text is None:
        text = build_vocabulary(
            splits["train"], config.vocabulary_size, config.max_utterance_tokens
        )
    train, valid = (
        PairSet.from_dialogs(splits[name], text, features, config.context_utterances)
        for name in ("train", "valid")
    )
    return DialogData(text, features, train, valid, tuple(notes))


def build_model(config: TrainConfig, data: DialogData) -> SICVAE:
    """Make the model of a configuration, its weights drawn from the configuration's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = SICVAE(
            SICVAEConfig(
                vocabulary=data.text.size,
                word_embedding=config.word_embedding,
                utterance_hidden=config.utterance_hidden,
                context_hidden=config.context_hidden,
                topics=len(data.features.topics),
                topic_embedding=config.topic_embedding,
                profile=data.features.profile,
                latent=config.latent,
                noise=config.noise,
                post_hidden=config.post_hidden,
                prior_hidden=config.prior_hidden,
                decoder_hidden=config.decoder_hidden,
                bow_hidden=config.bow_hidden if config.bow_weight else 0,
                logvar_clamp=config.logvar_clamp,
            )
        )
    if config.word_vectors:
        start_from_vectors(model.embedding.weight, data.text, Path(config.word_vectors))
    return model


@dataclass(frozen=True)
class LossReport:
    """The loss of a batch and what it is made of, means over pairs in nats.

    Attributes:
        loss: what is minimised, differentiable.
        rec: -E log p(x|z,c).
        kl: the surrogate KL, an upper bound of the KL.
        gain: B_K.
        bow: bag-of-words loss, 0 without the head.
        tokens: predicted tokens of the batch.
    """

    loss: Tensor
    rec: Tensor
    kl: Tensor
    gain: Tensor
    bow: Tensor
    tokens: int


def batch_loss(draws: Draws, config: TrainConfig, beta: float) -> LossReport:
    """Negate L_{beta,K}, add the bag-of-words loss, stop the KL's pull below `free_nats`."""
    parts = surrogate_bound(draws.z, draws.own, draws.aux, draws.prior, draws.log_p_x, beta)
    rec, kl = -parts.log_p_x.mean(), parts.kl.mean()
    if config.free_nats:
        loss = rec + beta * kl.clamp(min=config.free_nats)
    else:
        loss = -parts.bound.mean()
    bow = torch.zeros(())
    if draws.log_p_bow is not None:
        bow = -draws.log_p_bow.mean()
        loss = loss + config.bow_weight * bow
    return LossReport(
        loss=loss,
        rec=rec.detach(),
        kl=kl.detach(),
        gain=parts.gain.detach().mean(),
        bow=bow.detach(),
        tokens=int(draws.tokens.sum()),
    )


@torch.no_grad()
def validate(
    model: SICVAE, pairs: PairSet, config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Return a split's ELBO at beta 1 and its parts, nats per response, and the perplexity."""
    model.train(False)
    sums = np.zeros(5)
    for batch in validation_batches(pairs, config, config.valid_pairs):
        batch = batch.to(device)
        draws = model(batch.pairs, batch.eps_lam, batch.eps_z)
        parts = surrogate_bound(draws.z, draws.own, draws.aux, draws.prior, draws.log_p_x)
        totals = [parts.bound.sum(), -parts.log_p_x.sum(), parts.kl.sum(), parts.gain.sum()]
        sums += [*(float(total) for total in totals), int(draws.tokens.sum())]
    model.train()
    count = min(config.valid_pairs or len(pairs), len(pairs))
    elbo, rec, kl, gain = sums[:4] / count
    return {
        "elbo": elbo,
        "rec": rec,
        "kl": kl,
        "b_k": gain,
        "perplexity": float(np.exp(-sums[0] / sums[4])),
    }


@torch.no_grad()
def latent_information(
    model: SICVAE, pairs: PairSet, config: TrainConfig, device: torch.device, count: int = 256
) -> float:
    """Estimate the mutual information of latents and pairs, in nats, at most log `count`."""
    model.train(False)
    batch = next(validation_batches(pairs, config, count, count)).to(device)
    components = model.conditional(model.encode(batch.pairs), batch.eps_lam)
    z = components.draws(0, 1).rsample(batch.eps_z[:, :1])[:, 0]  # (B, D)
    model.train()
    return mutual_information(z, components)
