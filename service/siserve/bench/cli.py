"""`siserve bench`; only this parser is loaded before a measurement begins."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siserve.bench.asked import choices, levels, numbers
from siserve.bench.plan_cli import plan
from siserve.bundle.errors import UsageError
from siserve.command import run_app

if TYPE_CHECKING:
    from rich.console import Console

    from siserve.bench.roofline import Precision
    from siserve.bench.steps import Way

__all__ = ["run"]

_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_bench = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
    help="Measure: decode times the decoder, serve loads a server, train times training.",
)
_app.add_typer(_bench, name="bench")
_app.command()(plan)

_PRECISIONS: Sequence[Precision] = ("fp32", "int8")
_WAYS: Sequence[Way] = ("one", "batched", "greedy")

_ENGINE_N = 5
_COST_N = (1, 2, 4, 8, 16, 32, 64)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class _Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class _Dialogs(StrEnum):
    NEW = "new"
    GROWING = "growing"
    SAME = "same"


class _Spread(StrEnum):
    TURNS = "turns"
    CALLERS = "callers"


@_app.callback()
def _siserve() -> None:
    """Measure."""


@_bench.command()
def decode(
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="A bundle [embedded]."),
    ] = None,
    rows: Annotated[str, typer.Option(help="Rows that are decoded together.")] = "5,20,80,320",
    threads: Annotated[str, typer.Option(help="CPU threads.")] = "1,2",
    precision: Annotated[
        str, typer.Option(help="Of fp32 and int8 [those that the bundle has].")
    ] = "",
    against: Annotated[
        str, typer.Option(help="Of PyTorch's ways: one response at a time, batched, greedy.")
    ] = "one,batched,greedy",
    device: Annotated[_Device, typer.Option(help="auto takes CUDA where it works.")] = _Device.AUTO,
    rounds: Annotated[int, typer.Option(min=1, help="Each visits every variant once.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Tokens of a response.")] = 40,
    seconds: Annotated[
        float, typer.Option(min=0, help="Each variant runs about as long in a round.")
    ] = 0.3,
    parts: Annotated[
        str, typer.Option(help="Of steps, engine (full queues) and n (cost of a response).")
    ] = "steps,engine,n",
    as_json: _Json = False,
) -> None:
    """Time the decoder: against PyTorch as research code uses it, and against the hardware's floor.

    Each variant has a process of its own, and they take turns; figures are medians over rounds.

    Example: siserve bench decode --rows 5,80 --threads 1
    """
    asked_rows, asked_threads = numbers("--rows", rows), numbers("--threads", threads)
    precisions = choices("--precision", precision or ",".join(_PRECISIONS), _PRECISIONS)
    asked_ways = choices("--against", against, _WAYS)
    asked_parts = choices("--parts", parts, ("steps", "engine", "n"))
    from siserve.bench.decode_report import show
    from siserve.bench.engine_rounds import EnginePlan, measure_costs, measure_engine
    from siserve.bench.machine import machine_facts, model_facts
    from siserve.bench.steps import StepPlan, measure_steps
    from siserve.bundle.tensors import DECODER_INT8
    from siserve.bundle.verify import open_bundle
    from siserve.serving.models import embedded_bundle

    bundle = open_bundle(model or embedded_bundle())
    if not precision and not bundle.has(DECODER_INT8.file):
        precisions = ["fp32"]
    plan = StepPlan(
        asked_rows, asked_ways, asked_threads, precisions, device.value, rounds, steps, seconds
    )
    engines = EnginePlan(asked_threads, precisions, _ENGINE_N, rounds, 5 * seconds)
    measured: dict[str, Any] = {"steps": [], "engine": [], "n": [], "left_out": []}
    with _errors().status("starting") as status:
        say = status.update
        if "steps" in asked_parts:
            measured["steps"], measured["left_out"] = measure_steps(bundle, plan, say)
        if "engine" in asked_parts:
            measured["engine"] = measure_engine(bundle, engines, say)
        if "n" in asked_parts:
            measured["n"] = measure_costs(bundle, engines, _COST_N, say)
    result = {
        "command": "bench decode",
        "facts": machine_facts(),
        "model": model_facts(bundle),
        "options": {"rounds": rounds, "steps": steps, "seconds": seconds},
        **measured,
    }
    _print(result, as_json, show)


@_bench.command()
def serve(
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="A running server; or give --start.")
    ] = "",
    start: Annotated[
        bool, typer.Option("--start", help="Start a server, on free ports, and stop it.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="With --start: a bundle."),
    ] = None,
    server: Annotated[
        str, typer.Option(metavar="OPTIONS", help="With --start: more options of siserve serve.")
    ] = "",
    python_share: Annotated[
        bool,
        typer.Option(
            "--python-share",
            help="With --start, on one thread: tell gRPC and Python apart from the graphs.",
        ),
    ] = False,
    clients: Annotated[str, typer.Option(help="Closed loop: numbers of clients.")] = "1,4,16",
    rate: Annotated[str, typer.Option(help="Open loop: arrivals a second, as in 50,100.")] = "",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Responses of a request.")] = 5,
    turns: Annotated[int, typer.Option(min=1, help="Of a context.")] = 5,
    dialogs: Annotated[
        _Dialogs, typer.Option(help="Contexts: all new, growing by a turn each, or one.")
    ] = _Dialogs.NEW,
    spread: Annotated[
        _Spread, typer.Option(help="Over replicas: in turns, or each caller has one of its own.")
    ] = _Spread.TURNS,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each load.")] = 10.0,
    requests: Annotated[
        int, typer.Option(min=0, help="Of each rate at least, for longer if that takes it.")
    ] = 0,
    deadline_ms: Annotated[float, typer.Option(min=1, help="Answers within it are good.")] = 100.0,
    rounds: Annotated[int, typer.Option(min=1, help="Each visits every load once.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of arrivals and contexts.")] = 0,
    key: Annotated[str, typer.Option(envvar="SISERVE_KEY", help="API key.")] = "",
    tls_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encrypt; trust these authorities.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Load a server over gRPC: rates, latencies, errors, at given clients or arrival rates.

    Contexts are spliced from the server's own replies. The generator shares the machine with a
    local server; its share of a core is told.

    Example: siserve bench serve --start --server "--threads 1" --clients 1,16 --dialogs growing
    """
    counts, rates = levels(clients, rate)
    if bool(address) == start:
        raise UsageError("give either --address HOST:PORT or --start")
    if not start and (model or server or python_share):
        raise UsageError("--model, --server and --python-share are for a server of --start")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from siserve.bench.machine import machine_facts
    from siserve.bench.processes import listener, usage_of
    from siserve.bench.serve_report import show_serve
    from siserve.bench.served import ServedProcess
    from siserve.bench.serving_load import Level, LoadPlan, measure_load
    from siserve.client.credentials import Credentials

    asked = [Level(clients=count) for count in counts] + [Level(rate=each) for each in rates]
    plan = LoadPlan(
        asked,
        n,
        turns,
        dialogs.value,
        spread.value,
        seconds,
        requests,
        deadline_ms / 1e3,
        rounds,
        seed,
    )
    options = [*(["--model", str(model)] if model else []), *shlex.split(server)]
    options += ["--threads", "1"] if python_share else []
    with _errors().status("starting") as status, ExitStack() as stack:
        started = stack.enter_context(ServedProcess(options, python_share)) if start else None
        where = started.address if started else address
        pid = None if started else listener(address)
        usage = started.usage if started else partial(usage_of, pid)
        credentials = Credentials(key, tls_ca=tls_ca)
        served, records = measure_load(where, plan, credentials, usage, status.update)
    result = {
        "command": "bench serve",
        "facts": machine_facts(),
        "model": served,
        "options": {
            "server": f"siserve serve {shlex.join(options)}" if start else address,
            "n": n,
            "turns": turns,
            "dialogs": dialogs.value,
            "spread": spread.value,
            "seconds": seconds,
            "requests": requests,
            "deadline_ms": deadline_ms,
            "rounds": rounds,
            "seed": seed,
        },
        "loads": records,
    }
    _print(result, as_json, show_serve)


@_bench.command()
def train(
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="A dialog corpus."),
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs of a batch.")] = 30,
    batches: Annotated[int, typer.Option(min=1, help="Batches of a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Each visits every batch once.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, noise and order.")] = 0,
    as_json: _Json = False,
) -> None:
    """Time a training step at the paper's sizes against the way of research code, which pads.

    Both take the same step on the same windows, and their losses must agree first.

    Example: siserve bench train --data switchboard
    """
    from siserve.bench.machine import machine_facts
    from siserve.bench.train_report import measure_training, show_train

    options = {"batch-size": batch_size, "batches": batches, "rounds": rounds, "seed": seed}
    with _errors().status("measuring"):
        measured = measure_training(data, options)
    _print(
        {"command": "bench train", "facts": machine_facts(), "options": options, **measured},
        as_json,
        show_train,
    )


def _print(result: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console

    show(Console(highlight=False), result)


def _errors() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def run(arguments: Sequence[str]) -> int:
    """Run a command of this room, its name first; return the exit code."""
    return run_app(_app, arguments)
