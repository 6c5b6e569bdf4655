"""The table as data: measured rows over seeds, context-blind baselines, the paper's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from siserve_training.config import TrainConfig
from siserve_training.data.corpus import DialogCorpus
from siserve_training.data.pairs import Features, PairSet, build_vocabulary
from siserve_training.evaluation.baselines import context_blind_replies
from siserve_training.evaluation.bootstrap import mean_interval
from siserve_training.evaluation.embedding import load_word_vectors
from siserve_training.evaluation.responses import responses_to_pairs
from siserve_training.evaluation.scores import score_responses
from siserve_training.reproduce.rows import Row
from siserve_training.reproduce.runner import Job, Plan
from siserve_training.tasks.prepared import spread

__all__ = ["MeasuredRow", "collect_rows", "score_baselines"]

_RESPONSES = 10
_WIDTH = 40


@dataclass(frozen=True)
class MeasuredRow:
    """A row's measurements.

    Attributes:
        name: of the row.
        title: in the table.
        row: what it is made by; None for a context-blind baseline.
        seeds: training seeds behind it.
        values: mean over seeds by metric.
        half_widths: half of the 95 % interval over seeds; only with two seeds and more.
    """

    name: str
    title: str
    row: Row | None
    seeds: tuple[int, ...]
    values: dict[str, float]
    half_widths: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return what the results file holds of it."""
        row = self.row
        settings = dict(row.settings) if row else None
        if settings and row and row.context_encoder:
            settings["context_encoder"] = row.context_encoder
        return {
            "name": self.name,
            "title": self.title,
            "preset": row.preset if row else None,
            "settings": settings,
            "evaluation": dict(row.evaluation) if row else None,
            "runs_of": row.of or row.name if row else None,
            "seeds": list(self.seeds),
            "values": self.values,
            "interval_95_half_width": self.half_widths,
            "paper": {paper.name: paper.values for paper in row.paper} if row else {},
        }


def collect_rows(jobs: Sequence[Job]) -> list[MeasuredRow]:
    """Read the results of all jobs and take means over seeds, in the order of the rows."""
    by_row: dict[str, list[Job]] = {}
    for job in jobs:
        if job.result.is_file():
            by_row.setdefault(job.row.name, []).append(job)
    return [_collect(found) for found in by_row.values()]


def _collect(jobs: list[Job]) -> MeasuredRow:
    row = jobs[0].row
    results = [job.values() for job in jobs]
    names = [
        name
        for name, value in results[0].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    values, half_widths = {}, {}
    for name in names:
        found = [float(result[name]) for result in results if result.get(name) is not None]
        if len(found) < len(results):
            continue
        values[name] = sum(found) / len(found)
        if len(found) > 1:
            interval = mean_interval(found)
            half_widths[name] = (interval.high - interval.low) / 2
    seeds = tuple(job.seed for job in jobs)
    return MeasuredRow(row.name, row.title, row, seeds, values, half_widths)


_BASELINES = {
    "random_utterances": "random utterances of valid",
    "random_unigrams": "12 random words",
    "yeah": '"yeah"',
    "fixed_sentence": "one fixed sentence",
}


def score_baselines(plan: Plan, seed: int = 0) -> list[MeasuredRow]:
    """Score replies that never saw a context, by the code that scores the systems."""
    corpus = DialogCorpus(plan.data, skip_bad_lines=False)
    dialogs = {name: tuple(corpus.read(name)[0]) for name in ("train", "valid", "test")}
    config = TrainConfig()
    text = build_vocabulary(dialogs["train"], config.vocabulary_size, config.max_utterance_tokens)
    valid, test = (
        PairSet.from_dialogs(dialogs[name], text, Features(), config.context_utterances)
        for name in ("valid", "test")
    )
    positions = spread(test.responses, plan.contexts)
    shape = (len(positions), _RESPONSES, _WIDTH)
    rows = []
    for name, samples in context_blind_replies(valid, text, shape, seed).items():
        replies = responses_to_pairs(test, dialogs["test"], text, samples, positions)
        vectors = load_word_vectors(plan.vectors, replies.words) if plan.vectors else None
        values = dict(score_responses(replies, vectors).corpus)
        values |= {"recall_at_1_of_10": 0.1, "recall_at_1_of_20": 0.05}
        rows.append(MeasuredRow(name, _BASELINES[name], None, (seed,), values, {}))
    return rows
