"""What we share between a sentence's latents saves time only: the loss is that of plain code."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from lagging_way import LaggingVAE
from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.models.draws import Noise
from siserve_training.models.language import LanguageModel, LanguageModelConfig
from siserve_training.objectives.surrogate import latent_bound
from torch import Tensor

BETA = 0.7
SENTENCES, LENGTH, VOCABULARY = 7, 6, 23


@dataclass(frozen=True)
class Case:
    """A model, sentences of one length and the noise of their draws."""

    model: LanguageModel
    batch: SentenceBatch
    noise: Noise

    def our_loss(self) -> Tensor:
        draws = self.model(self.batch, self.noise)
        parts = latent_bound(draws.z, draws.own, draws.posterior, draws.prior, draws.log_p_x, BETA)
        return -parts.bound.mean()

    def their_loss(self, plain: LaggingVAE) -> Tensor:
        loss: Tensor = plain(self.batch.ids, self.noise.eps_lam, self.noise.eps_z, BETA)
        return loss


@pytest.fixture(params=["vae", "si-vae", "si-vae, affine and clamped"])
def case(request: pytest.FixtureRequest) -> Case:
    """Sentences with words in common; no two sizes are equal, B, J and K neither."""
    semi = request.param != "vae"
    plain = "affine" in request.param or not semi
    config = LanguageModelConfig(
        vocabulary=VOCABULARY,
        word_embedding=8,
        latent=5,
        encoder_hidden=9,
        decoder_hidden=11,
        noise=4 if semi else 0,
        post_hidden=0 if plain else 10,
        logvar_clamp=0.05 if "clamped" in request.param else 0.0,
    )
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(3)
    model = LanguageModel(config).train(False)
    draws, aux = (3, 6) if semi else (1, 0)
    words = torch.randint(4, VOCABULARY, (SENTENCES, LENGTH), generator=generator)
    words[:, 0], words[:, -1] = 2, 3
    widths = ((draws + aux, config.noise), (draws, config.latent), (draws + aux, 0))
    noise = Noise(*(torch.randn(SENTENCES, *shape, generator=generator) for shape in widths))
    return Case(model, SentenceBatch(words, torch.full((SENTENCES,), LENGTH)), noise)


def test_loss_is_that_of_plain_code_to_rounding(case: Case) -> None:
    theirs = case.their_loss(LaggingVAE(case.model).train(False))
    torch.testing.assert_close(case.our_loss(), theirs, rtol=1e-5, atol=0)


def test_every_gradient_is_that_of_plain_code_to_rounding(case: Case) -> None:
    case.our_loss().backward()
    plain = LaggingVAE(case.model).train(False)
    case.their_loss(plain).backward()
    ours = dict(case.model.named_parameters())
    theirs = dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        own, gradient = ours[name].grad, parameter.grad
        assert own is not None and gradient is not None, f"{name} plays no part"
        largest = float(gradient.abs().max())
        assert largest > 0, f"{name} plays no part"
        error = float((own - gradient).abs().max())
        assert error <= 1e-5 * largest, f"{name}: off by {error:.2g}, largest {largest:.2g}"
