"""Figures of one replica: what `siserve bench serve --json` printed, a line for each n."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siserve.bench.capacity import Curve, Point
from siserve.bundle.errors import UsageError

__all__ = ["Figures", "read_figures", "shipped_figures"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Round(_Part):
    errors: dict[str, int]
    p99_ms: float | None


class _Load(_Round):
    loop: Literal["open", "closed"]
    rate: float | None
    answered: int
    rounds: list[_Round] = Field(default=[])


class _Options(_Part):
    server: str
    n: int = Field(ge=1)
    turns: int
    dialogs: str


class _Model(_Part):
    name: str
    sha256: str


class _Facts(_Part):
    cpu: str


class _Result(_Part):
    command: Literal["bench serve"]
    facts: _Facts
    model: _Model
    options: _Options
    loads: list[_Load]


@dataclass(frozen=True)
class Figures:
    """One replica at several n.

    Attributes:
        curves: one for each n.
        source: the machine, the model and how it was served and asked.
    """

    curves: Sequence[Curve]
    source: dict[str, Any]


def shipped_figures() -> Figures:
    """Figures of a model of the embedded one's sizes, on the machine that CAPACITY.md names."""
    path = files("siserve.bench").joinpath("figures", "one_replica.jsonl")
    return _parse(path.read_text(encoding="utf-8"), "one_replica.jsonl")


def read_figures(paths: Sequence[Path]) -> Figures:
    """Read files of one JSON object a line, all of one machine, model and way of asking.

    Raises:
        UsageError: if a line is not of `siserve bench serve --json`, or lines do not go together.
    """
    return _parse(
        "\n".join(path.read_text(encoding="utf-8") for path in paths),
        ", ".join(path.name for path in paths),
    )


def _parse(text: str, name: str) -> Figures:
    results = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                results.append(_Result.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "JSON"
                raise UsageError(
                    f"{name}, line {number}: expected what siserve bench serve --json prints, "
                    f"got {where}: {first['msg']}"
                ) from None
    if not results:
        raise UsageError(f"{name}: expected lines of siserve bench serve --json, got none")
    sources = [_source(result) for result in results]
    for source in sources[1:]:
        for key, value in source.items():
            if value != sources[0][key]:
                raise UsageError(
                    f"{name}: figures of one replica expected, got {key} {sources[0][key]!r} "
                    f"and {value!r}"
                )
    return Figures([_curve(n, results, name) for n in _all_n(results)], sources[0])


def _source(result: _Result) -> dict[str, Any]:
    """What must be alike in all lines."""
    return {
        "machine": result.facts.cpu,
        "model": result.model.name,
        "bundle": result.model.sha256,
        "server": result.options.server,
        "turns": result.options.turns,
        "dialogs": result.options.dialogs,
    }


def _all_n(results: Sequence[_Result]) -> list[int]:
    return sorted({result.options.n for result in results})


def _curve(n: int, results: Sequence[_Result], name: str) -> Curve:
    """Join the loads of one n; a rate that was measured again has more rounds."""
    loads: defaultdict[float, list[_Load]] = defaultdict(list)
    for result in results:
        for load in result.loads if result.options.n == n else []:
            if load.rate is not None:
                loads[load.rate].append(load)
    if not loads:
        raise UsageError(f"{name}: no open loop of n={n}; measure with siserve bench serve --rate")
    return Curve(n, [_point(rate, loads[rate]) for rate in sorted(loads)])


def _point(rate: float, loads: Sequence[_Load]) -> Point:
    """Join the rounds of one rate; a round where a request failed bears no p99."""
    rounds = [each for load in loads for each in load.rounds or [load]]
    return Point(
        rate,
        [math.inf if each.errors or each.p99_ms is None else each.p99_ms for each in rounds],
        sum(load.answered for load in loads),
    )
