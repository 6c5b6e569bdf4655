"""`siserve reproduce lm`: Table 2, sentence VAEs on PTB by schedule, with curves over training.

M is monotonic, C cyclical, A aggressive. At the full scale the aggressive rows follow the adaptive
rule that Table 2 cites; at the small one they take a fixed number of encoder steps (Algorithm 1),
since up to 99 of them before each update are days on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from siserve_training.checkpoint import write_atomically
from siserve_training.errors import ConfigError
from siserve_training.reproduce.language_plots import plot_curves
from siserve_training.reproduce.page import list_commands, list_facts, paper_table, table
from siserve_training.reproduce.rows import PaperRow, Row, Scale
from siserve_training.reproduce.runner import Plan
from siserve_training.reproduce.table import facts_of, measure, table_jobs

__all__ = ["lm_rows", "lm_scale", "reproduce_lm"]

#: What a CPU core trains in two minutes a row: short sentences, few words, small nets. A sum over
#: 128 units starts as wide as one over the paper's 1,024 does, at an eighth of the units by weights
#: sqrt(8) as large: smaller ones leave the encoder's mean next to 0, and no schedule of beta keeps
#: a KL that the first two hundred updates do not find. beta takes a whole cycle to rise, since in
#: two thousand updates no KL grows that a shorter rise would not press out again, and a word's
#: vector is mostly dropped, so that z is of use.
_SMALL = {
    "max_utterance_tokens": 14,
    "vocabulary_size": 2000,
    "frequent_words": 0,
    "word_embedding": 128,
    "utterance_hidden": 128,
    "decoder_hidden": 128,
    "init_bound": 0.28,
    "noise_gain": 1.0,
    "decoder_dropout": 0.7,
    "num_refine_steps": 5,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "passes": 7.0,
    "cycles": 2,
    "ratio": 1.0,
    "eval_every": 400,
    "valid_pairs": 200,
}
_SCALES = {
    "full": Scale("", {}, {"pairs": 0, "samples": 500}),
    "small": Scale("-small", _SMALL, {"pairs": 200, "samples": 100}),
}
_COLUMNS = {
    "AU": "active_units",
    "MI": "mutual_information",
    "KL": "kl",
    "PPL": "perplexity",
    "IWP": "iw_perplexity",
}
_MORE = {
    "KL, lower bound": "kl_lower",
    "B_K": "b_k",
    "NLL": "nll",
    "-E log p(x\\|z)": "rec",
    "PPL of IWP's sentences": "perplexity_of_iw_sentences",
    "IW error": "iw_estimate_error",
    "MI's ceiling": "mutual_information_ceiling",
}
_TITLES = {"vae": "VAE", "sa-vae": "SA-VAE", "si-vae": "SI-VAE", "gmm-vae": "GMM-VAE"}
_BLOCKS = {"M": "monotonic", "C": "cyclical", "constant": "constant"}
#: AU, MI, KL, PPL, IWP as printed.
_PAPER: dict[tuple[str, str], tuple[float | None, ...]] = {
    ("M", "vae"): (1, 0.56, 0.68, 94.6, 93.1),
    ("M", "sa-vae"): (None, None, 1.05, 109.2, None),
    ("M", "si-vae"): (7, 2.73, 4.83, 105.6, 96.73),
    ("C", "vae"): (4, 0.95, 1.26, 95.74, 96.23),
    ("C", "sa-vae"): (None, None, 2.26, 108.7, None),
    ("C", "si-vae"): (5, 4.08, 2.63, 106.3, 96.87),
    ("MA", "vae"): (14, 3.33, 9.02, 101.9, 92.26),
    ("MA", "si-vae"): (32, 3.73, 9.20, 100.3, 88.51),
}
_TEXT = (
    "PPL holds the KL; IWP is importance-weighted. KL is the bound by the mixture with a z's own "
    "lambda in it, and its lower bound leaves that out, so the true KL lies between. MI is over "
    "one batch of the test split and cannot exceed the log of its size. Where two numbers stand "
    "in a cell, the second is half of the 95 % interval over training seeds. Rows in italics are "
    "the paper's; its SA rows are of another architecture, and two of its pairs are impossible "
    "(MI 4.08 > KL 2.63; IWP 96.23 > PPL 95.74), so it measured some of them otherwise."
)
_SMALL_TEXT = (
    "The small scale has sentences of up to 12 words and the 2,000 most frequent words, so its PPL "
    "and IWP cannot be set beside the paper's; MI, KL and AU of its rows can be set beside each "
    "other."
)


def lm_scale(name: str) -> Scale:
    """Return the scale that --scale names.

    Raises:
        ConfigError: if there is none.
    """
    if name not in _SCALES:
        raise ConfigError(f"--scale must be one of {', '.join(_SCALES)}, got {name!r}")
    return _SCALES[name]


def lm_rows(scale: str) -> tuple[Row, ...]:
    """Return the rows of Table 2, then those of ours: constant beta, and explicit mixtures."""
    aggressive = "adaptive" if scale == "full" else "fixed:2"
    extra = [("constant", "vae"), ("constant", "si-vae"), ("M", "gmm-vae"), ("C", "gmm-vae")]
    draws = {"si-vae": {"num_latents": 2}} if scale == "small" else {}
    return tuple(
        _row(block, method, aggressive, draws.get(method, {}))
        for block, method in (*_PAPER, *extra)
    )


def _row(block: str, method: str, aggressive: str, draws: Mapping[str, int]) -> Row:
    title = f"{_TITLES[method]} + {'M + A' if block == 'MA' else block}"
    settings = {**draws, "schedule": _BLOCKS[block.removesuffix("A")]}
    if block == "MA":
        settings["aggressive"] = aggressive
    printed = _PAPER.get((block, method))
    return Row(
        f"{method}-{block.lower()}",
        title,
        f"lm-{method}",
        settings,
        paper=(PaperRow(title, printed),) if printed else (),
        ours=printed is None,
    )


def reproduce_lm(
    plan: Plan,
    rows: Sequence[Row],
    seeds: Sequence[int],
    side_by_side: int,
    say: Callable[[str], None],
) -> Path:
    """Train and measure the rows that are not done, then write the results.

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
    facts = {
        k: v for k, v in facts_of(plan, seeds, jobs).items() if not k.startswith("word vectors")
    }
    warnings = [
        f"{job.row.title}, seed {job.seed}: {warning}"
        for job in jobs
        for warning in job.values()["warnings"]
    ]
    content = {
        "facts": facts,
        "rows": [row.to_json() for row in measured],
        "warnings": warnings,
    }
    write_atomically(plan.out / "lm.json", json.dumps(content, indent=2) + "\n")
    plot_curves([job for job in jobs if job.seed == jobs[0].seed], plan.out)
    first = measured[0].values
    parts = [
        "# Table 2: language models on PTB",
        list_facts(facts),
        f"On the {first['sentences']:.0f} sentences of the test split; IWP on "
        f"{first['iw_sentences']:.0f} of them with S = {first['iw_samples']:.0f}; MI over "
        f"{first['mi_batch']:.0f}.",
        _TEXT,
        *([_SMALL_TEXT] if plan.scale.name == "small" else []),
        paper_table(measured, _COLUMNS),
        "## Behind the numbers",
        table(measured, _MORE),
        "## What cannot be",
        "\n".join(f"- {line}" for line in warnings)
        or "No row breaks MI <= KL or IWP <= PPL beyond noise.",
        "## Curves",
        f"Of seed {jobs[0].seed}: numbers of the valid split, and the schedules.",
        "![Over training](lm-curves.svg)",
        "## Commands",
        list_commands(["lm", "--scale", plan.scale.name], measured, jobs, lm_rows(plan.scale.name)),
    ]
    page = plan.out / "lm.md"
    write_atomically(page, "\n\n".join(parts) + "\n")
    return page
