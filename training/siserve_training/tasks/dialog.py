"""The dialog task: corpus to batches, batch to loss, valid split to numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from siserve.bundle.text import Text
from torch import Tensor

from siserve_training.config import TrainConfig
from siserve_training.data.batches import BatchOrder, DialogBatch, collate, longest_first
from siserve_training.data.corpus import SPLITS, DialogCorpus
from siserve_training.data.pairs import (
    Features,
    Ints,
    PairSet,
    build_vocabulary,
    find_features,
)
from siserve_training.data.word_vectors import start_from_vectors
from siserve_training.evaluation.information import mutual_information
from siserve_training.models.draws import Draws
from siserve_training.models.si_cvae import SICVAE, SICVAEConfig
from siserve_training.nets.output import WordSample
from siserve_training.objectives.surrogate import surrogate_bound

__all__ = [
    "INNER",
    "TRAINING",
    "DialogData",
    "LossReport",
    "PreparedBatch",
    "StepNoise",
    "batch_loss",
    "build_model",
    "latent_information",
    "load_dialog_data",
    "prepare_batch",
    "training_batches",
    "validate",
    "validation_batches",
]

TRAINING, INNER, VALIDATION = 0, 1, 2  # purposes of a batch's noise


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
                bow_hidden=config.bow_hidden,
                logvar_clamp=config.logvar_clamp,
            )
        )
    if config.word_vectors:
        start_from_vectors(model.embedding.weight, data.text, Path(config.word_vectors))
    return model


@dataclass(frozen=True)
class StepNoise:
    """Every random number of one batch, a function of (seed, purpose, number) alone.

    All are drawn for the whole batch and then cut, so that several processes share the batch of
    one.

    Attributes:
        rng: numpy generator, for choices.
        generator: torch generator, for Gaussian noise.
    """

    rng: np.random.Generator
    generator: torch.Generator

    @classmethod
    def of(cls, seed: int, purpose: int, number: int) -> StepNoise:
        """Make the generators of batch `number`."""
        rng = np.random.default_rng([seed, purpose, number])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return cls(rng, generator)

    def normal(self, *shape: int) -> Tensor:
        """Draw from N(0, 1)."""
        return torch.randn(*shape, generator=self.generator)


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with its noise, ready for a forward pass.

    Attributes:
        pairs: the process's share of the batch.
        eps_lam: own noise first, (B, J+K, E).
        eps_z: (B, J, D).
        sample: words of the sampled softmax, or None.
        share: pairs here over pairs of an even split, to weigh uneven shares.
    """

    pairs: DialogBatch
    eps_lam: Tensor
    eps_z: Tensor
    sample: WordSample | None
    share: float

    def to(self, device: torch.device) -> PreparedBatch:
        """Move tensors to a device."""
        return PreparedBatch(
            self.pairs.to(device),
            self.eps_lam.to(device),
            self.eps_z.to(device),
            self.sample.to(device) if self.sample else None,
            self.share,
        )


def prepare_batch(
    pairs: PairSet,
    responses: Ints,
    config: TrainConfig,
    noise: StepNoise,
    num_aux: int,
    *,
    sample_from: int,
    hide: bool,
    rank: int = 0,
    world: int = 1,
) -> PreparedBatch:
    """Collate one batch, or a process's share of it, and draw its noise.

    Args:
        pairs: the split.
        responses: positions of the whole batch, longest first.
        config: J, sizes and rates.
        noise: of the whole batch.
        num_aux: K.
        sample_from: size of the vocabulary that a sampled softmax draws from; 0 for the exact one.
        hide: whether features are hidden at random.
        rank: number of this process.
        world: number of processes.
    """
    count = len(responses)
    rows = slice(rank, None, world)
    is_hidden = noise.rng.random((count, 2)) < config.hide_feature_rate if hide else None
    draws = config.num_latents
    eps_lam = noise.normal(count, draws + num_aux, config.noise)[rows]
    eps_z = noise.normal(count, draws, config.latent)[rows]
    batch = collate(pairs, responses[rows], None if is_hidden is None else is_hidden[rows])
    sample = None
    if sample_from:
        words = torch.unique(batch.utterances[batch.response])
        sample = WordSample.draw(
            sample_from,
            config.frequent_words,
            config.sampled_words,
            words,
            noise.rng,
        )
    return PreparedBatch(batch, eps_lam, eps_z, sample, len(batch) * world / count)


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


def validation_batches(
    pairs: PairSet, config: TrainConfig, limit: int = 0, batch_size: int = 128
) -> Iterator[PreparedBatch]:
    """Yield every pair of a split once, with the same noise every time.

    Args:
        pairs: the split.
        config: J, K and sizes; K is at its end value.
        limit: pairs to use, evenly spread; 0 for all.
        batch_size: pairs of a batch.
    """
    responses = pairs.responses
    if limit and limit < len(responses):
        responses = responses[np.linspace(0, len(responses) - 1, limit).round().astype(int)]
    for number, start in enumerate(range(0, len(responses), batch_size)):
        chosen = longest_first(pairs, responses[start : start + batch_size])
        noise = StepNoise.of(config.seed, VALIDATION, number)
        yield prepare_batch(pairs, chosen, config, noise, config.num_aux, sample_from=0, hide=False)


def training_batches(
    data: DialogData, config: TrainConfig, first: int, inner: bool = False
) -> Iterator[tuple[int, Ints]]:
    """Yield (number, responses) of the training batches from number `first` on, without end.

    Algorithm 1's inner steps take fresh batches from an order of their own.
    """
    seed = config.seed + (1_000_003 if inner else 0)
    order = BatchOrder(data.train, config.batch_size, config.run_length, seed)
    yield from enumerate(order.batches(first), start=first)


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
