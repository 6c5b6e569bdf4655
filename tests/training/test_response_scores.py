"""All metrics of a set under their names, and sets that do not fit together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from response_sets import golden_cases, make_set
from siserve.bundle.text import DIALOG_START, END, PAD, START, UNK
from siserve_training.data.corpus import DialogCorpus
from siserve_training.data.pairs import PairSet, build_vocabulary, find_features
from siserve_training.errors import ResponseError
from siserve_training.evaluation.responses import ResponseSet, responses_to_pairs
from siserve_training.evaluation.scores import score_responses

NAMES = [
    *("bleu_recall_modern", "bleu_precision_modern", "bleu_f1_modern"),
    *("bleu_recall_legacy", "bleu_precision_legacy", "bleu_f1_legacy"),
    *("bow_average_peer", "bow_extrema_peer", "bow_greedy_peer"),
    *("bow_average_clean", "bow_extrema_clean", "bow_greedy_clean"),
    *("intra_dist_1", "intra_dist_2", "inter_dist_1", "inter_dist_2", "length", "self_bleu"),
    *("varied_sets", "corpus_distinct_1", "corpus_distinct_2", "sacrebleu"),
]


def test_a_set_of_one_context_has_the_recorded_values():
    for samples, references, vectors, expected in golden_cases():
        plain = [f"w{n}" for n in range(4, len(vectors))]
        words = (PAD, UNK, START, END, *plain, DIALOG_START)
        responses = ResponseSet(((),), (tuple(references[0]),), samples, words)
        table = np.concatenate([vectors, np.ones((1, vectors.shape[1]))])
        corpus = score_responses(responses, table).corpus
        for ours, theirs in (
            ("bleu_recall_legacy", "bleu_recall_legacy"),
            ("bleu_precision_modern", "bleu_precision_modern"),
            ("bow_average_peer", "bow_average"),
            ("bow_extrema_peer", "bow_extrema"),
            ("bow_greedy_peer", "bow_greedy"),
            ("intra_dist_1", "intra_dist1"),
            ("inter_dist_2", "inter_dist2"),
            ("length", "avg_len"),
        ):
            assert corpus[ours] == pytest.approx(expected[theirs], abs=1e-9), ours


def test_every_metric_has_its_name_and_means_are_means_of_their_contexts():
    responses = make_set()
    scores = score_responses(responses, np.random.default_rng(0).normal(size=(25, 7)))
    assert sorted(scores.corpus) == sorted(NAMES)
    for name, values in scores.per_context.items():
        assert values.shape == (len(responses),)
        assert scores.corpus[name] == pytest.approx(values.mean())
    assert all(type(value) is float for value in scores.corpus.values())
    assert "tok:13a" in scores.sacrebleu_signature and "version" in scores.sacrebleu_signature


def test_f1_comes_from_the_means_not_from_the_contexts():
    scores = score_responses(make_set())
    r, p = (scores.per_context[f"bleu_{part}_modern"] for part in ("recall", "precision"))
    assert scores.corpus["bleu_f1_modern"] == pytest.approx(
        2 * r.mean() * p.mean() / (r.mean() + p.mean())
    )
    assert abs(scores.corpus["bleu_f1_modern"] - (2 * r * p / (r + p + 1e-11)).mean()) > 1e-4


def test_what_cannot_be_computed_is_left_out():
    responses = make_set(samples=1)
    missing = set(NAMES) - set(score_responses(responses).corpus)
    assert missing == {name for name in NAMES if name.startswith("bow_")} | {
        "self_bleu",
        "varied_sets",
    }


def test_two_samples_are_enough_for_self_bleu_and_five_for_varied_sets():
    found = [set(score_responses(make_set(samples=count)).corpus) for count in (2, 4, 5)]
    assert [("self_bleu" in names, "varied_sets" in names) for names in found] == [
        (True, False),
        (True, False),
        (True, True),
    ]


def test_sacrebleu_reads_the_first_sample_as_people_write_it():
    words = (PAD, UNK, START, END, DIALOG_START, "we", "don", "'", "t", "need", "a", "dog")
    reference = (2, 5, 6, 7, 8, 9, 10, 11, 3)
    rows = np.array([[[5, 6, 7, 8, 9, 10, 11, 3, 9], [5, 3, 0, 0, 0, 0, 0, 0, 0]]])
    responses = ResponseSet((("A: hello",),), (reference,), rows, words)
    assert responses.reference_texts == ("we don't need a dog",)
    assert responses.sample_texts == (("we don't need a dog", "we"),)
    assert score_responses(responses).corpus["sacrebleu"] == pytest.approx(100)
    swapped = dataclasses.replace(responses, samples=rows[:, ::-1])
    assert score_responses(swapped).corpus["sacrebleu"] < 50


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"contexts": ((),)}, "got 1, 6 and 6"),
        ({"samples": np.zeros((6, 5), dtype=np.int64)}, r"shape \(contexts, samples, ids\)"),
        ({"samples": np.zeros((6, 5, 9), dtype=np.int32)}, "int64"),
        ({"samples": np.full((6, 5, 9), 25)}, "ids from 0 to 24, got 25"),
        ({"samples": np.full((6, 5, 9), -1)}, "got -1"),
        ({"references": ((2, 5, 3),) * 5 + ((2, 5),)}, "reference 5: .*</s>"),
        ({"references": ((2, 99, 3),) * 6}, "reference 0: .*below 25"),
        ({"words": ("a", "b")}, "lacks <pad>"),
        ({"words": (*make_set().words, "w0")}, "stands there twice"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_clear_line(change, what):
    with pytest.raises(ResponseError, match=what) as caught:
        dataclasses.replace(make_set(), **change)
    assert "\n" not in str(caught.value)


def test_vectors_of_another_vocabulary_are_refused():
    with pytest.raises(ResponseError, match=r"each of the 25 words, got .*\(24, 3\)"):
        score_responses(make_set(), np.ones((24, 3)))


def test_a_split_gives_each_response_its_own_context_with_the_speakers_names(corpus):
    dialogs, _ = DialogCorpus(corpus).read("test")
    text = build_vocabulary(dialogs)
    pairs = PairSet.from_dialogs(dialogs, text, find_features(dialogs))
    samples = np.full((len(pairs), 2, 4), text.tokens.end)
    responses = responses_to_pairs(pairs, dialogs, text, samples)
    row = 0
    for dialog in dialogs:
        said = [f"{utterance.speaker}: {utterance.text}" for utterance in dialog.utterances]
        for place in range(len(said) - 1):
            assert responses.contexts[row] == tuple(said[max(0, place - 9) : place])
            assert f"{said[place][:3]}{responses.reference_texts[row]}" == said[place]
            row += 1
    assert row == len(pairs)
    some = responses_to_pairs(pairs, dialogs, text, samples[:3], pairs.responses[4:7])
    assert some.contexts == responses.contexts[4:7]
