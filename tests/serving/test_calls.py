"""Streaming, varying and scoring: the same model, asked in other ways."""

import dataclasses
import math
import time
from types import SimpleNamespace
from typing import cast

import grpc
import numpy as np
import pytest
import torch
from siserve.bundle import open_bundle
from siserve.bundle.selection import consensus
from siserve.bundle.text import Text
from siserve.client import Client, ClientError
from siserve.client.answer import make_request
from siserve.serving import noise
from siserve.serving.dialog_model import DialogModel
from siserve.serving.encoding import Context, ContextEncoder
from siserve.serving.engine import Engine, EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.models import embedded_bundle
from siserve.serving.requests import RequestLimits
from siserve.serving.scoring import ScoreJob, estimate
from siserve.serving.sessions import Placement
from siserve.v1 import dialog_pb2, dialog_pb2_grpc
from siserve_training.data.batches import DialogBatch
from siserve_training.evaluation.bundle_system import BundleSystem
from siserve_training.evaluation.likelihood import LikelihoodEstimate
from siserve_training.models.draws import Encoded, Noise

DIALOG = [("A", "hi , how was your weekend?"), ("B", "oh it was great"), ("A", "what did you do")]
RESPONSE = "i did not go to the movie"


@pytest.fixture
def client(server):
    with server.client() as made:
        yield made


def code_and_text(client: Client, call) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call(client)
    return refused.value.code.name, str(refused.value)


# ---- streaming


