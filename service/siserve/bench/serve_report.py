"""`siserve bench serve`: what was measured, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from siserve.bench.decode_report import number, plain_table, render_facts

__all__ = ["render_costs", "render_loads", "show_serve"]

_PARTS = ("server", "python", "rpc")
_KINDS = {
    "new": "no utterance of a context was sent before",
    "growing": "each dialog gains one turn with a request, and its last turns are sent",
    "same": "one context, again and again",
}


def show_serve(console: Console, result: Mapping[str, Any]) -> None:
    """Print a result as people read it."""
    options, context = result["options"], result["model"]["context"]
    console.print(render_facts(result["facts"], result["model"]))
    console.print(f"server: {options['server']}")
    told = (
        f"n={options['n']}; contexts of {context['turns']} turns of "
        f"{context['words_per_turn']:.1f} words: {_KINDS[options['dialogs']]}. A closed loop's "
        "clients wait for their answers. An open loop's arrivals are a Poisson process, and their "
        f"latency counts from the time that was meant. Good is within {options['deadline_ms']:g} "
        f"ms. {options['seconds']:g} s a load after one that does not count"
        + (f", longer for {options['requests']} requests" if options.get("requests") else "")
        + f", {options['rounds']} round(s), medians."
    )
    console.print(Text(told, style="dim"))
    console.print(render_loads(result["loads"]))
    console.print(render_costs(result["loads"]))
    for each in result["loads"]:
        if each["errors"]:
            codes = ", ".join(f"{count} {code}" for code, count in each["errors"].items())
            console.print(Text(f"{_load_name(each)}: {codes}", style="red"))


def render_loads(records: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Make the table of rates and latencies."""
    table = plain_table(
        ["load"], ["requests/s", "good/s", "responses/s", "p50 ms", "p95 ms", "p99 ms"]
    )
    for each in records:
        table.add_row(
            _load_name(each),
            *(number(each[f"{name}_per_s"], 1) for name in ("requests", "goodput", "responses")),
            *(number(each[f"p{share}_ms"], 1) for share in (50, 95, 99)),
        )
    return table


def render_costs(records: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Make the table of where a request's time went.

    Queue, encode and decode are what the server says; cpu is its processor time a request,
    python that outside of the graphs, rpc that outside of the engine's threads; the generator's is
    its share of a core.
    """
    table = plain_table(
        ["load"],
        ["queue ms", "encode ms", "decode ms", "tokens", "cpu ms", "python", "rpc", "generator"],
    )
    for each in records:
        table.add_row(
            _load_name(each),
            *(number(each[f"{name}_ms"], 1) for name in ("queue", "encode", "decode")),
            number(each["response_tokens"], 1),
            *(
                number(each[f"{part}_cpu_ms_per_request"], 2)
                for part in ("server", "python", "rpc")
            ),
            f"{100 * each['generator_cpu_share']:.0f} %",
        )
    return table


def _load_name(record: Mapping[str, Any]) -> str:
    if record["loop"] == "closed":
        return f"{record['clients']} clients"
    return f"{record['rate']:g}/s"
