"""A real server, asked over gRPC as any client would."""

import random
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import psutil
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from siserve.client import Answer, Client, ClientError
from siserve.client.answer import make_request
from siserve.v1 import dialog_pb2, dialog_pb2_grpc

SERVICE = "siserve.v1.DialogService"
GENERATE = f"/{SERVICE}/GenerateResponses"
DIALOG = [("A", "hi , how was your weekend?"), ("B", "oh it was great"), ("A", "what did you do")]


@pytest.fixture
def client(server):
    with server.client() as made:
        yield made


def said(answer: Answer) -> tuple:
    return answer.responses, answer.distinct_1, answer.distinct_2, answer.seed


def raw_call(channel: grpc.Channel, method: str = GENERATE):
    """A call that takes and returns bytes as they are."""
    return channel.unary_unary(method, request_serializer=None, response_deserializer=None)


def call_raw(address: str, serialized: bytes) -> bytes:
    """Send bytes as they are and return the reply's."""
    with grpc.insecure_channel(address) as channel:
        return raw_call(channel)(serialized, timeout=20)


def test_n_absent_gives_five_different_latents(client):
    answer = client.generate(DIALOG, seed=1)
    assert len(answer.responses) == 5
    assert len({reply.text for reply in answer.responses}) > 1
    for reply in answer.responses:
        assert reply.text and reply.num_tokens >= 1 and reply.log_prob < 0
        assert reply.finish_reason in ("stop", "length")
    assert 0 < answer.distinct_1 <= 1 and 0 <= answer.distinct_2 <= 1
    assert answer.seed == 1 and answer.model == "tiny@1"


@pytest.mark.parametrize("n", [1, 2, 64])
def test_n_gives_n_responses(client, n):
    assert len(client.generate(DIALOG, n=n).responses) == n


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(server):
    def reply_without_timings(seed: int) -> bytes:
        request = make_request(DIALOG, seed=seed)
        serialized = call_raw(server.address, request.SerializeToString())
        message = dialog_pb2.GenerateResponsesResponse.FromString(serialized)
        message.ClearField("timings")
        return message.SerializeToString(deterministic=True)

    assert reply_without_timings(7) == reply_without_timings(7)
    assert reply_without_timings(7) != reply_without_timings(8)


def test_a_seed_that_the_server_drew_repeats_its_answer(client):
    drawn = client.generate(DIALOG)
    assert said(client.generate(DIALOG, seed=drawn.seed)) == said(drawn)
    assert client.generate(DIALOG).seed != drawn.seed


def test_answers_are_the_same_alone_and_among_concurrent_others(client):
    dice = random.Random(3)
    words = "i you like the garden movie do not never did it was great what".split()
    requests = [
        {
            "context": [
                ("AB"[turn % 2], " ".join(dice.choices(words, k=dice.randint(1, 9))))
                for turn in range(dice.randint(1, 12))
            ],
            "seed": number,
            "n": dice.randint(1, 8),
            "temperature": dice.choice([None, 0.0, 0.8]),
            "top_k": dice.choice([None, 0, 5]),
            "top_p": dice.choice([None, 0.9]),
        }
        for number in range(30)
    ]

    def ask(number: int) -> tuple:
        return said(client.generate(**requests[number]))

    alone = [ask(number) for number in range(30)]
    order = [number for number in range(30) for _ in range(3)]
    dice.shuffle(order)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, order))
    assert together == [alone[number] for number in order]


def test_the_context_and_the_responder_matter(client):
    base = said(client.generate(DIALOG, seed=5))
    assert said(client.generate(DIALOG[:-1], seed=5)) != base
    assert said(client.generate(DIALOG, seed=5, responder="A")) != base
    assert said(client.generate(DIALOG, seed=5, responder="B")) == base
    renamed = [({"A": "ann", "B": "bob"}[speaker], text) for speaker, text in DIALOG]
    assert said(client.generate(renamed, seed=5)) == base
    topic = client.get_model().topics[0]
    assert said(client.generate(DIALOG, seed=5, topic=topic)) != base


def wire_text(field: int, text: bytes) -> bytes:
    return bytes([field << 3 | 2, len(text)]) + text


