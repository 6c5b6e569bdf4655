"""Embedding scores: the recorded values, what `peer` does to tails, and that `clean` does not."""

from __future__ import annotations

import numpy as np
import pytest
from response_sets import TOKENS, golden_cases, make_set
from siserve_training.data.glove import read_vectors
from siserve_training.errors import CorpusError
from siserve_training.evaluation.embedding import bow_clean, bow_peer, load_word_vectors

KINDS = ("average", "extrema", "greedy")


def vectors_of(responses, width=6, seed=1):
    return np.random.default_rng(seed).normal(size=(len(responses.words), width))


def with_tails(responses, seed):
    """The same replies with other ids after their </s>."""
    rng = np.random.default_rng(seed)
    rows = responses.samples.copy()
    after = np.cumsum(rows == TOKENS.end, axis=-1) - (rows == TOKENS.end) > 0
    rows[after] = rng.integers(5, len(responses.words), int(after.sum()))
    assert (rows != responses.samples).any()
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_recorded_value_is_reproduced_by_peer(kind):
    for samples, references, vectors, expected in golden_cases():
        each = getattr(bow_peer(samples, references, vectors, TOKENS), kind)
        np.testing.assert_allclose(each[0], expected[f"bow_{kind}_each"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_does_not_see_what_follows_the_end(kind):
    responses = make_set(end_bias=0.3)
    vectors = vectors_of(responses)
    given = (responses.references, vectors, TOKENS)
    first = getattr(bow_clean(responses.samples, *given), kind)
    second = getattr(bow_clean(with_tails(responses, 2), *given), kind)
    padded = np.pad(responses.samples, ((0, 0), (0, 0), (0, 4)))
    np.testing.assert_allclose(first, second, atol=1e-12)
    np.testing.assert_allclose(first, getattr(bow_clean(padded, *given), kind), atol=1e-12)


@pytest.mark.parametrize("kind", ["extrema", "greedy"])
def test_peer_does_see_it(kind):
    responses = make_set(end_bias=0.3)
    given = (responses.references, vectors_of(responses), TOKENS)
    first = getattr(bow_peer(responses.samples, *given), kind)
    second = getattr(bow_peer(with_tails(responses, 2), *given), kind)
    assert np.abs(first - second).max() > 0.01


def test_the_exact_answer_is_worth_1_by_clean_in_every_kind():
    vectors = np.random.default_rng(0).normal(size=(12, 4))
    scores = bow_clean(np.array([[[5, 6, 7, 3, 9]]]), [[2, 5, 6, 7, 3]], vectors, TOKENS)
    assert [getattr(scores, kind)[0, 0] for kind in KINDS] == pytest.approx([1, 1, 1])
    raw = bow_peer(np.array([[[5, 6, 7, 3, 9]]]), [[2, 5, 6, 7, 3]], vectors, TOKENS)
    assert raw.greedy[0, 0] < 0.99


def test_clean_follows_its_formulas_word_by_word():
    v = np.random.default_rng(4).normal(size=(12, 3))
    ours, theirs = v[[5, 6, 8]], v[[7, 9]]
    scores = bow_clean(np.array([[[5, 0, 6, 8, 3, 7]]]), [[2, 7, 9, 3]], v, TOKENS)

    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def extreme(rows):
        return np.array([max(c) if max(c) >= abs(min(c)) else min(c) for c in rows.T])

    table = np.array([[cosine(a, b) for b in theirs] for a in ours])
    greedy = (table.max(0).mean() + table.max(1).mean()) / 2
    assert scores.average[0, 0] == pytest.approx(cosine(ours.mean(0), theirs.mean(0)))
    assert scores.extrema[0, 0] == pytest.approx(cosine(extreme(ours), extreme(theirs)))
    assert scores.greedy[0, 0] == pytest.approx(greedy)


def test_an_empty_reply_is_worth_nothing_by_clean():
    vectors = np.random.default_rng(0).normal(size=(12, 4))
    rows = np.array([[[3, 5, 6], [0, 0, 0], [5, 6, 3]]])
    scores = bow_clean(rows, [[2, 5, 6, 3]], vectors, TOKENS)
    for kind in KINDS:
        assert getattr(scores, kind)[0].tolist() == pytest.approx([0, 0, 1])
    empty_reference = bow_clean(rows, [[2, 3]], vectors, TOKENS)
    assert all(not getattr(empty_reference, kind).any() for kind in KINDS)


def test_a_zero_vector_has_cosine_0():
    vectors = np.zeros((12, 3))
    for bow in (bow_peer, bow_clean):
        scores = bow(np.array([[[5, 6, 3]]]), [[2, 5, 6, 3]], vectors, TOKENS)
        assert scores.average[0, 0] == scores.greedy[0, 0] == 0


def test_words_without_a_vector_are_drawn_in_the_order_of_the_vocabulary(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("cat 1 2 3\n<unk> 9 9 9\ndog 4 5 6.5\nother 7 8 9\n")
    table = load_word_vectors(path, ["<pad>", "<unk>", "dog", "zebra", "cat"])
    drawn = np.random.RandomState(1111)
    expected = [drawn.randn(3) * 0.1, drawn.randn(3) * 0.1, [4, 5, 6.5]]
    expected += [drawn.randn(3) * 0.1, [1, 2, 3]]
    np.testing.assert_array_equal(table, np.array(expected))


def test_a_table_without_any_word_of_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "vectors.txt").write_text("cat 1 2\n")
    with pytest.raises(CorpusError, match="none of the 2 words"):
        load_word_vectors(tmp_path / "vectors.txt", ["<pad>", "dog"])


@pytest.mark.parametrize(
    ("line", "what"),
    [("dog 1 x 3", "expected 3 numbers"), ("dog 1 2", "got 2 entries"), ("dog 1 nan 3", "finite")],
)
def test_a_malformed_vector_is_named_by_file_and_line(tmp_path, line, what):
    path = tmp_path / "vectors.txt"
    path.write_text(f"cat 1 2 3\n{line}\n")
    with pytest.raises(CorpusError, match=rf"vectors\.txt:2: after 'dog' .*{what}"):
        read_vectors(path, {"dog"})


def test_headers_and_entries_with_blanks_are_passed_over(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("400 3\ncat 1 2 3\n. . . 1 2 3\n. 4 5 6\n")
    found = read_vectors(path, {"400", "cat", "."})
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "cat": [1, 2, 3],
        ".": [4, 5, 6],
    }
    with pytest.raises(CorpusError, match="no such file"):
        read_vectors(tmp_path / "absent.txt", {"cat"})
