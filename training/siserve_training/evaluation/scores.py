"""All metrics of a set of responses, under the names that tables, dumps and checks use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from sacrebleu.metrics.bleu import BLEU

from siserve_training.errors import ResponseError
from siserve_training.evaluation.bleu import FAMILIES, count_matches, f1_of_means, sentence_bleu
from siserve_training.evaluation.distinct import (
    corpus_distinct,
    distinct_peer,
    self_bleu,
    varied_sets,
    word_rows,
)
from siserve_training.evaluation.embedding import bow_clean, bow_peer
from siserve_training.evaluation.responses import ResponseSet

__all__ = ["ResponseScores", "add_f1", "score_responses"]

Floats = npt.NDArray[np.float64]
Words = tuple[int, ...]
Mean = TypeVar("Mean", float, Floats)


@dataclass(frozen=True, eq=False)
class ResponseScores:
    """Metrics of a set of responses.

    Attributes:
        per_context: metrics that are means over contexts, (N,) each.
        corpus: every metric's value; besides the means of `per_context` those of the whole set:
            bleu_f1_modern, bleu_f1_legacy, corpus_distinct_1, corpus_distinct_2, sacrebleu.
        sacrebleu_signature: how sacrebleu counted.
    """

    per_context: dict[str, Floats]
    corpus: dict[str, float]
    sacrebleu_signature: str


def score_responses(responses: ResponseSet, vectors: Floats | None = None) -> ResponseScores:
    """Compute every metric that the set allows.

    ``bow_*`` need `vectors`; ``self_bleu`` needs 2 samples a context and ``varied_sets`` 5: what
    cannot be computed is left out.

    Args:
        responses: the set.
        vectors: of its vocabulary, (V, D), from `load_word_vectors`.

    Raises:
        ResponseError: if the vectors are not those of the vocabulary.
    """
    replies = word_rows(responses.samples, responses.tokens)
    per_context = {
        **_bleu(responses),
        **(_bow(responses, vectors) if vectors is not None else {}),
        **_variety(responses, replies),
    }
    corpus = add_f1({name: float(values.mean()) for name, values in per_context.items()})
    for order in (1, 2):
        corpus[f"corpus_distinct_{order}"] = corpus_distinct(replies, order)
    metric = BLEU()
    first = [responses.text.decode(rows[0]) for rows in responses.samples.tolist()]
    score = metric.corpus_score(first, [list(responses.reference_texts)])
    corpus["sacrebleu"] = float(score.score)
    return ResponseScores(per_context, corpus, str(metric.get_signature()))


def add_f1(means: dict[str, Mean]) -> dict[str, Mean]:
    """Put BLEU's F1, which is one of the means and no mean itself, behind its parts."""
    whole = {}
    for name, value in means.items():
        whole[name] = value
        if name.startswith("bleu_precision_"):
            family = name.removeprefix("bleu_precision_")
            whole[f"bleu_f1_{family}"] = f1_of_means(means[f"bleu_recall_{family}"], value)
    return whole


def _bleu(responses: ResponseSet) -> dict[str, Floats]:
    counted = count_matches(responses.samples, responses.references, responses.tokens)
    values = {}
    for family in FAMILIES:
        each = sentence_bleu(counted, family)  # (N, R)
        values[f"bleu_recall_{family}"] = each.max(axis=1)
        values[f"bleu_precision_{family}"] = each.mean(axis=1)
    return values


def _bow(responses: ResponseSet, vectors: Floats) -> dict[str, Floats]:
    if vectors.ndim != 2 or len(vectors) != len(responses.words):
        raise ResponseError(
            f"expected a vector for each of the {len(responses.words)} words, got an array of "
            f"shape {vectors.shape}; build it with this vocabulary"
        )
    values = {}
    for variant, bow in (("peer", bow_peer), ("clean", bow_clean)):
        each = bow(responses.samples, responses.references, vectors, responses.tokens)
        values[f"bow_average_{variant}"] = each.average.max(axis=1)
        values[f"bow_extrema_{variant}"] = each.extrema.max(axis=1)
        values[f"bow_greedy_{variant}"] = each.greedy.max(axis=1)
    return values


def _variety(responses: ResponseSet, replies: list[list[Words]]) -> dict[str, Floats]:
    peer = distinct_peer(responses.samples, responses.tokens)
    values = {
        "intra_dist_1": peer.intra_1.mean(axis=1),
        "intra_dist_2": peer.intra_2.mean(axis=1),
        "inter_dist_1": peer.inter_1,
        "inter_dist_2": peer.inter_2,
        "length": peer.lengths.mean(axis=1),
    }
    draws = responses.samples.shape[1]
    if draws >= 2:
        values["self_bleu"] = self_bleu(replies)
    if draws >= 5:
        values["varied_sets"] = varied_sets(replies)
    return values
