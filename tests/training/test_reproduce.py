"""A table survives being killed, repeats nothing that is done, and names every cell's command."""

from __future__ import annotations

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from siserve_training.config import TrainConfig, preset_values
from siserve_training.errors import ConfigError, RunError
from siserve_training.reproduce.noise import NOISE_ROWS, NOISE_SCALE, reproduce_noise
from siserve_training.reproduce.page import list_commands, results_page
from siserve_training.reproduce.results import MeasuredRow, score_baselines
from siserve_training.reproduce.rows import COLUMNS, ROWS, SCALES, Row, Scale, pretrained_row
from siserve_training.reproduce.runner import Job, Plan, locked, run_jobs
from siserve_training.reproduce.table import (
    chosen_rows,
    make_plan,
    reproduce_dialog,
    room_for_runs,
    scale_named,
    with_changes,
)

from .conftest import TINY, write_corpus

TINY_SCALE = Scale(
    "-small",
    {**TINY, "passes": 2.0, "save_every": 2, "frequent_words": 0},
    {"pairs": 8, "samples": 3, "ranking-samples": 2},
)
SLOW = 400.0  # passes of a run that is killed on its way
TWO_ROWS = (
    Row("cvae", "CVAE", "dialog-cvae"),
    Row("si-cvae", "SI-CVAE", "dialog-si-cvae", {"noise": 4}),
    Row("diverse", "Diverse", "dialog-si-cvae", evaluation={"diversity": 0.9}, of="si-cvae"),
)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    words = "i have a dog do you like the cat my bird is old we soup".split()
    path: Path = tmp_path_factory.mktemp("glove") / "tiny.txt"
    rows = [f"{word} {' '.join(f'{v:.3f}' for v in rng.normal(size=4))}" for word in words]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def plan(corpus, vectors, tmp_path) -> Plan:
    return Plan(corpus, tmp_path / "out", TINY_SCALE, vectors, None)


def mute(line: str) -> None:
    del line


