"""A served bundle of an explicit mixture scores and varies responses as its run draws them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from siserve.client.answer import make_request, make_score_request
from siserve.serving.encoding import Context, ContextEncoder
from siserve.serving.engine import EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.noise import Purpose, normals
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement, load_sessions
from siserve.v1.dialog_pb2 import VaryResponseRequest
from siserve_training.data.batches import DialogBatch
from siserve_training.evaluation.likelihood import LikelihoodEstimate
from siserve_training.evaluation.measure import open_subject
from siserve_training.evaluation.system import Decoding
from siserve_training.export.run import export_run
from siserve_training.models.draws import Encoded, Latents, Noise

from .small_runs import write_run

TURNS = [("A", "i have a dog"), ("B", "do you like the cat")]
GIVEN, SAMPLES, SEED = "my dog is old", 60, 11


@pytest.fixture(scope="module")
def served_mixture(corpus, tmp_path_factory):
    """A bundle of gmm-cvae at work, and the model of its run."""
    folder = tmp_path_factory.mktemp("served")
    run = write_run(folder / "run", corpus, method="gmm-cvae", components=2)
    export_run(run, folder / "bundle")
    options = (RequestLimits(), EngineOptions(), Metrics().engine_observer())
    model = load_model(folder / "bundle", Placement("cpu", "fp32", 1), *options)
    model.start()
    yield model, open_subject(run, corpus, "test").system
    model.stop()


def drawn_by_the_run(served, system) -> tuple[Encoded, Latents]:
    """What the run draws for the served model's context by the served model's noise."""
    text, manifest = served.text, served.bundle.manifest
    told = zip("AB", text.encode_utterances([said for _, said in TURNS]), strict=True)
    window = text.context_window(list(told), "A")
    sessions = load_sessions(served.bundle, "cpu", 1)
    context = Context(window.utterances, window.floors)
    c = ContextEncoder(sessions, manifest.tokens.pad).encode([context])
    rows, sizes = np.arange(SAMPLES), manifest.sizes
    eps_lam = torch.from_numpy(normals(SEED, rows, sizes.noise, Purpose.LAMBDA))
    eps_z = torch.from_numpy(normals(SEED, rows, sizes.latent, Purpose.POSTERIOR))
    noise = Noise(eps_lam.view(1, SAMPLES, -1), eps_z[None], torch.zeros(1, 1, 0))
    ids = torch.tensor([text.encode_utterance(GIVEN)])
    response = system.model.encode_utterances(ids, torch.tensor([ids.shape[1]]))
    encoded = Encoded(torch.from_numpy(c), response)
    return encoded, system.draw_posterior(encoded, noise)


@torch.no_grad()
def test_a_served_mixture_scores_as_its_run(served_mixture):
    served, system = served_mixture
    asked = make_score_request(TURNS, [GIVEN], num_samples=SAMPLES, num_aux=0, seed=SEED)
    scores = served.submit_scores(served.check_scores(asked)).result.result(30)
    encoded, latents = drawn_by_the_run(served, system)
    ids = torch.tensor([served.text.encode_utterance(GIVEN)])
    batch = SimpleNamespace(
        utterances=ids, response=torch.tensor([0]), response_lengths=torch.tensor([len(ids[0]) - 1])
    )
    log_p_x = system.log_p_x(cast(DialogBatch, batch), encoded.c, latents.z)
    weights = log_p_x + latents.log_p_z - latents.log_q_z  # (1, S)
    expected = LikelihoodEstimate.of(weights, ids.shape[1] - 1)
    assert scores.by_posterior
    assert scores.estimates[0].log_prob == pytest.approx(expected.log_p_x, abs=1e-3)
    assert scores.estimates[0].std_error == pytest.approx(expected.estimate_error, rel=1e-3)


@torch.no_grad()
def test_a_served_mixture_varies_as_its_run(served_mixture):
    served, system = served_mixture
    request = make_request(TURNS, n=SAMPLES, seed=SEED, temperature=0.0)
    message = VaryResponseRequest(generate=request, response=GIVEN)
    job = served.submit(served.check(request), variation=served.check_variation(message))
    said = [row.tokens for row in job.result.result(30).rows]
    encoded, latents = drawn_by_the_run(served, system)
    c = encoded.c.expand(SAMPLES, -1)
    rows = system.decode(c, latents.z[0], Decoding(), torch.zeros(40, SAMPLES))
    expected = [tuple(word for word in row if word not in system.marks) for row in rows.tolist()]
    assert len(set(said)) > 1
    assert said == expected
