"""Weights lie once, in weights.safetensors; graphs point at them and say what their axes mean."""

import json

import numpy as np
import onnx
import pytest
import safetensors.numpy
from bundle_factory import TinySizes, tiny_arrays, tiny_bundle, tiny_model
from numpy_reference import NumpySICVAE
from siserve.bundle.tensors import DECODER_INT8, GRAPHS, OPTIONAL_GRAPHS, WEIGHTS_FILE
from siserve.bundle.verify import open_bundle
from siserve_training.export.graph import DYNAMIC_AXES
from siserve_training.export.parity import open_graph

ALL_GRAPHS = (*GRAPHS, *OPTIONAL_GRAPHS)


def load(path, graph):
    return onnx.load(path / graph.file, load_external_data=False)


def graphs_within(graph):
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_within(attribute.g)


def operators(model):
    return {node.op_type for graph in graphs_within(model.graph) for node in graph.node}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("half") / "bundle", dtype="float16")


@pytest.fixture(params=["float32", "float16"])
def bundle(request, graphs, half):
    return (graphs.path if request.param == "float32" else half), request.param


def test_every_initializer_lies_in_the_weights_file(bundle):
    path, dtype = bundle
    content = (path / WEIGHTS_FILE).read_bytes()
    arrays = safetensors.numpy.load(content)
    seen = set()
    for graph in ALL_GRAPHS:
        for scope in graphs_within(load(path, graph).graph):
            for tensor in scope.initializer:
                assert tensor.data_location == onnx.TensorProto.EXTERNAL
                entry = {item.key: item.value for item in tensor.external_data}
                start, length = int(entry["offset"]), int(entry["length"])
                stored = np.frombuffer(content[start : start + length], dtype)
                assert entry["location"] == WEIGHTS_FILE
                assert np.array_equal(stored.reshape(tuple(tensor.dims)), arrays[tensor.name])
                seen.add(tensor.name)
    assert seen == set(arrays)


def test_no_weight_is_stored_twice(bundle):
    path, dtype = bundle
    arrays = list(safetensors.numpy.load((path / WEIGHTS_FILE).read_bytes()).values())
    used = [a for name, a in tiny_arrays().items()]
    assert all(array.dtype == dtype for array in arrays)
    assert sum(array.size for array in arrays) == sum(array.size for array in used)
    assert sum(array.size for array in arrays) == open_bundle(path).manifest.sizes.num_parameters
    numbers = np.concatenate([array.ravel() for array in arrays]).astype(np.float32)
    expected = np.concatenate([array.ravel() for array in used]).astype(dtype).astype(np.float32)
    assert np.array_equal(np.sort(numbers), np.sort(expected))


def test_graphs_share_the_embedding_and_the_utterance_encoder(graphs):
    names = {g.file: {t.name for t in load(graphs.path, g).graph.initializer} for g in ALL_GRAPHS}
    sharing = [file for file, weights in names.items() if "embedding.weight" in weights]
    assert sharing == [
        "context_encoder.onnx",
        "si_sampler.onnx",
        "decoder.onnx",
        "decoder_int8.onnx",
        "decoder_unrolled.onnx",
        "utterance_encoder.onnx",
    ]
    steps = names["utterance_encoder.onnx"] | names["dialog_encoder.onnx"]
    assert steps == names["context_encoder.onnx"]
    assert "utterance_encoder.gru.W" in names["context_encoder.onnx"] & names["si_sampler.onnx"]
    assert names["prior.onnx"] <= names["si_sampler.onnx"]


def test_graphs_themselves_hold_no_weights(bundle):
    for graph in ALL_GRAPHS:
        assert (bundle[0] / graph.file).stat().st_size < 40_000


def test_no_graph_draws_random_numbers_or_transposes_a_weight(graphs):
    for graph in ALL_GRAPHS:
        model = load(graphs.path, graph)
        assert not {name for name in operators(model) if "Random" in name or name == "Multinomial"}
        weights = {tensor.name for tensor in model.graph.initializer}
        transposed = {n.input[0] for n in model.graph.node if n.op_type == "Transpose"}
        assert not weights & transposed


