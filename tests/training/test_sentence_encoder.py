"""Sentence vectors: those of the folder's model, alone or in a batch, once and then from disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.data.told import padded
from siserve_training.data.vector_file import VectorFile
from siserve_training.models.pretrained import load_sentence_encoder, sentence_vectors
from tiny_bert import tiny_bert
from transformers import BertModel

TEXTS = ["the dog", "", "do you like the old cat?", "uh-huh", "i have 2 dogs"]
HIDDEN = 12


@pytest.fixture(params=[("mean", True), ("mean", False), ("cls", True)], ids=str)
def folder(request, tmp_path):
    pooling, normalize = request.param
    return SentenceFolder.open(tiny_bert(tmp_path / "bert", pooling=pooling, normalize=normalize))


def expected(folder, text):
    """By transformers alone, one text at a time."""
    model = BertModel.from_pretrained(folder.path, add_pooling_layer=False).train(False)
    (ids,) = folder.text().encode_utterances([text])
    states = model(torch.tensor([ids])).last_hidden_state[0]  # (T, P)
    vector = states[0] if folder.shape.pooling == "first" else states.mean(0)
    if folder.shape.normalize:
        vector = vector / vector.square().mean().sqrt()
    return vector


@torch.no_grad()
def test_vectors_are_the_models_whatever_pads_them(folder):
    encoder = load_sentence_encoder(folder)
    found = encoder(padded(folder.text().encode_utterances(TEXTS)))
    for row, text in zip(found, TEXTS, strict=True):
        assert torch.allclose(row, expected(folder, text), atol=1e-5), text


@torch.no_grad()
def test_nothing_is_dropped_while_it_trains(folder):
    encoder = load_sentence_encoder(folder)
    ids = padded(folder.text().encode_utterances(TEXTS))
    still = encoder(ids)
    assert torch.equal(encoder.train()(ids), still)


@torch.no_grad()
def test_vectors_of_many_texts_keep_the_order_of_the_texts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("siserve_training.models.pretrained._TOKENS_AT_ONCE", 20)
    table = sentence_vectors(folder, TEXTS, tmp_path / "cache")
    assert table.shape == (len(TEXTS), HIDDEN)
    for row, text in zip(table, TEXTS, strict=True):
        assert np.allclose(row, expected(folder, text), atol=5e-3), text


def test_vectors_are_computed_once_for_an_encoder_and_its_texts(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = np.array(sentence_vectors(folder, TEXTS, cache))
    with monkeypatch.context() as patched:
        patched.setattr("siserve_training.models.pretrained.load_sentence_encoder", None)
        assert np.array_equal(sentence_vectors(folder, TEXTS, cache), first)
        with pytest.raises(TypeError):
            sentence_vectors(folder, TEXTS[::-1], cache)
    assert np.array_equal(sentence_vectors(folder, TEXTS[::-1], cache), first[::-1])


BATCHES = [np.array(rows) for rows in ([4, 0], [2], [5, 1], [3])]


def vectors_of(rows):
    return (rows[:, None] * 10 + np.arange(3)).astype(np.float16)


def test_a_file_that_was_broken_off_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("siserve_training.data.vector_file._BATCHES_A_NOTE", 1)
    file = VectorFile(tmp_path / "v.safetensors", 6, 3)
    seen: list[int] = []

    def stops_at_5(rows):
        if 5 in rows:
            raise KeyboardInterrupt
        return vectors_of(rows)

    def counts(rows):
        seen.extend(rows.tolist())
        return vectors_of(rows)

    with pytest.raises(KeyboardInterrupt):
        file.fill(BATCHES, stops_at_5)
    assert not file.is_complete
    table = file.fill(BATCHES, counts)
    assert sorted(seen) == [1, 3, 5]
    assert np.array_equal(table, vectors_of(np.arange(6)))
    assert np.array_equal(load_file(file.path)["vectors"], table)
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]


def test_a_complete_file_is_read_and_one_of_another_size_is_not(tmp_path):
    file = VectorFile(tmp_path / "v.safetensors", 6, 3)
    table = np.array(file.fill(BATCHES, vectors_of))
    assert np.array_equal(file.fill([], vectors_of), table)
    file.path.write_bytes(file.path.read_bytes()[:-1])
    assert not file.is_complete
    assert np.array_equal(file.fill(BATCHES, vectors_of), table)


def test_whoever_completes_the_file_second_finds_it_complete(tmp_path):
    file = VectorFile(tmp_path / "v.safetensors", 6, 3)

    def overtaken(rows):
        if not file.is_complete:
            file.fill(BATCHES, vectors_of)
        return vectors_of(rows)

    assert np.array_equal(file.fill(BATCHES, overtaken), vectors_of(np.arange(6)))
