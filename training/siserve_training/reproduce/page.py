"""The results as a Markdown page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from siserve_training.reproduce.results import MeasuredRow
from siserve_training.reproduce.rows import COLUMNS, ROWS, Row
from siserve_training.reproduce.runner import Job, Plan, toml

__all__ = [
    "NOISE",
    "NOISE_TEXT",
    "list_commands",
    "list_facts",
    "listed_changes",
    "paper_table",
    "results_page",
    "table",
]

#: What Table 1 does not hold: title and our metric.
_MORE = {
    "R@1/10": "recall_at_1_of_10",
    "R@1/20": "recall_at_1_of_20",
    "log p, prior MC": "prior_log_p_x",
    "log p, IW": "iw_log_p_x",
    "PPL, IW": "iw_perplexity",
    "KL": "kl",
    "MI": "mutual_information",
    "distinct-1": "corpus_distinct_1",
    "distinct-2": "corpus_distinct_2",
    "self-BLEU": "self_bleu",
    "4+ of 5": "varied_sets",
}
_OTHER_FORMS = {
    "R, modern": "bleu_recall_modern",
    "P, modern": "bleu_precision_modern",
    "F1, modern": "bleu_f1_modern",
    "A, clean": "bow_average_clean",
    "E, clean": "bow_extrema_clean",
    "G, clean": "bow_greedy_clean",
    "sacrebleu": "sacrebleu",
}
#: Whether the noise of a posterior is in use: title and our metric.
NOISE = {
    "B_K": "b_k",
    "log B_K": "log_b_k",
    "of Var(mu)": "noise_share_of_mu",
    "of widest axis": "noise_share_of_width",
    "non-Gaussian": "non_gaussian",
    "L_0": "bound_at_0",
    "L_1": "bound_at_1",
    "L_5": "bound_at_5",
    "L_30": "bound_at_30",
    "L_100": "bound_at_100",
}

#: Metrics whose standard error over pairs is shown where there is one training seed.
_STD_ERRORS = {
    "recall_at_1_of_10": "recall_at_1_of_10_std_error",
    "recall_at_1_of_20": "recall_at_1_of_20_std_error",
    "prior_log_p_x": "prior_std_error",
    "iw_log_p_x": "iw_std_error",
}


def results_page(
    measured: Sequence[MeasuredRow],
    baselines: Sequence[MeasuredRow],
    jobs: Sequence[Job],
    facts: dict[str, Any],
) -> str:
    """Write the page.

    Args:
        measured: rows of the systems.
        baselines: context-blind rows.
        jobs: behind the rows.
        facts: scale, command, machine and so on, by name.
    """
    rows = [*measured, *baselines]
    with_noise = [row for row in measured if "noise_share_of_mu" in row.values]
    parts = [
        "# Table 1: dialog systems on Switchboard",
        list_facts(facts),
        _head(measured),
        "## The paper's columns",
        paper_table(rows, COLUMNS),
        "## What those columns do not show",
        _MORE_TEXT,
        table(rows, _MORE),
        "## The same in other forms",
        "BLEU as NLTK from 3.6 on computes it; embedding scores of the words alone; corpus BLEU of "
        "each context's first response.",
        table(rows, _OTHER_FORMS),
        "## Is the posterior semi-implicit in more than name?",
        NOISE_TEXT,
        table(with_noise, NOISE, _all_seeds(rows)),
        "## Pictures",
        "![Relevance against diversity](relevance-diversity.svg)",
        "[Examples](examples.md) shows responses of every system to the same contexts.",
        "## Commands",
        list_commands(["dialog", "--scale", facts["scale"]], measured, jobs, ROWS),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_MORE_TEXT = (
    "R@1/10: how often a true response is likelier under its own context than under those of 9 "
    "other dialogs; chance is 0.1, and no column of Table 1 measures this. log p(x|c) in nats a "
    "response, by Monte Carlo over the prior for every system and by importance weighting where "
    "densities exist. MI is capped by the log of the pairs behind it. distinct-n is over all "
    "responses to all contexts; 4+ of 5 is the share of contexts whose first five responses hold "
    "four different ones."
)
NOISE_TEXT = (
    "B_K in nats, at most log(K + 1); the noise's share of the variance of the posterior means "
    "over all pairs, and of one posterior's variance along its widest axis (in sigmas); the share "
    "of posteriors whose draws a two-sample energy test tells from their best Gaussian at 5 %; and "
    "the bound L_K, which rises with K. B_K above 0 with posteriors that the test cannot tell from "
    "Gaussians means that the noise makes correlations, not modes."
)


def list_facts(facts: dict[str, Any]) -> str:
    """Write a table's facts as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _head(measured: Sequence[MeasuredRow]) -> str:
    first = next((row.values for row in measured if row.values), None)
    if first is None:
        return ""
    samples, ranking = (  # one is enough for a system without a latent
        max(row.values.get(name, 0) for row in measured)
        for name in ("prior_samples", "ranking_samples")
    )
    return (
        f"Every system answers {first['contexts']:.0f} contexts {first['responses']:.0f} times at "
        f"temperature {first['temperature']:g}: a response follows from its latent alone. "
        f"Likelihoods on {first['pairs']:.0f} pairs with S = {samples:.0f}, "
        f"R@1 with S = {ranking:.0f}. Where two numbers stand in a cell, the "
        "second is half of the 95 % interval over training seeds; with one seed, a number in "
        "brackets is the standard error over pairs, which are the same for all rows. Rows in "
        "italics are the "
        "paper's own; they were measured on another training split (twice as many conversations), "
        "with other word vectors, and the paper names neither NLTK's version nor what it did with "
        "words after the end mark."
    )


