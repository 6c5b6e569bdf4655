"""A bundle is measured by its graphs alone, and measures as the run that it was exported from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from siserve.bundle.errors import BundleError
from siserve.bundle.manifest import Sampling as Defaults
from siserve_training.errors import ConfigError, RunError
from siserve_training.evaluation import bundle_system
from siserve_training.evaluation.bundle_system import BundleSystem
from siserve_training.evaluation.generation import Sampling, respond
from siserve_training.evaluation.measure import Measurement, answer, measure, open_subject
from siserve_training.evaluation.report import render_measurement
from siserve_training.evaluation.system import Decoding
from siserve_training.export.run import export_run
from siserve_training.models.draws import Noise
from siserve_training.tasks.prepared import evaluation_batches

from .small_runs import write_run

#: Systems whose graphs take noise in different ways.
SYSTEMS: dict[str, dict[str, Any]] = {
    "semi-implicit posterior and prior": {"method": "si-cvae", "prior_noise": 3},
    "gaussian": {"method": "cvae"},
    "mixture": {"method": "gmm-cvae", "components": 2},
    "deterministic": {"method": "hred", "num_latents": 1},
    "without densities": {"method": "dialogwae-gmp"},
}
ASKED = Measurement(Sampling(3), contexts=14, pairs=20, samples=4, ranking_samples=2)


@pytest.fixture(scope="module", params=SYSTEMS)
def both(request, corpus, tmp_path_factory):
    """A run and its bundle."""
    folder = tmp_path_factory.mktemp("both")
    run = write_run(folder / "run", corpus, **SYSTEMS[request.param])
    export_run(run, folder / "bundle", name="tiny", sampling=Defaults(temperature=0.5))
    return folder / "run", folder / "bundle"


@pytest.fixture(scope="module")
def bundle(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    export_run(write_run(folder / "run", corpus), folder / "bundle")
    return folder / "bundle"


def test_a_run_and_its_bundle_measure_alike(both, corpus):
    of_run, of_bundle = (open_subject(folder, corpus, "test") for folder in both)
    assert of_bundle.system.has_densities == of_run.system.has_densities
    assert of_bundle.system.widths.prior == of_run.system.widths.prior
    if of_run.system.has_densities:
        assert of_bundle.system.widths == of_run.system.widths
    assert of_bundle.system.is_deterministic == of_run.system.is_deterministic
    assert (answer(of_bundle, ASKED).samples == answer(of_run, ASKED).samples).all()
    expected, got = measure(of_run, ASKED), measure(of_bundle, ASKED)
    own = {"system", "checkpoint"}
    of_mixtures = {"b_k", "mutual_information", "mutual_information_ceiling"}
    has_mixture = isinstance(of_bundle.system, BundleSystem) and of_bundle.system.is_explicit
    of_models = {"log_b_k"} | (set() if has_mixture else of_mixtures)
    of_models |= {name for name in expected if name.startswith(("noise_share", "bound_at", "non_"))}
    assert expected.keys() - got.keys() <= of_models and got.keys() <= expected.keys()
    for name in got.keys() - own:
        assert got[name] == pytest.approx(expected[name], abs=1e-3, nan_ok=True), name
    assert (got["system"], got["checkpoint"]) == ("tiny", "version 1")
    assert math.isfinite(got["prior_log_p_x"])
    assert "tiny" in render_measurement(got)


def test_a_component_of_small_share_is_drawn_of_a_bundle_too(corpus, tmp_path):
    """Its share is told by the graph of the mixture, not guessed from a few draws."""

    def favour_the_first(model):
        model.posterior_net.weight.bias.copy_(torch.tensor([6.0, -6.0]))

    run = write_run(tmp_path / "run", corpus, favour_the_first, **SYSTEMS["mixture"])
    export_run(run, tmp_path / "bundle")
    of_run, of_bundle = (open_subject(tmp_path / n, corpus, "test") for n in ("run", "bundle"))
    assert of_bundle.system.widths == of_run.system.widths
    batch = next(evaluation_batches(of_run.pairs, 3, 3))
    eps_lam = torch.tensor([-1.0, 6.0]).view(1, 2, 1).expand(len(batch), -1, -1)
    noise = Noise(eps_lam, torch.zeros(len(batch), 2, 5), torch.zeros(len(batch), 1, 0))
    drawn = [s.system.draw_posterior(s.system.encode(batch), noise) for s in (of_run, of_bundle)]
    assert not torch.allclose(drawn[1].z[:, 0], drawn[1].z[:, 1])
    for name in ("z", "log_q_z", "log_own_z"):
        one, other = (getattr(each, name) for each in drawn)
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


def test_the_same_uniforms_choose_the_same_words(both, corpus):
    sampling = Sampling(4, Decoding(max_tokens=19, temperature=1.0))
    subjects = [open_subject(folder, corpus, "valid") for folder in both]
    one, other = (respond(s.system, s.pairs, s.pairs.responses, sampling) for s in subjects)
    same = (one == other).all(axis=2)
    assert same.mean() > 0.98  # a uniform may fall on the border of two words


def test_rows_do_not_depend_on_how_many_run_at_once(bundle, corpus, monkeypatch):
    subject = open_subject(bundle, corpus, "test")
    batch = next(evaluation_batches(subject.pairs, 11, 11))
    sampling = Sampling(3, Decoding(max_tokens=20, temperature=0.7))

    def results():
        rows = respond(subject.system, subject.pairs, subject.pairs.responses[:11], sampling)
        c = subject.system.encode(batch).c
        z = torch.randn(11, 3, 5, generator=torch.Generator().manual_seed(0))
        return rows, subject.system.log_p_x(batch, c, z)

    rows, log_p = results()
    monkeypatch.setattr(bundle_system, "_ROWS_AT_ONCE", 4)
    again, log_p_again = results()
    assert (rows == again).all() and torch.allclose(log_p, log_p_again, atol=1e-5)


def test_responses_have_words_and_after_the_end_pads_alone(bundle, corpus):
    subject = open_subject(bundle, corpus, "test")
    sampling = Sampling(10, Decoding(temperature=2.0))
    rows = respond(subject.system, subject.pairs, subject.pairs.responses[:20], sampling)
    tokens = subject.text.tokens
    for row in rows.reshape(-1, 40).tolist():
        length = row.index(tokens.end) if tokens.end in row else 40
        assert length > 0 and not set(row[:length]) & set(subject.system.marks)
        assert set(row[length + 1 :]) <= {tokens.pad}


def test_what_follows_the_end_takes_a_run(bundle, corpus):
    subject = open_subject(bundle, corpus, "test")
    asked = Measurement(Sampling(2, Decoding(stop_at_end=False)), contexts=2)
    with pytest.raises(ConfigError, match="--tail decoder needs a run"):
        measure(subject, asked)


def test_a_bundle_is_checked_before_it_is_used(corpus, tmp_path):
    export_run(write_run(tmp_path / "run", corpus), tmp_path / "bundle")
    with (tmp_path / "bundle" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(BundleError, match="weights.safetensors was changed"):
        open_subject(tmp_path / "bundle", corpus, "test")


def test_a_folder_holds_a_run_or_a_bundle(bundle, corpus, tmp_path):
    with pytest.raises(RunError, match="neither a run .* nor a bundle"):
        open_subject(tmp_path, corpus, "test")
    with pytest.raises(ConfigError, match="--checkpoint chooses a state of a run"):
        open_subject(bundle, corpus, "test", checkpoint="last")