INVALID: dict[str, tuple[dialog_pb2.GenerateResponsesRequest | bytes, str]] = {
    "n is 0": (make_request(DIALOG, n=0), "n"),
    "n is 10^9": (make_request(DIALOG, n=10**9), "n"),
    "no context": (make_request([]), "context"),
    "1 MB of text": (make_request([("A", "word " * 200_000)]), "context[0].text"),
    "1 MB in one word": (make_request([("A", "x" * 1_000_000)]), "context[0].text"),
    "10,000 turns": (make_request([("A", "hi")] * 10_000), "context"),
    "400,000 empty turns": (
        dialog_pb2.GenerateResponsesRequest(context=[dialog_pb2.Utterance()] * 400_000),
        "context",
    ),
    "2 MB of empty turns": (b"\x0a\x00" * 1_000_000, "context"),
    "invalid UTF-8": (wire_text(1, wire_text(2, b"\xff\xfe")), "context[0].text"),
    "invalid UTF-8 in a name": (wire_text(9, b"caf\xe9"), "topic"),
    "broken protobuf": (b"\xff\xff\xff\xff", "GenerateResponsesRequest"),
    "temperature is NaN": (make_request(DIALOG, temperature=float("nan")), "temperature"),
    "top_k is 10^9": (make_request(DIALOG, top_k=10**9), "top_k"),
    "top_p is 2": (make_request(DIALOG, top_p=2.0), "top_p"),
    "diversity is 2": (make_request(DIALOG, diversity=2.0), "diversity"),
    "max_tokens is 10^9": (make_request(DIALOG, max_tokens=10**9), "max_tokens"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_request_is_refused_by_name_within_50_ms_and_the_server_lives(
    server, client, case
):
    request, field = INVALID[case]
    serialized = request if isinstance(request, bytes) else request.SerializeToString()
    wall_seconds = []
    with server.channel() as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        call = raw_call(channel)
        before = cpu_seconds(server)
        for _ in range(6):
            started = time.perf_counter()
            with pytest.raises(grpc.RpcError) as refused:
                call(serialized, timeout=20)
            wall_seconds.append(time.perf_counter() - started)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert str(refused.value.details()).startswith(f"{field}: ")
    # Neighbours on the cores slow the clock; what the server itself takes they do not change.
    assert (cpu_seconds(server) - before) / 6 < 0.05
    assert min(wall_seconds) < 0.5
    assert len(client.generate(DIALOG).responses) == 5


def cpu_seconds(server) -> float:
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def test_a_minus_one_on_the_wire_is_refused(server):
    minus_one = bytes([2 << 3]) + b"\xff" * 9 + b"\x01"
    with pytest.raises(grpc.RpcError) as refused:
        call_raw(server.address, make_request(DIALOG).SerializeToString() + minus_one)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused.value.details()).startswith("n: ")


def test_a_message_beyond_the_cap_is_refused_by_the_library(server):
    with pytest.raises(grpc.RpcError) as refused:
        call_raw(server.address, make_request([("A", "x" * (5 << 20))]).SerializeToString())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_model_is_not_found_and_known_names_answer(client):
    with pytest.raises(ClientError, match=r"^model: .*tiny@1") as refused:
        client.generate(DIALOG, model="huge")
    assert refused.value.code is grpc.StatusCode.NOT_FOUND
    for name in ("tiny", "tiny@1", ""):
        assert client.generate(DIALOG, model=name).model == "tiny@1"


def test_get_model_tells_what_the_manifest_says_and_which_limits_hold(client, manifest):
    model = client.get_model()
    assert (model.name, model.version, model.method) == ("tiny", "1", "si-cvae")
    assert model.sha256 == manifest.sha256 and model.device == "cpu"
    assert tuple(model.topics) == manifest.features.topics
    assert model.limits.max_responses == 64 and model.defaults.n == 5
    assert model.limits.max_tokens == manifest.limits.response_tokens
    server_limits = {field.name: value for field, value in model.server_limits.ListFields()}
    assert server_limits == {
        "max_message_bytes": 2 << 20,
        "max_metadata_bytes": 16 << 10,
        "max_streams": 256,
        "idle_seconds": 300.0,
        "handshake_seconds": 5.0,
        "connection_seconds": 3600.0,
        "max_queue_rows": 1024,
        "max_rows": 128,
        "oversample": 6,
        "burst_responses": 256,
    }
    with pytest.raises(ClientError) as refused:
        client.generate(DIALOG, n=model.limits.max_responses + 1)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_health_answers_for_the_server_and_the_service(server):
    with server.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_the_service_and_its_messages(server):
    ask = reflection_pb2.ServerReflectionRequest
    with server.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        queries = [ask(list_services=""), ask(file_containing_symbol=SERVICE)]
        listed, described = stub.ServerReflectionInfo(iter(queries), timeout=10)
    assert SERVICE in {service.name for service in listed.list_services_response.service}
    file = descriptor_pb2.FileDescriptorProto.FromString(
        described.file_descriptor_response.file_descriptor_proto[0]
    )
    methods = {"GenerateResponses", "StreamResponses", "VaryResponse", "ScoreResponses", "GetModel"}
    assert {method.name for method in file.service[0].method} == methods


def test_reflection_can_be_switched_off(start_server):
    quiet = start_server("--no-reflection")
    with quiet.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        query = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.ServerReflectionInfo(iter([query]), timeout=10))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_client_that_gives_up_or_runs_out_of_time_leaves_the_server_idle(server):
    request = make_request(DIALOG, n=64)
    with server.channel() as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        for _ in range(20):
            stub.GenerateResponses.future(request).cancel()
        with pytest.raises(grpc.RpcError) as refused:
            stub.GenerateResponses(request, timeout=0.001)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with server.client() as client:
        assert len(client.generate(DIALOG).responses) == 5
    deadline = time.monotonic() + 10
    while any(scrape(server, name) for name in ("siserve_inflight_rows", "siserve_queue_requests")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_server_refuses_and_answers_again(start_server):
    small = start_server("--max-queue-rows", "1", "--max-rows", "1")

    def ask(client: Client, seed: int) -> str:
        try:
            return f"{len(client.generate(DIALOG, n=64, seed=seed).responses)}"
        except ClientError as error:
            assert error.retry_after_s and 0.05 <= error.retry_after_s <= 10
            return error.code.name

    with small.client() as client, ThreadPoolExecutor(24) as pool:
        outcomes = list(pool.map(partial(ask, client), range(96)))
        assert set(outcomes) == {"64", "RESOURCE_EXHAUSTED"}
        assert len(client.generate(DIALOG).responses) == 5
    refused = scrape(small, "siserve_requests_total", code="RESOURCE_EXHAUSTED")
    assert refused == outcomes.count("RESOURCE_EXHAUSTED")


def test_two_models_are_served_by_name(start_server, tmp_path):
    from bundle_factory import tiny_bundle

    other = tiny_bundle(tmp_path / "other", seed=9, name="other", version="2.1")
    both = start_server("--model", other)
    assert both.lines[0] == f"serving tiny@1,other@2.1 on {both.address}"
    with both.client() as client:
        assert client.generate(DIALOG).model == "tiny@1"
        first = client.generate(DIALOG, seed=1, model="tiny")
        second = client.generate(DIALOG, seed=1, model="other")
        assert second.model == "other@2.1" and said(first) != said(second)


def test_the_server_is_small_and_up_in_seconds(start_server):
    server = start_server()
    assert cpu_seconds(server) < 3  # its own processor time: neighbours slow the clock only
    with server.client() as client:
        for n in (1, 5, 64):
            client.generate(DIALOG, n=n)
    assert psutil.Process(server.process.pid).memory_info().rss < 400 << 20


# ---- metrics


def series(server) -> dict[str, float]:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        text = reply.read().decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def scrape(server, name: str, **labels: str) -> float:
    """Sum of the series of a name that have the given labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(
        value
        for key, value in series(server).items()
        if key.partition("{")[0] == name and all(label in key for label in wanted)
    )


COUNTED = {
    "siserve_requests_total": {"method": "GenerateResponses", "code": "OK"},
    "siserve_request_seconds_count": {"method": "GenerateResponses"},
    "siserve_queue_seconds_count": {},
    "siserve_encode_seconds_count": {},
    "siserve_decode_seconds_count": {},
    "siserve_responses_total": {"model": "tiny"},
    "siserve_tokens_total": {"model": "tiny"},
    "siserve_batch_rows_count": {},
    "siserve_distinct_1_ratio_count": {"model": "tiny"},
    "siserve_distinct_2_ratio_count": {"model": "tiny"},
    "siserve_response_tokens_count": {"model": "tiny"},
}


def test_every_metric_of_the_contract_is_there_and_moves(start_server):
    server = start_server()
    before = {name: scrape(server, name, **labels) for name, labels in COUNTED.items()}
    with server.client() as client:
        answers = [client.generate(DIALOG, n=n) for n in (3, 5)]
        with pytest.raises(ClientError):
            client.generate(DIALOG, n=0)
        client.get_model()
    moved = {
        name: scrape(server, name, **labels) - before[name] for name, labels in COUNTED.items()
    }
    tokens = sum(reply.num_tokens for answer in answers for reply in answer.responses)
    assert moved["siserve_responses_total"] == moved["siserve_response_tokens_count"] == 8
    assert moved["siserve_tokens_total"] == tokens
    assert moved.pop("siserve_request_seconds_count") == 3
    for name in ("requests_total", "queue_seconds_count", "distinct_1_ratio_count"):
        assert moved[f"siserve_{name}"] == 2
    assert all(moved.values())
    assert scrape(server, "siserve_requests_total", code="INVALID_ARGUMENT") == 1
    assert scrape(server, "siserve_requests_total", method="GetModel", code="OK") == 1
    assert scrape(server, "siserve_model_info", model="tiny", version="1", device="cpu") == 1
    assert scrape(server, "siserve_inflight_rows") == scrape(server, "siserve_queue_requests") == 0
    ratio = scrape(server, "siserve_distinct_1_ratio_sum", model="tiny")
    assert ratio == pytest.approx(sum(answer.distinct_1 for answer in answers))


def test_label_values_stay_bounded_whatever_clients_send(server, client):
    with server.channel() as channel:
        for number in range(20):
            with pytest.raises(ClientError):
                client.generate(DIALOG, model=f"model-{number}")
            with pytest.raises(grpc.RpcError):
                raw_call(channel, f"/{SERVICE}/Method{number}")(b"", timeout=20)
    assert not [name for name in series(server) if "model-" in name or "Method" in name]


def test_every_metric_has_a_help_text(server):
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE siserve_")}
    helped = {line.split()[2]: line.split(maxsplit=3)[3] for line in lines if "# HELP sis" in line}
    assert typed == set(helped) and len(typed) == 21
    assert all(text.endswith(".") or text.endswith("1.") for text in helped.values())


def test_a_client_leaves_its_channel_closed(server):
    client = Client(server.address)
    with client:
        client.get_model()
    with pytest.raises(ValueError, match="closed"):
        client.get_model()
