"""Replies that never saw the context: their form, and what they score on the real test split."""

from __future__ import annotations

import numpy as np
import pytest
from siserve_training.data.corpus import DialogCorpus
from siserve_training.data.pairs import Features, PairSet, build_vocabulary
from siserve_training.evaluation.baselines import FIXED_SENTENCE, context_blind_replies
from siserve_training.evaluation.responses import responses_to_pairs
from siserve_training.evaluation.scores import score_responses


@pytest.fixture(scope="module")
def valid(corpus):
    dialogs, _ = DialogCorpus(corpus).read("valid")
    text = build_vocabulary(dialogs)
    return PairSet.from_dialogs(dialogs, text, Features()), text, dialogs


def test_replies_are_repeatable_and_have_the_form_of_decoded_rows(valid):
    pairs, text, _ = valid
    shape = (7, 5, 18)
    first, again, other = (context_blind_replies(pairs, text, shape, seed) for seed in (1, 1, 2))
    assert list(first) == ["random_utterances", "random_unigrams", "yeah", "fixed_sentence"]
    for name, rows in first.items():
        assert rows.shape == shape and rows.dtype == np.int64
        assert np.array_equal(rows, again[name])
        assert (rows != text.tokens.start).all()
        is_end = rows == text.tokens.end
        assert (is_end.sum(axis=-1) == 1).all()
        after = np.cumsum(is_end, axis=-1) - is_end > 0
        assert (rows[after] == text.tokens.pad).all()
        assert np.array_equal(rows, other[name]) == (name in ("yeah", "fixed_sentence"))


def test_random_utterances_are_said_in_the_split_and_no_dialog_opener_is(valid):
    pairs, text, dialogs = valid
    said = {utterance.text for dialog in dialogs for utterance in dialog.utterances}
    rows = context_blind_replies(pairs, text, (200, 5, 40), 0)["random_utterances"]
    drawn = {text.decode(row) for row in rows.reshape(-1, 40)}
    assert drawn == said


def test_unigrams_come_as_often_as_the_split_says_them(valid):
    pairs, text, _ = valid
    rows = context_blind_replies(pairs, text, (400, 10, 40), 0)["random_unigrams"]
    assert (rows[..., 12] == text.tokens.end).all()
    said = np.delete(pairs.text_of, pairs.first_of)
    words = np.concatenate([pairs.texts[number][1:-1] for number in said])
    expected = np.bincount(words, minlength=text.size) / len(words)
    measured = np.bincount(rows[..., :12].ravel(), minlength=text.size) / rows[..., :12].size
    np.testing.assert_allclose(measured, expected, atol=0.01)


def test_a_narrow_row_is_cut(valid):
    pairs, text, _ = valid
    for rows in context_blind_replies(pairs, text, (2, 2, 3), 0).values():
        assert rows.shape == (2, 2, 3)


# Recall, precision, F1 of the legacy and the modern form, intra-1, intra-2, inter-1, inter-2, with
# another generator; every word of the two splits is known and references are cut at 40 tokens.
MEASURED = {
    "random_utterances": (0.410, 0.228, 0.293, 0.264, 0.120, 0.165, 0.920, 0.808, 0.639, 0.915),
    "random_unigrams": (0.283, 0.267, 0.274, 0.135, 0.119, 0.127, 0.941, 0.999, 0.668, 0.993),
    "yeah": (0.119, 0.119, 0.119, 0.108, 0.108, 0.108, 1.0, 0.0, 0.1, 0.0),
}
LENGTHS = {"random_utterances": 12.6, "random_unigrams": 12.0, "yeah": 1.0}
METRICS = [
    *(
        f"bleu_{part}_{form}"
        for form in ("legacy", "modern")
        for part in ("recall", "precision", "f1")
    ),
    *("intra_dist_1", "intra_dist_2", "inter_dist_1", "inter_dist_2"),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.corpus
def test_on_the_real_test_split_replies_that_ignore_the_context_score_what_is_known(switchboard):
    corpus = DialogCorpus(switchboard)
    valid, test = (corpus.read(split)[0] for split in ("valid", "test"))
    text = build_vocabulary([*valid, *test], size=1_000_000)
    pairs = PairSet.from_dialogs(test, text, Features())
    blind = context_blind_replies(
        PairSet.from_dialogs(valid, text, Features()), text, (len(pairs), 10, 40), seed=0
    )
    for name, expected in MEASURED.items():
        corpus_values = score_responses(responses_to_pairs(pairs, test, text, blind[name])).corpus
        measured = [corpus_values[metric] for metric in METRICS]
        assert measured == pytest.approx(expected, abs=0.01), name
        assert corpus_values["length"] == pytest.approx(LENGTHS[name], abs=0.2)
    assert (blind["fixed_sentence"] == text.tokens.unk).sum() == 0
    assert len(FIXED_SENTENCE.split()) == 14
