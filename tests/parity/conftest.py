"""Tiny models as graphs, as arrays and as torch layers, and a way to run each graph."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import TinySizes, tiny_bundle, tiny_model
from siserve.bundle.tensors import GRAPHS, OPTIONAL_GRAPHS
from siserve_training.export import TrainedModel, trial
from siserve_training.export.parity import open_graph


class Graphs:
    """The graphs of a bundle beside the model that they were made from."""

    def __init__(self, path: Path, model: TrainedModel, sizes: TinySizes):
        self.path = path
        self.model = model
        self.sizes = sizes
        graphs = (*GRAPHS, *OPTIONAL_GRAPHS)
        files = [graph.file for graph in graphs if (path / graph.file).is_file()]
        self.sessions = {file: open_graph(path / file) for file in files}

    def run(self, name, **inputs):
        return self.sessions[f"{name}.onnx"].run(None, inputs)

    @property
    def vocabulary(self):
        return len(self.model.arrays["embedding.weight"])

    @property
    def words(self):
        """Ids of what may be said."""
        special = set(self.model.tokens.model_dump().values())
        return np.array([i for i in range(self.vocabulary) if i not in special])

    def utterances(self, rng, count, length):
        """Ragged utterances from <s> to </s>, the first of 2 tokens, the last of all."""
        tokens = self.model.tokens
        lengths = rng.integers(2, length + 1, count)
        lengths[0], lengths[-1] = 2, length
        ids = rng.choice(self.words, (count, length))
        ids[:, 0] = tokens.start
        ids[np.arange(count), lengths - 1] = tokens.end
        ids[np.arange(length) >= lengths[:, None]] = 0
        return ids

    def contexts(self, rng, batch, window, length):
        """Inputs of context_encoder: ragged utterances, the first context of one utterance."""
        used = rng.integers(1, window + 1, batch)
        used[0], used[-1] = 1, window
        utterances = self.utterances(rng, batch * window, length).reshape(batch, window, length)
        utterances[np.arange(window) >= used[:, None]] = 0
        return {
            "utterances": utterances,
            "floor": rng.integers(0, 2, (batch, window)),
            "topic": rng.integers(0, len(self.sizes.topics) + 1, batch),
            "profile": normal(rng, batch, 8),
        }

    def encode_in_steps(self, utterances, floor, **told):
        """Return c of the two graphs of the encoder's steps, from inputs of context_encoder."""
        is_real = utterances.any(axis=2)
        (vectors,) = self.run("utterance_encoder", ids=utterances[is_real])
        placed = np.full((*is_real.shape, vectors.shape[1]), 5, np.float32)  # must not be looked at
        placed[is_real] = vectors
        counts = is_real.sum(1)
        return self.run(
            "dialog_encoder", vectors=placed, floor=floor, num_utterances=counts, **told
        )[0]

    def latents(self, rng, rows):
        """Condition vectors and latents, c and z."""
        return normal(rng, rows, self.sizes.condition), normal(rng, rows, self.sizes.latent)

    def chunk(self, rng, c, z, steps, **changes):
        """Inputs of decoder for rows that start, drawn at temperature 1."""
        rows = len(z)
        return {
            "c": c,
            "z": z,
            "state": np.zeros((rows, self.sizes.state), np.float32),
            "token": np.full(rows, self.model.tokens.start),
            "uniform": rng.random((steps, rows), np.float32),
            "forced": np.full((steps, rows), -1),
            "temperature": np.ones(rows, np.float32),
            "top_k": np.zeros(rows, np.int64),
            "top_p": np.ones(rows, np.float32),
            **changes,
        }


@contextmanager
def every_int8_decoder():
    """Let the 8-bit decoder of random weights into a bundle, however far off it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "TOLERANCE", math.inf)
        yield


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


VARIANTS: dict[str, dict[str, Any]] = {
    "all features": {},
    "no features, affine posterior": {"topics": (), "profile": False, "post_hidden": 0},
    "clamped log-variances": {"logvar_clamp": 0.25, "profile": False},
}


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """A model with topics and profiles."""
    return Graphs(
        tiny_bundle(tmp_path_factory.mktemp("graphs") / "tiny"), tiny_model(), TinySizes()
    )


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request, tmp_path_factory):
    """Each kind of model in turn."""
    sizes = TinySizes(**VARIANTS[request.param])
    path = tiny_bundle(
        tmp_path_factory.mktemp("graphs") / "variant", seed=1, **VARIANTS[request.param]
    )
    return Graphs(path, tiny_model(1, sizes), sizes)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