def paper_table(rows: Sequence[MeasuredRow], columns: dict[str, str]) -> str:
    """Write rows with the paper's own below each.

    Args:
        rows: measured.
        columns: title and metric of each, in the order of the paper's values.
    """
    lines, seeds = _header(columns), _all_seeds(rows)
    for row in rows:
        lines.append(_line(row, list(columns.values()), seeds))
        for paper in row.row.paper if row.row else ():
            cells = " | ".join("" if v is None else f"*{v:g}*" for v in paper.values)
            lines.append(f"| *{paper.name} (paper)* | {cells} |")
    return "\n".join(lines)


def table(rows: Sequence[MeasuredRow], columns: dict[str, str], seeds: Sequence[int] = ()) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: measured.
        columns: title and metric of each.
        seeds: of the page, if other rows of it have more of them than these.
    """
    if not rows:
        return ""
    names, seeds = list(columns.values()), seeds or _all_seeds(rows)
    return "\n".join([*_header(columns), *(_line(row, names, seeds) for row in rows)])


def _all_seeds(rows: Sequence[MeasuredRow]) -> tuple[int, ...]:
    """Return the training seeds of the row that has most of them."""
    return max((row.seeds for row in rows if row.row), key=len, default=())


def _header(columns: dict[str, str]) -> list[str]:
    return [f"| | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]


def _line(row: MeasuredRow, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Write a row; one with fewer training seeds than others says which."""
    title = row.title
    if row.row and len(row.seeds) < len(seeds):
        title += f" (seed {', '.join(map(str, row.seeds))})"
    return f"| {title} | {' | '.join(_cell(row, name) for name in names)} |"


def _cell(row: MeasuredRow, name: str) -> str:
    if name not in row.values:
        return ""
    places = 1 if name == "length" or abs(row.values[name]) >= 10 else 3
    if name.startswith("corpus_distinct"):
        places = 5
    value = f"{row.values[name]:.{places}f}"
    if name in row.half_widths:
        value += f" ± {row.half_widths[name]:.{places}f}"
    elif (error := row.values.get(_STD_ERRORS.get(name, ""))) is not None:
        value += f" ({error:.{places}f})"
    return value


def list_commands(
    study: Sequence[str],
    measured: Sequence[MeasuredRow],
    jobs: Sequence[Job],
    unasked: Sequence[Row],
) -> str:
    """Write the command that makes the page, and that of each row.

    Args:
        study: words after `siserve reproduce`.
        measured: the rows.
        jobs: behind them.
        unasked: rows that the study runs where --rows names none.
    """
    rows = [row.row for row in measured if row.row is not None]
    if not rows or not jobs:
        return ""
    plan, seeds = jobs[0].plan, _listed(_all_seeds(measured))
    encoder = next((row.context_encoder for row in rows if row.context_encoder), "")
    names = [row.name for row in rows]
    is_whole = {row.name for row in unasked} <= set(names)
    whole = _command(study, plan, seeds, encoder, "" if is_whole else ",".join(names))
    commands = {"The whole page": whole}
    for measured_row in measured:
        row = measured_row.row
        if row is not None:
            wanted = ",".join(name for name in (row.of, row.name) if name)
            command = _command(
                study, plan, _listed(measured_row.seeds), row.context_encoder, wanted
            )
            commands[f"{row.title}, all of its cells"] = command
    return "\n".join(f"{title}:\n\n    {command}\n" for title, command in commands.items())


def _listed(seeds: Sequence[int]) -> str:
    return ",".join(str(seed) for seed in seeds)


def _command(
    study: Sequence[str], plan: Plan, seeds: str, context_encoder: str, rows: str = ""
) -> str:
    options = {
        "--rows": rows,
        "--seeds": seeds,
        "--data": plan.data.name,
        "--vectors": plan.vectors.name if plan.vectors else "",
        "--word-vectors": plan.word_vectors.name if plan.word_vectors else "",
        "--context-encoder": context_encoder,
        "--max-steps": str(plan.max_steps or ""),
        "--contexts": str(plan.contexts or ""),
        "--out": "OUT",
    }
    flags = [part for option, value in options.items() if value for part in (option, value)]
    for change in listed_changes(plan, rows.split(",") if rows else None):
        flags += ["--set", change]
    return shlex.join(["siserve", "reproduce", *study, *flags])


def listed_changes(plan: Plan, rows: Sequence[str] | None = None) -> list[str]:
    """Write what --set was told, as it is told.

    Args:
        plan: of the table.
        rows: whose changes are wanted beside those of all rows; None for every row's.
    """
    return [
        f"{row}:{key}={toml(value)}" if row else f"{key}={toml(value)}"
        for row, changes in plan.changes.items()
        for key, value in changes.items()
        if not row or rows is None or row in rows
    ]
