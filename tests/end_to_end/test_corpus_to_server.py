"""The second path as a user types it: corpus, train, export, verify, serve, ask."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from siserve.cli import run

Run = Callable[..., subprocess.CompletedProcess[str]]
Serve = Callable[..., AbstractContextManager[str]]

COMMAND = str(Path(sys.executable).with_name("siserve"))
TRAIN = ("train", "--task", "dialog", "--preset", "dialog-si-cvae-small")
SETTINGS = ("passes=500", "batch_size=12", "run_length=4", "num_aux=3", "log_every=1")
SMALL = tuple(word for setting in SETTINGS for word in ("--set", setting))


def rec_nats(out: Path) -> list[float]:
    """Reconstruction loss of each training step that a run has logged."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["rec"] for entry in map(json.loads, lines) if entry["kind"] == "train"]


@pytest.mark.slow
def test_three_commands_lead_from_a_corpus_to_responses(
    siserve: Run, serve: Serve, corpus: Path, tmp_path: Path
) -> None:
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    trained = siserve(*TRAIN, *SMALL, "--set", "max_steps=30", "--data", corpus, "--out", out)
    assert trained.returncode == 0, trained.stderr
    losses = rec_nats(out)
    assert len(losses) == 30 and sum(losses[-3:]) < 0.9 * sum(losses[:3])

    exported = siserve("export", out, "--out", bundle)
    assert exported.returncode == 0, exported.stderr
    verified = siserve("verify", bundle)
    assert verified.returncode == 0, verified.stderr

    with serve("--model", bundle) as address:
        question = ("ask", "do you like fishing", "--address", address, "-n", 5, "--json")
        asked = siserve(*question)
        assert asked.returncode == 0, asked.stderr
        reply = json.loads(asked.stdout)
        again = siserve(*question, "--seed", reply["seed"])
    assert len(reply["responses"]) == 5
    assert json.loads(again.stdout)["responses"] == reply["responses"]


@pytest.mark.slow
def test_interrupted_training_saves_and_says_how_to_go_on(
    siserve: Run, corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [COMMAND, *TRAIN, *SMALL, "--data", str(corpus), "--out", str(out)]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or not rec_nats(out):
            assert training.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        training.send_signal(signal.SIGINT)
        output = "".join(training.communicate(timeout=60))
    finally:
        training.kill()
        training.wait()
    assert training.returncode == 0, output
    assert "--resume" in output and str(out) in output

    num_steps = len(rec_nats(out))
    typed = next(line for line in output.splitlines() if "--resume" in line).split("siserve ")[1]
    resumed = siserve(*typed.split(), "--set", f"max_steps={num_steps + 3}")
    assert resumed.returncode == 0, resumed.stderr
    assert len(rec_nats(out)) == num_steps + 3


def break_line(corpus: Path) -> None:
    lines = (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2][:40]
    (corpus / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")


def empty_file(corpus: Path) -> None:
    (corpus / "train.jsonl").write_bytes(b"")


def remove_split(corpus: Path) -> None:
    (corpus / "valid.jsonl").unlink()


def write_latin_1(corpus: Path) -> None:
    line = json.dumps({"utts": [["A", "un café"], ["B", "oui"]]}, ensure_ascii=False)
    (corpus / "test.jsonl").write_bytes(line.encode("latin-1") + b"\n")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (break_line, "train.jsonl:3: "),
        (empty_file, "train.jsonl"),
        (remove_split, "valid.jsonl"),
        (write_latin_1, "test.jsonl:1: "),
    ],
)
def test_a_broken_corpus_gets_one_line_and_nothing_is_written(
    damage: Callable[[Path], None],
    named: str,
    corpus: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(corpus)
    out = tmp_path / "run"
    code = run([*TRAIN, "--data", str(corpus), "--out", str(out), "--set", "max_steps=1"])
    said = capfd.readouterr()
    assert code == 2, said.err
    assert len(said.err.splitlines()) == 1 and said.out == ""
    assert named in said.err
    assert not out.exists()
