"""Choosing varied responses: the laws of the trade between score and likeness."""

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from siserve.bundle.selection import consensus, select_diverse

texts = st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=5), min_size=1, max_size=9)
diversities = st.floats(0.01, 1.0)


@st.composite
def candidates(draw):
    """Texts, a different score for each, a number to choose and a diversity above 0."""
    said = draw(texts)
    scores = draw(st.permutations(range(len(said))))
    return said, scores, draw(st.integers(1, len(said))), draw(diversities)


def ngrams(said):
    """Words and pairs of a response with how often it has them, written a second time."""
    pairs = list(zip(said, said[1:], strict=False)) if len(said) > 1 else [tuple(said)]
    return Counter([*said, *pairs])


def share_said(said, index, chosen):
    """Share of a response's words and pairs that a chosen one has."""
    known = {ngram for other in chosen for ngram in ngrams(said[other])}
    mine = ngrams(said[index])
    return sum(times for ngram, times in mine.items() if ngram in known) / mine.total()


def gain(one, other):
    """How well `one` does where `other` is what is said."""
    mine, theirs = ngrams(one), ngrams(other)
    brevity = min(1.0, math.exp(1 - theirs.total() / mine.total()))
    return brevity * (mine & theirs).total() / mine.total()


@given(candidates())
def test_without_diversity_the_first_ones_stay_as_they_are(given_):
    said, scores, n, _ = given_
    assert select_diverse(scores, said, n, 0.0).tolist() == list(range(n))


@given(candidates())
def test_each_choice_has_the_best_trade_among_those_whose_words_are_new(given_):
    said, scores, n, diversity = given_
    chosen = select_diverse(scores, said, n, diversity).tolist()
    assert len(set(chosen)) == n

    weight = 0.6 + 0.4 * diversity

    def value(index, before):
        rank = scores[index] / max(1, len(said) - 1)
        return (1 - weight) * rank - weight * share_said(said, index, before)

    for place, index in enumerate(chosen):
        before = chosen[:place]
        left = [i for i in range(len(said)) if i not in before]
        new = [i for i in left if said[i] not in [said[b] for b in before]] or left
        assert index in new
        assert value(index, before) >= max(value(i, before) for i in new) - 1e-9


@given(texts, diversities, st.randoms(use_true_random=False))
def test_no_words_come_twice_while_others_are_left(said, diversity, dice):
    repeated = [*said, *said, *said]
    dice.shuffle(repeated)
    different = len({tuple(text) for text in said})
    chosen = select_diverse(consensus(repeated), repeated, len(repeated), diversity)
    first = [tuple(repeated[i]) for i in chosen[:different]]
    assert len(set(first)) == different


def test_full_diversity_takes_the_best_one_and_then_what_repeats_least():
    said = [[1, 2, 3, 4], [1, 2, 3, 5], [6, 7, 8, 9], [1, 2, 8, 9], [1, 2, 3, 4, 9]]
    assert select_diverse([0, 1, 2, 3, 9], said, 3, 1.0).tolist() == [4, 2, 1]


def test_a_mixture_of_two_chosen_ones_says_nothing_new():
    said = [[1, 2, 3], [5, 6, 7], [1, 2, 3, 5, 6, 7], [1, 2, 8, 9]]
    assert select_diverse([3, 2, 1, 0], said, 3, 1.0).tolist() == [0, 1, 3]


def test_what_repeats_nothing_is_equally_new_at_any_length():
    said = [[1, 2], [3], [4, 5, 6, 7]]
    assert select_diverse([2, 0, 1], said, 2, 1.0).tolist() == [0, 2]
    assert select_diverse([2, 1, 0], said, 2, 1.0).tolist() == [0, 1]


@given(st.data())
def test_more_diversity_never_says_more_of_the_best_again_in_the_second_choice(data):
    said, scores, _, _ = data.draw(candidates())
    assume(len({tuple(text) for text in said}) == len(said) > 1)
    low, high = sorted(data.draw(st.tuples(diversities, diversities)))
    again = []
    for diversity in (low, high):
        first, second = select_diverse(scores, said, 2, diversity).tolist()
        again.append(share_said(said, second, [first]))
    assert again[1] <= again[0] + 1e-9