@pytest.mark.slow
def test_a_table_is_made_whole_and_a_second_call_repeats_nothing(plan):
    page = reproduce_dialog(plan, TWO_ROWS, (0, 1), 1, mute)
    content = json.loads((plan.out / "dialog.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["cvae", "si-cvae", "diverse"]
    assert all(row["seeds"] == [0, 1] for row in content["rows"])
    for row in content["rows"]:
        assert set(COLUMNS.values()) <= set(row["values"])
        assert row["interval_95_half_width"]["inter_dist_2"] >= 0
    assert {row["name"] for row in content["baselines"]} >= {"random_utterances", "yeah"}
    text = page.read_text()
    assert "± " in text and "random utterances of valid" in text
    assert "GloVe" not in text and plan.vectors.name in text
    for name in ("relevance-diversity.svg", "relevance-diversity.png", "examples.md"):
        assert (plan.out / name).stat().st_size > 500
    before = {path: path.stat().st_mtime_ns for path in plan.out.glob("rows/*/*/*.json")}
    said: list[str] = []
    reproduce_dialog(plan, TWO_ROWS, (0, 1), 1, said.append)
    assert said[0] == "6 of 6 runs are done already" and not any("train" in s for s in said)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert page.read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_table_goes_on_and_leaves_no_run_behind(plan, number):
    row = Row("cvae", "CVAE", "dialog-cvae", {"passes": SLOW})
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path;"
        "from siserve_training.reproduce.rows import Row, Scale;"
        "from siserve_training.reproduce.runner import Job, Plan, run_jobs;"
        f"plan = Plan(Path({str(plan.data)!r}), Path({str(plan.out)!r}),"
        f" Scale('-small', {dict(TINY_SCALE.settings)!r}, {dict(TINY_SCALE.evaluation)!r}),"
        f" Path({str(plan.vectors)!r}), None);"
        f"run_jobs([Job(Row('cvae', 'CVAE', 'dialog-cvae', {dict(row.settings)!r}), 0, plan)],"
        " 1, 1, print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, "."], stdout=subprocess.DEVNULL)
    job = Job(row, 0, plan)
    wait_until(lambda: steps(job) >= 3)
    parent.send_signal(number)
    parent.wait(timeout=30)
    wait_until(lambda: is_free(plan.out))
    saved = json.loads((job.run / "checkpoints" / "last.json").read_text())["checkpoint"]
    done = int(saved.removeprefix("step-"))
    assert done == steps(job) > 2  # it saved where it stood
    (job.run / "config.json").write_text(shorten(job.run / "config.json", done + 2))
    run_jobs([job], 1, 1, mute)
    assert job.result.is_file() and steps(job) == done + 2


def steps(job: Job) -> int:
    log = job.run / "metrics.jsonl"
    if not log.is_file():
        return 0
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return max((row["step"] for row in rows if row["kind"] == "train"), default=0)


def shorten(config: Path, max_steps: int) -> str:
    """End a run of many passes soon: a resumed run keeps its own configuration."""
    values = json.loads(config.read_text())
    return json.dumps({**values, "max_steps": max_steps})


def is_free(folder: Path) -> bool:
    try:
        with locked(folder):
            return True
    except RunError:
        return False


def wait_until(holds, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.05)


def test_a_failing_run_is_told_with_its_last_line_and_its_log(plan):
    broken = Row("broken", "Broken", "dialog-cvae", {"latent": -1})
    with pytest.raises(RunError, match=r"broken, seed 0: .*latent must be at least 1.*train\.log"):
        run_jobs([Job(broken, 0, plan)], 1, 1, mute)


def test_one_folder_is_one_tables(plan):
    with locked(plan.out), pytest.raises(RunError, match="in use by another"):
        run_jobs([Job(TWO_ROWS[0], 0, plan)], 1, 1, mute)


def test_rows_are_told_apart_and_chosen_by_name():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert [row.name for row in chosen_rows("si-cvae,hred")] == ["hred", "si-cvae"]
    with pytest.raises(ConfigError, match=r"no row 'sicvae'; expected some of hred"):
        chosen_rows("sicvae")
    with pytest.raises(ConfigError, match="scores the runs of si-cvae: name both"):
        chosen_rows("si-cvae-diverse")


@pytest.mark.parametrize("scale", sorted(SCALES))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_configuration_at_every_scale(row, scale):
    chosen = SCALES[scale]
    values = {**preset_values(row.preset + chosen.suffix), **chosen.settings, **row.settings}
    TrainConfig.from_values(values)


@pytest.mark.parametrize("scale", SCALES)
def test_one_row_alone_has_a_semi_implicit_prior(scale):
    values = {
        row.name: {**preset_values(row.preset + SCALES[scale].suffix), **row.settings}
        for row in ROWS
        if not row.of
    }
    with_prior = [name for name, of_row in values.items() if of_row.get("prior_noise", 0)]
    assert with_prior == ["si-cvae-si-prior"]


@pytest.mark.parametrize(
    ("cores", "gpu_gib", "runs"), [(2, None, 2), (16, 80, 13), (8, 80, 8), (16, 8, 1), (4, 2, 1)]
)
def test_as_many_runs_go_side_by_side_as_there_are_cores_and_room_for(cores, gpu_gib, runs):
    assert room_for_runs(cores, gpu_gib and gpu_gib * 2**30) == runs


def settings_of(job: Job) -> set[str]:
    command = job.train_command()
    return {value for flag, value in zip(command, command[1:], strict=False) if flag == "--set"}


def test_a_change_reaches_the_rows_that_it_names_and_their_printed_commands(plan):
    changed = with_changes(plan, TWO_ROWS, ["passes=5.0", "si-cvae:passes=1.5", "si-cvae:noise=6"])
    cvae, si_cvae = (Job(row, 0, changed) for row in TWO_ROWS[:2])
    assert {"passes=5.0", "seed=0"} <= settings_of(cvae)
    assert {"passes=1.5", "noise=6"} <= settings_of(si_cvae)
    assert not {"passes=5.0", "passes=2.0", "noise=4"} & settings_of(si_cvae)
    measured = [
        MeasuredRow(job.row.name, job.row.title, job.row, (0,), {}, {}) for job in (cvae, si_cvae)
    ]
    lines = list_commands(["dialog"], measured, [cvae, si_cvae], TWO_ROWS[:2]).splitlines()
    whole, of_cvae, of_si_cvae = (line for line in lines if line.startswith("    siserve"))
    assert whole.endswith("--set passes=5.0 --set si-cvae:passes=1.5 --set si-cvae:noise=6")
    assert of_cvae.endswith("--out OUT --set passes=5.0") and of_si_cvae.endswith("noise=6")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("cvea:passes=1", "no row 'cvea'; expected one of cvae, si-cvae, diverse"),
        ("noise=6", "si-cvae have a noise of their own; name the rows .* --set si-cvae:noise=6"),
        ("seed=3", "a matter of --seeds"),
        ("passes", "takes KEY=VALUE, got 'passes'"),
    ],
)
def test_a_change_that_no_row_can_take_is_refused_by_name(plan, change, told):
    with pytest.raises(ConfigError, match=told):
        with_changes(plan, TWO_ROWS, [change])


def test_the_page_tells_the_samples_of_the_systems_that_have_a_latent():
    known = {"contexts": 5.0, "responses": 10.0, "temperature": 0.0, "pairs": 8.0}
    measured = [
        MeasuredRow("a", "A", None, (0,), {**known, "prior_samples": s, "ranking_samples": r}, {})
        for s, r in ((1.0, 1.0), (50.0, 10.0))
    ]
    assert "S = 50, R@1 with S = 10" in results_page(measured, [], [], {"scale": "small"})


