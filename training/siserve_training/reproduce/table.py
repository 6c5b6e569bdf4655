"""`siserve reproduce dialog`: all rows of Table 1, resumable, to Markdown, JSON and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from siserve_training.checkpoint import write_atomically
from siserve_training.config import parse_setting
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.errors import ConfigError
from siserve_training.reproduce.examples import examples_page
from siserve_training.reproduce.machine import machines
from siserve_training.reproduce.page import listed_changes, results_page
from siserve_training.reproduce.plots import plot_relevance_diversity
from siserve_training.reproduce.results import MeasuredRow, collect_rows, score_baselines
from siserve_training.reproduce.rows import ROWS, SCALES, Row, Scale, pretrained_row
from siserve_training.reproduce.runner import Job, Plan, run_jobs

__all__ = [
    "chosen_rows",
    "dialog_rows",
    "facts_of",
    "make_plan",
    "measure",
    "reproduce_dialog",
    "room_for_runs",
    "scale_named",
    "table_jobs",
    "with_changes",
    "with_limits",
]

#: Thirteen runs at the paper's sizes, one a core, trained and were scored side by side in 80 GB.
_GPU_BYTES_OF_A_RUN = 6 * 2**30


def make_plan(
    scale: Scale, data: Path, out: Path, vectors: Path | None, word_vectors: Path | None
) -> Plan:
    """Check what all runs have in common.

    Raises:
        ConfigError: if a file is missing.
    """
    for option, path in (("--vectors", vectors), ("--word-vectors", word_vectors)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{option} {path}: expected a file in GloVe's text format")
    if not data.is_dir():
        raise ConfigError(f"--data {data}: expected the folder of a corpus")
    return Plan(
        data.resolve(),
        out.resolve(),
        scale,
        vectors.resolve() if vectors else None,
        word_vectors.resolve() if word_vectors else None,
    )


def scale_named(name: str) -> Scale:
    """Return the scale that --scale names.

    Raises:
        ConfigError: if there is none.
    """
    if name not in SCALES:
        raise ConfigError(f"--scale must be one of {', '.join(SCALES)}, got {name!r}")
    return SCALES[name]


def dialog_rows(context_encoder: str = "") -> tuple[Row, ...]:
    """Return the rows of Table 1, and one more for a pretrained context encoder.

    Args:
        context_encoder: hf:DIR, "" for none.

    Raises:
        ConfigError: if the encoder cannot be used.
    """
    if not context_encoder:
        return ROWS
    kind, _, folder = context_encoder.partition(":")
    if kind != "hf" or not folder:
        raise ConfigError(f"--context-encoder takes hf:DIR, got {context_encoder!r}")
    path = SentenceFolder.open(Path(folder).resolve()).path
    return (*ROWS, pretrained_row(f"hf:{path}"))


def chosen_rows(names: str, rows: tuple[Row, ...] = ROWS) -> tuple[Row, ...]:
    """Return the rows of a comma-separated list in the table's order, all for "".

    Args:
        names: of the rows.
        rows: of the table.

    Raises:
        ConfigError: if a name is unknown or a row is asked for without the one it scores again.
    """
    if not names:
        return rows
    wanted = [name.strip() for name in names.split(",")]
    known = {row.name: row for row in rows}
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--rows: no row {name!r}; expected some of {', '.join(known)}")
        if known[name].of and known[name].of not in wanted:
            raise ConfigError(f"--rows: {name} scores the runs of {known[name].of}: name both")
    return tuple(row for row in rows if row.name in wanted)


def reproduce_dialog(
    plan: Plan,
    rows: Sequence[Row],
    seeds: Sequence[int],
    side_by_side: int,
    say: Callable[[str], None],
) -> Path:
    """Train and score the rows that are not done, then write the results.

    Args:
        plan: what all runs have in common.
        rows: of the table.
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
    say("scoring context-blind baselines")
    baselines = score_baselines(plan)
    facts = facts_of(plan, seeds, jobs)
    content = {
        "facts": facts,
        "rows": [row.to_json() for row in measured],
        "baselines": [row.to_json() for row in baselines],
    }
    write_atomically(plan.out / "dialog.json", json.dumps(content, indent=2) + "\n")
    plot_relevance_diversity(measured, baselines, plan.out)
    of_first_seed = [job for job in jobs if job.seed == jobs[0].seed]
    write_atomically(plan.out / "examples.md", examples_page(of_first_seed))
    page = plan.out / "dialog.md"
    write_atomically(page, results_page(measured, baselines, jobs, facts))
    return page


