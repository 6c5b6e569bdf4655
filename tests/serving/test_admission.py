"""What a server takes on: rates of callers, limits of connections, and what a refusal tells."""

import socket
import time
from typing import cast

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from siserve.client import ClientError
from siserve.client.answer import make_request
from siserve.serving.admission import RateLimit, RateLimiter
from siserve.serving.errors import RateExceeded
from siserve.v1 import dialog_pb2_grpc

DIALOG = [("A", "hi , how was your weekend?")]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_caller_gets_its_burst_and_then_its_rate():
    clock = Clock()
    limiter = RateLimiter(RateLimit(10, 20), clock)
    for _ in range(4):
        limiter.take("ann", 5)
    with pytest.raises(RateExceeded) as refused:
        limiter.take("ann", 5)
    assert refused.value.retry_after_s == pytest.approx(0.5)
    clock.now += 0.5
    limiter.take("ann", 5)
    taken = 0
    for _ in range(1000):
        clock.now += 0.01
        try:
            limiter.take("ann", 1)
        except RateExceeded:
            continue
        taken += 1
    assert taken in (99, 100)  # ten seconds at ten a second


def test_callers_do_not_share_a_bucket_and_a_refusal_costs_nothing():
    clock = Clock()
    limiter = RateLimiter(RateLimit(1, 5), clock)
    limiter.take("ann", 5)
    for _ in range(100):
        with pytest.raises(RateExceeded):
            limiter.take("ann", 1)
    limiter.take("bob", 5)
    clock.now += 1
    limiter.take("ann", 1)


def test_a_request_beyond_the_burst_passes_on_a_full_bucket_and_is_paid_for():
    clock = Clock()
    limiter = RateLimiter(RateLimit(10, 20), clock)
    limiter.take("ann", 64)
    with pytest.raises(RateExceeded) as refused:
        limiter.take("ann", 64)
    assert refused.value.retry_after_s == pytest.approx(6.4)
    clock.now += 6.4
    limiter.take("ann", 64)


def test_no_rate_is_no_limit_and_nonsense_is_refused():
    limiter = RateLimiter(RateLimit())
    for _ in range(1000):
        limiter.take("ann", 64)
    for wrong in ({"responses_per_second": -1.0}, {"burst": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RateLimit(**wrong)


def test_a_caller_beyond_its_rate_is_told_when_to_come_back(start_server):
    server = start_server("--rate", "20", "--burst", "10")
    with server.client() as client:
        client.generate(DIALOG, n=10)
        with pytest.raises(ClientError, match="20 responses a second") as refused:
            client.generate(DIALOG, n=10)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        delay = refused.value.retry_after_s
        assert delay is not None and 0.3 < delay <= 0.5
        assert client.get_model().server_limits.responses_per_second == 20
        time.sleep(delay)
        assert len(client.generate(DIALOG, n=10).responses) == 10


def test_a_wrong_field_is_named_in_the_status_details(server):
    with server.channel() as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GenerateResponses(make_request(DIALOG, n=0), timeout=20)
    status = rpc_status.from_call(cast(grpc.Call, refused.value))
    bad = BadRequest()
    assert status is not None and status.details[0].Unpack(bad)
    (violation,) = bad.field_violations
    assert violation.field == "n" and "from 1 to 64" in violation.description


def test_the_longest_response_is_the_servers_to_limit(start_server):
    server = start_server("--max-tokens", "3")
    with server.client() as client:
        assert client.get_model().limits.max_tokens == 3
        assert max(r.num_tokens for r in client.generate(DIALOG, n=20).responses) <= 3
        with pytest.raises(ClientError, match="max_tokens: must be from 1 to 3"):
            client.generate(DIALOG, max_tokens=4)


def test_large_headers_are_refused(server):
    with server.channel() as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GenerateResponses(
                make_request(DIALOG), timeout=20, metadata=[("x-large", "x" * 40_000)]
            )
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_silent_half_open_and_idle_connections_are_closed_and_harm_nobody(start_server):
    server = start_server("--handshake-seconds", "0.5", "--idle-seconds", "0.5")
    host, port = server.address.split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(60)]
    try:
        for half_open in held[:20]:
            half_open.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
        for idle in held[20:40]:
            idle.sendall(preface)
        with server.client() as client:
            began = time.monotonic()
            assert len(client.generate(DIALOG).responses) == 5
            assert time.monotonic() - began < 5
        deadline = time.monotonic() + 10
        for connection in held:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            while connection.recv(4096):
                pass
    finally:
        for connection in held:
            connection.close()
