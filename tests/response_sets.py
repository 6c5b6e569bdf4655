"""Sets of responses made from a seed, and the recorded cases that metrics must reproduce."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from siserve.bundle.text import DIALOG_START, END, PAD, START, UNK, SpecialTokens
from siserve_training.evaluation.responses import ResponseSet

TOKENS = SpecialTokens(pad=0, unk=1, start=2, end=3, dialog_start=4)
GOLDEN = json.loads((Path(__file__).parent / "training" / "golden_metrics.json").read_bytes())


def golden_cases():
    """Yield (samples (1, R, W), references, vectors, expected values); id 4 is a plain word."""
    for case in GOLDEN["cases"]:
        vectors = np.array(case["embeddings"], dtype=np.float64)
        yield np.array([case["samples"]]), [case["reference"]], vectors, case["expected"]


def make_set(contexts=6, samples=5, width=9, words=20, seed=0, end_bias=0.1) -> ResponseSet:
    """Draw ids with junk after ``</s>``, as a decoder that never stops leaves it."""
    rng = np.random.default_rng(seed)
    size = 5 + words
    rows = rng.integers(5, size, (contexts, samples, width))
    rows[rng.random(rows.shape) < end_bias] = TOKENS.end
    references = tuple(
        (TOKENS.start, *rng.integers(5, size, rng.integers(1, width)).tolist(), TOKENS.end)
        for _ in range(contexts)
    )
    said = tuple((f"A: what about {n}", "B: don't know") if n else () for n in range(contexts))
    names = (PAD, UNK, START, END, DIALOG_START, *(f"w{n}" for n in range(words)))
    return ResponseSet(said, references, rows.astype(np.int64), names)
