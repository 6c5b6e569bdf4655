"""Sentence corpora: what is read, what is refused, PTB's counts, batches of one length."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from siserve.bundle.text import Text
from siserve_training.data.corpus import SPLITS
from siserve_training.data.sentence_batches import SentenceOrder, collate_sentences
from siserve_training.data.sentences import (
    PTB_COUNTS,
    SentenceCorpus,
    SentenceSet,
    build_sentence_vocabulary,
    read_sentences,
)
from siserve_training.errors import CorpusError

from .sentence_corpus import write_sentences


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> list[str]:
    folder = write_sentences(tmp_path_factory.mktemp("sentences"))
    return SentenceCorpus(folder).read("train")[0]


@pytest.fixture(scope="module")
def ptb() -> Path:
    folder = os.environ.get("SISERVE_DATA")
    if not folder or not (Path(folder) / "ptb").is_dir():
        pytest.skip("SISERVE_DATA names no folder with ptb/ in it")
    return Path(folder) / "ptb"


def test_a_sentence_comes_back_token_for_token(sentences):
    text = build_sentence_vocabulary(sentences)
    again = Text.from_json(text.to_json(), text.max_tokens)
    for sentence in sentences:
        assert again.decode(again.encode_utterance(sentence)) == sentence
    assert again.tokens.unk in again.encode_utterance("the <unk>")
    assert again.encode_utterance("the The")[2] == again.tokens.unk  # letters stay as they are


def test_the_vocabulary_has_marks_and_no_dialogs(sentences):
    text = build_sentence_vocabulary(sentences)
    words = {word for sentence in sentences for word in sentence.split()} - {"<unk>"}
    assert text.size == len(words) + 4
    assert text.tokens.dialog_start == text.tokens.pad
    assert build_sentence_vocabulary(sentences, size=6).size == 8


def test_sentences_that_are_too_long_are_left_out_and_counted(sentences):
    text = build_sentence_vocabulary(sentences, max_tokens=6)
    short = [line for line in sentences if len(line.split()) <= 4]
    found = SentenceSet.of(sentences, text)
    assert 0 < len(found) == len(short) == len(sentences) - found.left_out
    assert found.tokens == sum(len(line.split()) + 1 for line in short)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"the b\xffnk\n", r":2: not UTF-8 \(byte 0xff\)"),
        (b"the bank </s>\n", ":2: </s> among its words"),
    ],
)
def test_a_wrong_line_is_named_or_skipped(tmp_path, line, what):
    path = tmp_path / "train.txt"
    path.write_bytes(b" the bank \n" + line + b"\n the bond \n")
    with pytest.raises(CorpusError, match=what):
        list(read_sentences(path))
    skipped: list[CorpusError] = []
    assert list(read_sentences(path, skipped.append)) == ["the bank", "the bond"]
    assert len(skipped) == 1


def test_a_corpus_that_lacks_a_split_is_refused(tmp_path):
    write_sentences(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(CorpusError, match="test.txt missing"):
        SentenceCorpus(tmp_path)
    with pytest.raises(CorpusError, match="no such folder"):
        SentenceCorpus(tmp_path / "nowhere")


def test_a_corpus_under_ptbs_name_is_told_from_the_release(tmp_path):
    write_sentences(tmp_path)
    for split in SPLITS:
        (tmp_path / f"{split}.txt").rename(tmp_path / f"ptb.{split}.txt")
    corpus = SentenceCorpus(tmp_path)
    different = corpus.unlike_ptb("test", corpus.read("test")[0])
    assert different is not None and "24 sentences" in different and "3,761" in different


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_every_batch_has_one_length_and_every_sentence_its_place(sentences, batch_size):
    data = SentenceSet.of(sentences, build_sentence_vocabulary(sentences))
    order = SentenceOrder(data, batch_size, seed=3)
    batches = order.one_pass(0)
    assert len(batches) == order.steps_per_pass
    assert sorted(np.concatenate(batches)) == list(range(len(data)))
    for rows in batches:
        batch = collate_sentences(data, rows)
        assert len(batch) <= batch_size and len(set(batch.lengths.tolist())) == 1
        assert bool((batch.ids != 0).all())
        assert [tuple(ids) for ids in batch.ids.tolist()] == [data.ids[row] for row in rows]


def test_the_order_is_a_function_of_seed_and_step(sentences):
    data = SentenceSet.of(sentences, build_sentence_vocabulary(sentences))
    order = SentenceOrder(data, 8, seed=3)
    per_pass = order.steps_per_pass
    whole = [rows for rows, _ in zip(order.batches(), range(per_pass + 5), strict=False)]
    late = [rows for rows, _ in zip(order.batches(per_pass - 2), range(7), strict=False)]
    for one, other in zip(whole[per_pass - 2 :], late, strict=True):
        assert np.array_equal(one, other)
    assert any(
        not np.array_equal(a, b) for a, b in zip(order.one_pass(0), order.one_pass(1), strict=True)
    )


def test_ptb_is_mikolovs_release(ptb):
    corpus = SentenceCorpus(ptb)
    read = {split: corpus.read(split)[0] for split in SPLITS}
    assert all(corpus.unlike_ptb(split, lines) is None for split, lines in read.items())
    text = build_sentence_vocabulary(read["train"], max_tokens=202)
    assert text.size == 10_002
    batches = {}
    for split, lines in read.items():
        data = SentenceSet.of(lines, text)
        assert (len(data), data.tokens) == PTB_COUNTS[split] and data.left_out == 0
        batches[split] = SentenceOrder(data, 32, 0).steps_per_pass
    assert batches == {"train": 1359, "valid": 142, "test": 155}
