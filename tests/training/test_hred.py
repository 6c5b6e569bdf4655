"""HRED: the context alone decides; dropout is of the batch's own seed and of training only."""

from __future__ import annotations

import json

import pytest
import torch
from siserve.client.answer import make_request
from siserve.client.in_process import InProcess
from siserve_training.config import TrainConfig
from siserve_training.errors import ConfigError
from siserve_training.export.run import export_run
from siserve_training.tasks.dialog import build_model, load_dialog_data, validate
from siserve_training.tasks.prepared import TRAINING, StepNoise, prepare_batch, training_batches
from siserve_training.training import resume_run, start_run

from .conftest import TINY

DROPOUTS = ("encoder_dropout", "context_dropout", "decoder_dropout")


def config(**changes) -> TrainConfig:
    return TrainConfig.from_values({**TINY, "method": "hred", "num_latents": 1, **changes})


@pytest.fixture
def made(corpus):
    """A function of changes to (model, batch, data, config)."""

    def make(**changes):
        chosen = config(**changes)
        data = load_dialog_data(corpus, chosen, skip_bad_lines=False)
        model = build_model(chosen, data)
        number, responses = next(training_batches(data.train, chosen, 0))
        noise = StepNoise.of(0, TRAINING, number)
        widths = model.config.widths
        batch = prepare_batch(
            data.train, responses, chosen, widths, noise, 0, sample_from=0, hide=False
        )
        return model, batch, data, chosen

    return make


def test_a_latent_changes_nothing(made):
    model, batch, _, _ = made()
    c = model.encode(batch.pairs).c
    z = torch.randn(len(c), 3, 1, generator=torch.Generator().manual_seed(0))
    log_p = model.log_p_x(batch.pairs, c, z)
    for draw in range(3):
        assert torch.allclose(log_p[:, draw], model(batch.pairs), rtol=1e-6)


def test_the_elbo_is_the_log_likelihood(made):
    model, _, data, chosen = made()
    values = validate(model, data.valid, chosen, torch.device("cpu"))
    assert values["kl"] == 0 and values["b_k"] == 0
    assert values["score"] == values["elbo"] == -values["rec"]


@pytest.mark.parametrize("name", DROPOUTS)
def test_masks_follow_the_seed_in_training_and_are_off_elsewhere(made, name):
    model, batch, _, _ = made(**{name: 0.5})
    model.train()
    one, same, other = (model(batch.pairs, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    model.train(False)
    assert torch.equal(model(batch.pairs, 1), model(batch.pairs, 2))


def test_without_dropout_training_and_evaluation_score_alike(made):
    model, batch, _, _ = made()
    assert torch.equal(model.train()(batch.pairs, 1), model.train(False)(batch.pairs, 2))


@pytest.mark.parametrize("name", DROPOUTS)
def test_all_units_cannot_be_dropped(name):
    with pytest.raises(ConfigError, match=name):
        config(**{name: 1.0})


def test_masks_are_the_same_after_a_resumption(corpus, tmp_path):
    settings = dict.fromkeys(DROPOUTS, 0.3) | {"passes": 0.5}
    start_run(tmp_path / "whole", corpus, config(**settings))
    start_run(tmp_path / "parts", corpus, config(**settings, max_steps=4))
    resume_run(tmp_path / "parts", corpus, {"max_steps": 0})
    whole, parts = (
        [
            row["loss"]
            for row in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if row["kind"] == "train"
        ]
        for name in ("whole", "parts")
    )
    assert len(whole) > 6 and parts == pytest.approx(whole, rel=1e-6)


def test_likeliest_responses_are_all_the_same(corpus, tmp_path):
    start_run(tmp_path / "run", corpus, config(passes=1.0, learning_rate=5e-3))
    export_run(tmp_path / "run", tmp_path / "bundle")
    with InProcess(tmp_path / "bundle") as model:
        answer = model.send(make_request([("A", "i have a dog")], n=5, seed=1, temperature=0.0))
        drawn = model.send(make_request([("A", "i have a dog")], n=5, seed=1, temperature=3.0))
    assert len({response.text for response in answer.responses}) == 1
    assert len({response.text for response in drawn.responses}) > 1
