"""A run folder to a bundle: the trained model's own code is what the graphs are held against."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from bundle_factory import tiny_text
from siserve.bundle.manifest import Sampling
from siserve.bundle.verify import open_bundle
from siserve_training.checkpoint import LoopState, save_checkpoint
from siserve_training.config import TrainConfig
from siserve_training.errors import RunError
from siserve_training.export import ExportError
from siserve_training.export.run import export_run
from siserve_training.export.torch_reference import ModelReference
from siserve_training.models.cvae import CVAE, CVAEConfig
from siserve_training.run_folder import RunFolder
from torch_reference import TorchSICVAE

TOPICS = ("MUSIC", "PETS")
SIZES = {
    "word_embedding": 12,
    "utterance_hidden": 9,
    "context_hidden": 17,
    "topic_embedding": 3,
    "latent": 6,
    "noise": 4,
    "post_hidden": 11,
    "prior_hidden": 10,
    "decoder_hidden": 16,
    "bow_hidden": 5,
}


def tiny_config(topics, profile, **changes):
    vocabulary = tiny_text().size
    sizes = {**SIZES, "logvar_clamp": 10.0, **changes}
    return CVAEConfig(vocabulary=vocabulary, topics=len(topics), profile=profile, **sizes)


def trained(config, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CVAE(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def write_run(path, topics=TOPICS, profile=True, **changes):
    """A run folder with checkpoints at steps 3 (best) and 5 (last), as training leaves it."""
    run = RunFolder(path)
    config = TrainConfig(word_vectors="/far/away/vectors.txt", **{**SIZES, **changes})
    sizes = {key: value for key, value in changes.items() if key != "max_utterance_tokens"}
    facts = {"folder": "corpus", "topics": list(topics), "profile": profile}
    run.create(config, tiny_text(), facts)
    for step, names in ((3, ("best", "last")), (5, ("last",))):
        model = trained(tiny_config(topics, profile, **sizes), seed=step)
        save_checkpoint(run.checkpoints, model, {}, LoopState(step=step), names)
    lines = [
        {"step": 2, "kind": "valid", "time": 1.0, "elbo": -9.0},
        {"step": 3, "kind": "valid", "time": 2.0, "elbo": -7.0, "kl": 3.0, "x": 1e999},
        {"step": 4, "kind": "train", "time": 3.0, "loss": 1.0},
        {"step": 5, "kind": "valid", "time": 4.0, "elbo": -8.0, "kl": 2.0},
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    return path


@pytest.mark.parametrize(
    ("topics", "profile", "changes"),
    [(TOPICS, True, {}), ((), False, {"post_hidden": 0}), (TOPICS, False, {"logvar_clamp": 0.3})],
)
def test_the_models_own_code_agrees_with_plain_layers(topics, profile, changes):
    """What parity holds the graphs against is itself held against nn.GRU and nn.Linear."""
    config = tiny_config(topics, profile, **changes)
    model = trained(config)
    arrays = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    own, plain = ModelReference(model, arrays), TorchSICVAE(arrays, profile, config.logvar_clamp)
    rng = np.random.default_rng(0)
    utterances = rng.integers(7, config.vocabulary, (3, 4, 5))
    utterances[0, 1:] = 0
    utterances[1, 0, 2:] = 0
    floor = rng.integers(0, 2, (3, 4))
    topic = np.arange(3) if topics else np.zeros(3, np.int64)
    profiles = rng.standard_normal((3, 8), np.float32)
    c = own.encode_context(utterances, floor, topic, profiles)
    assert np.abs(c - plain.encode_context(utterances, floor, topic, profiles)).max() < 1e-5
    response = utterances[:, 0]
    eps_lam = rng.standard_normal((3, 6, config.noise), np.float32)
    eps_z = rng.standard_normal((3, config.latent), np.float32)
    got, expected = (m.posterior(c, response, eps_lam, eps_z) for m in (own, plain))
    for field in dataclasses.fields(got):
        assert np.allclose(getattr(got, field.name), getattr(expected, field.name), 1e-5, 1e-5)
    assert np.abs(own.prior(c, eps_z) - plain.prior(c, eps_z)).max() < 1e-5
    state = own.first_state(c, eps_z)
    for one, other in zip(
        own.step(response[:, 0], state), plain.step(response[:, 0], state), strict=True
    ):
        assert np.abs(one - other).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_best_checkpoint_becomes_a_whole_bundle(tmp_path, dtype):
    run = write_run(tmp_path / "run")
    returned = export_run(run, tmp_path / "bundle", dtype=dtype)
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest == returned
    assert manifest.full_name == "dialog-si-cvae@1"
    assert manifest.provenance["step"] == 3
    assert (manifest.metrics["valid_elbo"], manifest.metrics["valid_kl"]) == (-7.0, 3.0)
    assert manifest.metrics["parity_largest_difference"] <= 1e-5
    assert manifest.features.topics == TOPICS and manifest.features.profile
    assert manifest.sizes.noise == SIZES["noise"] and manifest.sizes.state == 16
    assert "/far/away" not in (tmp_path / "bundle" / "manifest.json").read_text()


def test_names_options_and_notes_are_kept(tmp_path):
    export_run(
        write_run(tmp_path / "run", topics=(), profile=False, post_hidden=0),
        tmp_path / "bundle",
        name="small",
        version="2.1",
        checkpoint="last",
        sampling=Sampling(temperature=0.7, max_tokens=20),
        model_card="# Small\n",
        metrics={"distinct_1": 0.5},
        provenance={"licence": "CC BY-NC-SA 3.0"},
    )
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.full_name == "small@2.1"
    assert manifest.sampling == Sampling(temperature=0.7, max_tokens=20)
    assert manifest.provenance["step"] == 5 and manifest.metrics["valid_elbo"] == -8.0
    assert manifest.provenance["licence"] == "CC BY-NC-SA 3.0"
    assert manifest.metrics["distinct_1"] == 0.5
    assert (tmp_path / "bundle" / "README.md").read_text() == "# Small\n"


def test_default_responses_stay_within_what_the_model_has_seen(tmp_path):
    run = write_run(tmp_path / "run", max_utterance_tokens=12)
    manifest = export_run(run, tmp_path / "bundle", sampling=Sampling(max_tokens=30))
    assert manifest.limits.utterance_tokens == manifest.limits.response_tokens == 12
    assert manifest.sampling.max_tokens == 12


def test_a_vocabulary_that_is_not_the_models_is_refused(tmp_path):
    run = write_run(tmp_path / "run")
    text = tiny_text()
    words = [text.tokenizer.id_to_token(i) for i in range(text.size - 1)]
    (run / "tokenizer.json").write_text(type(text).from_words(words).to_json())
    with pytest.raises(ExportError, match="122 words, the model's embedding 123"):
        export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        export_run(tmp_path, tmp_path / "bundle")
