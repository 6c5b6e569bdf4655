"""`siserve bench decode`: what is measured, as one object and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["number", "plain_table", "render_facts", "render_machine", "show"]

HOW = """
A step is one token of every row. Ours runs the engine's decoder in the engine's chunks, each row at
temperature 1; a row that ended goes on with the next chunk, and its steps up to there do not count.
PyTorch is eager, with the bundle's weights: one response after the other, or the rows as one batch,
both by multinomial (x one, x batch: its time over ours); greedy is information. The floor is the
larger of weight bytes over read bandwidth and operations over the best rate of products, whether
onnxruntime's or our kernels', all measured in the same round. Each variant has a process of its
own; rounds visit them forwards and backwards in turn; ratios are taken within a round; figures are
medians over rounds.
"""

HOW_ENGINE = (
    "Full queue, n={n}, contexts of five turns, the bundle's own options: requests one at a time, "
    "or in flight together; x is to one at a time on as many cores. Contexts are new, or one that "
    "is known. Workers x threads of each."
)


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Print a result as people read it."""
    console.print(render_facts(result["facts"], result["model"]))
    if result["steps"]:
        console.print(Text(" ".join(HOW.split()), style="dim"))
        console.print(render_steps(result["steps"]))
    if result["engine"]:
        console.print(Text(HOW_ENGINE.format(**result["engine"][0]), style="dim"))
        console.print(render_engine(result["engine"]))
    if result["n"]:
        console.print(Text("One request to an idle engine, context known:", style="dim"))
        console.print(render_costs_of_n(result["n"]))
    for why in result["left_out"]:
        console.print(Text(f"left out: {why}", style="yellow"))


def render_facts(facts: Mapping[str, Any], model: Mapping[str, Any]) -> RenderableType:
    """Tell the model and what it was measured on."""
    return Group(Text(f"{model['name']} ({model['method']})", style="bold"), render_machine(facts))


def render_machine(facts: Mapping[str, Any]) -> RenderableType:
    """Tell the machine, the versions and the time."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return Group(
        Text(f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['flags'])}"),
        Text(f"{facts['system']}, Python {facts['python']}, {versions}, {facts['date']}"),
    )


def render_steps(records: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Make the table of steps."""
    table = plain_table(
        ["rows", "threads", "precision"],
        ["ms/step", "resp/s", "x one", "x batch", "x greedy", "floor ms", "x floor"],
    )
    for each in records:
        table.add_row(
            str(each["rows"]),
            str(each["threads"]),
            each["precision"],
            number(each["ms_per_step"], 3),
            number(each["responses_per_s"], 0),
            *(
                number(each[f"ratio_to_{way}"], 1)
                for way in ("one_at_a_time", "batched", "batched_greedy")
            ),
            number(each["floor_ms"], 3),
            number(each["times_the_floor"], 2),
        )
    return table


def render_engine(records: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Make the table of full queues."""
    table = plain_table(
        ["contexts", "precision", "way", "workers"],
        ["req/s", "resp/s", "tokens", "x"],
    )
    for each in records:
        table.add_row(
            each["contexts"],
            each["precision"],
            each["way"].replace("_", " "),
            f"{each['workers']} x {each['threads']}",
            number(each["requests_per_s"], 1),
            number(each["responses_per_s"], 0),
            number(each["response_tokens"], 1),
            number(each["ratio_to_one_at_a_time"], 2),
        )
    return table


def render_costs_of_n(records: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Make the table of what a response costs."""
    table = plain_table(["precision"], ["threads", "n", "ms", "ms a response"])
    for each in records:
        table.add_row(
            each["precision"],
            str(each["threads"]),
            str(each["n"]),
            number(each["ms"], 2),
            number(each["ms_per_response"], 3),
        )
    return table


def plain_table(names: Sequence[str], figures: Sequence[str]) -> Table:
    """Make a table that fits a narrow terminal: columns of names, then of figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def number(value: float | None, digits: int) -> str:
    """Write a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
