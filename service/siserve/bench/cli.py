"""`siserve bench`; only this parser is loaded before a measurement begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from siserve.bundle.errors import UsageError
from siserve.command import run_app

if TYPE_CHECKING:
    from rich.console import Console

    from siserve.bench.roofline import Precision
    from siserve.bench.steps import Way

__all__ = ["run"]

_Word = TypeVar("_Word", bound=str)

_app = typer.Typer(add_completion=False, rich_markup_mode=None)
_bench = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
    help="Measure: decode times the decoder, serve loads a server, train times training.",
)
_app.add_typer(_bench, name="bench")

_PRECISIONS: Sequence[Precision] = ("fp32",)
_WAYS: Sequence[Way] = ("one", "batched", "greedy")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


class _Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


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
    precision: Annotated[str, typer.Option(help="One or more of fp32.")] = "fp32",
    against: Annotated[
        str, typer.Option(help="Of PyTorch's ways: one response at a time, batched, greedy.")
    ] = "one,batched,greedy",
    device: Annotated[_Device, typer.Option(help="auto takes CUDA where it works.")] = _Device.AUTO,
    rounds: Annotated[int, typer.Option(min=1, help="Each visits every variant once.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Tokens of a response.")] = 40,
    seconds: Annotated[
        float, typer.Option(min=0, help="Each variant runs about as long in a round.")
    ] = 0.3,
    as_json: _Json = False,
) -> None:
    """Time the decoder: against PyTorch as research code uses it, and against the hardware's floor.

    Each variant has a process of its own, and they take turns; figures are medians over rounds.

    Example: siserve bench decode --rows 5,80 --threads 1
    """
    asked_rows, asked_threads = _numbers("--rows", rows), _numbers("--threads", threads)
    precisions = _choices("--precision", precision, _PRECISIONS)
    asked_ways = _choices("--against", against, _WAYS)
    from siserve.bench.decode_report import show
    from siserve.bench.machine import machine_facts, model_facts
    from siserve.bench.steps import StepPlan, measure_steps
    from siserve.bundle.verify import open_bundle
    from siserve.serving.models import embedded_bundle

    plan = StepPlan(
        asked_rows, asked_ways, asked_threads, precisions, device.value, rounds, steps, seconds
    )
    bundle = open_bundle(model or embedded_bundle())
    console = _errors()
    with console.status("starting") as status:
        records, left_out = measure_steps(bundle, plan, status.update)
    result = {
        "command": "bench decode",
        "facts": machine_facts(),
        "model": model_facts(bundle),
        "options": {"rounds": rounds, "steps": steps, "seconds": seconds},
        "steps": records,
        "left_out": left_out,
    }
    _print(result, as_json, show)


def _print(result: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console

    show(Console(highlight=False), result)


def _errors() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _numbers(option: str, told: str) -> list[int]:
    """Read a list such as 5,20,80.

    Raises:
        UsageError: if it is none.
    """
    try:
        values = [int(part) for part in told.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UsageError(f"{option} must be whole numbers from 1 as in 1,4,16, got {told!r}")
    return values


def _choices(option: str, told: str, known: Sequence[_Word]) -> list[_Word]:
    """Read a list of words.

    Raises:
        UsageError: if one is not known.
    """
    by_name = {str(word): word for word in known}
    for value in told.split(","):
        if value not in by_name:
            raise UsageError(f"{option} must be of {', '.join(by_name)}, got {value!r}")
    return [by_name[value] for value in told.split(",")]


def run(arguments: Sequence[str]) -> int:
    """Run a command of this room, its name first; return the exit code."""
    return run_app(_app, arguments)
