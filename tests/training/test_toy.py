"""Figure 2 at a size for tests, and the exact one-dimensional table through training's own loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
from siserve.cli import run
from siserve_training.config import TrainConfig
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.methods.bound import draws_loss
from siserve_training.models.draws import Draws, Noise, NoiseWidths
from siserve_training.models.posterior import draw_each
from siserve_training.models.toy import SEQUENCES, ToyVAE
from siserve_training.reproduce.toy import FIGURE, ToyRun, measure_toy, plane_measures, train_toy

#: p(z) = N(0, 1), p(x|z) = N(z, .25), x = 1.3; q: mu = .9 + .5 e, e = +-1 evenly, variance .1.
EXACT_BOUND = {
    0: -2.477084,
    1: -2.202282,
    2: -2.100132,
    5: -2.004211,
    20: -1.947734,
    100: -1.931613,
}
EXACT_REC, EXACT_GAIN_AT_5 = -1.245791, 0.472873
X, MEAN, SPREAD, VARIANCE = 1.3, 0.9, 0.5, 0.1


@pytest.mark.parametrize("num_aux", EXACT_BOUND)
def test_the_exact_table_comes_out_of_the_loss_that_training_takes(num_aux):
    rows, draws = 20_000, 4
    generator = torch.Generator().manual_seed(num_aux)
    signs = torch.randint(0, 2, (rows, draws + num_aux, 1), generator=generator) * 2.0 - 1
    mu = (MEAN + SPREAD * signs).double()
    mixture = Mixture.uniform(DiagonalNormal(mu, torch.full_like(mu, math.log(VARIANCE))))
    eps_z = torch.randn(rows, draws, 1, generator=generator).double()
    drawn = draw_each(mixture, False, eps_z)
    zeros = torch.zeros(rows, 1, 1).double()
    given_z = DiagonalNormal(drawn.z, torch.full_like(drawn.z, math.log(0.25)))
    parts = Draws(
        z=drawn.z,
        prior=DiagonalNormal(zeros, zeros),
        own=drawn.own,
        posterior=drawn.density,
        log_p_x=given_z.log_prob(torch.full_like(drawn.z, X)),
        log_p_bow=None,
        tokens=torch.ones(rows),
    )
    report = draws_loss(parts, TrainConfig(), 1.0)
    assert -report.loss.item() == pytest.approx(EXACT_BOUND[num_aux], abs=0.02)
    assert -report.parts["rec"].item() == pytest.approx(EXACT_REC, abs=0.02)
    if num_aux == 5:
        assert report.parts["b_k"].item() == pytest.approx(EXACT_GAIN_AT_5, abs=0.01)


@pytest.mark.parametrize("told_bits", [False, True])
def test_log_p_x_of_the_toy_is_that_of_its_decoder_step_by_step(told_bits):
    torch.manual_seed(0)
    model = ToyVAE(noise=3, told_bits=told_bits)
    z = torch.randn(SEQUENCES, 2, 2)
    found = model.log_p_x(z)
    for n in range(SEQUENCES):
        carried, token, total = model.decoder.first_state(z[n]), torch.full((2,), 0), torch.zeros(2)
        for place in range(SEQUENCES):
            logits, carried = model.decoder.step(model.embedding(token), carried)
            bit = int(place == n)
            total += torch.log_softmax(logits, -1)[:, bit]
            token = torch.full((2,), 1 + bit if told_bits else 0)
        torch.testing.assert_close(found[n], total)


def test_a_decoder_that_is_told_no_bits_pays_for_ignoring_z():
    model = ToyVAE(noise=0)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        model.decoder.out.bias[1] = math.log(1 / 9)  # one bit in ten is set
        cost = -model.log_p_x(torch.randn(SEQUENCES, 2, 2))
    torch.testing.assert_close(cost, torch.full_like(cost, -math.log(0.1) - 9 * math.log(0.9)))


def test_at_a_constant_beta_lambda_that_start_apart_tell_the_sequences_apart_and_a_vae_does_not():
    found = {}
    for method, start in FIGURE:
        run = ToyRun(method, "constant", start, steps=400, draws=10, num_aux=20)
        found[method] = measure_toy(run, train_toy(run))["values"]
    assert found["vae"]["mutual_information"] < 0.05
    assert found["si-vae"]["mutual_information"] > 0.3
    assert found["si-vae"]["b_k"] > 0.1


@pytest.mark.parametrize("told_bits", [False, True])
def test_every_parameter_of_the_toy_learns(told_bits):
    torch.manual_seed(0)
    model = ToyVAE(noise=3, told_bits=told_bits)
    noise = Noise.draw(torch.randn, SEQUENCES, 4, 2, NoiseWidths(3, 2))
    draws_loss(model(noise), TrainConfig(), 0.5).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_integrals_over_the_plane_where_the_answer_is_known():
    apart = torch.tensor([[[-3.0, 0.0]], [[3.0, 0.0]]])
    narrow = Mixture.uniform(DiagonalNormal(apart, torch.full_like(apart, math.log(0.3))))
    found = plane_measures(narrow)
    assert found["mutual_information"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["bayes_accuracy"] == pytest.approx(1.0, abs=1e-3)
    assert found["mass"] == pytest.approx(1.0, abs=1e-6)
    same = torch.zeros(2, 1, 2)
    prior = plane_measures(Mixture.uniform(DiagonalNormal(same, same)))
    assert prior["kl_aggregate"] == pytest.approx(0.0, abs=1e-6)
    assert prior["mutual_information"] == pytest.approx(0.0, abs=1e-6)
    assert prior["bayes_accuracy"] == pytest.approx(0.5, abs=1e-6)


def test_the_command_draws_six_panels_with_three_beside_them_and_does_none_twice(tmp_path, capfd):
    arguments = ["reproduce", "toy", "--out", str(tmp_path), "--steps", "3", "--draws", "4"]
    assert run([*arguments, "--jobs", "1"]) == 0
    content = json.loads((tmp_path / "toy.json").read_text())
    names = [(panel["run"]["method"], panel["run"]["schedule"]) for panel in content["panels"]]
    assert names == [
        (method, schedule)
        for method in ("vae", "si-vae")
        for schedule in ("constant", "monotonic", "cyclical")
    ]
    assert len(content["controls"]) == 3
    for panel in content["panels"] + content["controls"]:
        values = panel["values"]
        assert 0.1 <= values["bayes_accuracy"] <= 1
        assert values["mutual_information"] <= values["kl"] + 0.2
    assert (tmp_path / "toy.png").stat().st_size > 10_000 and (tmp_path / "toy.svg").is_file()
    assert "siserve reproduce toy" in (tmp_path / "toy.md").read_text()
    assert run(arguments) == 0
    assert "9 of 9 panels are done already" in capfd.readouterr().err