@pytest.mark.parametrize("row", NOISE_ROWS, ids=lambda row: row.name)
def test_every_row_of_the_noise_study_is_a_configuration_of_its_own(row):
    def settings(of: Row) -> dict[str, object]:
        return {**preset_values(of.preset + NOISE_SCALE.suffix), **of.settings}

    TrainConfig.from_values({**settings(row), **NOISE_SCALE.settings})
    assert [other.name for other in NOISE_ROWS if settings(other) == settings(row)] == [row.name]


@pytest.mark.slow
def test_the_noise_study_tells_how_much_of_the_noise_is_in_use(corpus, tmp_path):
    scale = dataclasses.replace(TINY_SCALE, evaluation={"split": "valid", "pairs": 8, "samples": 3})
    plan = Plan(corpus, tmp_path / "out", scale, None, None)
    rows = [row for row in NOISE_ROWS if row.name in ("gaussian", "default")]
    page = reproduce_noise(plan, rows, (0,), 1, mute)
    gaussian, default = json.loads((plan.out / "noise.json").read_text())["rows"]
    assert gaussian["values"]["b_k"] == 0 and default["values"]["b_k"] != 0
    lines = page.read_text().splitlines()
    assert any(line.startswith(f"| {NOISE_ROWS[0].title} |") for line in lines)
    assert any("siserve reproduce noise --rows default" in line for line in lines)


def test_every_row_of_the_papers_table_has_a_row_here():
    assert len([paper for row in ROWS for paper in row.paper]) == 10
    assert all(len(paper.values) == len(COLUMNS) for row in ROWS for paper in row.paper)


def test_a_rows_commands_are_those_that_a_person_would_type(plan):
    job = Job(TWO_ROWS[1], 3, plan)
    train = shlex.join(job.train_command())
    assert (
        train.startswith("train --task dialog --data ") and "--preset dialog-si-cvae-small" in train
    )
    assert "--set seed=3" in train and "--resume" not in train
    evaluate = shlex.join(job.evaluate_command())
    assert "--split test" in evaluate and f"--vectors {plan.vectors}" in evaluate


def test_the_page_names_a_command_for_every_row_and_no_folder_of_the_machine(plan):
    rows = (*ROWS, pretrained_row("hf:/some/where/mini"))
    measured = [MeasuredRow(row.name, row.title, row, (0, 1), {}, {}) for row in rows]
    page = results_page(measured, [], [Job(rows[0], 0, plan)], {"scale": "small"})
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("    siserve")]
    assert len(commands) == len(rows) + 1 and "--rows" not in commands[0]
    for row, command in zip(rows, commands[1:], strict=True):
        named = command[command.index("--rows") + 1]
        assert named.split(",")[-1] == row.name
        assert ("--context-encoder" in command) == (row.name == "si-cvae-pretrained")
        assert command[command.index("--seeds") + 1] == "0,1"
    assert "--context-encoder hf:mini" in page and "hf:mini" in json.dumps(measured[-1].to_json())
    assert str(plan.data.parent) not in page and "/some" not in json.dumps(measured[-1].to_json())


def test_the_command_of_a_page_of_some_rows_names_them(plan):
    some = [MeasuredRow(row.name, row.title, row, (0,), {}, {}) for row in ROWS[:2]]
    page = results_page(some, [], [Job(ROWS[0], 0, plan)], {"scale": "small"})
    whole = next(line for line in page.splitlines() if line.startswith("    siserve"))
    assert f"--rows {ROWS[0].name},{ROWS[1].name} --seeds 0 " in whole


def test_files_that_are_missing_are_told_before_any_work(tmp_path, corpus, vectors):
    with pytest.raises(ConfigError, match="--vectors .*nothing: expected a file"):
        make_plan(SCALES["small"], corpus, tmp_path / "out", tmp_path / "nothing", None)
    with pytest.raises(ConfigError, match="--scale must be one of full, small, got 'huge'"):
        scale_named("huge")
    with pytest.raises(ConfigError, match="expected the folder of a corpus"):
        make_plan(SCALES["small"], tmp_path / "nowhere", tmp_path / "out", vectors, None)
    assert not (tmp_path / "out").exists()


def test_baselines_are_scored_like_systems_and_stand_at_chance(tmp_path, vectors):
    data = write_corpus(tmp_path / "corpus")
    rows = score_baselines(Plan(data, tmp_path, TINY_SCALE, vectors, None))
    by_name = {row.name: row.values for row in rows}
    assert set(COLUMNS.values()) <= set(by_name["yeah"])
    assert by_name["yeah"]["inter_dist_1"] == pytest.approx(0.1, abs=1e-6)
    assert by_name["random_utterances"]["inter_dist_1"] > by_name["yeah"]["inter_dist_1"]
    assert all(values["recall_at_1_of_10"] == 0.1 for values in by_name.values())
