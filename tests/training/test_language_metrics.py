"""Measures of sentence VAEs: the cases of golden_lm.json, laws, and what the command says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from siserve.cli import run
from siserve_training.config import TrainConfig
from siserve_training.distributions import DiagonalNormal, Mixture
from siserve_training.errors import ConfigError
from siserve_training.evaluation.information import mutual_information
from siserve_training.evaluation.language import (
    LanguageWish,
    impossible,
    measure_language,
    open_language_run,
)
from siserve_training.evaluation.language_metrics import (
    active_units,
    gaussian_information,
    over_batches,
)
from siserve_training.evaluation.likelihood import LikelihoodEstimate
from siserve_training.methods import LM_METHODS
from siserve_training.training import start_run

from .sentence_corpus import write_sentences
from .test_lm_methods import TINY

GOLDEN = json.loads((Path(__file__).parent / "golden_lm.json").read_text())
TOLERANCE = GOLDEN["tolerance"]


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_every_golden_case_holds(case):
    expected, batches = case["expected"], case["batches"]
    normal = [DiagonalNormal(double(b["mu"]), double(b["logvar"])) for b in batches]
    standard = DiagonalNormal(torch.zeros(()).double(), torch.zeros(()).double())
    found = [gaussian_information(q, double(b["z"])) for q, b in zip(normal, batches, strict=True)]
    assert found == pytest.approx(expected["mi_per_batch"], abs=TOLERANCE)
    sizes = [len(b["mu"]) for b in batches]
    assert over_batches(found, sizes) == pytest.approx(expected["mi"], abs=TOLERANCE)
    units = active_units(torch.cat([q.mu for q in normal]))
    assert units.count == expected["au"]
    assert units.variance.tolist() == pytest.approx(expected["au_variance"], abs=TOLERANCE)
    for q, kl in zip(normal, expected["kl_per_sentence"], strict=True):
        assert q.kl(standard).tolist() == pytest.approx(kl, abs=TOLERANCE)
    weights = double(case["iw_log_weights"])
    each = [LikelihoodEstimate.of(row.unsqueeze(0), 1).log_p_x for row in weights]
    assert [-value for value in each] == pytest.approx(
        expected["iw_nll_per_sentence"], abs=TOLERANCE
    )
    whole = LikelihoodEstimate.of(weights, sum(case["tokens_incl_eos"]))
    assert whole.perplexity == pytest.approx(expected["iw_ppl"], rel=TOLERANCE)


def test_information_reaches_its_ceiling_where_posteriors_do_not_overlap():
    q = DiagonalNormal(100.0 * torch.arange(7.0).unsqueeze(1), torch.zeros(7, 1))
    assert gaussian_information(q, q.mu) == pytest.approx(math.log(7) - 0.5 + 0.0, abs=1e-6)
    mixture = Mixture.uniform(DiagonalNormal(q.mu.unsqueeze(1), q.logvar.unsqueeze(1)))
    assert mutual_information(q.mu, mixture) == pytest.approx(math.log(7), abs=1e-6)
    alike = DiagonalNormal(torch.zeros(7, 1), torch.zeros(7, 1))
    z = torch.randn(7, 1, generator=torch.Generator().manual_seed(0))
    together = Mixture.uniform(DiagonalNormal(alike.mu.unsqueeze(1), alike.logvar.unsqueeze(1)))
    assert mutual_information(z, together) == pytest.approx(0.0, abs=1e-6)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module", params=LM_METHODS)
def trained(request, sentences, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    values = {**TINY, "method": request.param, "passes": 1.0, "schedule": "constant"}
    start_run(out, sentences, TrainConfig.from_values({**values, "learning_rate": 2e-2}))
    return out


def test_every_method_keeps_the_inequalities(trained, sentences):
    subject = open_language_run(trained, sentences, "valid")
    wish = LanguageWish(sentences=0, samples=60, mi_batch=0, noise_draws=50)
    values = measure_language(subject, wish)
    assert values["warnings"] == []
    assert values["iw_perplexity"] <= values["perplexity"] * 1.02
    assert values["kl_lower"] <= values["kl"] + 1e-6
    assert values["nll"] == pytest.approx(values["rec"] + values["kl"], rel=1e-6)
    assert values["mutual_information"] <= values["mutual_information_ceiling"] + 1e-6
    assert values["mi_batch"] == 24 and 0 <= values["active_units"] <= 5
    again = measure_language(subject, wish)
    assert again == values
    tokens = subject.sentences.tokens
    assert values["perplexity"] == pytest.approx(math.exp(values["nll"] * 24 / tokens))


@pytest.mark.parametrize("trained", ["vae"], indirect=True)
def test_the_command_prints_one_object_and_writes_it(trained, sentences, tmp_path, capsys):
    out = tmp_path / "measured.json"
    options = ["--split", "valid", "--pairs", "6", "--samples", "5", "--out", str(out), "--json"]
    assert run(["evaluate", str(trained), "--data", str(sentences), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["iw_sentences"] == 6 and printed["method"] == "vae"
    assert run(["evaluate", str(trained), "--data", str(sentences), "--samples", "5"]) == 0
    assert "IW-PPL" in capsys.readouterr().out
    dump = ["--dump", str(tmp_path / "dump")]
    assert run(["evaluate", str(trained), "--data", str(sentences), *dump]) == 2
    assert "for dialog" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "gap", "said"),
    [
        ({}, -0.5, []),
        ({"mutual_information": 1.3}, -0.5, ["MI 1.300 > KL 1.000"]),
        ({}, 0.5, ["IW-PPL 90.00 > PPL 80.00"]),
    ],
)
def test_impossible_pairs_are_named(changes, gap, said):
    values = {
        "mutual_information": 0.9,
        "kl": 1.0,
        "mi_batch": 1000,
        "iw_perplexity": 90.0,
        "perplexity_of_iw_sentences": 80.0,
        **changes,
    }
    noise = np.random.default_rng(0).normal(size=1000)
    found = impossible(values, 1 + 0.1 * noise, gap + noise)
    assert len(found) == len(said)
    assert all(what in line for what, line in zip(said, found, strict=True))


def test_counts_that_cannot_be_meant_are_refused():
    for changes in ({"samples": 0}, {"sentences": -1}, {"noise_draws": 0}):
        with pytest.raises(ConfigError, match="must be at least"):
            LanguageWish(**changes)


def test_statistics_of_sentences(sentences, capsys):
    assert run(["data", "stats", str(sentences), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["splits"]["train"]["sentences"] == 150 and counts["notes"] == []
    assert run(["data", "stats", str(sentences)]) == 0
    assert "one end mark a sentence" in capsys.readouterr().out
