"""The loop that ours is timed against decodes the same model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_factory import tiny_bundle
from safetensors.torch import load_file
from siserve.bundle import open_bundle
from siserve.bundle.tensors import DECODER, WEIGHTS_FILE
from siserve_training.bench.decoding import ResearchDecoder, seconds_per_step
from siserve_training.export.parity import open_graph


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("research") / "tiny", seed=3)


@pytest.fixture(scope="module")
def decoder(path: Path) -> ResearchDecoder:
    bundle = open_bundle(path)
    return ResearchDecoder(load_file(bundle.file(WEIGHTS_FILE)), bundle.manifest)


@torch.no_grad()
def test_it_gives_forced_words_the_probabilities_of_the_graph(
    path: Path, decoder: ResearchDecoder
) -> None:
    manifest, rng, rows, steps = open_bundle(path).manifest, np.random.default_rng(0), 3, 7
    words = rng.integers(5, manifest.sizes.vocabulary, (steps, rows))
    c = rng.standard_normal((rows, manifest.sizes.context), dtype=np.float32)
    z = rng.standard_normal((rows, manifest.sizes.latent), dtype=np.float32)
    given = {
        "c": c,
        "z": z,
        "state": np.zeros((rows, manifest.sizes.state), np.float32),
        "token": np.full(rows, manifest.tokens.start),
        "uniform": np.zeros((steps, rows), np.float32),
        "forced": words,
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32),
    }
    graph = open_graph(path / DECODER.file)
    (log_probs,) = graph.run(["log_probs"], given)
    state = decoder.first_state(torch.from_numpy(np.concatenate([c, z], axis=1)))
    token = torch.from_numpy(given["token"])
    for step in range(steps):
        logits, state = decoder.step(token[:, None], state)
        token = torch.from_numpy(words[step])
        found = logits.log_softmax(-1).gather(1, token[:, None])[:, 0].numpy()
        np.testing.assert_allclose(found, log_probs[step], atol=1e-4)


@torch.no_grad()
def test_every_way_decodes_all_steps_of_all_rows(decoder: ResearchDecoder) -> None:
    generator = torch.Generator().manual_seed(0)
    assert len(decoder.one(5, generator)) == 5
    for greedy in (False, True):
        assert decoder.batched(3, 5, generator, greedy).shape == (3, 5)
    for way in ("one", "batched", "greedy"):
        assert seconds_per_step(decoder, way, 2, 4, 0.0) > 0


def test_a_decoder_of_another_kind_is_refused_with_the_reason(path: Path) -> None:
    bundle = open_bundle(path)
    weights = load_file(bundle.file(WEIGHTS_FILE))
    del weights["decoder.gru.kernel_ih"]
    with pytest.raises(Exception, match="no plain GRU"):
        ResearchDecoder(weights, bundle.manifest)
