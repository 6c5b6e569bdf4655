"""`siserve plan`: replicas and cost for a rate of requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from siserve.bundle.errors import UsageError

if TYPE_CHECKING:
    from siserve.bench.capacity import Plan, Target
    from siserve.bench.figures_file import Figures

__all__ = ["plan"]

_HOURS_OF_A_MONTH = 730.0


def plan(
    rps: Annotated[float, typer.Option(metavar="R", help="Requests per second, at the peak.")],
    p99: Annotated[float, typer.Option(metavar="MS", help="99 % answered within, milliseconds.")],
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Responses of a request.")] = 5,
    figures: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", exists=True, help="Of bench serve --json; repeat it [ours]."),
    ] = None,
    headroom: Annotated[
        float, typer.Option(metavar="SHARE", help="Of what a replica bears, left free.")
    ] = 0.2,
    spare: Annotated[int, typer.Option(min=0, help="Replicas that may be away.")] = 0,
    cost: Annotated[
        float | None, typer.Option(min=0, metavar="PRICE", help="Of a replica and an hour.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Tell how many replicas a rate of requests takes, from what one was measured to do.

    Measure your own model on your own machine, as deploy/CAPACITY.md says; without figures these
    are the embedded model's on one core of the machine that is named.

    Example: siserve plan --rps 200 --p99 150 --n 5 --cost 0.04
    """
    for name, value in (("--rps", rps), ("--p99", p99)):
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} must be above 0, got {value:g}")
    if not 0 <= headroom < 1:
        raise UsageError(f"--headroom must be from 0 to below 1, as in 0.2, got {headroom:g}")
    from siserve.bench.capacity import Target, plan_replicas
    from siserve.bench.figures_file import read_figures, shipped_figures

    target = Target(rps, p99, n, headroom, spare)
    known = read_figures(figures) if figures else shipped_figures()
    result = _result(plan_replicas(known.curves, target), target, known, cost)
    typer.echo(json.dumps(result) if as_json else _text(result))


def _result(plan: Plan, target: Target, figures: Figures, cost: float | None) -> dict[str, Any]:
    hourly = None if cost is None else cost * plan.replicas
    return {
        "command": "plan",
        "rps": target.rps,
        "p99_ms": target.p99_ms,
        "n": target.n,
        "headroom": target.headroom,
        "spare": target.spare,
        "replica_rps": plan.replica.rps,
        "is_highest_measured": plan.replica.is_highest_measured,
        "doubt": plan.replica.doubt,
        "replicas": plan.replicas,
        "use": plan.use,
        "cost_per_hour": hourly,
        "cost_per_month": None if hourly is None else hourly * _HOURS_OF_A_MONTH,
        "cost_per_million_responses": (
            None if hourly is None else 1e6 * hourly / (3600 * target.rps * target.n)
        ),
        "figures": figures.source,
        "fewest_answers": min(p.answered for curve in figures.curves for p in curve.points),
    }


def _text(result: dict[str, Any]) -> str:
    from siserve.bench.p99_curve import FEWEST_ROUNDS

    source = result["figures"]
    lines = [
        f"{result['replicas']} replicas for {result['rps']:g} requests/s of n={result['n']}, 99 % "
        f"within {result['p99_ms']:g} ms",
        f"one bears {result['replica_rps']:.3g}/s"
        + ("" if result["doubt"] is None else f", give or take {100 * result['doubt']:.0f} %")
        + (", the highest rate measured" if result["is_highest_measured"] else "")
        + f"; {100 * result['headroom']:g} % of it left free, {result['spare']} to spare; each "
        f"would bear {100 * result['use']:.0f} % of it",
    ]
    if result["cost_per_hour"] is not None:
        lines.append(
            f"cost: {result['cost_per_hour']:.4g} an hour, {result['cost_per_month']:.4g} a month, "
            f"{result['cost_per_million_responses']:.4g} for a million responses"
        )
    lines.append(
        f"from: {source['model']}, {source['server']}, contexts of {source['turns']} turns "
        f"({source['dialogs']}), on {source['machine']}"
    )
    if result["doubt"] is None:
        lines.append(
            f"fewer than {FEWEST_ROUNDS} rounds do not tell how sure that is; measure more "
            "(--rounds)"
        )
    if result["fewest_answers"] < 200:
        lines.append(
            f"a load of only {result['fewest_answers']} answers is among the figures: its p99 is "
            "one of its slowest; measure longer (--seconds)"
        )
    return "\n".join(lines)
