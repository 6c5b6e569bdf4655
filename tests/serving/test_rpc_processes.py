"""Several processes that take calls before one engine: nobody can tell, but by the speed."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import grpc
import psutil
import pytest
from bundle_factory import tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from siserve.bench.processes import listener
from siserve.client.answer import make_request
from siserve.serving import rpc_child
from siserve.serving.keys import add_key
from siserve.serving.library import open_library
from siserve.serving.metrics import Metrics
from siserve.serving.options import ServerOptions
from siserve.serving.rpc_processes import RpcProcesses
from siserve.v1 import admin_pb2, admin_pb2_grpc, dialog_pb2, dialog_pb2_grpc

DIALOG = [("A", "hi , how was your weekend?"), ("B", "oh it was great"), ("A", "what did you do")]
RESPONSE = "i did not go to the movie"
HEALTH = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def server(start_for_module, bundle):
    return start_for_module("--model", bundle, "--rpc-processes", 2)


def children_of(server) -> list[psutil.Process]:
    """The processes that take calls."""
    return rpc_children(server.process.pid)


def rpc_children(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error):  # it ended meanwhile
            if "siserve.serving.rpc_process" in child.cmdline():
                found.append(child)
    return found


def connections_of(process: psutil.Process) -> int:
    return sum(each.status == "ESTABLISHED" for each in process.net_connections("tcp"))


@contextmanager
def channels_to(server, number: int) -> Iterator[list[grpc.Channel]]:
    """Open connections of their own, which the kernel spreads over the processes."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, options))
            for _ in range(number)
        ]
        for channel in channels:
            grpc.channel_ready_future(channel).result(20)
        yield channels


def stub_of(channel: grpc.Channel) -> dialog_pb2_grpc.DialogServiceStub:
    return dialog_pb2_grpc.DialogServiceStub(channel)


