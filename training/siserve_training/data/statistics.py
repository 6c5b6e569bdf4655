"""Counts of a corpus: what a loader must agree with before anything is trained on it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from siserve.bundle.text import PAD

from siserve_training.data.corpus import SPLITS, Dialog, DialogCorpus
from siserve_training.data.pairs import PairSet, build_vocabulary, find_features

__all__ = ["corpus_statistics", "render_statistics"]


def corpus_statistics(folder: Path, skip_bad_lines: bool = False) -> dict[str, Any]:
    """Count a dialog corpus with the vocabulary and windows that training uses by default.

    Raises:
        CorpusError: if the corpus cannot be read.
    """
    corpus = DialogCorpus(folder, skip_bad_lines)
    read = {split: corpus.read(split) for split in SPLITS}
    train = read["train"][0]
    text, features = build_vocabulary(train), find_features(train)
    counts = {}
    for split, (dialogs, skipped) in read.items():
        pairs = PairSet.from_dialogs(dialogs, text, features)
        counts[split] = _split_counts(dialogs, pairs, text.tokens.unk) | {"skipped_lines": skipped}
    return {
        "vocabulary": text.size,
        "topics": len(features.topics),
        "profile": features.profile,
        "context_utterances": 9,
        "splits": counts,
    }


def _split_counts(dialogs: list[Dialog], pairs: PairSet, unk: int) -> dict[str, Any]:
    said = pairs.text_of[~np.isin(np.arange(len(pairs.text_of)), pairs.first_of)]
    lengths = np.array([len(ids) for ids in pairs.texts])[said]
    unknown = np.array([ids.count(unk) for ids in pairs.texts])[said]
    return {
        "dialogs": len(dialogs),
        "utterances": len(said),
        "words": sum(len(u.text.split()) for dialog in dialogs for u in dialog.utterances),
        "tokens": int(lengths.sum()),
        "mean_tokens": round(float(lengths.mean()), 2),
        "cut_utterances": pairs.truncated,
        "unknown_tokens": int(unknown.sum()),
        "pairs": len(pairs),
        "topics_unknown": int((pairs.topic_of == 0).sum()),
    }


_NAMES = {
    "dialogs": "dialogs",
    "utterances": "utterances",
    "words": "words",
    "tokens": "tokens, marks counted, after the cut",
    "mean_tokens": "tokens an utterance",
    "cut_utterances": "utterances of 40 tokens and more",
    "unknown_tokens": "tokens outside the vocabulary",
    "pairs": "(context, response) pairs",
    "topics_unknown": "dialogs without a known topic",
    "skipped_lines": "malformed lines skipped",
}


def render_statistics(statistics: dict[str, Any]) -> str:
    """Write the counts as a table for a person."""
    table = Table("", *SPLITS)
    for column in table.columns[1:]:
        column.justify = "right"
    for key, name in _NAMES.items():
        table.add_row(name, *(f"{statistics['splits'][split][key]:,}" for split in SPLITS))
    page = StringIO()
    console = Console(file=page, width=100)
    console.print(table)
    topics = f"{statistics['topics']} topics" if statistics["topics"] else "no topics"
    profile = "speaker profiles" if statistics["profile"] else "no speaker profiles"
    console.print(
        f"vocabulary {statistics['vocabulary']:,} ({PAD} and <unk> counted); {topics}, {profile}; "
        f"window of {statistics['context_utterances']} context utterances and 1 response",
        markup=False,
        highlight=False,
    )
    return page.getvalue().rstrip()
