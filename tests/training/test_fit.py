"""The loop: the loss falls, a killed run goes on as an unbroken one, nothing is half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from siserve_training.aggressive import InnerLoop
from siserve_training.checkpoint import LoopState, pointed, save_checkpoint
from siserve_training.config import TrainConfig, list_presets, preset_values
from siserve_training.errors import ConfigError, CorpusError, DivergenceError, RunError
from siserve_training.fit import usable_precision
from siserve_training.run_folder import RunFolder
from siserve_training.training import resume_run, start_run

from .conftest import TINY, write_corpus

SETTINGS = {**TINY, "eval_every": 7, "save_every": 5, "passes": 2.0, "bow_weight": 1.0}
COMMAND = [sys.executable, "-m", "siserve", "train", "--task", "dialog"]


def config(**changes) -> TrainConfig:
    return TrainConfig.from_values({**preset_values("dialog-si-cvae"), **SETTINGS, **changes})


def learning(**changes) -> TrainConfig:
    settings = {"passes": 4.0, "schedule": "constant", "free_nats": 0.0, "prior_noise": 0}
    return config(**{**settings, "learning_rate": 5e-3, **changes})


def losses(out) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def command(corpus, out, *extra):
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return [*COMMAND, "--data", str(corpus), "--out", str(out), *flags, *extra]


def wait_for_steps(process, out, steps, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (out / "metrics.jsonl").is_file() and len(losses(out)) >= steps:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps in {timeout_s} s")


@pytest.mark.parametrize("prior_noise", [0, 16])
def test_the_loss_falls(prior_noise, corpus, tmp_path):
    result = start_run(tmp_path / "run", corpus, learning(prior_noise=prior_noise))
    by_step = list(losses(tmp_path / "run").values())
    assert result.finished and len(by_step) == result.step
    assert sum(by_step[-5:]) < 0.9 * sum(by_step[:5])


def test_a_run_repeats_itself_exactly(corpus, tmp_path):
    for name in ("one", "two"):
        start_run(tmp_path / name, corpus, config())
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_kill_9_and_resume_give_the_losses_of_an_unbroken_run(corpus, tmp_path):
    start_run(tmp_path / "whole", corpus, config())
    whole = losses(tmp_path / "whole")
    out = tmp_path / "broken"
    process = subprocess.Popen(command(corpus, out), stderr=subprocess.PIPE, text=True)
    wait_for_steps(process, out, 8)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(losses(out)) < len(whole)
    result = resume_run(out, corpus, {})
    assert result.finished
    resumed = losses(out)
    assert resumed.keys() == whole.keys()
    assert resumed == pytest.approx(whole, rel=1e-6)


def test_a_stop_signal_saves_and_names_the_command_to_go_on_with(corpus, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / number.name
        process = subprocess.Popen(
            command(corpus, out, "--set", "passes=500.0"), stderr=subprocess.PIPE, text=True
        )
        wait_for_steps(process, out, 3)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert said.splitlines()[-1].endswith(f"--data {corpus} --out {out} --resume")
        assert RunFolder(out).checkpoint("last").name == f"step-{max(losses(out)):07d}"


def test_max_steps_ends_a_run_early_and_a_resumed_one_goes_on(corpus, tmp_path):
    start_run(tmp_path / "whole", corpus, config())
    start_run(tmp_path / "parts", corpus, config(max_steps=4))
    assert max(losses(tmp_path / "parts")) == 4
    resume_run(tmp_path / "parts", corpus, {"max_steps": 0})
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


@pytest.mark.parametrize("aggressive", ["fixed:2", "adaptive"])
def test_aggressive_training_resumes_as_it_would_have_gone_on(corpus, tmp_path, aggressive):
    settings = {"aggressive": aggressive, "passes": 0.4}
    start_run(tmp_path / "whole", corpus, config(**settings))
    start_run(tmp_path / "parts", corpus, config(**settings, max_steps=4))
    resume_run(tmp_path / "parts", corpus, {"max_steps": 0})
    whole = losses(tmp_path / "whole")
    assert len(whole) > 5
    assert losses(tmp_path / "parts") == pytest.approx(whole, rel=1e-6)
    start_run(tmp_path / "plain", corpus, config(passes=0.4))
    assert losses(tmp_path / "plain") != pytest.approx(whole, rel=1e-6)


def test_a_sampled_softmax_trains_too_and_ends_with_the_exact_one(corpus, tmp_path):
    settings = {"frequent_words": 8, "sampled_words": 4, "exact_share": 0.2}
    start_run(tmp_path / "run", corpus, learning(**settings))
    by_step = list(losses(tmp_path / "run").values())
    assert sum(by_step[-5:]) < 0.9 * sum(by_step[:5])


def test_two_processes_train_as_one_does(corpus, tmp_path):
    start_run(tmp_path / "one", corpus, config(max_steps=6, seed=0))
    launcher = "torch.distributed.run --standalone --nproc-per-node 2 -m siserve".split()
    arguments = command(corpus, tmp_path / "two", "--set", "max_steps=6")[3:]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    models = [
        load_file(RunFolder(tmp_path / name).checkpoint("last") / "model.safetensors")
        for name in ("one", "two")
    ]
    for name, weight in models[0].items():
        torch.testing.assert_close(models[1][name], weight, atol=2e-4, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_with_step_batch_and_checkpoint(corpus, tmp_path):
    with pytest.raises(DivergenceError, match=r"at step \d+, batch \d+ .*step-\d+"):
        start_run(tmp_path / "run", corpus, config(learning_rate=1e6, clip_norm=1e9, save_every=1))
    weights = RunFolder(tmp_path / "run").checkpoint("last") / "model.safetensors"
    assert weights.is_file()


def test_a_folder_in_use_is_refused_and_left_alone(corpus, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        start_run(tmp_path, corpus, config())
    with pytest.raises(RunError, match="holds no run"):
        start_run(tmp_path, corpus, config(), overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_overwrite_replaces_a_run(corpus, tmp_path):
    for seed in (0, 1):
        start_run(tmp_path / "run", corpus, config(seed=seed, max_steps=2), overwrite=True)
    assert RunFolder(tmp_path / "run").config().seed == 1


def test_a_corpus_that_is_wrong_leaves_nothing_behind(tmp_path):
    write_corpus(tmp_path / "corpus")
    with (tmp_path / "corpus" / "valid.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(CorpusError):
        start_run(tmp_path / "run", tmp_path / "corpus", config())
    assert not (tmp_path / "run").exists()


def test_resuming_on_another_corpus_or_configuration_is_refused(corpus, tmp_path):
    start_run(tmp_path / "run", corpus, config(max_steps=2))
    other = write_corpus(tmp_path / "other", dialogs=9, seed=5)
    with pytest.raises(RunError, match="is not the corpus"):
        resume_run(tmp_path / "run", other, {})
    with pytest.raises(ConfigError, match="latent was 5 here and 6 there|latent was 6 here"):
        resume_run(tmp_path / "run", corpus, {"latent": 6})
    with pytest.raises(RunError, match="holds no run"):
        resume_run(tmp_path / "nowhere", corpus, {})


def test_a_checkpoint_that_breaks_off_leaves_the_old_one_in_place(corpus, tmp_path, monkeypatch):
    start_run(tmp_path / "run", corpus, config(max_steps=2))
    run = RunFolder(tmp_path / "run")
    before = run.checkpoint("last")

    class Unwritable(torch.nn.Linear):
        def save_pretrained(self, folder):
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        model: Any = Unwritable(1, 1)
        save_checkpoint(run.checkpoints, model, {}, LoopState(step=9), ("last",))
    assert pointed(run.checkpoints, "last") == before and (before / "config.json").is_file()


def test_the_best_checkpoint_is_kept_beside_the_last(corpus, tmp_path):
    start_run(tmp_path / "run", corpus, config(eval_every=3, save_every=2))
    run = RunFolder(tmp_path / "run")
    kept = {folder.name for folder in run.checkpoints.glob("step-*")}
    assert kept == {run.checkpoint("best").name, run.checkpoint("last").name}
    assert not list(run.path.rglob("*.pt")) and not list(run.path.rglob("*.bin"))


def test_fixed_inner_loops_take_their_steps():
    loop = InnerLoop(3)
    while loop.wants_step:
        assert not loop.took(100.0, 10)
    assert loop.done == 3


@pytest.mark.parametrize(("rises_at", "steps"), [(30, 30), (45, 45), (1000, 99)])
def test_the_adaptive_loop_ends_when_the_loss_per_token_rises(rises_at, steps):
    loop = InnerLoop(None)
    while loop.wants_step:
        falling = 1000.0 - loop.done
        if loop.took(2000.0 if loop.done + 15 >= rises_at else falling, 10):
            break
    assert loop.done == steps


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"latnet": 3}, "did you mean latent"),
        ({"latent": "many"}, "latent takes a value of kind int, got 'many'"),
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"schedule": "sideways"}, "schedule must be one of constant, monotonic, cyclical"),
        ({"aggressive": "fixed:0"}, "fixed:T with T at least 1"),
        ({"bow_weight": 1.0, "bow_hidden": 0}, "set bow_hidden above 0"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(values, what):
    with pytest.raises(ConfigError, match=what):
        TrainConfig.from_values(values)


def test_every_preset_is_a_configuration():
    assert {"dialog-si-cvae", "dialog-si-cvae-small", "dialog-si-cvae-literal"} <= set(
        list_presets()
    )
    for name in list_presets():
        TrainConfig.from_values(preset_values(name))


def test_the_literal_preset_leaves_off_what_the_default_adds():
    literal = TrainConfig.from_values(preset_values("dialog-si-cvae-literal"))
    default = TrainConfig.from_values(preset_values("dialog-si-cvae"))
    assert (literal.bow_weight, literal.free_nats, literal.beta_max) == (0, 0, 1)
    assert literal.hide_feature_rate == 0 and literal.post_hidden == 0
    assert default.bow_weight > 0 and default.free_nats > 0 and default.beta_max < 1
    for config in (literal, default):
        assert (config.latent, config.num_latents, config.num_aux) == (200, 5, 30)
    assert (literal.noise, literal.noise_gain, literal.aux_floor) == (100, 1.0, 1)
    assert default.noise < 100 and default.noise_gain > 1 and default.aux_floor == 30
    assert literal.prior_noise == 0 and default.prior_noise == 16


def test_bf16_is_used_where_it_is_native_and_fp32_elsewhere(corpus, tmp_path):
    """In a process of its own: accelerate lets one process have one precision."""
    assert [usable_precision(wanted) for wanted in ("fp32", "tf32")] == ["fp32", "tf32"]
    used = usable_precision("bf16")
    assert used in ("bf16", "fp32")
    settings = ("--set", "precision=bf16", "--set", "max_steps=2")
    done = subprocess.run(
        command(corpus, tmp_path / "run", *settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").checkpoint("last").is_dir()
    told = "no bf16 arithmetic here; training in fp32" in done.stderr
    assert told == (used == "fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_runs_on_cuda(corpus, tmp_path, precision):
    """In a process of its own, since one process keeps the precision that it began with."""
    settings = ("--set", f"precision={precision}", "--set", "max_steps=2")
    done = subprocess.run(
        command(corpus, tmp_path / "run", *settings), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
