"""`siserve bench train`: two ways to take one step, timed in turns."""

import json
import statistics
from pathlib import Path

import pytest
from siserve.cli import run

QUICK = ("--rounds", "2", "--batches", "1", "--batch-size", "2")


def test_both_ways_have_one_loss_and_ratios_are_of_rounds(corpus: Path, capsys) -> None:
    assert run(["bench", "train", "--data", str(corpus), *QUICK, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    fp32 = result["results"][0]
    assert fp32["precision"] == "fp32" and fp32["loss_error"] < 1e-5
    assert len(fp32["ratios"]) == 2 and fp32["ratio"] == statistics.median(fp32["ratios"])
    assert fp32["pairs_per_s"] > 0 and fp32["research_pairs_per_s"] > 0
    assert len(result["results"]) + len(result["left_out"]) == 2  # bf16 or why not
    assert result["facts"]["cpu"] and "2 in 1 batches" in result["about"]["windows"]


def test_without_torch_the_install_line_is_told(
    corpus: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siserve.bench.variants.importlib.util.find_spec", lambda name: None)
    assert run(["bench", "train", "--data", str(corpus)]) == 2
    assert "pip install 'siserve[train]'" in capsys.readouterr().err
