"""Several processes are one run: the same losses, also when one dies and all begin again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .conftest import TINY, write_corpus

STEPS, KILLED_AFTER = 50, 25
SETTINGS = {**TINY, "eval_every": 20, "save_every": 10, "log_every": 1, "max_steps": STEPS}
ALONE = ["-m", "siserve"]
TOGETHER = "-m torch.distributed.run --standalone --nproc-per-node 2 -m siserve".split()
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def command(launcher: list[str], corpus: Path, out: Path, *extra: str) -> list[str]:
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    folders = ["--data", str(corpus), "--out", str(out)]
    return [sys.executable, *launcher, "train", "--task", "dialog", *folders, *settings, *extra]


def run(*arguments) -> None:
    done = subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def losses(out: Path) -> dict[int, float]:
    """The loss of each step that the run has logged."""
    if not (out / "metrics.jsonl").is_file():
        return {}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


def run_until_killed(*arguments) -> None:
    """Kill one of two processes after some steps; its launcher must end both and fail."""
    out = arguments[1]
    with subprocess.Popen(
        command(TOGETHER, *arguments), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    ) as launcher:
        try:
            while len(losses(out)) < KILLED_AFTER:
                assert launcher.poll() is None
                time.sleep(0.02)
            workers = psutil.Process(launcher.pid).children(recursive=True)
            assert len(workers) == 2
            workers[1].send_signal(signal.SIGKILL)
            assert launcher.wait(timeout=60) != 0
        finally:
            launcher.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_have_the_losses_of_one_although_one_of_them_is_killed(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", dialogs=60)
    run(ALONE, corpus, tmp_path / "alone")
    run_until_killed(corpus, tmp_path / "together")
    assert KILLED_AFTER <= len(losses(tmp_path / "together")) < STEPS
    run(TOGETHER, corpus, tmp_path / "together", "--resume")
    assert set(losses(tmp_path / "alone")) == set(range(1, STEPS + 1))
    assert losses(tmp_path / "together") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