def metric(server, start: str) -> float:
    """Add up the samples whose line begins so."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_idle(server) -> bool:
    return metric(server, "siserve_inflight_rows") == metric(server, "siserve_queue_rows") == 0


def everything_said(server) -> list[bytes]:
    """What every kind of call answers, for fixed seeds, without the times."""

    def without_times(message) -> bytes:
        message.ClearField("timings")
        return message.SerializeToString(deterministic=True)

    said = []
    with server.channel() as channel:
        stub = stub_of(channel)
        for seed, request in enumerate(
            (
                make_request(DIALOG),
                make_request(DIALOG, n=64),
                make_request(DIALOG, top_k=5, top_p=0.9),
                make_request(DIALOG, temperature=0.0),
                make_request(DIALOG, diversity=0.5),
            )
        ):
            request.seed = 2**64 - 1 - seed
            said.append(without_times(stub.GenerateResponses(request, timeout=20)))
            streamed = dialog_pb2.StreamResponsesRequest(generate=request)
            *responses, last = stub.StreamResponses(streamed, timeout=20)
            said += sorted(each.SerializeToString() for each in responses)
            said.append(without_times(last.end))
            varied = dialog_pb2.VaryResponseRequest(generate=request, response=RESPONSE)
            said.append(without_times(stub.VaryResponse(varied, timeout=20).variants))
        scored = dialog_pb2.ScoreResponsesRequest(
            context=make_request(DIALOG).context, responses=[RESPONSE, "yeah"], seed=3
        )
        said.append(without_times(stub.ScoreResponses(scored, timeout=20)))
        told = stub.GetModel(dialog_pb2.GetModelRequest(), timeout=20)
        said.append(told.SerializeToString(deterministic=True))  # it holds a map
    return said


def test_answers_are_the_same_bytes_in_one_process_and_in_two_before_the_engine(
    server, start_server
):
    assert everything_said(server) == everything_said(start_server())


def test_connections_are_spread_over_all_processes_and_none_is_the_engines(server):
    with channels_to(server, 24) as channels:
        seen = {
            stub_of(each).GenerateResponses(make_request(DIALOG, seed=1)).SerializeToString()[:40]
            for each in channels
        }
        counts = [connections_of(each) for each in children_of(server)]
        assert len(counts) == 2 and min(counts) > 0 and sum(counts) >= 24
        assert connections_of(psutil.Process(server.process.pid)) == 0
    assert len(seen) == 1  # whichever answered


def test_metrics_are_the_totals_of_all_processes_as_soon_as_a_call_is_answered(server):
    names = ("siserve_requests_total", "siserve_responses_total", "siserve_queue_seconds_count")
    with channels_to(server, 16) as channels:
        before = [metric(server, name) for name in names]
        for number, channel in enumerate(channels, start=1):
            stub_of(channel).GenerateResponses(make_request(DIALOG, n=3), timeout=20)
            now = [metric(server, name) for name in names]
            grown = [after - first for after, first in zip(now, before, strict=True)]
            assert grown == [number, 3 * number, number]
        with pytest.raises(grpc.RpcError):
            stub_of(channels[0]).GenerateResponses(make_request(DIALOG, n=0), timeout=20)
        assert metric(server, 'siserve_requests_total{code="INVALID_ARGUMENT"') == 1
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        assert "pid=" not in reply.read().decode()


def test_who_gives_up_frees_the_engine(start_server):
    options = ("--max-rows", 64, "--workers", 1, "--max-queue-rows", 10**6)
    server = start_server("--rpc-processes", 2, *options)
    with channels_to(server, 8) as channels:
        large = dialog_pb2.StreamResponsesRequest(generate=make_request(DIALOG * 20, n=64))
        streams = [stub_of(each).StreamResponses(large) for each in channels]
        next(streams[0])
        for stream in streams:
            stream.cancel()
        wait_for(lambda: is_idle(server))
        late = make_request(DIALOG * 20, n=64)
        asked = [
            stub_of(each).GenerateResponses.future(late, timeout=0.02)
            for each in channels
            for _ in range(4)
        ]
        codes = {each.code() for each in asked}
        assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK}
        wait_for(lambda: is_idle(server))
        reply = stub_of(channels[0]).GenerateResponses(make_request(DIALOG), timeout=20)
        assert len(reply.responses) == 5


def ask_on(channel: grpc.Channel, stop: threading.Event) -> list[str]:
    """Ask one thing after another until told to stop or refused; return how each ended."""
    outcomes = []
    while not stop.is_set():
        try:
            stub_of(channel).GenerateResponses(make_request(DIALOG, n=20), timeout=20)
            outcomes.append("OK")
        except grpc.RpcError as error:
            outcomes.append(error.code().name)
            break
    return outcomes


def test_a_killed_process_is_replaced_its_rows_are_freed_and_the_others_lose_nothing(start_server):
    server = start_server("--rpc-processes", 2)
    first, second = children_of(server)
    stop = threading.Event()

    with channels_to(server, 16) as channels, ThreadPoolExecutor(16) as pool:
        doomed = connections_of(first)
        askers = [pool.submit(ask_on, channel, stop) for channel in channels]
        try:
            time.sleep(0.3)
            first.kill()
            wait_for(lambda: len(children_of(server)) == 2 and first not in children_of(server))
            time.sleep(0.3)
        finally:
            stop.set()
        outcomes = [asker.result(20) for asker in askers]
    lost = [each for each in outcomes if each[-1] != "OK"]
    assert 0 < len(lost) <= doomed < 16
    assert {each[-1] for each in lost} <= {"UNAVAILABLE", "CANCELLED"}
    wait_for(lambda: is_idle(server))
    assert second.is_running()
    wait_for(lambda: ["LISTEN" in _states(each) for each in children_of(server)] == [True] * 2)
    assert sum("another takes its place" in line for line in server.log) == 1
    with channels_to(server, 24) as channels:
        for channel in channels:  # the new one knows the models and is healthy
            stub_of(channel).GenerateResponses(make_request(DIALOG), timeout=20)
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == HEALTH.SERVING
        assert all(connections_of(each) for each in children_of(server))
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0


def test_what_a_killed_process_had_asked_for_is_not_decoded(start_server):
    rows = 6 * 64  # candidates of a request, of which some are chosen: much to do for a tiny model
    options = ("--workers", 1, "--max-rows", rows, "--max-queue-rows", 10**7)
    server = start_server("--rpc-processes", 1, *options)
    request = make_request([("A", "hi")], n=64, max_tokens=40, diversity=0.9)

    def encoded() -> float:
        return metric(server, "siserve_utterance_cache_")

    with channels_to(server, 4) as channels:
        stub_of(channels[0]).GenerateResponses(request, timeout=20)
        utterances = encoded()  # of one request, and of the one that warmed the server up
        assert utterances > 0
        asked = [
            stub_of(each).GenerateResponses.future(request, timeout=60)
            for _ in range(250)
            for each in channels
        ]
        wait_for(lambda: metric(server, "siserve_queue_rows") > 500 * rows)
        before = encoded()
        children_of(server)[0].kill()
        wait_for(lambda: is_idle(server), 60)
        assert {each.code() for each in asked} <= {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.OK,
        }
    assert encoded() - before < 50 * utterances  # a hundred requests, of five hundred that waited


def _states(process: psutil.Process) -> list[str]:
    return [each.status for each in process.net_connections("tcp")]


def test_sigterm_tells_every_process_first_answers_what_was_taken_and_exits_0(start_server):
    server = start_server("--rpc-processes", 2, "--notice-seconds", 0.5)
    children = children_of(server)
    stop = threading.Event()

    with channels_to(server, 16) as channels, ThreadPoolExecutor(16) as pool:
        assert all(connections_of(child) for child in children)
        watches = [
            health_pb2_grpc.HealthStub(each).Watch(health_pb2.HealthCheckRequest())
            for each in channels
        ]
        assert {next(each).status for each in watches} == {HEALTH.SERVING}
        server.process.send_signal(signal.SIGTERM)
        assert {next(each).status for each in watches} == {HEALTH.NOT_SERVING}
        for channel in channels:  # and nobody is refused yet
            stub_of(channel).GenerateResponses(make_request(DIALOG, n=1), timeout=20)
        askers = [pool.submit(ask_on, channel, stop) for channel in channels]
        assert server.finish() == 0
        stop.set()
        outcomes = [outcome for asker in askers for outcome in asker.result(20)]
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}
    assert not any(child.is_running() for child in children)
    assert not any("Traceback" in line for line in server.log)


def test_a_parent_that_dies_takes_its_processes_with_it(start_server):
    server = start_server("--rpc-processes", 2)
    children = children_of(server)
    server.process.kill()
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_signal_to_the_whole_group_drains_all_the_same(start_server):
    server = start_server("--rpc-processes", 2)
    with server.client() as client:
        for child in children_of(server):
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
        assert len(client.generate(DIALOG, n=4).responses) == 4
    server.process.send_signal(signal.SIGINT)
    assert server.finish() == 0


def codes_of(channels, request, metadata=()) -> list[str]:
    asked = [
        stub_of(each).GenerateResponses.future(request, timeout=20, metadata=metadata)
        for each in channels
    ]
    return [each.code().name for each in asked]


def test_one_caller_has_one_rate_through_whichever_process_it_comes(start_server):
    server = start_server("--rpc-processes", 2, "--rate", 0.01, "--burst", 20)
    with channels_to(server, 16) as channels:
        codes = codes_of(channels, make_request(DIALOG, n=2))
        assert all(connections_of(each) for each in children_of(server))
    assert codes.count("OK") == 10 and codes.count("RESOURCE_EXHAUSTED") == 6


def test_one_queue_bounds_what_waits_for_all_processes(start_server):
    options = ("--max-queue-rows", 64, "--max-rows", 1, "--workers", 1)
    server = start_server("--rpc-processes", 2, *options)
    with channels_to(server, 8) as channels:
        asked = [
            stub_of(each).GenerateResponses.future(make_request(DIALOG * 20, n=32), timeout=60)
            for _ in range(8)
            for each in channels
        ]
        assert metric(server, "siserve_queue_rows") <= 64
        codes = [each.code() for each in asked]
        refused = [each for each in asked if each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert refused and codes.count(grpc.StatusCode.OK) + len(refused) == 64
    assert all("responses wait already; try again in" in str(each.details()) for each in refused)
    trailing = [dict(each.trailing_metadata()) for each in refused]
    assert all("grpc-status-details-bin" in each for each in trailing)


def test_a_swap_is_seen_in_every_process_once_it_is_answered(start_server, tmp_path):
    shelf = tmp_path / "shelf"
    tiny_bundle(shelf / "one", seed=1, name="live", version="1")
    aside = tiny_bundle(tmp_path / "two", seed=2, name="live", version="2")
    options = ("--model-dir", shelf, "--watch-seconds", 0, "--admin")
    server = start_server("--rpc-processes", 2, *options, without_model=True)

    def models(channels) -> set[str]:
        request = make_request(DIALOG)
        return {stub_of(each).GenerateResponses(request, timeout=20).model for each in channels}

    with channels_to(server, 16) as channels:
        assert models(channels) == {"live@1"}
        shutil.copytree(aside, shelf / "two")
        admin = admin_pb2_grpc.AdminServiceStub(channels[0])
        loaded = admin.LoadModel(admin_pb2.LoadModelRequest(bundle="two"), timeout=20)
        assert loaded.model.version == "2" and models(channels) == {"live@2"}
        back = admin.RollBackModel(admin_pb2.RollBackModelRequest(name="live"), timeout=20)
        assert back.model.version == "1" and models(channels) == {"live@1"}
        held = admin.ListModels(admin_pb2.ListModelsRequest(), timeout=20).models
        assert [(each.version, each.is_current) for each in held] == [("1", True), ("2", False)]
        with pytest.raises(grpc.RpcError) as refused:
            admin.LoadModel(admin_pb2.LoadModelRequest(bundle="none"), timeout=20)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_keys_and_the_http_door_are_those_of_every_process(start_server, tmp_path):
    keys = tmp_path / "keys"
    key = add_key(keys, "someone")
    options = ("--rpc-processes", 2, "--keys-file", keys, "--http-port", 0)
    server = start_server(*options)
    with channels_to(server, 16) as channels:
        assert set(codes_of(channels, make_request(DIALOG))) == {"UNAUTHENTICATED"}
        bearer = (("authorization", f"Bearer {key}"),)
        assert set(codes_of(channels, make_request(DIALOG), bearer)) == {"OK"}
    (page,) = (line.split()[-1] for line in server.log if "page on " in line)
    body = json.dumps({"context": [{"speaker": "A", "text": "hi"}], "n": 2}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    for _ in range(16):  # a connection each
        asked = urllib.request.Request(f"{page}v1/responses", body, headers)
        with urllib.request.urlopen(asked, timeout=20) as reply:
            assert len(json.load(reply)["responses"]) == 2


def test_a_port_that_others_share_is_taken_all_the_same(server, run_siserve, bundle):
    port = server.address.rpartition(":")[2]
    options = ("--port", port, "--metrics-port", 0, "--rpc-processes", 2)
    ended = run_siserve("serve", "--model", bundle, *options)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line and "--port" in line
    assert listener(server.address) == server.process.pid


def test_what_a_process_cannot_start_with_is_told_in_one_line(run_siserve, bundle, tmp_path):
    options = ("--port", 0, "--metrics-port", 0, "--rpc-processes", 2)
    ended = run_siserve("serve", "--model", bundle, *options, "--keys-file", tmp_path / "none")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "none" in line and "cannot be read" in line


def test_a_process_that_hangs_is_replaced(bundle, monkeypatch):
    monkeypatch.setattr(rpc_child, "_STALL_SECONDS", 3.0)
    options = ServerOptions(models=(bundle,), port=0, rpc_processes=1)

    async def run() -> None:
        metrics = Metrics()
        front = RpcProcesses(options, metrics)
        try:
            await front.begin()
            library = await asyncio.to_thread(open_library, options, metrics)
            await front.serve(library)
            (hung,) = rpc_children(os.getpid())
            hung.suspend()
            while hung in rpc_children(os.getpid()):
                await asyncio.sleep(0.05)
            while not rpc_children(os.getpid()):
                await asyncio.sleep(0.05)
            library.models.default.stop()
        finally:
            await front.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_who_speaks_nonsense_on_the_link_is_gone_at_once():
    """The child's end of a link: anything that is no frame ends it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "siserve.serving.rpc_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.DEVNULL,
            env=os.environ,
        )
        ours.sendall(b"\x80\x04no pickle is read here\n")
        assert process.wait(20) == 0
