"""`siserve compare`: one table or one JSON object, one line for what does not fit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from response_sets import make_set
from siserve.cli import run
from siserve_training.evaluation.dump import write_dump, write_vectors


@pytest.fixture
def dumps(tmp_path):
    """Two models over the same contexts: junk, and the references themselves."""
    first = make_set(contexts=20)
    rows = first.samples.copy()
    for number, ids in enumerate(first.references):
        rows[number, :, : len(ids) - 1] = ids[1:]
    second = dataclasses.replace(first, samples=rows)
    for name, responses in (("a", first), ("b", second)):
        write_dump(tmp_path / f"{name}.jsonl", responses)
    return tmp_path


def compare(folder, *options) -> int:
    return run(["compare", str(folder / "a.jsonl"), str(folder / "b.jsonl"), *options])


def test_json_holds_every_metric_with_its_interval(dumps, capsys):
    write_vectors(dumps / "table.npy", np.random.default_rng(0).normal(size=(25, 4)))
    options = ("--vectors", str(dumps / "table.npy"), "--resamples", "200", "--json")
    assert compare(dumps, *options) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["contexts"], answer["samples"], answer["resamples"]) == (20, 5, 200)
    metrics = answer["metrics"]
    recall = metrics["bleu_recall_modern"]
    assert recall["difference"] == pytest.approx(recall["b"] - recall["a"])
    assert 0 < recall["low"] < recall["difference"] < recall["high"]
    assert recall["p_value"] == pytest.approx(2 / 201)
    assert metrics["bow_greedy_clean"]["b"] == pytest.approx(1)
    assert metrics["sacrebleu"]["b"] == pytest.approx(100)
    assert metrics["sacrebleu"]["low"] is None
    assert "bleu_f1_legacy" in metrics and "version" in answer["sacrebleu_signature"]


def test_the_table_names_both_dumps_and_says_what_is_missing(dumps, capsys):
    assert compare(dumps, "--resamples", "100") == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "bleu_f1_modern" in page and "inter_dist_2" in page and "bow_average" not in page
    assert "no word vectors" in page and "20 contexts" in page


def test_vectors_in_glove_format_are_read_for_the_words_of_the_dump(dumps, capsys):
    vectors = dumps / "glove.txt"
    vectors.write_text("".join(f"w{n} {n} 1.5 {-n}\n" for n in range(20)))
    assert compare(dumps, "--vectors", str(vectors), "--resamples", "100", "--json") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["bow_average_clean"]["b"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: make_set(contexts=19), "20 and 19 contexts"),
        (
            lambda s: dataclasses.replace(
                s, contexts=(*s.contexts[:7], ("A: no",), *s.contexts[8:])
            ),
            "contexts of the dumps differ on line 8",
        ),
        (
            lambda s: dataclasses.replace(s, references=(*s.references[:-1], (2, 5, 5, 5, 3))),
            "references of the dumps differ on line 20",
        ),
        (lambda s: dataclasses.replace(s, samples=s.samples[:, :4]), "5 and 4 samples"),
    ],
)
def test_dumps_that_cannot_be_compared_end_with_one_line_and_exit_2(dumps, capsys, change, what):
    write_dump(dumps / "b.jsonl", change(make_set(contexts=20)))
    assert compare(dumps) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert what in printed.err


def test_a_missing_dump_and_too_few_resamples_are_wrong_use(dumps, capsys):
    assert compare(dumps, "--resamples", "5") == 2
    (dumps / "b.jsonl").unlink()
    assert compare(dumps) == 2
    assert "b.jsonl: no such file" in capsys.readouterr().err
