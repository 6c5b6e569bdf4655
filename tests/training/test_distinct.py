"""Distinct n-grams, self-BLEU and different texts."""

from __future__ import annotations

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu
from response_sets import GOLDEN, TOKENS, golden_cases, make_set
from siserve_training.evaluation.distinct import (
    corpus_distinct,
    distinct_peer,
    self_bleu,
    varied_sets,
    word_rows,
)


def test_every_recorded_value_is_reproduced():
    means = []
    for samples, _, _, expected in golden_cases():
        scores = distinct_peer(samples, TOKENS)
        for order in ("1", "2"):
            each = getattr(scores, f"intra_{order}")[0]
            np.testing.assert_allclose(each, expected[f"intra_dist{order}_each"], atol=1e-9)
            inter = getattr(scores, f"inter_{order}")[0]
            assert inter == pytest.approx(expected[f"inter_dist{order}"], abs=1e-9)
        assert scores.lengths[0].tolist() == expected["sample_lens"]
        means.append([scores.intra_2.mean(), scores.inter_2[0], scores.lengths.mean()])
    recorded = [GOLDEN["corpus_mean"][key] for key in ("intra_dist2", "inter_dist2", "avg_len")]
    assert np.mean(means, axis=0) == pytest.approx(recorded, abs=1e-9)


def test_samples_too_short_count_with_1e_7_and_are_not_skipped():
    scores = distinct_peer(np.array([[[3, 5, 5], [5, 3, 5], [5, 6, 3]]]), TOKENS)
    assert scores.intra_1[0] == pytest.approx([1e-7, 0.99999, 0.999995], abs=1e-9)
    assert scores.intra_2[0] == pytest.approx([1e-7, 1e-7, 0.99999], abs=1e-9)


def test_no_bigram_crosses_from_one_sample_into_the_next():
    scores = distinct_peer(np.array([[[5, 3, 0], [6, 3, 0], [5, 6, 3]]]), TOKENS)
    assert scores.inter_2[0] == pytest.approx(1, abs=1e-4)
    assert scores.inter_1[0] == pytest.approx(2 / 4, abs=1e-5)


def test_corpus_distinct_pools_over_contexts_where_inter_does_not():
    rows = np.array([[[5, 6, 3], [7, 8, 3]], [[5, 6, 3], [9, 8, 0]]])
    replies = word_rows(rows, TOKENS)
    assert replies == [[(5, 6), (7, 8)], [(5, 6), (9, 8)]]
    assert corpus_distinct(replies, 1) == 5 / 8
    assert corpus_distinct(replies, 2) == 3 / 4
    assert distinct_peer(rows, TOKENS).inter_1 == pytest.approx([1, 1], abs=1e-5)
    assert corpus_distinct([[(), ()]], 1) == 0


def test_a_set_is_varied_with_four_texts_among_its_first_five():
    one, two, three, four = (5,), (5, 5), (6,), (6, 5)
    sets: list[list[tuple[int, ...]]] = [
        [one, two, three, four, one],
        [one, two, three, one, two, four],
        [one] * 5,
        [one, two, three, four, (), one],
    ]
    assert varied_sets(sets).tolist() == [1, 0, 0, 1]


def test_self_bleu_is_nltk_bleu_against_the_other_samples():
    replies = word_rows(make_set(contexts=30, words=4, seed=5).samples, TOKENS)
    smoothing = SmoothingFunction().method1
    measured = self_bleu(replies)
    assert {len(reply) for context in replies for reply in context} >= {0, 1, 2, 3, 9}
    for context, value in zip(replies, measured, strict=True):
        expected = []
        for place, reply in enumerate(context):
            others = context[:place] + context[place + 1 :]
            orders = min(4, len(reply))
            expected.append(
                nltk_bleu(others, reply, (1 / orders,) * orders, smoothing)
                if reply
                else float(() in others)
            )
        assert value == pytest.approx(np.mean(expected), abs=1e-12)


def test_self_bleu_is_1_for_one_text_said_again_and_0_for_texts_without_a_common_word():
    assert self_bleu([[(5,)] * 3, [(5, 6, 7, 8, 9)] * 2, [()] * 2]).tolist() == [1, 1, 1]
    assert self_bleu([[(5, 6), (7, 8), (9,)], [(), (5,)]]).tolist() == [0, 0]