def table_jobs(plan: Plan, rows: Sequence[Row], seeds: Sequence[int]) -> list[Job]:
    """List the jobs of a table, by seed and then by row; of an only_finished one, those done.

    Raises:
        ConfigError: if none is.
    """
    jobs = [Job(row, seed, plan) for seed in seeds for row in rows]
    if not plan.only_finished:
        return jobs
    done = [job for job in jobs if job.result.is_file()]
    if not done:
        raise ConfigError(f"--finished: no run of these rows and seeds has ended in {plan.out}")
    return done


def measure(
    jobs: Sequence[Job], side_by_side: int, say: Callable[[str], None]
) -> list[MeasuredRow]:
    """Do the jobs that are not done, and read what all have measured.

    Args:
        jobs: of the table.
        side_by_side: runs at a time, 0 to choose by the machine.
        say: told what happens.

    Raises:
        RunError: if a run fails.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    gpu_bytes = (
        torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    )
    at_once = side_by_side or room_for_runs(cores, gpu_bytes)
    run_jobs(jobs, at_once, max(1, cores // at_once), say)
    return collect_rows(jobs)


def room_for_runs(cores: int, gpu_bytes: int | None) -> int:
    """Return how many runs go side by side: each wants a core, and room on the GPU if there is one.

    Args:
        cores: of this machine.
        gpu_bytes: memory of its GPU, None without one.
    """
    room = cores if gpu_bytes is None else gpu_bytes // _GPU_BYTES_OF_A_RUN
    return max(1, min(cores, room))


def facts_of(plan: Plan, seeds: Sequence[int], jobs: Sequence[Job]) -> dict[str, Any]:
    """Tell what all runs of a table have in common, and on what machines they ran."""
    return {
        "scale": plan.scale.name,
        "settings of the scale": json.dumps(dict(plan.scale.settings)),
        **({"changed by --set": ", ".join(listed_changes(plan))} if plan.changes else {}),
        "corpus": plan.data.name,
        "seeds": ", ".join(str(seed) for seed in seeds),
        **({"vectors of the embedding scores": plan.vectors.name} if plan.vectors else {}),
        "word vectors at the start": plan.word_vectors.name if plan.word_vectors else "random",
        **({"max_steps": plan.max_steps} if plan.max_steps else {}),
        **machines(job.ran_on() for job in jobs),
    }


def with_limits(plan: Plan, max_steps: int, contexts: int, only_finished: bool) -> Plan:
    """Cut every run short, to try things out, or run nothing."""
    return replace(plan, max_steps=max_steps, contexts=contexts, only_finished=only_finished)


def with_changes(plan: Plan, rows: Sequence[Row], wanted: Sequence[str]) -> Plan:
    """Change configuration keys of all rows, or of one.

    Args:
        plan: of the table.
        rows: of the table.
        wanted: KEY=VALUE for all rows, ROW:KEY=VALUE for one.

    Raises:
        ConfigError: if a row is unknown, or a row without the name would lose a key of its own.
    """
    names = [row.name for row in rows]
    changes: dict[str, dict[str, Any]] = {}
    for text in wanted:
        before, colon, rest = text.partition("=")[0].rpartition(":")
        name, setting = (before, text[len(before) + 1 :]) if colon else ("", text)
        if colon and name not in names:
            raise ConfigError(f"--set {text}: no row {name!r}; expected one of {', '.join(names)}")
        key, value = parse_setting(setting)
        if key == "seed":
            raise ConfigError(f"--set {text}: training seeds are a matter of --seeds")
        own = [row.name for row in rows if key in row.settings]
        if not colon and own:
            raise ConfigError(
                f"--set {text}: {', '.join(own)} have a {key} of their own; name the rows that "
                f"are meant, as in --set {own[0]}:{setting}"
            )
        changes.setdefault(name, {})[key] = value
    return replace(plan, changes=changes)
