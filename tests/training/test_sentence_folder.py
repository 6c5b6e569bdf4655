"""A pretrained encoder's folder: what is taken from it, and what is refused in one line."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file
from siserve_training.data.sentence_folder import MAX_PIECES, SentenceFolder
from siserve_training.errors import ConfigError
from siserve_training.models.pretrained import load_sentence_encoder
from tiny_bert import SIZES, tiny_bert, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return tiny_bert(tmp_path / "bert")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder, match):
    with pytest.raises(ConfigError, match=match) as error:
        SentenceFolder.open(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_sizes_and_pooling_are_those_of_the_folder(folder):
    shape = SentenceFolder.open(folder).shape
    assert (shape.vocabulary, shape.hidden) == (SIZES["vocab_size"], SIZES["hidden_size"])
    assert (shape.layers, shape.heads, shape.intermediate) == (2, 3, 20)
    assert shape.pooling == "mean" and shape.normalize


def test_the_folder_says_how_tokens_become_a_vector(tmp_path):
    first = SentenceFolder.open(tiny_bert(tmp_path / "a", pooling="cls", normalize=False)).shape
    assert first.pooling == "first" and not first.normalize
    plain = tiny_bert(tmp_path / "b")
    (plain / "modules.json").unlink()
    (plain / "1_Pooling" / "config.json").unlink()
    shape = SentenceFolder.open(plain).shape
    assert shape.pooling == "mean" and not shape.normalize
    newer = tiny_bert(tmp_path / "c")
    (newer / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    assert SentenceFolder.open(newer).shape.pooling == "first"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"pad_token_id": 1},
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_before_training(folder, values):
    change(folder / "config.json", **values)
    refused(folder, next(iter(values)))


def test_unknown_poolings_and_modules_are_refused(tmp_path):
    several = tiny_bert(tmp_path / "a")
    change(several / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    refused(several, "pooling_mode_max_tokens")
    dense = tiny_bert(tmp_path / "b")
    modules = [{"type": "sentence_transformers.models.Dense"}]
    (dense / "modules.json").write_text(json.dumps(modules))
    refused(dense, "Dense")


def test_a_tokenizer_of_another_model_is_refused(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["horse"])
    tokenizer.save(str(folder / "tokenizer.json"))
    refused(folder, "take both from one folder")


def test_a_tokenizer_that_marks_nothing_is_refused(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = None
    tokenizer.save(str(folder / "tokenizer.json"))
    refused(folder, "expected marks")


def test_a_missing_weight_is_named_and_not_drawn_at_random(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"encoder\.layer\.1\.output\.dense\.weight"):
        load_sentence_encoder(SentenceFolder.open(folder))


def test_utterances_are_cut_where_the_model_ends(tmp_path):
    text = "the dog " * 100
    for positions, longest in ((48, 48), (100, MAX_PIECES)):
        path = tiny_bert(tmp_path / str(positions), max_position_embeddings=positions)
        (ids,) = SentenceFolder.open(path).text().encode_utterances([text])
        assert len(ids) == longest


def test_the_digest_tells_encoders_apart_and_a_copy_is_the_same(tmp_path):
    one = SentenceFolder.open(tiny_bert(tmp_path / "one"))
    one.copy_to(tmp_path / "copy")
    assert SentenceFolder.open(tmp_path / "copy").digest == one.digest
    assert SentenceFolder.open(tmp_path / "copy").shape == one.shape
    others = [
        tiny_bert(tmp_path / "weights", seed=1),
        tiny_bert(tmp_path / "pooling", pooling="cls"),
        tiny_bert(tmp_path / "length", normalize=False),
        tiny_bert(tmp_path / "tokenizer"),
    ]
    tokenizer = tiny_tokenizer()
    tokenizer.normalizer = None
    tokenizer.save(str(others[-1] / "tokenizer.json"))
    digests = {SentenceFolder.open(path).digest for path in others}
    assert len(digests | {one.digest}) == len(others) + 1