@pytest.mark.parametrize("diversity", [None, 0.85])
def test_a_stream_tells_the_same_responses_one_by_one(client, diversity):
    request = make_request(DIALOG, n=20, seed=5, diversity=diversity)
    whole = client.send(request)
    streamed = list(client.stream(request))
    assert {index: reply for index, reply in streamed} == dict(enumerate(whole.responses))
    assert len(streamed) == 20
    if diversity:
        assert [index for index, _ in streamed] == list(range(20))
    else:  # whoever ends first comes first, give or take a chunk of steps
        lengths = [reply.num_tokens for _, reply in streamed]
        chunks = [(length + 1 + 3) // 4 for length in lengths]
        assert chunks == sorted(chunks) and len(set(chunks)) > 1


def test_a_stream_ends_with_what_holds_for_all(server, client):
    request = make_request(DIALOG, n=4, seed=7)
    whole = client.send(request)
    with server.channel() as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        *_, last = stub.StreamResponses(
            dialog_pb2.StreamResponsesRequest(generate=request), timeout=20
        )
    assert (last.end.seed, last.end.model) == (7, "tiny@1")
    assert (last.end.distinct_1, last.end.distinct_2) == (whole.distinct_1, whole.distinct_2)


def test_who_leaves_a_stream_stops_its_work(client, server):
    stream = client.stream(make_request(DIALOG, n=64, seed=1))
    next(stream)
    stream.close()
    deadline = time.monotonic() + 10
    while engine_is_busy(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(client.generate(DIALOG).responses) == 5


def engine_is_busy(server) -> bool:
    import urllib.request

    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return "siserve_inflight_rows 0.0" not in lines


def test_fields_within_a_request_are_named_by_their_path(client):
    wrong = make_request(DIALOG, n=0)
    code, text = code_and_text(client, lambda client: list(client.stream(wrong)))
    assert code == "INVALID_ARGUMENT" and text.startswith("generate.n: ")
    code, text = code_and_text(client, lambda client: client.vary(wrong, RESPONSE))
    assert code == "INVALID_ARGUMENT" and text.startswith("generate.n: ")


# ---- varying


def test_variants_repeat_with_their_seed_and_follow_the_response(client):
    request = make_request(DIALOG, n=6, seed=3)

    def vary(response: str, scale: float | None = None) -> tuple:
        answer = client.vary(request, response, noise_scale=scale)
        assert answer.seed == 3 and answer.model == "tiny@1"
        return answer.responses

    assert len(vary(RESPONSE)) == 6
    assert vary(RESPONSE) == vary(RESPONSE, 1.0)
    assert vary(RESPONSE) != vary("yeah the dog and the cat")
    assert vary(RESPONSE) != vary(RESPONSE, 0.5)
    assert vary(RESPONSE) != client.send(request).responses


def test_without_noise_there_is_one_variant(client):
    request = make_request(DIALOG, n=6, seed=3, temperature=0.0)
    still = {reply.text for reply in client.vary(request, RESPONSE, noise_scale=0).responses}
    moved = {reply.text for reply in client.vary(request, RESPONSE, noise_scale=2).responses}
    assert len(still) == 1 and len(moved) > 1


@pytest.mark.parametrize(
    "response, scale, field",
    [
        ("", 1.0, "response"),
        (" ", 1.0, "response"),
        ("word " * 39, 1.0, "response"),
        ("x" * 20_000, 1.0, "response"),
        (RESPONSE, -0.1, "noise_scale"),
        (RESPONSE, 4.1, "noise_scale"),
        (RESPONSE, math.nan, "noise_scale"),
    ],
)
def test_a_variation_beyond_its_bounds_is_refused_by_name(client, response, scale, field):
    code, text = code_and_text(
        client, lambda client: client.vary(make_request(DIALOG), response, noise_scale=scale)
    )
    assert code == "INVALID_ARGUMENT" and text.startswith(f"{field}: ")


def test_variants_are_nearer_to_the_response_than_fresh_responses_are():
    observer = Metrics().engine_observer()
    model = load_model(
        embedded_bundle(), Placement("cpu", threads=1), RequestLimits(), EngineOptions(), observer
    )
    model.start()
    try:
        context = [("A", "do you have any pets")]
        given = "yes i have a dog and two cats"
        request = make_request(context, n=40, seed=1, temperature=0.0)
        fresh = texts(model, request, None)
        near = texts(model, request, 0.5)
        far = texts(model, request, 3.0)
        assert likeness(model.text, given, near) > likeness(model.text, given, fresh)
        assert likeness(model.text, given, near) > likeness(model.text, given, far)
    finally:
        model.stop()


def texts(
    model: DialogModel, request: dialog_pb2.GenerateResponsesRequest, scale: float | None
) -> list[str]:
    variation = None
    if scale is not None:
        variation = model.check_variation(
            dialog_pb2.VaryResponseRequest(
                generate=request, response="yes i have a dog and two cats", noise_scale=scale
            )
        )
    job = model.submit(model.check(request), variation=variation)
    return [response.text for response in model.reply(1, job.result.result(30)).responses]


def likeness(text: Text, given: str, others: list[str]) -> float:
    """Mean overlap of bigrams with a given response."""
    (first,) = text.encode_utterances([given])
    pairs = [text.encode_utterances([other])[0] for other in others]
    return float(np.mean([consensus([first[1:-1], other[1:-1]])[0] for other in pairs]))


# ---- scoring


def test_scores_repeat_with_their_seed_and_do_not_depend_on_each_other(client):
    others = ["yeah the dog", "oh really ?", "it was great ."]
    together = client.score(DIALOG, [RESPONSE, *others], num_samples=80, seed=2)
    assert together == client.score(DIALOG, [RESPONSE, *others], num_samples=80, seed=2)
    for number, response in enumerate([RESPONSE, *others]):
        (alone,) = client.score(DIALOG, [response], num_samples=80, seed=2)
        assert alone == together[number]
        assert alone.log_prob < 0 < alone.std_error and math.isfinite(alone.log_prob)
    assert together != client.score(DIALOG, [RESPONSE, *others], num_samples=80, seed=3)
    assert [score.num_tokens for score in together] == [7, 3, 3, 4]


@pytest.mark.parametrize("num_aux", [0, 7])
def test_scores_are_those_of_the_evaluation_code(client, bundle, manifest, sessions, num_aux):
    samples, seed = 90, 11
    (score,) = client.score(DIALOG, [RESPONSE], num_samples=samples, num_aux=num_aux, seed=seed)
    opened = open_bundle(bundle)
    text = Text.from_file(opened.file("tokenizer.json"), manifest.limits.utterance_tokens)
    turns = list(zip("ABA", text.encode_utterances([said for _, said in DIALOG]), strict=True))
    window = text.context_window(turns, "B")
    encoder = ContextEncoder(sessions, manifest.tokens.pad)
    c = encoder.encode([Context(window.utterances, window.floors)])
    system = BundleSystem(opened)
    rows, sizes = np.arange(samples), manifest.sizes
    eps_lam = noise.normals(seed, rows, (num_aux + 1) * sizes.noise, noise.Purpose.LAMBDA)
    drawn = Noise(
        torch.from_numpy(eps_lam.reshape(samples, num_aux + 1, sizes.noise)),
        torch.from_numpy(noise.normals(seed, rows, sizes.latent, noise.Purpose.POSTERIOR))[:, None],
        torch.zeros(samples, num_aux + 1, 0),
    )
    ids = torch.tensor([text.encode_utterance(RESPONSE)])
    each = torch.from_numpy(np.repeat(c, samples, axis=0))
    latents = system.draw_posterior(Encoded(each, ids.repeat(samples, 1)), drawn)
    batch = SimpleNamespace(
        utterances=ids,
        response=torch.zeros(samples, dtype=torch.int64),
        response_lengths=torch.full((samples,), ids.shape[1] - 1),
    )
    log_p_x = system.log_p_x(cast(DialogBatch, batch), each, latents.z)
    weights = (log_p_x + latents.log_p_z - latents.log_q_z).T  # (1, S)
    expected = LikelihoodEstimate.of(weights, ids.shape[1] - 1)
    assert score.log_prob == pytest.approx(expected.log_p_x, abs=1e-4)
    assert score.std_error == pytest.approx(expected.estimate_error, rel=1e-3)


def test_the_estimate_is_the_log_of_a_mean_even_where_weights_are_tiny():
    weights = np.log(np.array([0.1, 0.2, 0.6]))
    assert estimate(weights).log_prob == pytest.approx(math.log(0.3))
    shifted = estimate(weights - 5000)
    assert shifted.log_prob == pytest.approx(math.log(0.3) - 5000)
    assert shifted.std_error == pytest.approx(estimate(weights).std_error)
    assert estimate(weights[:1]).std_error == 0


def test_a_model_without_densities_is_scored_over_its_prior(sessions, manifest):
    class NoDensity:
        def run(self, inputs):
            z, log_q_z, log_p_z = sessions.si_sampler.run(inputs)
            return z, np.full_like(log_q_z, np.nan), np.full_like(log_p_z, np.nan)

    blind = dataclasses.replace(sessions, si_sampler=NoDensity())
    engine = Engine(blind, manifest, EngineOptions(), Metrics().engine_observer())
    engine.start()
    try:
        scores = engine.submit(score_job(manifest, 3, 100)).result(20)
    finally:
        engine.stop()
    assert not scores.by_posterior and len(scores.estimates) == 3
    assert len({each.log_prob for each in scores.estimates}) == 1  # of the same response
    assert scores.estimates[0].log_prob < 0 and scores.encode_seconds > 0


def score_job(manifest, responses: int, samples: int) -> ScoreJob:
    tokens = manifest.tokens
    context = Context(((tokens.start, tokens.dialog_start, tokens.end),), (0,))
    said = (tokens.start, 9, 10, 11, tokens.end)
    return ScoreJob(context, (said,) * responses, samples, 4, seed=1)


def test_a_long_score_lets_others_pass_and_ends_when_cancelled(sessions, manifest):
    from siserve.serving.errors import RequestCancelled
    from siserve.serving.flight import Job

    options = EngineOptions(max_queue_rows=100_000)
    engine = Engine(sessions, manifest, options, Metrics().engine_observer())
    engine.start()
    long = score_job(manifest, 64, 1000)
    try:
        scored = engine.submit(long)
        job = Job(long.context, n=2, seed=0, temperature=1.0, top_k=0, top_p=1.0, max_tokens=9)
        assert len(engine.submit(job).result(20).rows) == 2
        assert not scored.done()
        long.cancel()
        with pytest.raises(RequestCancelled):
            scored.result(10)
    finally:
        engine.stop(finish=False)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"responses": []}, "responses"),
        ({"responses": ["hi"] * 65}, "responses"),
        ({"responses": ["hi", ""]}, "responses[1]"),
        ({"responses": ["hi", "word " * 39]}, "responses[1]"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 6401}, "num_samples"),
        ({"responses": ["hi"] * 64, "num_samples": 101}, "num_samples"),
        ({"num_aux": 101}, "num_aux"),
        ({"context": []}, "context"),
        ({"topic": "NO SUCH TOPIC"}, "topic"),
    ],
)
def test_a_request_for_scores_beyond_its_bounds_is_refused_by_name(client, changes, field):
    asked = {"context": DIALOG, "responses": [RESPONSE], **changes}
    code, text = code_and_text(client, lambda client: client.score(**asked))
    assert code == "INVALID_ARGUMENT" and text.startswith(f"{field}: ")


def test_scores_count_against_the_rate(start_server):
    server = start_server("--rate", "1", "--burst", "100")
    with server.client() as client:
        client.score(DIALOG, [RESPONSE], num_samples=100)
        with pytest.raises(ClientError) as refused:
            client.score(DIALOG, [RESPONSE], num_samples=50)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
