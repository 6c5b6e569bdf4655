"""What every method owes the rest of the package: shapes, gradients, resumption, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from siserve.bundle.verify import open_bundle
from siserve.client.answer import make_request
from siserve.client.in_process import InProcess
from siserve_training.config import TrainConfig
from siserve_training.export.run import export_run
from siserve_training.methods import METHODS, load_method
from siserve_training.methods.method import LossReport
from siserve_training.models.dialog_model import DialogModel
from siserve_training.objectives.schedules import Moment
from siserve_training.tasks.dialog import DialogData, build_model, load_dialog_data
from siserve_training.tasks.prepared import TRAINING, PreparedBatch, StepNoise, prepare_batch
from siserve_training.training import resume_run, start_run

from .conftest import TINY

ADVERSARIAL = {"autoencoder_optimizer": "adam", "critic_hidden": 8, "critic_steps": 2}
#: What a method's configuration needs beside its name, and what lets a test see it learn.
OWN: dict[str, dict[str, Any]] = {
    "cvae-bow": {"bow_weight": 1.0},
    "gmm-cvae": {"components": 2},
    "cvae-co": {"schedule": "constant", "co_ramp": 20},
    "dialogwae": {**ADVERSARIAL, "keep_start_mark": False, "encoder_dropout": 0.2},
    "dialogwae-gmp": {**ADVERSARIAL, "generator_rate": 1e-3},
}
B, J, K = 5, 2, 3


def config(method: str, **changes: Any) -> TrainConfig:
    own = {"method": method, **OWN.get(method, {})}
    return TrainConfig.from_values(
        {**TINY, "learning_rate": 5e-3, "eval_every": 7, "save_every": 5, **own, **changes}
    )


class Case:
    """A method, its model with weights that are no longer near zero, and a batch."""

    def __init__(self, name: str, corpus: Path, **changes: Any) -> None:
        self.config = config(name, **changes)
        self.method = load_method(name)
        self.data: DialogData = load_dialog_data(corpus, self.config, skip_bad_lines=False)
        self.model: DialogModel = build_model(self.config, self.data)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            self.model.embedding.weight[0] = 0

    def batch(self, sampled: bool = False, count: int = B) -> PreparedBatch:
        pairs = self.data.train
        lengths = [-len(pairs.texts[pairs.text_of[r]]) for r in pairs.responses[:count]]
        order = sorted(range(count), key=lengths.__getitem__)
        return prepare_batch(
            pairs,
            pairs.responses[order],
            replace(self.config, frequent_words=5, sampled_words=4),
            self.model.config.widths,
            StepNoise.of(0, TRAINING, 0),
            K,
            sample_from=self.data.text.size if sampled else 0,
            hide=False,
        )

    def losses(self, batch: PreparedBatch) -> list[LossReport]:
        """The loss of every part of the first steps of two passes."""
        per_pass = 10
        moments = [Moment(step, 100, per_pass, 0.5, K) for step in (1, per_pass + 1)]
        updates = [(m, u) for m in moments for u in self.method.updates(self.config, m)]
        return [
            self.method.loss(self.model, batch, self.config, moment, update.part)
            for moment, update in updates
        ]


@pytest.fixture(params=METHODS)
def case(request, corpus) -> Case:
    return Case(request.param, corpus)


def test_shapes(case):
    model, batch = case.model.train(False), case.batch()
    sizes = model.config
    encoded = model.encode(batch.pairs)
    assert encoded.c.shape == (B, sizes.condition)
    eps = torch.randn(B, 7, sizes.prior_width, generator=torch.Generator().manual_seed(0))
    assert model.draw_prior(encoded.c, eps).shape == (B, 7, sizes.latent)
    latents = model.draw_posterior(encoded, batch.noise)
    assert latents.z.shape == (B, J, sizes.latent)
    for log_density in (latents.log_q_z, latents.log_p_z, latents.log_own_z):
        assert log_density.shape == (B, J)
        assert bool(torch.isfinite(log_density).all()) == model.has_densities
        assert model.has_densities or bool(torch.isnan(log_density).all())
    assert model.log_p_x(batch.pairs, encoded.c, latents.z).shape == (B, J)
    state = model.first_state(encoded.c, latents.z[:, 0])
    logits, following = model.step(torch.full((B,), 4), state)
    assert logits.shape == (B, sizes.vocabulary) and following.shape == state.shape


@torch.no_grad()
def test_log_p_x_is_the_sum_over_the_steps_of_the_decoder(case):
    """Scoring and generating go through different code; they must be one model."""
    model, batch = case.model.train(False), case.batch()
    encoded = model.encode(batch.pairs)
    z = model.draw_posterior(encoded, batch.noise).z
    expected = model.log_p_x(batch.pairs, encoded.c, z)
    ids = batch.pairs.utterances[batch.pairs.response]  # (B, T)
    for draw in range(J):
        state, total = model.first_state(encoded.c, z[:, draw]), torch.zeros(B)
        for step in range(ids.shape[1] - 1):
            logits, state = model.step(ids[:, step], state)
            target = ids[:, step + 1]
            log_p = torch.log_softmax(logits, -1).gather(1, target.unsqueeze(1)).squeeze(1)
            total += torch.where(target != 0, log_p, 0.0)
        assert torch.allclose(total, expected[:, draw], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_condition_vector_a_latent_may_be_its_own(case):
    model, batch = case.model.train(False), case.batch()
    encoded = model.encode(batch.pairs)
    z = model.draw_posterior(encoded, batch.noise).z
    other = encoded.c.flip(0)
    both = model.log_p_x(batch.pairs, torch.stack([encoded.c, other], dim=1), z)
    assert torch.allclose(both[:, 0], model.log_p_x(batch.pairs, encoded.c, z)[:, 0], atol=1e-4)
    assert torch.allclose(both[:, 1], model.log_p_x(batch.pairs, other, z)[:, 1], atol=1e-4)
    assert not torch.allclose(both[:, 1], model.log_p_x(batch.pairs, encoded.c, z)[:, 1], atol=1e-2)


@torch.no_grad()
def test_latents_of_the_prior_follow_the_noise_unless_the_method_is_deterministic(case):
    model = case.model.train(False)
    c = model.encode(case.batch().pairs).c
    eps = torch.randn(B, 2, model.config.prior_width, generator=torch.Generator().manual_seed(0))
    z = model.draw_prior(c, eps)
    assert torch.equal(z, model.draw_prior(c, eps))
    assert torch.equal(z[:, 0], z[:, 1]) == model.is_deterministic


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
def test_every_loss_is_finite_and_every_parameter_learns_from_one(case, sampled):
    case.model.train()
    reports = case.losses(case.batch(sampled))
    for report in reports:
        assert torch.isfinite(report.loss) and report.tokens > 0
        assert all(torch.isfinite(value) for value in report.parts.values())
    torch.stack([report.loss for report in reports]).sum().backward()
    for name, parameter in case.model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_some_optimizer_holds_every_parameter_and_none_holds_it_twice(case):
    optimizers = case.method.optimizers(case.config, case.model)
    held = [[id(p) for g in o.param_groups for p in g["params"]] for o in optimizers.values()]
    assert all(len(set(one)) == len(one) for one in held)
    assert set().union(*held) == {id(p) for p in case.model.parameters()}
    moment = Moment(1, 100, 10, 0.5, K)
    for update in case.method.updates(case.config, moment):
        assert set(update.optimizers) <= set(optimizers)


def rows(out: Path, kind: str) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {k: v for k, v in line.items() if k not in ("kind", "time", "tokens_per_s")}
        for line in lines
        if line["kind"] == kind
    }


@pytest.fixture(scope="module", params=METHODS)
def run(request, corpus, tmp_path_factory) -> Path:
    """A run of a few passes."""
    out = tmp_path_factory.mktemp("run") / "run"
    start_run(out, corpus, config(request.param, passes=4.0, eval_every=30, save_every=30))
    return out


def test_the_loss_falls(run):
    losses = [row["loss"] for row in rows(run, "train").values()]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_held_out_responses_become_likelier(run):
    scores = [row["score"] for row in rows(run, "valid").values()]
    assert len(scores) > 1 and scores[-1] > scores[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_goes_on_as_an_unbroken_one(corpus, tmp_path, method):
    start_run(tmp_path / "whole", corpus, config(method, passes=0.6))
    start_run(tmp_path / "parts", corpus, config(method, passes=0.6, max_steps=4))
    resume_run(tmp_path / "parts", corpus, {"max_steps": 0})
    whole, parts = (rows(tmp_path / name, "train") for name in ("whole", "parts"))
    assert len(whole) > 8 and parts.keys() == whole.keys()
    for step, expected in whole.items():
        assert parts[step] == pytest.approx(expected, rel=1e-5, nan_ok=True), step


def test_the_bundle_says_what_the_model_says_and_answers(run, tmp_path):
    manifest = export_run(run, tmp_path / "bundle")  # refuses unless parity holds
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest == manifest
    with InProcess(tmp_path / "bundle") as model:
        request = make_request([("A", "i have a dog")], n=5, seed=3)
        answer, again = model.send(request), model.send(request)
    assert len(answer.responses) == 5 and answer.responses == again.responses
    assert all(response.num_tokens > 0 for response in answer.responses)
