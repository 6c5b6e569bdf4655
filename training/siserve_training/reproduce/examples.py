"""A page of responses: the same contexts, answered by every system (as the paper's Table 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from siserve_training.evaluation.dump import read_dump
from siserve_training.evaluation.responses import ResponseSet
from siserve_training.reproduce.runner import Job

__all__ = ["examples_page"]

_SHOWN = 5
_TURNS = 4


def examples_page(jobs: Sequence[Job], seed: int = 0, contexts: int = 6) -> str:
    """Show some contexts with the reference and every system's first responses.

    Contexts are drawn at random, once, and not chosen by what is said.

    Args:
        jobs: one a system.
        seed: of the draw.
        contexts: how many.
    """
    sets = {job.row.title: read_dump(job.dump) for job in jobs if job.dump.is_file()}
    if not sets:
        return ""
    first = next(iter(sets.values()))
    drawn = np.random.default_rng(seed).choice(len(first), min(contexts, len(first)), False)
    parts = [
        "# Examples",
        f"Contexts of the test split, drawn at random with seed {seed}; the last {_TURNS} turns "
        f"are shown, and each system's first {_SHOWN} responses. `<unk>` stands for a word outside "
        "the vocabulary.",
    ]
    for place in sorted(drawn.tolist()):
        parts.append(_example(place, first, sets))
    return "\n\n".join(parts) + "\n"


def _example(place: int, first: ResponseSet, sets: dict[str, ResponseSet]) -> str:
    said = [f"> {turn}  " for turn in first.contexts[place][-_TURNS:]] or ["> (opening)  "]
    lines = [f"## Context {place}", "\n".join(said), f"Said next: {first.reference_texts[place]}"]
    rows = ["| system | responses |", "| --- | --- |"]
    for title, responses in sets.items():
        texts = responses.sample_texts[place][:_SHOWN]
        rows.append(f"| {title} | {'<br>'.join(text.replace('|', '/') for text in texts)} |")
    return "\n\n".join([*lines, "\n".join(rows)])
