"""What we share and leave out saves time only: loss and gradients are those of research code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from siserve_training.bench.research_way import PaddedBatch, ResearchSICVAE, twin_name
from siserve_training.data.batches import BatchOrder, DialogBatch, collate
from siserve_training.data.corpus import Dialog, Profile, Utterance
from siserve_training.data.pairs import Features, PairSet, build_vocabulary, find_features
from siserve_training.models.cvae import CVAE, CVAEConfig
from siserve_training.models.draws import Noise
from siserve_training.objectives.surrogate import latent_bound
from torch import Tensor

WORDS = "we went to the lake and it was cold so they stayed home with a dog".split()
BETA = 0.7
BATCH_SIZE = 14
#: No two sizes are equal, B, J and K neither.
SIZES = {
    "word_embedding": 7,
    "utterance_hidden": 5,
    "context_hidden": 11,
    "topic_embedding": 2,
    "latent": 6,
    "noise": 4,
    "post_hidden": 9,
    "prior_hidden": 8,
    "decoder_hidden": 13,
}


@dataclass(frozen=True)
class Variant:
    """A kind of model and the numbers of its draws."""

    sizes: dict[str, Any]
    has_features: bool = True
    num_latents: int = 3  # J
    num_aux: int = 5  # K


VARIANTS = {
    "all features": Variant({}),
    "no features, affine posterior": Variant({"post_hidden": 0}, has_features=False),
    "clamped log-variances": Variant({"logvar_clamp": 0.3}),
    "one latent, no auxiliaries": Variant({}, num_latents=1, num_aux=0),
}


@dataclass(frozen=True)
class Case:
    """A model, a batch of windows in both forms and the noise of its draws."""

    model: CVAE
    batch: DialogBatch
    padded: PaddedBatch
    noise: Noise

    def our_loss(self) -> Tensor:
        draws = self.model(self.batch, self.noise)
        parts = latent_bound(draws.z, draws.own, draws.posterior, draws.prior, draws.log_p_x, BETA)
        return -parts.bound.mean()

    def their_loss(self, research: ResearchSICVAE) -> Tensor:
        loss: Tensor = research(self.padded, self.noise.eps_lam, self.noise.eps_z, BETA)
        return loss


def dialog(number: int, turns: int) -> Dialog:
    """Two speakers in uneven turns of one to seven words; some utterances come back."""
    utterances = tuple(
        Utterance(
            "AABBA"[(number + turn) % 5],
            " ".join(WORDS[(3 * turn + word) % 15] for word in range(1 + (turn * turn) % 7)),
        )
        for turn in range(turns)
    )
    profiles = {"A": Profile(20.0 + number, 2, 1, 0), "B": Profile(61.0 - number, 3, 0, 1)}
    return Dialog(utterances, topic=("PETS", "LAKES")[number % 2], profiles=profiles)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they save on products as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=VARIANTS)
def case(request: pytest.FixtureRequest) -> Case:
    """A batch with contexts and responses of several lengths."""
    variant = VARIANTS[request.param]
    dialogs = [dialog(number, turns) for number, turns in enumerate((9, 4, 12))]
    text = build_vocabulary(dialogs)
    features = find_features(dialogs) if variant.has_features else Features()
    pairs = PairSet.from_dialogs(dialogs, text, features, window=4)
    responses = next(BatchOrder(pairs, BATCH_SIZE, run_length=4, seed=0).batches())
    sizes = {**SIZES, **variant.sizes, "vocabulary": text.size, "topics": len(features.topics)}
    torch.manual_seed(3)
    model = CVAE(CVAEConfig(profile=features.profile, **sizes))
    draws = variant.num_latents + variant.num_aux
    return Case(
        model,
        collate(pairs, responses),
        PaddedBatch.of(pairs, responses),
        noise=Noise(
            eps_lam=torch.randn(BATCH_SIZE, draws, SIZES["noise"]),
            eps_z=torch.randn(BATCH_SIZE, variant.num_latents, SIZES["latent"]),
            eps_prior=torch.empty(BATCH_SIZE, draws, 0),
        ),
    )


def test_the_batch_puts_the_claim_to_the_test(case: Case) -> None:
    padded = case.padded
    assert padded.context.shape == (BATCH_SIZE, 4, 40)
    assert len(set(padded.response_tokens.tolist())) > 2  # the decoder meets padding
    assert len(set(padded.context_lengths.tolist())) > 2  # and so does the context encoder
    assert len(case.batch.utterances) < (padded.context_tokens > 0).sum() / 2  # much is shared


def test_loss_is_that_of_research_code_to_rounding(case: Case) -> None:
    theirs = case.their_loss(ResearchSICVAE(case.model))
    torch.testing.assert_close(case.our_loss(), theirs, rtol=1e-5, atol=0)


def test_every_gradient_is_that_of_research_code_to_rounding(case: Case) -> None:
    case.our_loss().backward()
    research = ResearchSICVAE(case.model)
    case.their_loss(research).backward()
    theirs = {name: parameter.grad for name, parameter in research.named_parameters()}
    ours = {twin_name(name): parameter.grad for name, parameter in case.model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        own = ours[name]
        assert gradient is not None and own is not None, f"{name} plays no part"
        largest = float(gradient.abs().max())
        assert largest > 0, f"{name} plays no part"
        error = float((own - gradient).abs().max())
        assert error <= 1e-5 * largest, f"{name}: off by {error:.2g}, largest {largest:.2g}"
