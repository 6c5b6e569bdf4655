"""What shares a batch with a row changes nothing, whichever method the graphs are of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bundle_factory import tiny_text
from siserve.bundle.manifest import Features as BundleFeatures
from siserve.bundle.manifest import Tokens
from siserve.bundle.tensors import CONTEXT_ENCODER, DECODER, DECODER_INT8, PRIOR, SI_SAMPLER
from siserve_training.config import TrainConfig
from siserve_training.data.pairs import Features
from siserve_training.export import Release, TrainedModel, export_bundle
from siserve_training.export.torch_reference import ModelReference
from siserve_training.methods import METHODS, load_method

from .conftest import Graphs, every_int8_decoder, normal
from .test_batches import BATCH, mixed_rows, rows_alone_equal_rows_together

TOPICS = ("MUSIC", "PETS", "WEATHER CLIMATE")
#: Widths that are no multiples of a vector register's, narrow ones and ones as the paper has.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "word_embedding": 12,
        "utterance_hidden": 9,
        "context_hidden": 17,
        "topic_embedding": 3,
        "latent": 6,
        "noise": 4,
        "post_hidden": 11,
        "prior_hidden": 10,
        "decoder_hidden": 16,
        "critic_hidden": 5,
    },
    "wide": {
        "word_embedding": 200,
        "utterance_hidden": 150,
        "context_hidden": 301,
        "latent": 199,
        "noise": 100,
        "post_hidden": 350,
        "prior_hidden": 250,
        "decoder_hidden": 398,
    },
}


def make(path, method, sizes) -> Graphs:
    """Graphs of a model with random weights."""
    values = {"method": method, "num_latents": 5, "components": 5, **sizes}
    config, text, how = TrainConfig.from_values(values), tiny_text(), load_method(method)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = how.model_class(how.model_config(config, text.size, Features(TOPICS, True)))
        with torch.no_grad():
            for parameter in model.parameters():
                # more would make wide GRUs chaotic, and rounding would grow from step to step
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.train(False)
    arrays = {name: tensor.float().numpy().copy() for name, tensor in model.state_dict().items()}
    trained = TrainedModel(
        method=method,
        arrays=arrays,
        tokens=Tokens(
            **{n: getattr(text.tokens, n) for n in ("pad", "unk", "start", "end", "dialog_start")}
        ),
        features=BundleFeatures(topics=TOPICS, profile=True),
        logvar_clamp=config.logvar_clamp,
        noise_multiplies=config.noise_entry == "multiplied",
        keep_start_mark=getattr(model.config, "keep_start_mark", True),
    )
    with every_int8_decoder():
        manifest = export_bundle(
            path,
            trained,
            text.to_json(),
            lambda rounded: ModelReference(model, rounded),
            Release(name="random", version="1"),
        )
    known = manifest.sizes
    axes = SimpleNamespace(
        condition=known.context,
        latent=known.latent,
        noise=known.noise,
        prior=known.prior_noise,
        state=known.state,
        topics=TOPICS,
    )
    return Graphs(path, trained, axes)


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module", params=METHODS)
def graphs_of(request, size, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "bundle"
    return make(path, request.param, SIZES[size])


def test_contexts(graphs_of, rng):
    inputs = graphs_of.contexts(rng, BATCH, 5, 9)
    rows_alone_equal_rows_together(graphs_of, CONTEXT_ENCODER, inputs)
    (c,) = graphs_of.run("context_encoder", **inputs)
    assert np.array_equal(graphs_of.encode_in_steps(**inputs), c)


def test_latents(graphs_of, rng):
    sizes = graphs_of.sizes
    c, eps_z = normal(rng, BATCH, sizes.condition), normal(rng, BATCH, sizes.prior)
    rows_alone_equal_rows_together(graphs_of, PRIOR, {"c": c, "eps_z": eps_z})
    inputs = {
        "c": c,
        "response": graphs_of.utterances(rng, BATCH, 7),
        "eps_lam": normal(rng, BATCH, 4, sizes.noise),
        "eps_z": eps_z[:, : sizes.latent],
    }
    rows_alone_equal_rows_together(graphs_of, SI_SAMPLER, inputs)


@pytest.mark.parametrize("decoder", [DECODER, DECODER_INT8], ids=lambda graph: graph.file)
def test_decoded_rows(graphs_of, rng, decoder):
    inputs = mixed_rows(graphs_of, rng, 9)
    rows_alone_equal_rows_together(graphs_of, decoder, inputs, batch=12)
