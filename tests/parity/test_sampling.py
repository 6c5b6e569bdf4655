"""The choice of a token: an inverse CDF in blocks, temperature, top-k, top-p, forbidden words."""

import numpy as np
import pytest
from siserve_training.export.sampling import Blocks
from torch_reference import TorchSICVAE

ROWS = 6


def forbidden(graphs):
    tokens = graphs.model.tokens
    return [tokens.pad, tokens.unk, tokens.start, tokens.dialog_start]


def first_step(graphs, c, z):
    """Logits of the first step, forbidden words and </s> at minus infinity."""
    model = TorchSICVAE(graphs.model.arrays, graphs.sizes.profile, graphs.sizes.logvar_clamp)
    logits, _ = model.step(np.full(len(z), graphs.model.tokens.start), model.first_state(c, z))
    logits[:, [*forbidden(graphs), graphs.model.tokens.end]] = -np.inf
    return logits.astype(np.float64)


def softmax(logits):
    unnormalised = np.exp(logits - logits.max(1, keepdims=True))
    return unnormalised / unnormalised.sum(1, keepdims=True)


def run(graphs, rng, c, z, steps=1, **options):
    rows = len(z)
    kinds = {"temperature": np.float32, "top_k": np.int64, "top_p": np.float32}
    options = {
        name: np.broadcast_to(np.asarray(value, kinds[name]), rows) if name in kinds else value
        for name, value in options.items()
    }
    return graphs.run("decoder", **graphs.chunk(rng, c, z, steps, **options))


@pytest.mark.parametrize("vocabulary", [6, 123, 1000, 10_002, 50_000])
def test_blocks_hold_the_vocabulary_and_little_more(vocabulary):
    blocks = Blocks.of(vocabulary)
    assert vocabulary <= blocks.words < vocabulary + blocks.size
    assert blocks.size % 16 == 0
    if vocabulary > 1000:
        assert 0.8 < blocks.size / blocks.count < 1.25


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_drawn_tokens_are_those_of_an_inverse_cdf(graphs, rng, temperature):
    c, z = graphs.latents(rng, 200)
    uniform = rng.random((1, 200), np.float32)
    tokens = run(graphs, rng, c, z, temperature=temperature, uniform=uniform)[0][0]
    cdf = softmax(first_step(graphs, c, z) / temperature).cumsum(1)
    expected = (cdf <= uniform[0][:, None]).sum(1)
    # where u falls within rounding of a step of the CDF, either neighbour is right
    distance = np.abs(cdf - uniform[0][:, None]).min(1)
    assert np.array_equal(tokens[distance > 1e-5], expected[distance > 1e-5])
    assert (distance > 1e-5).sum() > 190
    assert len(set(tokens)) > 30


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_give_words_that_may_be_said(graphs, rng, uniform):
    c, z = graphs.latents(rng, 300)
    steps = np.full((12, 300), uniform, np.float32)
    tokens = run(graphs, rng, c, z, 12, uniform=steps, temperature=5.0)[0]
    assert not np.isin(tokens, forbidden(graphs)).any()
    assert tokens.max() < graphs.vocabulary


def test_forbidden_tokens_never_appear_and_responses_are_never_empty(graphs, rng):
    c, z = graphs.latents(rng, 500)
    tokens = run(graphs, rng, c, z, 40, temperature=rng.choice([0.0, 1.0, 50.0], 500))[0]
    assert not np.isin(tokens, forbidden(graphs)).any()
    assert not (tokens[0] == graphs.model.tokens.end).any()
    assert (tokens[1:] == graphs.model.tokens.end).any()
    assert tokens.max() < graphs.vocabulary


