"""`siserve reproduce noise`: which settings keep the noise of a semi-implicit posterior in use.

In a plain run of the paper's dialog model B_K stays near 0: the posterior is a Gaussian in all but
name. The rows change one thing at a time from there to the default of `si-cvae`, and from that
default away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from siserve_training.checkpoint import write_atomically
from siserve_training.reproduce.page import NOISE, NOISE_TEXT, list_commands, list_facts, table
from siserve_training.reproduce.rows import Row, Scale
from siserve_training.reproduce.runner import Plan
from siserve_training.reproduce.table import facts_of, measure, table_jobs

__all__ = ["NOISE_ROWS", "NOISE_SCALE", "reproduce_noise"]

NOISE_SCALE = Scale(
    "-small",
    {"passes": 1.0, "eval_every": 400},
    {"split": "valid", "contexts": 60, "pairs": 500, "samples": 50, "ranking-samples": 2},
)

_PLAIN = {"noise": 100, "noise_gain": 1.0, "aux_floor": 1}


def _row(name: str, title: str, **settings: object) -> Row:
    return Row(name, title, "dialog-si-cvae", settings)


NOISE_ROWS = (
    Row("gaussian", "no noise: cvae", "dialog-cvae"),
    _row("plain", "100 dimensions as they come, K rising to 30", **_PLAIN),
    _row("plain-k30", "the same, K = 30 from the start", **{**_PLAIN, "aux_floor": 30}),
    _row("plain-strong", "the same, weights doubled", **{**_PLAIN, "noise_gain": 2.0}),
    _row("few", "12 dimensions, K = 30 from the start", noise_gain=1.0),
    _row("default", "12 dimensions, weights doubled, K = 30 from the start: the default"),
    _row("default-rising", "the default, K rising to 30", aux_floor=1),
    _row("default-stronger", "the default, weights quadrupled", noise_gain=4.0),
    _row("default-multiplied", "the default, noise multiplied in", noise_entry="multiplied"),
    _row("default-narrow", "the default, log-variance -2 at the start", start_logvar=-2.0),
    _row("default-aggressive", "the default, encoder ahead by 2 steps", aggressive="fixed:2"),
)

_COLUMNS = {"log p, IW": "iw_log_p_x", "ELBO": "elbo", "KL": "kl", **NOISE}


def reproduce_noise(
    plan: Plan,
    rows: Sequence[Row],
    seeds: Sequence[int],
    side_by_side: int,
    say: Callable[[str], None],
) -> Path:
    """Train and measure the rows that are not done, then write the results.

    Args:
        plan: what all runs have in common.
        rows: of the study.
        seeds: training seeds.
        side_by_side: runs at a time, 0 to choose by the machine.
        say: told what happens.

    Returns:
        The Markdown file.

    Raises:
        RunError: if a run fails.
    """
    jobs = table_jobs(plan, rows, seeds)
    measured = measure(jobs, side_by_side, say)
    facts = facts_of(plan, seeds, jobs)
    content = {"facts": facts, "rows": [row.to_json() for row in measured]}
    write_atomically(plan.out / "noise.json", json.dumps(content, indent=2) + "\n")
    first = measured[0].values
    parts = [
        "# What keeps the noise of a semi-implicit posterior in use",
        list_facts(facts),
        f"On {first['pairs']:.0f} pairs of the valid split, the same for every row; log p(x|c) by "
        f"importance weighting with S = {first['prior_samples']:.0f}.",
        NOISE_TEXT,
        table(measured, _COLUMNS),
        "## Commands",
        list_commands(["noise"], measured, jobs, NOISE_ROWS),
    ]
    page = plan.out / "noise.md"
    write_atomically(page, "\n\n".join(parts) + "\n")
    return page
