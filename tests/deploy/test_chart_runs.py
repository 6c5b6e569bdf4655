"""What the chart starts is started here: the server's arguments, and those of helm test."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc

from .conftest import Manifest, Render, free_ports, server_of, the

COMMAND = str(Path(sys.executable).with_name("siserve"))


def run_as(arguments: list[str], root: Path) -> list[str]:
    """A container's command on this machine, with its files under `root`."""
    return [COMMAND, *(argument.replace("=/etc/siserve", f"={root}") for argument in arguments)]


def on_free_ports() -> list[str]:
    """Values by which the pod listens on free ports."""
    grpc_port, metrics_port = free_ports(2)
    return [f"ports.grpc={grpc_port}", f"ports.metrics={metrics_port}"]


def passes(probe: dict[str, Any], ports: dict[str, int]) -> bool:
    """Probe as the kubelet does."""
    if "httpGet" in probe:
        url = f"http://127.0.0.1:{ports[probe['httpGet']['port']]}{probe['httpGet']['path']}"
        with urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    with grpc.insecure_channel(f"127.0.0.1:{probe['grpc']['port']}") as channel:
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def started(manifests: list[Manifest], root: Path) -> Iterator[int]:
    """The server of a chart on its own ports, probed, and ended as Kubernetes would, by code 0."""
    container = server_of(manifests)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    command = run_as(container["args"], root)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            ready = re.match(r"serving \S+ on 0\.0\.0\.0:(\d+)$", server.stdout.readline().strip())
            assert ready is not None
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert passes(container[probe], ports), probe
            yield int(ready[1])
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=20) == 0
        finally:
            server.kill()


def ask(manifests: list[Manifest], root: Path, port: int, **variables: str) -> str:
    """Run the chart's own test against the server; return what it complained of."""
    (container,) = the(manifests, "Pod")["spec"]["containers"]
    arguments = [
        re.sub(r"^--address=.*", f"--address=localhost:{port}", a) for a in container["args"]
    ]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        run_as(arguments, root), env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


def test_the_server_starts_and_the_test_asks_it(render: Render, tmp_path: Path) -> None:
    manifests = render("default", *on_free_ports())
    with started(manifests, tmp_path) as port:
        assert ask(manifests, tmp_path, port) == ""
    assert "no server answers" in ask(manifests, tmp_path, port)


def test_with_tls_and_keys_the_test_gets_in_by_its_certificate_and_key(
    render: Render, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "made")
    for folder, name in (("tls", "siserve"), ("client", "tester")):
        signed = authority.sign(name)
        (tmp_path / folder).mkdir()
        signed.certificate.rename(tmp_path / folder / "tls.crt")
        signed.key.rename(tmp_path / folder / "tls.key")
    for folder in ("clients", "keys"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clients" / "ca.crt").write_bytes(authority.certificate.read_bytes())
    keys = str(tmp_path / "keys" / "keys.txt")
    made = subprocess.run(
        [COMMAND, "key", "tester", "--file", keys], capture_output=True, text=True
    )
    manifests = render("tls-keys", *on_free_ports())
    with started(manifests, tmp_path) as port:
        assert ask(manifests, tmp_path, port, SISERVE_KEY=made.stdout.strip()) == ""
        assert "key" in ask(manifests, tmp_path, port, SISERVE_KEY="wrong")
