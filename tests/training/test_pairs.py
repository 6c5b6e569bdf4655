"""Windows, batches and their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from siserve.bundle.text import Text, cut_utterance, join_words
from siserve_training.data.batches import BatchOrder, collate, longest_first
from siserve_training.data.corpus import Dialog, DialogCorpus, Utterance
from siserve_training.data.pairs import Features, PairSet, build_vocabulary, find_features


def numbered_dialog(turns: int, speakers="AB") -> Dialog:
    said = [Utterance(speakers[i % len(speakers)], f"word{i}") for i in range(turns)]
    return Dialog(tuple(said), topic="T")


@pytest.fixture(scope="module")
def pairs(corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    return PairSet.from_dialogs(dialogs, build_vocabulary(dialogs), find_features(dialogs))


def words_of(pairs: PairSet, text: Text, position: int) -> str:
    return text.decode(pairs.texts[pairs.text_of[position]])


def test_every_utterance_but_the_last_is_a_response_once_after_at_most_nine():
    dialog = numbered_dialog(14)
    text = build_vocabulary([dialog])
    pairs = PairSet.from_dialogs([dialog], text, Features())
    assert [words_of(pairs, text, r) for r in pairs.responses] == [f"word{i}" for i in range(13)]
    contexts = [[words_of(pairs, text, p) for p in pairs.context_of(r)] for r in pairs.responses]
    assert contexts[0] == [""] and pairs.texts[pairs.text_of[0]] == text.dialog_start
    assert contexts[3] == ["", "word0", "word1", "word2"]
    assert contexts[12] == [f"word{i}" for i in range(3, 12)]
    assert max(len(context) for context in contexts) == 9


def test_a_batch_says_the_same_as_the_dialogs_do(pairs):
    responses = longest_first(pairs, pairs.responses[5:25])
    batch = collate(pairs, responses)
    for row, response in enumerate(responses):
        spoken = pairs.texts[pairs.text_of[response]]
        assert tuple(batch.utterances[batch.response[row]].tolist()[: len(spoken)]) == spoken
        context = list(pairs.context_of(response))
        assert batch.context_lengths[row] == len(context)
        for place, position in enumerate(context):
            ids = pairs.texts[pairs.text_of[position]]
            assert tuple(batch.utterances[batch.context[row, place]].tolist()[: len(ids)]) == ids
            same = pairs.speaker_of[position] == pairs.speaker_of[response]
            assert batch.floor[row, place] == int(same)


def test_a_batch_holds_each_distinct_utterance_once_longest_first(pairs):
    batch = collate(pairs, longest_first(pairs, pairs.responses[:40]))
    rows = [tuple(row) for row in batch.utterances.tolist()]
    assert len(rows) == len(set(rows)) < 40 * 3
    assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True)
    assert batch.response_lengths.tolist() == sorted(batch.response_lengths, reverse=True)


def test_the_profile_of_the_responder_comes_first(pairs):
    responses = longest_first(pairs, pairs.responses[:30])
    batch = collate(pairs, responses)
    for row, response in enumerate(responses):
        own = pairs.profile_of[pairs.dialog_of[response], pairs.speaker_of[response]]
        other = pairs.profile_of[pairs.dialog_of[response], 1 - pairs.speaker_of[response]]
        assert batch.profile[row].tolist() == pytest.approx([*own, *other])


def test_hidden_features_are_zero_and_the_others_untouched(pairs):
    responses = longest_first(pairs, pairs.responses[:6])
    is_hidden = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0]], dtype=bool)
    shown, hidden = collate(pairs, responses), collate(pairs, responses, is_hidden)
    for row, (topic, profile) in enumerate(is_hidden):
        assert hidden.topic[row] == (0 if topic else shown.topic[row])
        expected = torch.zeros(8) if profile else shown.profile[row]
        assert torch.equal(hidden.profile[row], expected)


@pytest.mark.parametrize("run_length", [1, 4, 100])
def test_a_pass_sees_every_pair_once_in_runs_of_consecutive_windows(pairs, run_length):
    order = BatchOrder(pairs, batch_size=7, run_length=run_length, seed=3).one_pass(0)
    assert sorted(order) == sorted(pairs.responses)
    runs = np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)
    assert len(runs) >= len(pairs) / max(run_length, 18)


def test_the_order_is_the_seeds_and_differs_from_pass_to_pass(pairs):
    order = BatchOrder(pairs, 7, 4, seed=3)
    assert np.array_equal(order.one_pass(1), BatchOrder(pairs, 7, 4, seed=3).one_pass(1))
    assert not np.array_equal(order.one_pass(0), order.one_pass(1))
    assert not np.array_equal(order.one_pass(0), BatchOrder(pairs, 7, 4, seed=4).one_pass(0))


def test_batches_can_be_entered_at_any_step(pairs):
    order = BatchOrder(pairs, 7, 4, seed=3)
    whole = order.batches()
    steps = [next(whole) for _ in range(2 * order.steps_per_pass + 3)]
    assert sum(len(batch) for batch in steps[: order.steps_per_pass]) == len(pairs)
    for first in (1, order.steps_per_pass, 2 * order.steps_per_pass + 1):
        entered = order.batches(first)
        assert np.array_equal(next(entered), steps[first])


def test_long_utterances_keep_their_first_39_tokens_and_their_end():
    ids = tuple(range(60))
    assert cut_utterance(ids, 40) == (*range(39), 59)
    assert cut_utterance(ids[:40], 40) == ids[:40]


def test_tokens_are_those_of_wordpunct_and_come_back_as_people_write(corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    text = build_vocabulary(dialogs)
    assert text.split("Don't you, uh-huh?") == ["don", "'", "t", "you", ",", "uh", "-", "huh", "?"]
    ids = text.encode_utterance("We don't need a dog at all")
    assert ids[0] == text.tokens.start and ids[-1] == text.tokens.end
    assert text.decode(ids[1:]) == "we don't need a dog at all"


def test_marks_typed_by_a_user_are_words_not_marks(corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    text = build_vocabulary(dialogs)
    ids = text.encode_utterance("<s> </s> <pad> <d>")
    assert not set(ids[1:-1]) & {text.tokens.start, text.tokens.end, text.tokens.pad}


@pytest.mark.parametrize(
    "sentence",
    ["it's five o'clock", "the kids' school", "at&t and wal-mart", "i said, well; yes!", "'cause"],
)
def test_splitting_and_joining_words_gives_the_sentence_back(corpus, sentence):
    dialogs, _ = DialogCorpus(corpus).read("train")
    assert join_words(build_vocabulary(dialogs).split(sentence)) == sentence


def test_serving_and_training_see_the_same_context(pairs, corpus):
    dialogs, _ = DialogCorpus(corpus).read("train")
    text = build_vocabulary(dialogs)
    dialog = max(dialogs, key=lambda d: len(d.utterances))
    own = PairSet.from_dialogs([dialog], text, Features())
    for response in own.responses:
        turns = [(u.speaker, text.encode_utterance(u.text)) for u in dialog.utterances]
        before = turns[: response - 1]
        window = text.context_window(before, dialog.utterances[response - 1].speaker)
        context = own.context_of(response)
        assert window.utterances == tuple(own.texts[own.text_of[p]] for p in context)
        floors = own.speaker_of[list(context)] == own.speaker_of[response]
        assert window.floors == tuple(floors.astype(int))