def test_draws_follow_the_softmax(graphs, rng):
    draws = 20_000
    c, z = graphs.latents(rng, 1)
    expected = draws * softmax(first_step(graphs, c, z) / 8)[0]
    rows = (c.repeat(draws, 0), z.repeat(draws, 0))
    tokens = run(graphs, rng, *rows, temperature=8.0)[0][0]
    counts = np.bincount(tokens, minlength=graphs.vocabulary)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum())
    chi_square = ((observed - predicted) ** 2 / predicted).sum()
    freedom = len(observed) - 1
    assert freedom > 30
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_log_probs_do_not_depend_on_how_tokens_were_drawn(graphs, rng):
    c, z = graphs.latents(rng, ROWS)
    tokens, log_probs, _ = run(graphs, rng, c, z, 9, temperature=0.4, top_k=7, top_p=0.8)
    forced = run(graphs, rng, c, z, 9, forced=tokens)
    assert np.array_equal(log_probs, forced[1])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_choice_is_greedy(graphs, rng, options):
    c, z = graphs.latents(rng, 50)
    greedy = run(graphs, rng, c, z, 15, temperature=0)
    for got, expected in zip(run(graphs, rng, c, z, 15, **options), greedy, strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("options", [{"top_k": 10_000}, {"top_p": 1.0}, {"top_k": 123}])
def test_the_widest_choice_is_no_restriction(graphs, rng, options):
    c, z = graphs.latents(rng, 50)
    uniform = rng.random((15, 50), np.float32)
    free = run(graphs, rng, c, z, 15, uniform=uniform)
    assert np.array_equal(run(graphs, rng, c, z, 15, uniform=uniform, **options)[0], free[0])


@pytest.mark.parametrize("top_k", [2, 5, 40])
def test_top_k_draws_from_the_k_likeliest_and_all_of_them(graphs, rng, top_k):
    c, z = graphs.latents(rng, 1)
    ranked = first_step(graphs, c, z)[0].argsort()[::-1]
    rows = (c.repeat(8000, 0), z.repeat(8000, 0))
    tokens = run(graphs, rng, *rows, temperature=8.0, top_k=top_k)[0][0]
    assert set(tokens) == set(ranked[:top_k])


@pytest.mark.parametrize("top_k", [0, 30])
@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.95])
def test_top_p_draws_from_the_smallest_set_that_holds_p(graphs, rng, top_p, top_k):
    c, z = graphs.latents(rng, 1)
    p = softmax(first_step(graphs, c, z) / 20)[0]
    ranked = p.argsort()[::-1][: top_k or None]
    mass = p[ranked].cumsum() / (p[ranked].sum() if top_k else 1)
    nucleus = ranked[: (mass < top_p).sum() + 1]
    rows = (c.repeat(8000, 0), z.repeat(8000, 0))
    tokens = run(graphs, rng, *rows, temperature=20.0, top_p=top_p, top_k=top_k)[0][0]
    assert set(tokens) <= set(nucleus)
    likely = nucleus[p[nucleus] > 10 / 8000]
    assert len(likely) > 1 and set(likely) <= set(tokens)


def test_a_nucleus_wider_than_the_first_sort_is_found(tmp_path, rng, monkeypatch, graphs):
    """The same bundle with a first sort of 8 words draws the same tokens."""
    from bundle_factory import TinySizes, tiny_bundle, tiny_model
    from siserve_training.export import sampling

    from .conftest import Graphs

    monkeypatch.setattr(sampling, "_FIRST_SORT", 8)
    narrow = Graphs(tiny_bundle(tmp_path / "narrow"), tiny_model(), TinySizes())
    c, z = graphs.latents(rng, 60)
    options = {
        "uniform": rng.random((15, 60), np.float32),
        "temperature": 4.0,
        "top_p": rng.choice([0.3, 0.9, 0.99, 1.0], 60),
        "top_k": rng.choice([0, 0, 3, 50], 60),
    }
    wide = run(graphs, rng, c, z, 15, **options)
    for got, expected in zip(run(narrow, rng, c, z, 15, **options), wide, strict=True):
        assert np.array_equal(got, expected)
