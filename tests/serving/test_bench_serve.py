"""`siserve bench serve` against a real server: its own and a running one."""

import json
import os
import time
from pathlib import Path

import pytest
from siserve.bench.processes import cpu_seconds, listener
from siserve.cli import run

QUICK = ("--seconds", "0.5", "--turns", "3", "-n", "2")


def measure(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert run(["bench", "serve", *QUICK, *map(str, arguments), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("dialogs", ["new", "growing"])
def test_a_running_server_is_measured_by_both_loops(server, capsys, dialogs: str) -> None:
    where = ("--address", server.address, "--dialogs", dialogs)
    result = measure(capsys, *where, "--clients", "2", "--rate", "30")
    closed, opened = result["loads"]
    assert (closed["clients"], opened["rate"]) == (2, 30.0)
    for load in (closed, opened):
        assert load["answered"] > 0 and load["errors"] == {}
        assert load["p50_ms"] <= load["p95_ms"] <= load["p99_ms"]
        assert load["responses_per_s"] == pytest.approx(2 * load["requests_per_s"])
        assert load["server_cpu_ms_per_request"] > 0  # it was found by its port
        assert 0 < load["generator_cpu_share"] < 2
    assert result["model"]["name"] == "tiny@1" and result["model"]["context"]["turns"] == 3


def test_a_server_is_started_with_the_options_given_and_stopped(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--threads 1 --max-responses 2"
    result = measure(
        capsys, "--start", "--model", bundle, "--server", options, "--clients", "1", "-n", "3"
    )
    (load,) = result["loads"]
    assert load["answered"] == 0 and load["errors"].keys() == {"INVALID_ARGUMENT"}
    assert options in result["options"]["server"]


def test_python_is_told_apart_from_the_graphs(bundle: Path, capsys) -> None:
    result = measure(
        capsys, "--start", "--model", bundle, "--python-share", "--clients", "1", "-n", "20"
    )
    (load,) = result["loads"]
    assert load["answered"] > 0
    parts = [load[f"{part}_cpu_ms_per_request"] for part in ("rpc", "python", "server")]
    assert 0 < parts[0] < parts[1] < parts[2]


def test_a_table_is_printed_for_people(server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "serve", "--address", server.address, *QUICK, "--clients", "1"]) == 0
    printed = capsys.readouterr().out
    assert "1 clients" in printed and "p99" in printed and "tiny@1" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "--start"),
        (("--address", "localhost:1", "--start"), 2, "--start"),
        (("--address", "localhost:1", "--server", "--threads 1"), 2, "--server"),
        (("--address", "localhost:1", "--python-share"), 2, "--python-share"),
        (("--address", "localhost:1", "--clients", "few"), 2, "--clients"),
        (("--address", "localhost:1", "--rate", "-3"), 2, "--rate"),
        (("--address", "localhost:1", "--clients", ""), 2, "no load"),
        (("--address", "localhost:1"), 1, "no server answers"),
        (("--start", "--server", "--no-such-option"), 1, "--no-such-option"),
    ],
)
def test_odd_input_is_refused_in_one_line(
    arguments: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "serve", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == "" and told in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_processor_time_is_that_of_the_process_and_its_children(server) -> None:
    before = cpu_seconds(os.getpid())
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = cpu_seconds(os.getpid())
    assert before is not None and after is not None and after - before >= 0.15
    assert listener(server.address) == server.process.pid
    assert listener("example.org:443") is None and listener("localhost:1") is None
    assert cpu_seconds(2**22 + 1) is None
