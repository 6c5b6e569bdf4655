"""BLEU-3 with smoothing method 7: the recorded values, NLTK itself, and the traps of both forms."""

from __future__ import annotations

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu
from response_sets import GOLDEN, TOKENS, golden_cases
from siserve_training.evaluation.bleu import (
    FAMILIES,
    count_matches,
    f1_of_means,
    sentence_bleu,
)


def bleu(reference, *samples, family="modern"):
    return sentence_bleu(count_matches(np.array([samples]), [reference], TOKENS), family)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_value_is_reproduced(family):
    recalls, precisions = [], []
    for samples, references, _, expected in golden_cases():
        each = sentence_bleu(count_matches(samples, references, TOKENS), family)
        np.testing.assert_allclose(each[0], expected[f"bleu_each_{family}"], rtol=0, atol=1e-9)
        recalls.append(each.max())
        precisions.append(each.mean())
    f1 = f1_of_means(float(np.mean(recalls)), float(np.mean(precisions)))
    assert f1 == pytest.approx(GOLDEN["corpus_mean"][f"bleu_f1_{family}"], abs=1e-9)


def test_modern_is_what_the_installed_nltk_computes():
    rng = np.random.default_rng(3)
    smoothing = SmoothingFunction().method7
    lengths_seen = set()
    for _ in range(400):
        reference = [*rng.integers(5, 9, rng.integers(0, 9)).tolist(), TOKENS.end]
        hypothesis = rng.integers(5, 9, rng.integers(0, 9)).tolist()
        hypothesis += [TOKENS.end] * int(rng.random() < 0.7)
        lengths_seen.add(len(hypothesis))
        row = hypothesis + [TOKENS.pad] * (10 - len(hypothesis))
        expected = nltk_bleu(
            [reference], hypothesis or [""], weights=(1 / 3,) * 3, smoothing_function=smoothing
        )
        assert bleu([TOKENS.start, *reference], row)[0] == pytest.approx(expected, abs=1e-9)
    assert {0, 1, 2, 9} <= lengths_seen


def test_one_token_against_itself_scores_only_in_the_modern_form():
    reference, empty_reply = [2, 5, 6, 7, 3], [3, 5, 6, 7]
    assert bleu(reference, empty_reply)[0] == pytest.approx(0.016596, abs=1e-6)
    assert bleu(reference, empty_reply, family="legacy")[0] == 0


@pytest.mark.parametrize(
    ("words", "modern", "legacy"), [(1, 0.677, 0.694), (3, 1.01398, 1.01398), (5, 1.15389, 1.15389)]
)
def test_identical_texts_score_what_is_published_and_the_tail_counts_nothing(words, modern, legacy):
    text = list(range(5, 5 + words))
    rows = [[*text, 3, *[0] * 9][:9], [*text, 3, *[8] * 9][:9]]
    for family, value in (("modern", modern), ("legacy", legacy)):
        scores = bleu([2, *text, 3], *rows, family=family)
        assert scores == pytest.approx([value, value], abs=5e-4)


def test_a_row_of_pads_or_of_foreign_words_without_end_scores_nothing():
    for family in FAMILIES:
        assert bleu([2, 5, 6, 3], [0, 0, 0], [8, 9, 8], family=family).tolist() == [0, 0]


def test_a_word_said_twice_matches_a_reference_that_has_it_once_only_once():
    counted = count_matches(np.array([[[5, 5, 6, 5, 6, 3]]]), [[2, 5, 6, 6, 3]], TOKENS)
    assert counted.matches[0, 0].tolist() == [4, 2, 0, 0]  # 5 6 6 </s>; "5 6" and "6 </s>"


def test_f1_is_the_harmonic_mean_of_the_two_means():
    assert f1_of_means(0.410, 0.228) == pytest.approx(0.293, abs=5e-4)
    assert f1_of_means(0.0, 0.0) == 0
