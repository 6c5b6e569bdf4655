"""Connections that say nothing, or stop halfway, end by the set time; others' calls do not."""

import socket
import struct
import time

import grpc
import pytest
from siserve.client.answer import make_request
from siserve.v1 import dialog_pb2_grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, SETTINGS_TAKEN = b"\x00\x00\x00\x04" + bytes(5), b"\x00\x00\x00\x04\x01" + bytes(4)
PING, TAKEN = 6, 1


def begin_a_call(authority: str) -> bytes:
    """Headers of a call on stream 1, in literals; its message is to come, and does not."""
    pairs = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/siserve.v1.DialogService/GenerateResponses"),
        (":authority", authority),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    block = b"".join(
        b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in pair) for pair in pairs
    )
    return struct.pack(">I", len(block))[1:] + struct.pack(">BBI", 1, 4, 1) + block


def seconds_until_closed(address: str, says: bytes) -> float:
    """Connect, say something, answer pings as a peer must, and wait for the end."""
    host, port = address.rsplit(":", 1)
    began, unread = time.monotonic(), b""
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(says)
        try:
            while received := connection.recv(4096):
                unread += received
                while len(unread) >= 9 and len(unread) >= 9 + int.from_bytes(unread[:3], "big"):
                    size, kind, flags = int.from_bytes(unread[:3], "big"), unread[3], unread[4]
                    payload, unread = unread[9 : 9 + size], unread[9 + size :]
                    if kind == PING and not flags & TAKEN:
                        connection.sendall(b"\x00\x00\x08\x06\x01" + bytes(4) + payload)
        except ConnectionError:
            pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("says", "from_s", "to_s"),
    [
        (b"", 0.9, 2.5),
        (PREFACE[:9], 0.9, 2.5),
        (PREFACE + SETTINGS + SETTINGS_TAKEN, 0.9, 2.5),
        (PREFACE + SETTINGS + SETTINGS_TAKEN + begin_a_call("localhost"), 1.5, 6),
    ],
    ids=["silent", "half a greeting", "idle", "a call without its message"],
)
def test_a_connection_that_asks_for_nothing_ends_by_the_set_time(
    server_of_little, says, from_s, to_s
):
    assert from_s < seconds_until_closed(server_of_little.address, says) < to_s
    with server_of_little.client() as client:
        assert len(client.generate([("A", "hello")]).responses) == 5


@pytest.fixture(scope="module")
def server_of_little(start_for_module, bundle):
    return start_for_module(
        *("--model", bundle, "--handshake-seconds", 1, "--idle-seconds", 1),
        *("--connection-seconds", 2, "--drain-seconds", 1),
    )


def test_connections_are_made_anew_without_a_failed_call(server_of_little):
    request, answers = make_request([("A", "hello")], n=1), 0
    with grpc.insecure_channel(server_of_little.address) as channel:  # it tries nothing again
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            answers += len(stub.GenerateResponses(request, timeout=10).responses)
    assert answers > 50
