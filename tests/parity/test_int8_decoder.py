"""The 8-bit decoder: near the exact one, exact in its sums, and left out where it is not near."""

import numpy as np
import onnx
import pytest
from bundle_factory import tiny_bundle, tiny_model, tiny_text
from onnx import helper
from siserve.bundle.tensors import DECODER_INT8
from siserve.bundle.verify import open_bundle
from siserve_training.export.graph import GraphBuilder, Value
from siserve_training.export.parity import open_graph
from siserve_training.export.products import Affine, Rows
from siserve_training.export.trial import TOLERANCE, Example, valid_examples
from siserve_training.export.weights import WeightStore

from .conftest import Graphs, every_int8_decoder, normal
from .test_batches import WIDE
from .test_sampling import first_step, run, softmax


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    from bundle_factory import TinySizes

    with every_int8_decoder():
        path = tiny_bundle(tmp_path_factory.mktemp("int8") / "bundle", **WIDE)
    return Graphs(path, tiny_model(0, TinySizes(**WIDE)), TinySizes(**WIDE))


def layer(tmp_path, kernel, bias, is_bounded):
    """One linear layer in 8-bit integers, as a graph of its own: x (R, F) to y (R, N)."""
    g = GraphBuilder(WeightStore(), precision="int8")
    weights = Affine.of(g, Value("kernel"), Value("bias"))
    y = weights.apply(g, Rows.of(g, Value("x"), is_bounded))
    g.op("Identity", y)
    nodes = g._nodes
    nodes[-1].output[0] = "y"
    arrays = {"kernel": kernel, "bias": bias}
    proto = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["R", len(kernel)])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["R", len(bias)])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "layer.onnx"
    onnx.save(helper.make_model(proto, opset_imports=opsets, ir_version=8), path)
    return open_graph(path)


@pytest.mark.parametrize("is_bounded", [False, True])
def test_a_product_is_the_sum_of_rounded_numbers_to_the_last_bit(tmp_path, rng, is_bounded):
    """Sums of 7-bit weights cannot overflow, so that CPUs with and without VNNI agree."""
    kernel = normal(rng, 64, 48)
    kernel[:, 0] = np.sign(kernel[:, 0])  # a column at its limits: the largest sums there are
    bias = normal(rng, 48)
    x = np.clip(normal(rng, 30, 64), -1, 1)
    x[0] = np.sign(kernel[:, 0])
    if not is_bounded:
        x *= np.geomspace(0.1, 40, 30, dtype=np.float32)[:, None]
    (y,) = layer(tmp_path, kernel, bias, is_bounded).run(None, {"x": x})
    of_columns = np.abs(kernel).max(0) / np.float32(63)
    levels = np.rint(kernel / of_columns)
    largest = np.ones((30, 1)) if is_bounded else np.maximum(np.abs(x).max(1, keepdims=True), 1)
    of_rows = (largest / 127).astype(np.float32)
    integers = np.rint(x / of_rows) @ levels
    expected = integers * of_columns * of_rows + bias
    assert np.abs(levels).max() == 63
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    # half a step of a weight and half a step of an activation, at each of 64 products
    steps = 0.5 * of_columns * (np.abs(x).max(1, keepdims=True) + of_rows)
    steps = steps + 0.5 * of_rows * np.abs(kernel).max(0)
    assert np.all(np.abs(y - (x @ kernel + bias)) <= 64 * steps)


def test_a_neighbour_of_any_size_changes_nothing(tmp_path, rng):
    kernel, bias, x = normal(rng, 64, 48), normal(rng, 48), normal(rng, 9, 64)
    graph = layer(tmp_path, kernel, bias, is_bounded=False)
    (alone,) = graph.run(None, {"x": x[:1]})
    x[1:] *= 1e4
    assert np.array_equal(graph.run(None, {"x": x})[0][:1], alone)


def test_log_probs_are_near_the_exact_ones(wide, rng):
    c, z = wide.latents(rng, 40)
    inputs = wide.chunk(rng, c, z, 1, forced=rng.choice(wide.words, (1, 40)))
    exact, int8 = (wide.run(name, **inputs)[1] for name in ("decoder", "decoder_int8"))
    assert 0 < np.abs(int8 - exact).mean() < 0.1 * exact.std()


def test_draws_follow_the_softmax_of_the_exact_model(wide, rng):
    """At a high temperature, where rounding moves no probability by much."""
    draws = 20_000
    c, z = wide.latents(rng, 1)
    expected = draws * softmax(first_step(wide, c, z) / 8)[0]
    inputs = wide.chunk(rng, c.repeat(draws, 0), z.repeat(draws, 0), 1)
    inputs["temperature"] = np.full(draws, 8.0, np.float32)
    counts = np.bincount(wide.run("decoder_int8", **inputs)[0][0], minlength=wide.vocabulary)
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum() - 1
    assert freedom > 30
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)
    assert run(wide, rng, c, z, temperature=8.0)[0].shape == (1, 1)


def test_a_decoder_is_in_a_bundle_if_its_perplexity_is_within_half_a_percent(tmp_path):
    seen = set()
    for seed in range(5):
        manifest = open_bundle(tiny_bundle(tmp_path / str(seed), seed=seed)).manifest
        is_near = abs(manifest.metrics["int8_perplexity_ratio"] - 1) <= TOLERANCE
        assert (DECODER_INT8.file in manifest.files) == is_near
        seen.add(is_near)
    assert seen == {True, False}


def test_examples_of_a_corpus_are_spread_over_its_valid_split(tmp_path):
    said = [["A" if i % 2 else "B", f"word {i}"] for i in range(30)]
    lines = "".join(f'{{"utts": {str(said).replace(chr(39), chr(34))}}}\n' for _ in range(40))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.jsonl").write_text(lines)
    examples = valid_examples(tmp_path, 9)
    assert 300 < len(examples) <= 512
    assert examples[0] == Example((("B", "word 0"),), "A", "word 1")
    assert max(len(example.turns) for example in examples) == 9


def test_a_trial_tells_what_it_was_on(tmp_path):
    manifest = open_bundle(tiny_bundle(tmp_path / "tiny")).manifest
    assert manifest.provenance["int8_trial"] == "96 responses of its own"
    assert manifest.metrics["int8_trial_words"] > 96
    assert tiny_text().size == manifest.sizes.vocabulary
