"""`siserve evaluate`, from a folder to a table, JSON and a dump; one line for what cannot be."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from siserve.cli import run as siserve
from siserve_training.evaluation.dump import read_dump, read_vectors_table, vectors_path
from siserve_training.evaluation.generation import Sampling
from siserve_training.evaluation.measure import Measurement, measure, open_subject, to_json
from siserve_training.evaluation.scores import score_responses
from siserve_training.export.run import export_run

from .conftest import write_corpus
from .small_runs import write_run

FEW = ("--contexts", "6", "--pairs", "12", "--samples", "3", "--ranking-samples", "2")
ASKED = Measurement(Sampling(2), contexts=4, pairs=8, samples=2, ranking_samples=1)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "mine", corpus)


@pytest.fixture(scope="module")
def values(run, corpus):
    """What is measured of a semi-implicit run."""
    return measure(open_subject(run, corpus, "test"), ASKED)


def evaluate(subject, corpus, *options) -> int:
    return siserve(["evaluate", str(subject), "--data", str(corpus), *options])


def test_json_on_the_screen_and_in_the_file_are_one_and_the_dump_holds_the_responses(
    run, corpus, tmp_path, capsys
):
    out, dump = tmp_path / "values.json", tmp_path / "dump.jsonl"
    options = ("--out", str(out), "--dump", str(dump), "--responses", "5", "--json")
    assert evaluate(run, corpus, *FEW, *options) == 0
    shown = capsys.readouterr()
    printed = json.loads(shown.out)
    assert printed == json.loads(out.read_text())
    assert (printed["system"], printed["split"], printed["method"]) == ("mine", "test", "si-cvae")
    assert (printed["contexts"], printed["responses"], printed["pairs"]) == (6, 5, 12)
    dumped = read_dump(dump)
    assert dumped.samples.shape == (6, 5, 40) and len(dumped.references) == 6
    assert "answering contexts" in shown.err


def test_the_table_names_what_was_measured_and_how(run, corpus, capsys):
    assert evaluate(run, corpus, *FEW, "--split", "valid") == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "mine (si-cvae), step-0000003, valid split" in page
    assert "6 contexts, 10 responses each, temperature 0" in page
    assert "no BOW scores" in page and "12 pairs, S = 3" in page
    for title in ("responses", "likelihood", "latents", "R@1/10", "B_K"):
        assert title in page


def test_a_bundle_is_measured_by_the_same_command(run, corpus, tmp_path, capsys):
    export_run(run, tmp_path / "bundle")
    assert evaluate(tmp_path / "bundle", corpus, *FEW, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["system"] == "dialog-si-cvae" and math.isfinite(found["elbo"])
    assert evaluate(tmp_path / "bundle", corpus, *FEW) == 0


def test_vectors_add_embedding_scores_and_an_unknown_file_is_told_before_the_work(
    run, corpus, tmp_path, capsys
):
    vectors = tmp_path / "glove.txt"
    vectors.write_text("".join(f"{w} 1 {n} 0.5\n" for n, w in enumerate("i have a dog".split())))
    dump = tmp_path / "said.jsonl"
    options = ("--vectors", str(vectors), "--dump", str(dump), "--json")
    assert evaluate(run, corpus, *FEW, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vectors"] == "glove.txt" and 0 < found["bow_average_clean"] <= 1
    kept = score_responses(read_dump(dump), read_vectors_table(vectors_path(dump))).corpus
    assert {name: found[name] for name in kept} == kept  # anybody can score the dump again
    assert evaluate(run, corpus, *FEW, "--vectors", str(tmp_path / "no.txt")) == 2
    said = capsys.readouterr().err
    assert "no.txt" in said and "answering" not in said and said.count("\n") == 1


def test_every_tail_and_diversity_is_told_with_the_values(run, corpus, capsys):
    rows = {}
    for name, options in {
        "pad": (),
        "decoder": ("--tail", "decoder"),
        "diverse": ("--diversity", "0.5", "--temperature", "1", "--seed", "3"),
    }.items():
        assert evaluate(run, corpus, *FEW, "--json", *options) == 0
        rows[name] = json.loads(capsys.readouterr().out)
    assert [rows[name]["tail"] for name in rows] == ["pad", "decoder", "pad"]
    diverse = rows["diverse"]
    told = (diverse["diversity"], diverse["temperature"], diverse["noise_seed"])
    assert told == (0.5, 1.0, 3)
    assert diverse["prior_log_p_x"] == rows["pad"]["prior_log_p_x"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--split", "train"), "--split must be valid or test"),
        (("--checkpoint", "first"), "--checkpoint must be best or last"),
        (("--tail", "none"), "--tail must be pad or decoder"),
        (("--tail", "decoder", "--diversity", "0.5"), "diversity"),
        (("--responses", "0"), "responses must be at least 1"),
        (("--samples", "0"), "samples must be at least 1"),
        (("--ranking-samples", "-1"), "ranking_samples must be at least 1"),
        (("--contexts", "-1"), "contexts must be at least 0"),
        (("--pairs", "-5"), "pairs must be at least 0"),
        (("--seed", "-1"), "seed must be at least 0"),
        (("--temperature", "nan"), "temperature"),
        (("--temperature", "-1"), "temperature"),
        (("--diversity", "1.5"), "diversity"),
        (("--diversity", "nan"), "diversity"),
        (("--out", "/no/such/folder/x.json"), "--out /no/such/folder/x.json: expected a file"),
        (("--dump", "."), "--dump .: expected a file"),
        (("--responses", "many"), "--responses"),
    ],
)
def test_odd_options_are_refused_in_one_line_before_any_work(run, corpus, capsys, options, what):
    assert evaluate(run, corpus, *FEW, *options) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert what in said.err and said.err.startswith("siserve evaluate: ")


def test_folders_that_hold_nothing_to_measure_get_one_line(run, corpus, tmp_path, capsys):
    broken = shutil.copytree(run, tmp_path / "broken")
    shutil.rmtree(broken / "checkpoints")
    (tmp_path / "empty").mkdir()
    for subject, data, what in (
        (tmp_path / "empty", corpus, "neither a run (config.json) nor a bundle"),
        (tmp_path / "absent", corpus, "neither a run"),
        (broken, corpus, "no checkpoint yet"),
        (run, tmp_path / "absent", "no such folder"),
    ):
        assert evaluate(subject, data, *FEW) == 2
        said = capsys.readouterr()
        assert what in said.err and said.err.count("\n") == 1 and said.out == ""


def test_what_is_measured_does_not_depend_on_what_was_measured_before(run, corpus, values):
    subject = open_subject(run, corpus, "test")
    measure(subject, Measurement(Sampling(1), 2, 3, 1, 1))
    assert to_json(measure(subject, ASKED)) == to_json(values)
    assert subject.model is not None and not subject.model.training


def test_values_keep_the_laws_between_them(values):
    assert values["elbo"] == pytest.approx(-values["rec"] - values["kl"], abs=1e-3)
    assert 0 < values["b_k"] < math.log(values["num_aux"] + 1) + 1e-6
    assert values["log_b_k"] == pytest.approx(math.log(values["b_k"]))
    assert 0 <= values["mutual_information"] <= values["mutual_information_ceiling"] + 1e-3
    assert values["bound_at_0"] < values["bound_at_5"] < values["bound_at_100"]
    assert values["iw_samples"] == values["prior_samples"] == 2
    assert 0 < values["noise_share_of_mu"] < 1


def test_a_split_of_one_dialog_is_measured_without_ranking(run, tmp_path, capsys):
    corpus = write_corpus(tmp_path / "one")
    lines = (corpus / "test.jsonl").read_text().splitlines(keepends=True)
    (corpus / "test.jsonl").write_text(lines[0])
    assert evaluate(run, corpus, *FEW, "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert "recall_at_1_of_10" not in found and "prior_log_p_x" in found
    assert "contexts are not ranked" in said.err


def test_one_pair_and_one_response_are_enough_and_leave_nulls(run, corpus, capsys):
    options = ("--contexts", "1", "--pairs", "1", "--samples", "1", "--responses", "1")
    assert evaluate(run, corpus, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["contexts"] == found["pairs"] == 1
    assert found["prior_std_error"] is None and "self_bleu" not in found
    assert evaluate(run, corpus, *options) == 0


def test_json_knows_no_nan():
    assert json.loads(to_json({"a": math.nan, "b": math.inf, "c": 1.5, "d": None, "e": "x"})) == {
        "a": None,
        "b": None,
        "c": 1.5,
        "d": None,
        "e": "x",
    }
