"""Responses to contexts: order, seeds, choice among more, and what no response may hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from siserve_training.errors import ConfigError
from siserve_training.evaluation.generation import Sampling, respond
from siserve_training.evaluation.system import Decoding, ModelSystem, choose_words
from siserve_training.tasks.dialog import load_dialog_data

from .plain_systems import Telling
from .small_runs import random_model, small_config

SHORT = Decoding(max_tokens=12, temperature=1.0)


@pytest.fixture(scope="module")
def data(corpus):
    return load_dialog_data(corpus, small_config(), skip_bad_lines=False)


@pytest.fixture(scope="module")
def system(data):
    return ModelSystem(random_model(small_config(), data), data.text.tokens)


def test_responses_stand_in_the_order_of_the_positions(data):
    positions = np.random.default_rng(0).permutation(data.train.responses)
    sampling = Sampling(10)  # 64 contexts at once
    assert len(positions) > 2 * 64
    rows = respond(Telling(), data.train, positions, sampling)
    assert rows.shape == (len(positions), 10, 40)
    for position, of_context in zip(positions, rows.tolist(), strict=True):
        words = data.train.texts[data.train.text_of[position]][1:-1]
        assert all(tuple(row[: len(words)]) == words for row in of_context)


def test_each_response_has_a_latent_of_its_own(data):
    rows = respond(Telling(), data.train, data.train.responses[:30], Sampling(10))
    assert all(len({tuple(row) for row in of_context.tolist()}) > 1 for of_context in rows)


def test_contexts_that_are_answered_at_another_time_have_other_latents(data):
    same = np.repeat(data.train.responses[:1], 64 * 2)  # 64 contexts at once
    rows = respond(Telling(), data.train, same, Sampling(10))
    assert (rows[0] != rows[1]).any() and (rows[:64] != rows[64:]).any()


def test_one_seed_gives_the_same_rows_and_another_others(system, data):
    positions = data.valid.responses
    one, same, other = (
        respond(system, data.valid, positions, Sampling(4, SHORT, seed=seed)) for seed in (1, 1, 2)
    )
    assert (one == same).all() and (one != other).any()


def test_without_diversity_nothing_more_is_drawn(system, data):
    one, other = (Sampling(4, SHORT, oversample=n) for n in (1, 9))
    assert one.num_drawn == other.num_drawn == 4
    rows = [respond(system, data.valid, data.valid.responses, s) for s in (one, other)]
    assert (rows[0] == rows[1]).all()


def test_diverse_responses_are_chosen_among_those_that_are_drawn(system, data):
    positions = data.valid.responses[:20]
    drawn = respond(system, data.valid, positions, Sampling(12, SHORT))
    chosen = respond(system, data.valid, positions, Sampling(3, SHORT, 1.0, oversample=4))
    assert chosen.shape == (20, 3, 12)
    different = [0, 0]
    for few, many in zip(chosen.tolist(), drawn.tolist(), strict=True):
        assert all(row in many for row in few)
        different[0] += len({tuple(row) for row in few})
        different[1] += len({tuple(row) for row in many[:3]})
    assert different[0] >= different[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 4.0])
def test_responses_have_words_and_after_the_end_pads_alone(system, data, temperature):
    sampling = Sampling(10, Decoding(temperature=temperature))
    rows = respond(system, data.valid, data.valid.responses, sampling)
    tokens = data.text.tokens
    ended = 0
    for row in rows.reshape(-1, 40).tolist():
        length = row.index(tokens.end) if tokens.end in row else 40
        assert length > 0 and not set(row[:length]) & set(system.marks)
        assert set(row[length + 1 :]) <= {tokens.pad}
        ended += length < 40
    assert ended > 0 or temperature == 0


def test_a_tail_follows_the_end_and_changes_nothing_before_it(system, data):
    positions = data.valid.responses
    cut, whole = (
        respond(system, data.valid, positions, Sampling(5, Decoding(20, 1.0, stops)))
        for stops in (True, False)
    )
    is_word = cut != data.text.tokens.pad
    assert (cut == whole)[is_word].all() and not is_word.all()
    assert (whole != data.text.tokens.pad).all()


@torch.no_grad()
def test_a_row_does_not_depend_on_those_beside_it(system):
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(9, system.model.config.condition, generator=generator)
    z = torch.randn(9, system.widths.z, generator=generator)
    uniform = torch.rand(12, 9, generator=generator)
    together = system.decode(c, z, SHORT, uniform)
    for row in range(9):
        one = slice(row, row + 1)
        assert torch.equal(system.decode(c[one], z[one], SHORT, uniform[:, one])[0], together[row])


@torch.no_grad()
def test_words_are_drawn_as_often_as_they_are_likely(system):
    size = system.model.config.vocabulary
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(0)).expand(4000, -1)
    uniform = (torch.arange(4000) + 0.5) / 4000
    allowed = [word for word in range(size) if word not in system.tokens.never_generated]
    for is_first in (True, False):
        words = [word for word in allowed if word != system.tokens.end or not is_first]
        expected = torch.zeros(size)
        expected[words] = torch.softmax(logits[0, words] / 0.7, -1)
        chosen = choose_words(logits.clone(), system.tokens, 0.7, uniform, is_first)
        counts = torch.bincount(chosen, minlength=size) / 4000
        assert torch.allclose(counts, expected, atol=1 / 2000)
        best = choose_words(logits[:1].clone(), system.tokens, 0.0, uniform[:1], is_first)
        assert best.item() == expected.argmax().item()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Sampling(0),
        lambda: Sampling(seed=-1),
        lambda: Sampling(oversample=0),
        lambda: Sampling(diversity=1.5),
        lambda: Sampling(diversity=float("nan")),
        lambda: Sampling(diversity=0.5, decoding=Decoding(stop_at_end=False)),
        lambda: Decoding(max_tokens=0),
        lambda: Decoding(temperature=-1.0),
        lambda: Decoding(temperature=float("nan")),
        lambda: Decoding(temperature=float("inf")),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
