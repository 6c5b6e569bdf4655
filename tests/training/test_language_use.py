"""A trained language model at work: samples, walks, reconstructions, its bundle and its server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported_again import is_the_same_exported_again, with_files
from siserve.bundle.tensors import POSTERIOR
from siserve.bundle.verify import open_bundle
from siserve.cli import run
from siserve.client.answer import make_request
from siserve.client.in_process import InProcess
from siserve.serving.errors import NotPossible
from siserve_training.config import TrainConfig
from siserve_training.export.again import export_again
from siserve_training.export.run import export_run
from siserve_training.methods import LM_METHODS
from siserve_training.training import start_run

from .sentence_corpus import write_sentences
from .small_runs import write_run
from .test_lm_methods import TINY


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module", params=LM_METHODS)
def trained(request, sentences, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / request.param
    values = {**TINY, "method": request.param, "passes": 1.0, "num_refine_steps": 2}
    start_run(out, sentences, TrainConfig.from_values({**values, "learning_rate": 1e-2}))
    return out


only_si = pytest.mark.parametrize("trained", ["si-vae"], indirect=True)


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@only_si
def test_samples_repeat_with_their_seed_and_have_words(trained, capsys):
    assert run(["sample", str(trained), "-n", "7", "--seed", "3", "--json"]) == 0
    first = printed(capsys)["sentences"]
    assert len(first) == 7 and all(first) and len(set(first)) > 1
    assert not any(mark in line for line in first for mark in ("<unk>", "</s>", "<pad>"))
    assert run(["sample", str(trained), "-n", "7", "--seed", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == first
    assert run(["sample", str(trained), "-n", "7", "--seed", "4", "--json"]) == 0
    assert printed(capsys)["sentences"] != first


@only_si
def test_a_walk_begins_and_ends_with_reconstructions(trained, tmp_path, capsys):
    ends = ["the dog bought N bank", "a fish 's"]
    assert run(["interpolate", str(trained), *ends, "--steps", "4", "--json"]) == 0
    walk = printed(capsys)["sentences"]
    file = tmp_path / "ends.txt"
    file.write_text("".join(f"{line}\n" for line in ends))
    assert run(["reconstruct", str(trained), str(file), "--json"]) == 0
    pairs = printed(capsys)["pairs"]
    assert [pair["given"] for pair in pairs] == ends
    assert len(walk) == 4 and [walk[0], walk[-1]] == [pair["said"] for pair in pairs]
    assert run(["reconstruct", str(trained), str(file)]) == 0
    assert capsys.readouterr().out.startswith("< the dog bought N bank\n> ")


@only_si
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["sample", "RUN", "-n", "0"], "-n must be at least 1"),
        (["interpolate", "RUN", "a dog", " "], "sentence 2 has no words"),
        (["interpolate", "RUN", "a", "dog", "--steps", "1"], "--steps must be at least 2"),
        (["reconstruct", "RUN", "nowhere.txt"], "expected a text file"),
        (["sample", "RUN", "--checkpoint", "first"], "best or last"),
    ],
)
def test_wrong_use_is_one_line(trained, arguments, what, capsys):
    assert run([str(trained) if part == "RUN" else part for part in arguments]) == 2
    said = capsys.readouterr().err
    assert what in said and len(said.splitlines()) == 1


def test_a_dialog_run_is_no_language_model(corpus, tmp_path, capsys):
    assert run(["sample", str(write_run(tmp_path / "run", corpus))]) == 2
    assert "run of task dialog; expected one of task lm" in capsys.readouterr().err


def test_the_bundle_says_what_the_model_says_and_is_served_without_a_context(trained, tmp_path):
    manifest = export_run(trained, tmp_path / "bundle")  # refuses unless parity holds
    assert (manifest.task, manifest.method) == ("lm", trained.name)
    assert open_bundle(tmp_path / "bundle").manifest == manifest
    with InProcess(tmp_path / "bundle") as model:
        request = make_request([], n=4, seed=3)
        answer, again = model.send(request), model.send(request)
        assert len(answer.responses) == 4 and answer.responses == again.responses
        assert all(response.num_tokens > 0 for response in answer.responses)
        with pytest.raises(NotPossible, match="is of task lm"):
            model.send(make_request([("A", "the dog")], n=1))
    is_the_same_exported_again(tmp_path / "bundle", tmp_path / "again")


def test_a_bundle_measures_as_its_run(trained, sentences, tmp_path, capsys):
    """The graphs tell mu and sigma only by what they draw; the numbers must still be the run's."""
    bundle = tmp_path / "bundle"
    export_run(trained, bundle, checkpoint="last")
    common = ["--data", str(sentences), "--pairs", "0", "--samples", "6", "--json"]
    assert run(["evaluate", str(bundle), *common]) == 0
    of_bundle = printed(capsys)
    assert run(["evaluate", str(trained), "--checkpoint", "last", *common]) == 0
    of_run = printed(capsys)
    assert (of_bundle["method"], of_bundle["sentences"]) == (trained.name, of_run["sentences"])
    if trained.name == "sa-vae":  # whose bundle does not refine
        return
    numbers = ("nll", "rec", "kl", "kl_lower", "b_k", "iw_nll", "mutual_information")
    for name in numbers:
        assert of_bundle[name] == pytest.approx(of_run[name], rel=1e-4, abs=1e-4), name
    if trained.name != "si-vae":  # whose posterior means are over fewer draws of noise here
        assert of_bundle["active_units"] == of_run["active_units"]


def test_only_an_explicit_mixture_has_a_graph_of_its_own(trained, sentences, tmp_path, capsys):
    """One of before lacks it: what it cannot tell is refused, and exported again it tells it."""
    bundle, old = tmp_path / "bundle", tmp_path / "old"
    files = export_run(trained, bundle).files
    assert (POSTERIOR.file in files) == (trained.name == "gmm-vae")
    if trained.name != "gmm-vae":
        return
    with_files(bundle, old, posterior_onnx=None)
    assert run(["evaluate", str(old), "--data", str(sentences)]) == 2
    said = capsys.readouterr().err
    assert "export it again" in said and len(said.splitlines()) == 1
    assert export_again(old, tmp_path / "new").files[POSTERIOR.file] == files[POSTERIOR.file]


def test_ask_takes_no_text_for_a_model_of_sentences(trained, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    export_run(trained, bundle)
    assert run(["ask", "-n", "3", "--bundle", str(bundle), "--json"]) == 0
    assert len(printed(capsys)["responses"]) == 3
    assert run(["ask", "the dog", "--bundle", str(bundle)]) != 0
    assert "task lm" in capsys.readouterr().err
