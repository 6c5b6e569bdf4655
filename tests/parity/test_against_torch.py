"""Graphs against torch's own layers: every output, to 1e-5, on inputs of several shapes."""

import numpy as np
import pytest
import torch
from numpy_reference import NumpySICVAE
from siserve_training.export.reference import greedy
from torch_reference import TorchSICVAE

from .conftest import normal

TOLERANCE = 1e-5
#: B contexts, U utterances, T tokens.
CONTEXT_SHAPES = [(1, 1, 2), (1, 4, 5), (5, 1, 3), (3, 9, 7), (8, 2, 40)]


def close(got, expected):
    """Within 1e-5, relative to numbers above 1."""
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    assert np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected))) <= TOLERANCE


def torch_model(graphs):
    return TorchSICVAE(graphs.model.arrays, graphs.sizes.profile, graphs.sizes.logvar_clamp)


@pytest.mark.parametrize(("batch", "window", "length"), CONTEXT_SHAPES)
def test_contexts_are_encoded_as_torch_encodes_them(variant, rng, batch, window, length):
    inputs = variant.contexts(rng, batch, window, length)
    (c,) = variant.run("context_encoder", **inputs)
    close(c, torch_model(variant).encode_context(**inputs))


def test_what_a_model_does_not_know_changes_nothing(variant, rng):
    inputs = variant.contexts(rng, 3, 4, 6)
    (c,) = variant.run("context_encoder", **inputs)
    known = {"topic": bool(variant.sizes.topics), "profile": variant.sizes.profile}
    for name, is_known in known.items():
        (other,) = variant.run("context_encoder", **{**inputs, name: inputs[name] * 0})
        assert np.array_equal(c, other) != is_known


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_prior_graph_draws_as_torch_draws(variant, rng, rows):
    c, eps_z = variant.latents(rng, rows)
    (z,) = variant.run("prior", c=c, eps_z=eps_z)
    close(z, torch_model(variant).prior(c, eps_z))


@pytest.mark.parametrize(
    ("rows", "length", "num_aux"), [(1, 2, 0), (2, 5, 1), (7, 3, 4), (3, 40, 30)]
)
def test_the_sampler_draws_and_weighs_as_torch_does(variant, rng, rows, length, num_aux):
    c, eps_z = variant.latents(rng, rows)
    response = variant.utterances(rng, rows, length)
    eps_lam = normal(rng, rows, num_aux + 1, variant.sizes.noise)
    got = variant.run("si_sampler", c=c, response=response, eps_lam=eps_lam, eps_z=eps_z)
    expected = torch_model(variant).posterior(c, response, eps_lam, eps_z)
    close(got[0], expected.z)
    close(got[1], expected.log_q_z)
    close(got[2], expected.log_p_z)


def test_far_components_do_not_underflow_the_mixture(graphs, rng):
    c, _ = graphs.latents(rng, 2)
    response = graphs.utterances(rng, 2, 4)
    eps_lam = normal(rng, 2, 3, graphs.sizes.noise)
    eps_z = np.full((2, graphs.sizes.latent), 40.0, np.float32)  # exp(log q) is 0 in float32
    got = graphs.run("si_sampler", c=c, response=response, eps_lam=eps_lam, eps_z=eps_z)
    assert np.all(got[1] < -1000)
    close(got[1], torch_model(graphs).posterior(c, response, eps_lam, eps_z).log_q_z)


@pytest.mark.parametrize("rows", [1, 6])
def test_greedy_tokens_are_those_of_torch(variant, rng, rows):
    c, z = variant.latents(rng, rows)
    tokens, log_probs, state = greedy(torch_model(variant), variant.model.tokens, c, z, 40)
    inputs = variant.chunk(rng, c, z, 40, temperature=np.zeros(rows, np.float32))
    got = variant.run("decoder", **inputs)
    assert np.array_equal(got[0], tokens)
    close(got[1], log_probs.astype(np.float32))
    close(got[2], state)


def test_forced_tokens_have_the_log_probs_of_torch(variant, rng):
    tokens = variant.model.tokens
    c, z = variant.latents(rng, 5)
    words = rng.integers(0, variant.vocabulary, (9, 5))  # forbidden ones too: they can be scored
    words[words == tokens.end] = tokens.start
    words[6:, 1] = tokens.end
    words[0, 2] = tokens.end
    got = variant.run("decoder", **variant.chunk(rng, c, z, 9, forced=words))
    model = torch_model(variant)
    state, last = model.first_state(c, z), np.full(5, tokens.start)
    for step, token in enumerate(words):
        has_ended = last == tokens.end
        state = np.where((last == tokens.start)[:, None], model.first_state(c, z), state)
        logits, following = model.step(last, state)
        log_softmax = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
        state = np.where(has_ended[:, None], state, following)
        last = np.where(has_ended, tokens.end, token)
        close(got[1][step], np.where(has_ended, 0, log_softmax[np.arange(5), last]))
        assert np.array_equal(got[0][step], last)
    assert (got[1] == 0).sum() == 10  # two tokens after the first </s> of one row, eight of another


def test_both_references_agree(variant, rng):
    plain = NumpySICVAE(variant.model.arrays, variant.sizes.profile, variant.sizes.logvar_clamp)
    model = torch_model(variant)
    inputs = variant.contexts(rng, 2, 3, 5)
    c = model.encode_context(**inputs)
    close(c, plain.encode_context(**inputs))
    state = model.first_state(c, normal(rng, 2, variant.sizes.latent))
    for got, expected in zip(
        model.step(np.array([5, 9]), state), plain.step(np.array([5, 9]), state), strict=True
    ):
        close(got, expected)