def test_loop_bodies_take_their_weights_from_outside(graphs):
    model = load(graphs.path, GRAPHS[3])
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body = loop.attribute[0].g
    assert not body.initializer
    assert "decoder.gru.kernel_hh" in {name for node in body.node for name in node.input}


def test_tensors_are_those_of_the_contract(bundle):
    path, _ = bundle
    sizes = open_bundle(path).manifest.sizes
    fixed: dict[str | int, str | int] = {
        "C": sizes.context,
        "D": sizes.latent,
        "E": sizes.noise,
        "H": sizes.state,
        "P": sizes.latent,
        "F": 2 * TinySizes().utterance_hidden,
    }
    for graph in ALL_GRAPHS:
        model = load(path, graph)
        for tensors, infos in (
            (graph.inputs, model.graph.input),
            (graph.outputs, model.graph.output),
        ):
            assert [info.name for info in infos] == [tensor.name for tensor in tensors]
            for tensor, info in zip(tensors, infos, strict=True):
                axes = [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
                assert axes == [fixed.get(axis, axis) for axis in tensor.axes]


def test_metadata_names_the_dynamic_axes(graphs):
    for graph in ALL_GRAPHS:
        found = {p.key: p.value for p in load(graphs.path, graph).metadata_props}
        dynamic = found["axes.dynamic"].split(",")
        axes = {axis for tensor in (*graph.inputs, *graph.outputs) for axis in tensor.axes}
        assert set(dynamic) == axes & set(DYNAMIC_AXES)
        for tensor in (*graph.inputs, *graph.outputs):
            assert found[f"axes.{tensor.name}"] == ",".join(map(str, tensor.axes))


def test_graphs_ask_for_nothing_newer_than_onnxruntime_1_20_reads(bundle):
    for graph in ALL_GRAPHS:
        model = load(bundle[0], graph)
        assert model.ir_version <= 10
        versions = {o.domain: o.version for o in model.opset_import}
        assert 17 <= versions.pop("") <= 21
        assert versions == ({"com.microsoft": 1} if graph is DECODER_INT8 else {})


def test_float16_weights_are_half_as_large_and_near(graphs, half, rng):
    full = (graphs.path / WEIGHTS_FILE).stat().st_size
    assert (half / WEIGHTS_FILE).stat().st_size < 0.65 * full  # the header stays
    inputs = graphs.contexts(rng, 3, 4, 6)
    (exact,) = graphs.run("context_encoder", **inputs)
    (rounded,) = open_graph(half / "context_encoder.onnx").run(None, inputs)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.02


def test_float16_graphs_equal_a_model_with_rounded_weights(half, graphs, rng):
    rounded = {n: a.astype(np.float16).astype(np.float32) for n, a in tiny_arrays().items()}
    inputs = graphs.contexts(rng, 3, 4, 6)
    (got,) = open_graph(half / "context_encoder.onnx").run(None, inputs)
    assert np.abs(got - NumpySICVAE(rounded, True).encode_context(**inputs)).max() < 1e-5


def test_a_bundle_tells_how_near_its_graphs_are(graphs):
    manifest = open_bundle(graphs.path).manifest
    assert 0 < manifest.metrics["parity_largest_difference"] <= 1e-5
    assert manifest.method == tiny_model().method


def test_the_same_model_makes_the_same_graphs(graphs, tmp_path):
    again = tiny_bundle(tmp_path / "again")
    for name in (*(graph.file for graph in ALL_GRAPHS), WEIGHTS_FILE):
        assert (again / name).read_bytes() == (graphs.path / name).read_bytes()


def test_a_card_without_text_tells_the_facts(graphs):
    card = (graphs.path / "README.md").read_text()
    assert card.startswith("# tiny@1\n")
    for fact in ("9,9", "si-cvae", "temperature 1", "parity_largest_difference"):
        assert fact in card
    assert json.loads((graphs.path / "manifest.json").read_text())["provenance"]["seed"] == 0
