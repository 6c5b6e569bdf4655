"""distinct-n counts different n-grams, pooled over the responses."""

from hypothesis import given
from hypothesis import strategies as st
from siserve.serving.diversity import distinct

responses = st.lists(st.lists(st.integers(5, 9), max_size=8), max_size=6)


def test_ngrams_are_pooled_over_responses_and_do_not_cross_them():
    assert distinct([[1, 2, 1], [2, 3]], 1) == 3 / 5
    assert distinct([[1, 2, 1], [1, 2]], 2) == 2 / 3
    assert distinct([[1], [2]], 2) == 0.0
    assert distinct([], 1) == 0.0


@given(responses)
def test_it_is_a_share_and_the_order_of_responses_does_not_matter(rows):
    for order in (1, 2):
        share = distinct(rows, order)
        assert 0 <= share <= 1
        assert share == distinct(rows[::-1], order)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=9, unique=True), st.integers(2, 5))
def test_a_response_said_k_times_is_as_distinct_as_one_kth(words, times):
    assert distinct([words], 1) == 1.0
    assert distinct([words] * times, 1) == 1 / times
