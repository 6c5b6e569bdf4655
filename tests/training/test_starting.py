"""A run that begins with another's weights: the same weights and words, its history told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from siserve_training.checkpoint import pointed
from siserve_training.config import TrainConfig, preset_values
from siserve_training.errors import ConfigError, RunError
from siserve_training.export.run import export_run
from siserve_training.run_folder import RunFolder
from siserve_training.training import resume_run, start_run

from .conftest import TINY, write_corpus

SETTINGS = {**TINY, "eval_every": 10, "save_every": 10, "passes": 2.0, "max_steps": 2}


def config(**changes) -> TrainConfig:
    return TrainConfig.from_values({**preset_values("dialog-si-cvae"), **SETTINGS, **changes})


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = pointed(RunFolder(run).checkpoints, "last")
    assert last is not None
    return load_file(last / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory) -> Path:
    run: Path = tmp_path_factory.mktemp("first") / "run"
    start_run(run, corpus, config(seed=3))
    return run


def test_a_run_that_does_not_learn_keeps_the_weights_it_started_from(first, corpus, tmp_path):
    still = {"learning_rate": 0.0, "max_steps": 1}
    start_run(tmp_path / "second", corpus, config(start_from=str(first), **still))
    start_run(tmp_path / "anew", corpus, config(**still))
    assert same(weights(tmp_path / "second"), weights(first))
    assert not same(weights(tmp_path / "anew"), weights(first))


@pytest.mark.parametrize("post_hidden", [0, 12])
def test_a_semi_implicit_model_goes_on_where_a_gaussian_one_ended(post_hidden, corpus, tmp_path):
    gaussian = {**preset_values("dialog-cvae"), **SETTINGS, "post_hidden": post_hidden}
    start_run(tmp_path / "gaussian", corpus, TrainConfig.from_values(gaussian))
    still = {"post_hidden": post_hidden, "noise": 5, "prior_noise": 3, "learning_rate": 0.0}
    start_run(tmp_path / "begun", corpus, config(start_from=str(tmp_path / "gaussian"), **still))
    start_run(tmp_path / "anew", corpus, config(**still))
    before, after, anew = (weights(tmp_path / run) for run in ("gaussian", "begun", "anew"))
    assert before.keys() == after.keys()
    wider = {name: after[name] for name in after if after[name].shape != before[name].shape}
    assert sorted(tensor.shape[1] - before[name].shape[1] for name, tensor in wider.items()) == [
        3,
        5,
    ]
    for name, tensor in after.items():
        columns = before[name].shape[-1]
        assert torch.equal(tensor[..., :columns], before[name])
        assert torch.equal(tensor[..., columns:], anew[name][..., columns:])
    with pytest.raises(ConfigError, match=r"start_from: \w+_net\..* take that run's"):
        values = {**gaussian, "start_from": str(tmp_path / "begun")}
        start_run(tmp_path / "back", corpus, TrainConfig.from_values(values))


def test_a_run_that_lost_its_only_checkpoint_begins_there_again(first, corpus, tmp_path):
    run = tmp_path / "second"
    start_run(run, corpus, config(start_from=str(first), learning_rate=0.0))
    shutil.rmtree(run / "checkpoints")
    resume_run(run, corpus, {})
    assert same(weights(run), weights(first))


def test_a_run_goes_on_from_its_own_checkpoint_when_the_other_is_gone(first, corpus, tmp_path):
    shutil.copytree(first, tmp_path / "gone")
    start_run(tmp_path / "run", corpus, config(start_from=str(tmp_path / "gone"), max_steps=1))
    shutil.rmtree(tmp_path / "gone")
    assert resume_run(tmp_path / "run", corpus, {"max_steps": 2}).step == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"decoder_hidden": 24},
            r"start_from: .* is \(.*\) here and \(.*\) in .*; take that run",
        ),
        ({"method": "hred"}, r"start_from: .*take that run"),
        ({"bow_hidden": 0, "bow_weight": 0.0}, r"start_from: bow.* is missing here and"),
    ],
)
def test_other_sizes_are_refused_before_anything_is_written(changes, told, first, corpus, tmp_path):
    with pytest.raises(ConfigError, match=told):
        start_run(tmp_path / "run", corpus, config(start_from=str(first), **changes))
    assert not (tmp_path / "run").exists()


def test_other_words_are_refused(first, tmp_path):
    other = write_corpus(tmp_path / "corpus", seed=1)
    text = (other / "train.jsonl").read_text().replace("dog", "tortoise")
    (other / "train.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"start_from: .* has another vocabulary"):
        start_run(tmp_path / "run", other, config(start_from=str(first)))


def test_what_holds_no_run_or_no_checkpoint_is_refused_by_name(first, corpus, tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        start_run(tmp_path / "run", corpus, config(start_from=str(tmp_path)))
    shutil.copytree(first, tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty" / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint yet; train it first"):
        start_run(tmp_path / "run", corpus, config(start_from=str(tmp_path / "empty")))


def test_a_bundle_tells_every_stage_and_no_folder(first, corpus, tmp_path):
    start_run(tmp_path / "second", corpus, config(start_from=str(first)))
    start_run(tmp_path / "third", corpus, config(start_from=str(tmp_path / "second"), seed=5))
    manifest = export_run(tmp_path / "third", tmp_path / "bundle")
    told = json.loads(manifest.model_dump_json())["provenance"]
    assert (told["config"]["start_from"], told["config"]["seed"]) == ("second", 5)
    second = told["started_from"]
    assert (second["config"]["start_from"], second["step"]) == ("run", 2)
    assert second["started_from"]["config"]["seed"] == 3
    assert second["started_from"]["started_from"] is None
    assert str(tmp_path) not in json.dumps(told)