@given(candidates(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(given_, dice):
    said, scores, n, diversity = given_
    order = list(range(len(said)))
    dice.shuffle(order)
    moved = select_diverse([scores[i] for i in order], [said[i] for i in order], n, diversity)
    assert [order[i] for i in moved] == select_diverse(scores, said, n, diversity).tolist()


@given(texts, st.randoms(use_true_random=False))
def test_consensus_goes_with_the_candidate_to_the_last_bit(said, dice):
    order = list(range(len(said)))
    dice.shuffle(order)
    assert np.array_equal(consensus([said[i] for i in order]), consensus(said)[order])


@given(candidates())
def test_only_the_order_of_scores_counts(given_):
    said, scores, n, diversity = given_
    other = np.exp(np.array(scores)) - 300.0
    expected = select_diverse(scores, said, n, diversity)
    assert np.array_equal(select_diverse(other, said, n, diversity), expected)


def test_equal_candidates_are_taken_by_index():
    said = [[1, 2], [3, 4], [5, 6]]
    assert select_diverse([1.0, 1.0, 1.0], said, 3, 0.5).tolist() == [0, 1, 2]
    assert select_diverse([1.0, 1.0], [[1, 2], [1, 2]], 2, 0.5).tolist() == [0, 1]


@given(texts)
def test_consensus_is_the_mean_gain_over_all_candidates(said):
    expected = [sum(gain(one, other) for other in said) / len(said) for one in said]
    assert consensus(said).tolist() == pytest.approx(expected)


@given(texts)
def test_consensus_lies_between_being_alone_and_being_all(said):
    scores = consensus(said)
    assert scores.shape == (len(said),)
    assert np.all(scores >= 1 / len(said) - 1e-12) and np.all(scores <= 1)
    assert np.array_equal(consensus([said[0]] * 3), np.ones(3))


def test_consensus_is_highest_for_what_the_others_resemble():
    said = [[1, 2, 3], [1, 2, 4], [5, 2, 3], [6, 7, 8], [9]]
    assert consensus(said).argmax() == 0
    assert consensus(said)[3] == consensus(said)[4] == pytest.approx(1 / 5)


def test_a_short_piece_of_what_is_said_scores_below_the_whole():
    said = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 2]]
    assert consensus(said)[2] < min(consensus(said)[:2])


def test_a_word_said_twice_is_matched_twice_only_where_it_is_said_twice():
    once, twice = consensus([[5, 5, 5], [5, 6, 7]])[0], consensus([[5, 5, 5], [5, 5, 7]])[0]
    assert once == pytest.approx((1 + 1 / 5) / 2)
    assert twice == pytest.approx((1 + 3 / 5) / 2)


def test_one_word_is_like_itself_and_unlike_other_words():
    scores = consensus([[5], [5], [6]])
    assert scores.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3])


def test_many_candidates_are_chosen_from_quickly_enough_to_serve():
    dice = random.Random(1)
    said = [dice.choices(range(60), k=dice.randint(1, 40)) for _ in range(512)]
    chosen = select_diverse(consensus(said), said, 64, 0.85)
    assert len(set(chosen.tolist())) == 64


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scores": [1.0, 2.0]}, r"shape \(2,\), expected \(3,\)"),
        ({"scores": [[1.0, 2.0, 3.0]]}, r"shape \(1, 3\)"),
        ({"scores": [1.0, float("nan"), 2.0]}, "not finite"),
        ({"n": 0}, "from 1 to 3, .* got 0"),
        ({"n": 4}, "from 1 to 3, .* got 4"),
        ({"diversity": -0.1}, "from 0 to 1, got -0.1"),
        ({"diversity": 1.1}, "from 0 to 1, got 1.1"),
        ({"diversity": float("nan")}, "from 0 to 1, got nan"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, match):
    fitting: dict[str, Any] = {
        "scores": [1.0, 2.0, 3.0],
        "responses": [[1], [2], [3]],
        "n": 2,
        "diversity": 0.5,
    }
    select_diverse(**fitting)
    with pytest.raises(ValueError, match=match):
        select_diverse(**{**fitting, **changes})
