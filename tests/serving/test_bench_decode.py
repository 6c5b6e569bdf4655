"""`siserve bench decode`: its figures follow from each other, and odd input gets one line."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from siserve.bench.decoding import Decoding, step_work
from siserve.bench.machine import machine_facts
from siserve.bench.steps import StepPlan, measure_steps
from siserve.bundle import open_bundle
from siserve.cli import run

QUICK = ("--rows", "2,3", "--threads", "1", "--rounds", "2", "--steps", "6", "--seconds", "0")
ONE_WAY = ("--parts", "steps", "--against", "batched")  # each way is a process that imports torch


def run_decode(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "siserve", "bench", "decode", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def result(bundle: Path) -> dict:
    ran = run_decode("--model", bundle, *QUICK, *ONE_WAY, "--json")
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    return json.loads(line)


def test_each_number_of_rows_has_a_record_whose_figures_agree(result: dict) -> None:
    found = [(record["rows"], record["precision"]) for record in result["steps"]]
    assert found == [(2, "fp32"), (2, "int8"), (3, "fp32"), (3, "int8")]
    for record in result["steps"]:
        assert len(record["seconds_per_step"]) == 2  # rounds
        step = statistics.median(record["seconds_per_step"])
        assert record["ms_per_step"] == pytest.approx(1e3 * step)
        assert record["responses_per_s"] == pytest.approx(record["rows"] / (6 * step))
        theirs = record["batched_ms_per_step"]
        assert record["ratio_to_batched"] > 0 and theirs > 0
        assert record["ratio_to_one_at_a_time"] is None  # was not asked for
        assert 0 < record["floor_ms"] < record["ms_per_step"]


def test_a_figure_comes_with_what_it_was_measured_on(result: dict, bundle: Path) -> None:
    assert result["model"]["sha256"] == open_bundle(bundle).manifest.sha256
    assert result["facts"].keys() == machine_facts().keys()
    assert result["facts"]["versions"]["onnxruntime"] and result["facts"]["cpu"]
    assert result["left_out"] == []


def test_without_torch_the_ratios_are_left_out_and_the_rest_is_there(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siserve.bench.variants.importlib.util.find_spec", lambda name: None)
    plan = StepPlan([2], ["batched"], [1], ["fp32"], "cpu", rounds=1, steps=4, seconds=0.0)
    (record,), left_out = measure_steps(open_bundle(bundle), plan, lambda said: None)
    assert record["ratio_to_batched"] is None and record["times_the_floor"] > 0
    assert len(left_out) == 1 and "siserve[train]" in left_out[0]


def test_as_many_steps_are_decoded_as_were_asked_for(sessions, manifest, monkeypatch) -> None:
    decoding = Decoding(sessions, manifest, 3)
    run, steps = sessions.decoder.run, []

    def count(inputs: dict) -> object:
        assert inputs["token"].shape == (3,) and manifest.tokens.end not in inputs["token"]
        steps.append(len(inputs["uniform"]))
        return run(inputs)

    monkeypatch.setattr(sessions.decoder, "run", count)
    assert decoding.seconds(30) > 0
    assert sum(steps) == 30


def test_the_work_of_a_step_is_that_of_the_decoders_products(bundle: Path) -> None:
    sizes = open_bundle(bundle).manifest.sizes
    hidden = sizes.state
    products = 3 * hidden * hidden + hidden * sizes.vocabulary  # a word's own can be looked up
    assert step_work(open_bundle(bundle)).weights == products


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--rows", "5,many"), "--rows"),
        (("--threads", "0"), "--threads"),
        (("--precision", "fp64"), "'fp64'"),
        (("--against", "beam"), "'beam'"),
        (("--model", "/nowhere"), "/nowhere"),
    ],
)
def test_odd_input_is_refused_in_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "decode", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and told in printed.err and len(printed.err.splitlines()) == 1
