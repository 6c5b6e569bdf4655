"""What a server tells about its calls: log lines, ids, traces; and what it keeps to itself."""

import json
import signal
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from siserve.client import ClientError
from siserve.client.answer import make_request
from siserve.serving.tracing import Tracing
from siserve.v1 import dialog_pb2_grpc

DIALOG = [("A", "hi , how was your weekend?"), ("B", "swordfish")]


def trailing(call) -> dict[str, str]:
    return {name: value for name, value in call.trailing_metadata()}


def test_each_call_is_one_json_line_with_its_facts(start_server):
    server = start_server("--log-format", "json")
    with server.channel() as channel:
        call = dialog_pb2_grpc.DialogServiceStub(channel).GenerateResponses.with_call
        reply, answered = call(
            make_request(DIALOG, n=3), timeout=20, metadata=[("x-request-id", "my-id.1")]
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(make_request(DIALOG, n=0), timeout=20, metadata=[("x-request-id", "no good id")])
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0
    lines = [json.loads(line) for line in server.log]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    good, bad = (line for line in lines if line["message"] == "call")
    timings = {
        f"{stage}_seconds": pytest.approx(getattr(reply.timings, f"{stage}_seconds"), abs=1e-6)
        for stage in ("queue", "encode", "decode")
    }
    expected = timings | {
        "method": "GenerateResponses",
        "code": "OK",
        "request_id": "my-id.1",
        "caller": "",
        "model": "tiny@1",
        "n": 3,
        "turns": 2,
        "text_bytes": sum(len(text) for _, text in DIALOG),
        "tokens": sum(response.num_tokens for response in reply.responses),
    }
    assert {name: good[name] for name in expected} == expected
    assert 0 < good["seconds"] < 20
    assert bad["code"] == "INVALID_ARGUMENT" and len(bad["request_id"]) == 16
    assert trailing(answered)["x-request-id"] == "my-id.1"
    assert trailing(refused.value)["x-request-id"] == bad["request_id"]
    assert not any("swordfish" in line for line in server.log)


def test_a_text_log_tells_the_same_on_one_line(start_server):
    server = start_server()
    with server.client() as client:
        client.generate(DIALOG, n=3)
        with pytest.raises(ClientError):
            client.generate(DIALOG, model="huge")
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0
    good, bad = (line for line in server.log if " call " in line)
    for part in ("method=GenerateResponses", "code=OK", "model=tiny@1", "n=3", "queue_seconds="):
        assert part in good
    assert "code=NOT_FOUND" in bad


def test_traces_without_the_packages_are_refused_in_one_line(run_siserve):
    try:
        import opentelemetry.sdk  # noqa: F401
    except ModuleNotFoundError:
        ended = run_siserve("serve", "--port", "0", "--otlp-endpoint", "http://localhost:4317")
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert "pip install 'siserve[otel]'" in line
    else:
        pytest.skip("OpenTelemetry is installed")


def test_a_call_is_a_span_within_its_callers_with_its_stages_inside():
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracing = Tracing("", exporter)
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    facts = {
        "model": "tiny@1",
        "n": 3,
        "queue_seconds": 0.1,
        "encode_seconds": 0.2,
        "decode_seconds": 0.3,
    }
    metadata = {"traceparent": f"00-{trace}-{parent}-01"}
    tracing.tell("GenerateResponses", "OK", 0.7, metadata, facts)
    tracing.tell("GenerateResponses", "INVALID_ARGUMENT", 0.1, {}, {})
    tracing.stop()
    *stages, call, refused = exporter.get_finished_spans()
    assert f"{call.context.trace_id:032x}" == trace and f"{call.parent.span_id:016x}" == parent
    assert call.attributes["siserve.model"] == "tiny@1" and call.status.is_ok
    assert [stage.name for stage in stages] == ["queue", "encode", "decode"]
    assert all(stage.parent.span_id == call.context.span_id for stage in stages)
    lengths = [(stage.end_time - stage.start_time) / 1e9 for stage in stages]
    assert lengths == pytest.approx([0.1, 0.2, 0.3])
    assert call.start_time == stages[0].start_time and stages[-1].end_time <= call.end_time
    assert not refused.status.is_ok and refused.parent is None


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def exemplars(server, trace_header: str) -> list[str]:
    """Ask once within a trace; return the lines of metrics that name it."""
    with server.channel() as channel:
        dialog_pb2_grpc.DialogServiceStub(channel).GenerateResponses(
            make_request(DIALOG, n=1), timeout=20, metadata=[("traceparent", trace_header)]
        )
    kind = {"Accept": "application/openmetrics-text; version=1.0.0"}
    asked = urllib.request.Request(server.metrics_url, headers=kind)
    with urllib.request.urlopen(asked, timeout=10) as reply:
        return [line for line in reply.read().decode().splitlines() if "trace_id" in line]


def test_metrics_name_a_trace_only_when_told_to(start_server, server):
    assert exemplars(server, f"00-{TRACE}-00f067aa0ba902b7-01") == []
    told = start_server("--exemplars")
    (line,) = exemplars(told, f"00-{TRACE}-00f067aa0ba902b7-01")
    assert (
        line.startswith("siserve_request_seconds_bucket{") and f'# {{trace_id="{TRACE}"}}' in line
    )
    for odd in ("", "00-zz-00f067aa0ba902b7-01", f"00-{'0' * 32}-00f067aa0ba902b7-01", TRACE * 40):
        again = exemplars(told, odd)
        assert [each.partition(" # ")[2] for each in again] == [line.partition(" # ")[2]]
    with urllib.request.urlopen(told.metrics_url, timeout=10) as reply:
        assert b"trace_id" not in reply.read()  # the plain format has no place for it


def test_a_call_that_begins_a_trace_is_named_by_it():
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracing = Tracing("", exporter)
    told = tracing.tell("GetModel", "OK", 0.1, {}, {})
    tracing.stop()
    (span,) = exporter.get_finished_spans()
    assert told == f"{span.context.trace_id:032x}"


def test_calls_that_were_not_taken_are_counted_and_have_a_line_a_second_and_no_time(start_server):
    server = start_server("--rate", "0.001", "--burst", "1", "--log-format", "json")
    with server.channel() as channel:
        ask = dialog_pb2_grpc.DialogServiceStub(channel).GenerateResponses
        assert len(ask(make_request(DIALOG, n=1), timeout=20).responses) == 1
        for _ in range(50):
            with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
                ask(make_request(DIALOG, n=1), timeout=20)
        time.sleep(1)
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            ask(make_request(DIALOG, n=1), timeout=20)
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        counted = (
            'siserve_requests_total{code="RESOURCE_EXHAUSTED",method="GenerateResponses"} 51.0'
        )
        told = reply.read().decode()
    assert counted in told
    assert 'siserve_request_seconds_count{method="GenerateResponses"} 1.0' in told
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 0
    lines = [json.loads(line) for line in server.log if "RESOURCE_EXHAUSTED" in line]
    assert 2 <= len(lines) < 10
    assert sum(1 + line.get("refused_since_last_line", 0) for line in lines) == 51


def test_decoders_give_way_to_who_answers_calls(start_server):
    server = start_server()
    tasks = Path(f"/proc/{server.process.pid}/task")
    if not tasks.exists():
        pytest.skip("threads have a niceness of their own on Linux alone")
    nice = {
        int(each.name): int((each / "stat").read_text().rpartition(")")[2].split()[16])
        for each in tasks.iterdir()
    }
    assert max(nice.values()) > nice[server.process.pid] == min(nice.values())
