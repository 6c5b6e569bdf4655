"""Two replicas: the client spreads its calls over them, so does a proxy, and one may go."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from bundle_factory import tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from siserve import cli
from siserve.client import Client, ClientError

from .conftest import ROOT, find_tool, free_ports

CALLS = 200
DIALOG = [("A", "hi , how was your weekend?")]


@dataclass(frozen=True)
class Replica:
    """A server of its own process."""

    process: subprocess.Popen[str]
    port: int
    metrics_port: int

    def answered(self) -> int:
        """Calls that it answered well."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as reply:
            page = reply.read().decode()
        line = r'^siserve_requests_total{code="OK",method="GenerateResponses"} (\S+)$'
        return sum(int(float(count)) for count in re.findall(line, page, re.MULTILINE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("balancing") / "tiny")


@pytest.fixture
def replicas(bundle: Path) -> Iterator[list[Replica]]:
    started = []
    try:
        for _ in range(2):
            port, metrics_port = free_ports(2)
            command = [str(Path(sys.executable).with_name("siserve")), "serve", f"--model={bundle}"]
            command += [f"--port={port}", f"--metrics-port={metrics_port}"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            started.append(Replica(process, port, metrics_port))
        for replica in started:
            assert replica.process.stdout is not None
            assert replica.process.stdout.readline().startswith("serving ")
        yield started
    finally:
        for replica in started:
            replica.process.kill()
            replica.process.communicate()


@contextmanager
def proxy(nginx: str, replicas: list[Replica], folder: Path) -> Iterator[str]:
    """The proxy of deploy/proxy/nginx.conf, on this machine and with its files in `folder`."""
    (port,) = free_ports(1)
    text = (ROOT / "deploy" / "proxy" / "nginx.conf").read_text()
    for number, replica in enumerate(replicas):
        text = text.replace(f"siserve-{number}:50051", f"127.0.0.1:{replica.port}")
    text = text.replace("listen 127.0.0.1:50050", f"listen 127.0.0.1:{port}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    text = text.replace("access_log off;", f"access_log off; {folders}")
    (folder / "nginx.conf").write_text(f"pid {folder}/pid; daemon off;\n{text}")
    command = [nginx, "-c", f"{folder}/nginx.conf", "-p", str(folder), "-e", f"{folder}/log"]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 20
            while not is_open(port):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def is_open(port: int) -> bool:
    """Whether something listens."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def is_even(replicas: list[Replica]) -> bool:
    counts = [replica.answered() for replica in replicas]
    assert sum(counts) == CALLS
    return min(counts) >= 0.9 * CALLS / 2


def drain_during(address: str, replica: Replica) -> list[str]:
    """Ask from two threads, end a replica half-way; return what failed."""
    failed = []
    asked = threading.Semaphore(0)

    def keep_asking() -> None:
        with Client(address, timeout_s=30) as client:
            for _ in range(CALLS // 2):
                try:
                    client.generate(DIALOG, n=2)
                except ClientError as error:
                    failed.append(str(error))
                asked.release()

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(CALLS // 2):
        asked.acquire()
    replica.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert replica.process.wait(timeout=30) == 0
    return failed


def test_the_client_spreads_its_calls_and_loses_none_when_a_replica_drains(replicas):
    address = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    with Client(address, timeout_s=30) as client:
        for _ in range(CALLS):
            client.generate(DIALOG, n=2)
    assert is_even(replicas)
    assert drain_during(address, replicas[0]) == []


def test_the_client_asks_no_replica_that_says_that_it_drains(replicas):
    draining, other = replicas
    place = f"127.0.0.1:{draining.port}"
    with Client(f"ipv4:{place},127.0.0.1:{other.port}", timeout_s=30) as client:
        client.generate(DIALOG, n=2)
        with grpc.insecure_channel(place) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            draining.process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        time.sleep(0.05)  # until the client has been told, too; the replica still answers
        before = other.answered()
        for _ in range(10):
            client.generate(DIALOG, n=2)
        assert other.answered() == before + 10


def test_the_load_generator_spreads_its_calls(replicas, capsys):
    address = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    load = ["--clients=4", "--seconds=1", "--n=2", "--turns=2", "--json"]
    assert cli.run(["bench", "serve", f"--address={address}", *load]) == 0
    assert json.loads(capsys.readouterr().out)["loads"][0]["errors"] == {}
    counts = [replica.answered() for replica in replicas]
    assert min(counts) >= 0.9 * sum(counts) / 2


def test_a_proxy_spreads_the_calls_of_one_connection_and_loses_none(replicas, tmp_path):
    with proxy(find_tool("nginx"), replicas, tmp_path) as address:
        with Client(address, timeout_s=30) as client:
            for _ in range(CALLS):
                client.generate(DIALOG, n=2)
        assert is_even(replicas)
        assert drain_during(address, replicas[0]) == []
