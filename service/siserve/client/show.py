"""Answers as people read them."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from siserve.client.answer import Answer

__all__ = ["show_answer"]


def show_answer(console: Console, context: list[tuple[str, str]], answer: Answer) -> None:
    """Print a dialog, its responses, how different they are and how long they took."""
    for speaker, text in context:
        console.print(Text(f"{speaker}: {text}", style="bold"))
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("response", overflow="fold")
    table.add_column("log p", justify="right")
    table.add_column("tokens", justify="right")
    for number, reply in enumerate(answer.responses, start=1):
        cut = "" if reply.finish_reason == "stop" else " …"
        table.add_row(
            str(number),
            Text(reply.text + cut),
            f"{reply.log_prob:.1f}",
            str(reply.num_tokens),
        )
    console.print(table)
    console.print(
        f"distinct-1 {answer.distinct_1:.2f}   distinct-2 {answer.distinct_2:.2f}   "
        f"{1000 * answer.latency_seconds:.0f} ms   seed {answer.seed}   {answer.model}",
        style="dim",
        highlight=False,
    )
