"""What SA-VAE's refinement climbs: its gradients and products are those of autograd, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from siserve_training.data.sentence_batches import SentenceBatch
from siserve_training.distributions import DiagonalNormal
from siserve_training.models.language import LanguageModel, LanguageModelConfig
from siserve_training.models.refinement import Differences, Refinement, refine
from siserve_training.nets.output import WordSample
from torch import Tensor

VOCABULARY, D, STEPS, BETA = 23, 3, 4, 0.7
HOW = Refinement(steps=STEPS, rate=0.1, momentum=0.5)


def make_model(hidden: int = 7) -> LanguageModel:
    torch.manual_seed(5)
    config = LanguageModelConfig(
        vocabulary=VOCABULARY,
        latent=D,
        word_embedding=5,
        encoder_hidden=6,
        decoder_hidden=hidden,
        init_bound=0.5,
    )
    return LanguageModel(config)


def make_batch(lengths: list[int]) -> SentenceBatch:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    ids[torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)] = 0
    return SentenceBatch(ids, torch.tensor(lengths))


def plain_bound(
    model: LanguageModel, batch: SentenceBatch, sample: WordSample | None, lam: Tensor, eps: Tensor
) -> Tensor:
    """The bound of each row, word by word, in operations that autograd takes twice."""
    q = DiagonalNormal(*lam.chunk(2, dim=-1))
    state, total = model.first_state(lam, q.rsample(eps)), torch.zeros(len(batch)).double()
    for step in range(batch.ids.shape[1] - 1):
        logits, state = model.step(batch.ids[:, step], state)
        target = batch.ids[:, step + 1].unsqueeze(1)
        if sample is not None:
            weighed = torch.full((VOCABULARY,), -torch.inf, dtype=logits.dtype)
            weighed[sample.ids] = sample.log_weight.to(logits.dtype)
            logits = logits + weighed
        of_targets = torch.log_softmax(logits, -1).gather(1, target).squeeze(1)
        total = total + torch.where(batch.response_lengths > step, of_targets, 0.0)
    zeros = torch.zeros_like(q.mu)
    return total - BETA * q.kl(DiagonalNormal(zeros, zeros))


@pytest.mark.parametrize("lengths", [[6, 6, 6], [7, 4, 4, 2]], ids=["one length", "ragged"])
@pytest.mark.parametrize("sampled", [False, True], ids=["all words", "some words"])
def test_refined_lambda_and_all_gradients_equal_autograd_through_the_steps(lengths, sampled):
    model, batch = make_model().double(), make_batch(lengths)
    sample = None
    if sampled:
        rng, words = np.random.default_rng(0), torch.unique(batch.ids)
        sample = WordSample.draw(VOCABULARY, 4, 6, words, rng)
    start = torch.randn(len(batch), 2 * D).double().mul(0.5).requires_grad_()
    eps, wish = torch.randn(len(batch), STEPS, D).double(), torch.randn(len(batch), 2 * D).double()
    lam, velocity = start, torch.zeros_like(start)
    for step in range(STEPS):
        bound = plain_bound(model, batch, sample, lam, eps[:, step]).sum()
        (slope,) = torch.autograd.grad(bound, lam, create_graph=True)
        velocity = HOW.momentum * velocity + slope
        lam = lam + HOW.rate * velocity
    found = refine(model.climb(batch, BETA, sample), start, eps, HOW)
    torch.testing.assert_close(found, lam)
    named = [("start", start), *model.embedding.named_parameters(prefix="embedding")]
    named += model.decoder.named_parameters(prefix="decoder")
    sources = [tensor for _, tensor in named]
    expected = torch.autograd.grad((wish * lam).sum(), sources)
    got = torch.autograd.grad((wish * found).sum(), sources)
    for (name, _), one, other in zip(named, got, expected, strict=True):
        assert other.abs().max() > 1e-4, name
        torch.testing.assert_close(one, other)


def test_in_bf16_products_are_as_near_as_its_rounding():
    """Differences of bf16 gradients would be noise; tangents are not."""
    model, batch = make_model(hidden=64), make_batch([9] * 8)
    at, vector = torch.randn(8, 2 * D) * 0.5, torch.randn(8, 2 * D)
    eps = torch.randn(8, D)
    exact, of_exact = model.climb(batch, BETA).products(at, eps, vector)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, of_rounded = model.climb(batch, BETA).products(at, eps, vector)
    pairs = [(rounded, exact), *zip(of_rounded, of_exact, strict=True)]
    for one, other in pairs:
        assert one is not None and other is not None
        assert (one.float() - other).norm() < 0.03 * other.norm()


def test_differences_of_the_same_bound_come_near():
    """The way of other devices, on the model's own log-likelihood."""
    model, batch = make_model().double(), make_batch([5, 3])

    def bound(lam: Tensor, eps: Tensor) -> Tensor:
        q = DiagonalNormal(*lam.chunk(2, dim=-1))
        prior = DiagonalNormal(torch.zeros(1, 1, D), torch.zeros(1, 1, D))
        c = model.no_condition(len(batch))
        return model.log_p_x(batch, c, q.rsample(eps)) - BETA * q.kl(prior)

    at, vector, eps = (torch.randn(2, size).double() for size in (2 * D, 2 * D, D))
    climb = model.climb(batch, BETA)
    there = Differences(bound, list(model.decoder.parameters()))
    torch.testing.assert_close(climb.gradient(at, eps), there.gradient(at, eps))
    torch.testing.assert_close(
        climb.products(at, eps, vector)[0],
        there.products(at, eps, vector)[0],
        rtol=1e-5,
        atol=1e-6,
    )
