"""How a server comes up, what it says when it cannot, and how it goes down."""

import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from siserve.bundle import BundleError
from siserve.bundle.tensors import FILES, MANIFEST_FILE
from siserve.client import ClientError
from siserve.client.answer import make_request
from siserve.serving.engine import EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement
from siserve.v1 import dialog_pb2_grpc

DIALOG = [("A", "hi , how was your weekend?")]
HEALTH = health_pb2.HealthCheckResponse


def test_one_line_on_stdout_names_model_and_address(start_server):
    server = start_server()
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0
    assert server.lines == [f"serving tiny@1 on {server.address}"]
    assert not any("Traceback" in line for line in server.log)


def test_every_option_can_be_a_variable(start_server):
    server = start_server(SISERVE_MAX_RESPONSES="3", SISERVE_MAX_TURNS="2")
    with server.client() as client:
        limits = client.get_model().limits
    assert (limits.max_responses, limits.max_turns) == (3, 2)


def test_an_option_wins_over_its_variable(start_server):
    server = start_server("--max-turns", "7", SISERVE_MAX_TURNS="2")
    with server.client() as client:
        assert client.get_model().limits.max_turns == 7


def keep_asking(server, stop: threading.Event) -> list[str]:
    """Ask until told to stop or refused; what came of each call, by status."""
    outcomes = []
    with grpc.insecure_channel(server.address) as channel:  # no retries: every failure is seen
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        while not stop.is_set():
            try:
                reply = stub.GenerateResponses(make_request(DIALOG, n=20), timeout=20)
                outcomes.append(f"{len(reply.responses)} responses")
            except grpc.RpcError as error:
                outcomes.append(error.code().name)
                break
    return outcomes


def test_sigterm_under_load_answers_all_that_was_taken_and_exits_0(start_server):
    server = start_server()
    stop = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        askers = [pool.submit(keep_asking, server, stop) for _ in range(8)]
        time.sleep(0.7)
        server.process.send_signal(signal.SIGTERM)
        assert server.finish() == 0
        stop.set()
        outcomes = [outcome for asker in askers for outcome in asker.result(20)]
    assert outcomes.count("20 responses") > 8
    assert set(outcomes) <= {"20 responses", "UNAVAILABLE"}
    assert all(asker.result().count("UNAVAILABLE") <= 1 for asker in askers)


def test_health_says_not_serving_before_calls_are_refused(start_server):
    server = start_server()
    with server.channel() as channel:  # a channel of ours would go elsewhere at once
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == HEALTH.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == HEALTH.NOT_SERVING
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        assert len(stub.GenerateResponses(make_request(DIALOG, n=5)).responses) == 5
        assert server.finish(5) == 0  # an open watch does not hold it up


def test_ctrl_c_drains_too(start_server):
    server = start_server()
    server.process.send_signal(signal.SIGINT)
    assert server.finish() == 0


def test_a_second_signal_stops_at_once(start_server):
    server = start_server("--max-rows", "1")
    with server.client(60) as client, ThreadPoolExecutor(200) as pool:

        def ask(seed: int) -> str:
            try:
                return str(len(client.generate(DIALOG * 60, n=64, seed=seed).responses))
            except ClientError as error:
                return error.code.name

        asked = [pool.submit(ask, seed) for seed in range(200)]
        time.sleep(0.4)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.25)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.finish(10) == 1
        assert time.monotonic() - began < 2
        assert {result.result(60) for result in asked} - {"64"}


def test_a_taken_port_is_told_in_one_line(run_siserve, bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = ("--metrics-port", "0")
        for ports in (("--port", port, *other), ("--port", "0", "--metrics-port", port)):
            ended = run_siserve("serve", "--model", bundle, *ports)
            assert ended.returncode == 1 and ended.stdout == ""
            (line,) = ended.stderr.splitlines()
            assert f"127.0.0.1:{port}" in line and "choose another" in line


def test_a_missing_model_is_told_in_one_line(run_siserve, tmp_path):
    ended = run_siserve("serve", "--model", tmp_path / "none", "--port", "0")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "none" in line and "--model" in line


def test_one_model_twice_is_told_in_one_line(run_siserve, bundle):
    ports = ("--port", "0", "--metrics-port", "0")
    ended = run_siserve("serve", "--model", bundle, "--model", bundle, *ports)
    assert ended.returncode == 2
    assert "tiny@1 twice" in ended.stderr.splitlines()[-1]


def test_cuda_that_cannot_be_had_ends_the_start_with_the_reason(run_siserve, bundle):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    ports = ("--port", "0", "--metrics-port", "0")
    ended = run_siserve("serve", "--model", bundle, "--device", "cuda", *ports)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "--device cuda" in line and "siserve[gpu]" in line


def damage(bundle: Path, target: Path, name: str) -> Path:
    """Copy a bundle and flip one bit of one of its files."""
    shutil.copytree(bundle, target)
    content = bytearray((target / name).read_bytes())
    content[len(content) // 2] ^= 4
    (target / name).write_bytes(content)
    return target


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_damaged_bundle_is_not_loaded(bundle, tmp_path, name):
    damaged = damage(bundle, tmp_path / "damaged", name)
    observer = Metrics().engine_observer()
    with pytest.raises(BundleError) as refused:
        load_model(damaged, Placement("cpu", threads=1), RequestLimits(), EngineOptions(), observer)
    assert refused.value.file == name


def test_a_damaged_bundle_ends_the_start_in_one_line(run_siserve, bundle, tmp_path):
    damaged = damage(bundle, tmp_path / "damaged", "weights.safetensors")
    ports = ("--port", "0", "--metrics-port", "0")
    ended = run_siserve("serve", "--model", damaged, *ports)
    assert ended.returncode == 1 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "weights.safetensors" in line


def test_nothing_is_left_running_after_the_end(start_server):
    server = start_server()
    server.process.send_signal(signal.SIGTERM)
    server.finish()
    with pytest.raises(ClientError, match="no server answers"), server.client(1) as client:
        client.generate(DIALOG)
