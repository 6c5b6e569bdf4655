"""An utterance has one vector, a context one c and a row one z, to the bit, in any batch.

A server keeps vectors and encodes contexts of several requests at once, and one seed must still
give one answer. That holds if the number of rows, their order, the length of the padding and the
number of threads change no bit of a row.
"""

import numpy as np
import onnxruntime
import pytest
from bundle_factory import TinySizes, tiny_bundle, tiny_model
from siserve.bundle.tensors import DIALOG_ENCODER, PRIOR, UTTERANCE_ENCODER

from .conftest import Graphs, normal

#: Widths as in the paper, and ones that are no multiple of a vector register.
WIDTHS = {
    "tiny": {},
    "paper": {"word_embedding": 200, "utterance_hidden": 300, "context_hidden": 600},
    "odd": {"word_embedding": 50, "utterance_hidden": 37, "context_hidden": 75},
}
CASES, POOL = 40, 48


@pytest.fixture(scope="module", params=[(w, t) for w in WIDTHS for t in ("float32", "float16")])
def graphs_of(request, tmp_path_factory):
    width, dtype = request.param
    path = tmp_path_factory.mktemp("steps") / "bundle"
    sizes = WIDTHS[width]
    tiny_bundle(path, dtype=dtype, **sizes)
    return Graphs(path, tiny_model(0, TinySizes(**sizes)), TinySizes(**sizes))


@pytest.fixture(scope="module")
def sessions(graphs_of):
    """The graphs by their number of threads."""

    def opened(graph, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = graphs_of.path / graph.file
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    graphs = {"utterance": UTTERANCE_ENCODER, "dialog": DIALOG_ENCODER, "prior": PRIOR}
    return {
        (name, threads): opened(graph, threads)
        for name, graph in graphs.items()
        for threads in (1, 2)
    }


def test_two_steps_make_what_the_whole_encoder_makes(graphs_of, rng):
    for batch, window, length in ((2, 1, 2), (3, 4, 9), (5, 9, 40)):
        inputs = graphs_of.contexts(rng, batch, window, length)
        (c,) = graphs_of.run("context_encoder", **inputs)
        assert np.array_equal(graphs_of.encode_in_steps(**inputs), c)


def test_an_utterance_has_one_vector(graphs_of, sessions, rng):
    ids = graphs_of.utterances(rng, POOL, 40)
    lengths = (ids != 0).sum(1)

    def run(rows, length, threads=1):
        (vectors,) = sessions["utterance", threads].run(None, {"ids": ids[rows, :length]})
        return vectors

    alone = np.concatenate([run([row], lengths[row]) for row in range(POOL)])
    assert len(np.unique(alone, axis=0)) == len(np.unique(ids, axis=0))
    for case in range(CASES):
        rows = rng.integers(0, POOL, rng.integers(1, 65))
        length = rng.integers(lengths[rows].max(), 41)
        assert np.array_equal(run(rows, length, 1 + case % 2), alone[rows])


def test_a_context_has_one_condition_vector(graphs_of, sessions, rng):
    window, width = 9, 2 * graphs_of.sizes.utterance_hidden
    counts = rng.integers(1, window + 1, POOL)
    counts[:3] = 1
    given = {
        "vectors": np.tanh(normal(rng, POOL, window, width)),
        "floor": rng.integers(0, 2, (POOL, window)),
        "num_utterances": counts,
        "topic": rng.integers(0, len(graphs_of.sizes.topics) + 1, POOL),
        "profile": normal(rng, POOL, 8),
    }

    def run(rows, used, threads=1):
        inputs = {name: array[rows] for name, array in given.items()}
        inputs["vectors"], inputs["floor"] = inputs["vectors"][:, :used], inputs["floor"][:, :used]
        return sessions["dialog", threads].run(None, inputs)[0]

    alone = np.concatenate([run([row], counts[row]) for row in range(POOL)])
    assert len(np.unique(alone, axis=0)) == POOL
    for case in range(CASES):
        rows = rng.integers(0, POOL, rng.integers(1, 65))
        used = rng.integers(counts[rows].max(), window + 1)
        assert np.array_equal(run(rows, used, 1 + case % 2), alone[rows])


def test_rows_of_several_requests_have_the_latents_that_they_have_alone(graphs_of, sessions, rng):
    c, noise = graphs_of.latents(rng, POOL)

    def run(rows, threads=1):
        return sessions["prior", threads].run(None, {"c": c[rows], "eps_z": noise[rows]})[0]

    alone = np.concatenate([run([row]) for row in range(POOL)])
    assert len(np.unique(alone, axis=0)) == POOL
    for case in range(CASES):
        rows = rng.integers(0, POOL, rng.integers(1, 129))
        assert np.array_equal(run(rows, 1 + case % 2), alone[rows])
