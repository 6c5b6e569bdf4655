"""Table 2: its rows are commands that exist, and its page says what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from siserve.cli import run
from siserve_training.config import TrainConfig, parse_setting, preset_values
from siserve_training.reproduce.language import lm_rows, lm_scale, reproduce_lm
from siserve_training.reproduce.runner import Job, Plan
from siserve_training.reproduce.table import facts_of

from .sentence_corpus import write_sentences


@pytest.fixture
def plan(tmp_path) -> Plan:
    data = write_sentences(tmp_path / "sentences")
    return Plan(data, tmp_path / "table", lm_scale("small"), None, None)


@pytest.mark.parametrize("scale", ["small", "full"])
def test_every_row_is_a_configuration_of_its_schedule(plan, scale):
    plan = replace(plan, scale=lm_scale(scale))
    for row in lm_rows(scale):
        command = Job(row, 1, plan).train_command()
        assert command[:3] == ["train", "--task", "lm"]
        preset = command[command.index("--preset") + 1]
        settings = [command[at + 1] for at, part in enumerate(command) if part == "--set"]
        values = {**preset_values(preset), **dict(parse_setting(s) for s in settings)}
        chosen = TrainConfig.from_values(values)
        block = row.name.rpartition("-")[2]
        expected = {"m": "monotonic", "c": "cyclical", "ma": "monotonic", "constant": "constant"}
        assert chosen.schedule == expected[block]
        ahead = "adaptive" if scale == "full" else "fixed:2"
        assert chosen.aggressive == (ahead if block == "ma" else "off")
        assert "--dump" not in Job(row, 1, plan).evaluate_command()


def test_the_papers_rows_are_those_of_table_2():
    rows = [row for row in lm_rows("small") if row.paper]
    printed: dict[str, Any] = {row.name: row.paper[0].values for row in rows}
    assert len(printed) == 8
    assert printed["si-vae-ma"] == (32, 3.73, 9.20, 100.3, 88.51)
    assert printed["sa-vae-c"] == (None, None, 2.26, 108.7, None)


def test_a_table_names_every_machine_that_its_runs_were_made_on(plan):
    jobs = [Job(row, seed, plan) for seed in (0, 1) for row in lm_rows("small")[:2]]
    for job in jobs:
        job.folder.mkdir(parents=True)
        device = "a GPU" if job.seed else "cpu"
        job.machine.write_text(json.dumps({"device": device, "python": "3.12.3"}))
    facts = facts_of(plan, (0, 1), jobs)
    assert facts["device"] == "cpu; a GPU"
    assert facts["python"] == "3.12.3"


def write_result(job: Job, offset: float, warnings: list[str]) -> None:
    run_folder = job.run
    run_folder.mkdir(parents=True)
    lines = [
        {"step": step, "kind": kind, "time": 0.0, **values}
        for step in (1, 2)
        for kind, values in (
            ("train", {"beta": step / 2, "K": 3.0}),
            ("valid", {"kl": 1.0 * step, "mutual_information": 0.5, "active_units": 2.0}),
        )
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "active_units": 3,
        "mutual_information": 0.5,
        "kl": 2.0 + offset,
        "kl_lower": 1.5,
        "b_k": 0.1,
        "nll": 100.0,
        "rec": 98.0,
        "perplexity": 120.0,
        "iw_perplexity": 110.0,
        "perplexity_of_iw_sentences": 119.0,
        "iw_estimate_error": 0.1,
        "mutual_information_ceiling": math.log(24),
        "sentences": 24,
        "iw_sentences": 24,
        "iw_samples": 100,
        "mi_batch": 24,
        "warnings": warnings,
    }
    job.result.write_text(json.dumps(values))


def test_the_page_shows_means_intervals_the_papers_numbers_and_what_cannot_be(plan):
    rows = [row for row in lm_rows("small") if row.name in ("vae-m", "si-vae-m")]
    for seed in (0, 1):
        for row in rows:
            write_result(Job(row, seed, plan), float(seed), ["no"] if row.name == "vae-m" else [])
    said: list[str] = []
    page = reproduce_lm(plan, rows, [0, 1], 1, said.append).read_text()
    assert said == ["4 of 4 runs are done already"]
    assert "| VAE + M | 3.000 ± 0.000 | 0.500 ± 0.000 | 2.500 ± 6.353 |" in page
    assert "| *SI-VAE + M (paper)* | *7* | *2.73* | *4.83* | *105.6* | *96.73* |" in page
    assert "VAE + M, seed 1: no" in page and "siserve reproduce lm --scale small" in page
    content = json.loads((plan.out / "lm.json").read_text())
    assert content["rows"][0]["seeds"] == [0, 1] and len(content["warnings"]) == 2
    assert (plan.out / "lm-curves.png").stat().st_size > 10_000


def test_finished_makes_the_table_of_what_has_finished_and_says_which_seeds(plan, capsys):
    rows = [row for row in lm_rows("small") if row.name in ("vae-m", "si-vae-m", "vae-c")]
    for row, seed in ((rows[0], 0), (rows[0], 1), (rows[1], 0)):
        write_result(Job(row, seed, plan), 0.0, [])
    options = ["--data", str(plan.data), "--out", str(plan.out), "--seeds", "0,1", "--finished"]
    assert run(["reproduce", "lm", *options]) == 0
    page = (plan.out / "lm.md").read_text()
    whole, part = (row.title for row in rows[:2])
    assert f"| {whole} | 3.000 ± 0.000 |" in page
    assert f"| {part} (seed 0) | 3.000 |" in page
    assert rows[2].title not in page
    assert "--rows vae-m --seeds 0,1 " in page and "--rows si-vae-m --seeds 0 " in page
    assert not Job(rows[2], 0, plan).folder.exists()


def test_finished_without_any_run_says_so(plan, capsys):
    options = ["--data", str(plan.data), "--out", str(plan.out), "--finished"]
    assert run(["reproduce", "lm", *options]) == 2
    assert "no run of these rows and seeds has ended" in capsys.readouterr().err


def test_the_commands_of_a_row_train_and_measure_it(plan, capsys):
    plan = replace(plan, max_steps=2)
    row = next(row for row in lm_rows("small") if row.name == "vae-m")
    job = Job(row, 0, plan)
    job.folder.mkdir(parents=True)
    assert run(job.train_command()) == 0
    assert run(job.evaluate_command()) == 0
    values = json.loads(job.result.read_text())
    assert values["method"] == "vae" and values["split"] == "test" and values["warnings"] == []
    page = reproduce_lm(plan, [row], [0], 1, lambda line: None).read_text()
    assert "No row breaks MI <= KL" in page and "--max-steps 2" in page


def test_an_unknown_scale_is_refused(tmp_path, capsys):
    options = ["--data", str(tmp_path), "--out", str(tmp_path), "--scale", "huge"]
    assert run(["reproduce", "lm", *options]) == 2
    assert "--scale must be one of full, small" in capsys.readouterr().err
