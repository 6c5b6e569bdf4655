"""The kernels for CPUs encode utterances and dialogs as onnxruntime does by their graphs."""

import numpy as np
import pytest
from siserve.bundle import open_bundle
from siserve.serving.encoding import Context, ContextEncoder
from siserve.serving.fused import cpu_encoder, loading
from siserve.serving.fused.cpu import CpuDecoder
from siserve.serving.fused.cpu_encoder import CpuDialogEncoder, CpuUtteranceEncoder
from siserve.serving.fused.loading import load_encoders_on_cpu
from siserve.serving.fused.native import Kind, cpu_library, kind_of
from siserve.serving.fused.weights import NotFused
from siserve.serving.sessions import load_sessions
from wide_decoder import weights_of

from .test_cpu_kernels import ALONE_OR_HELPED, REASON

pytestmark = pytest.mark.skipif(bool(REASON), reason=f"no kernels for CPUs here: {REASON}")


def some_ids(manifest, rows, longest, seed=0):
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, manifest.sizes.vocabulary, (rows, longest))
    lengths = rng.integers(1, longest + 1, rows)
    lengths[0] = longest
    ids[np.arange(longest) >= lengths[:, None]] = 0
    return ids


def some_turns(manifest, vectors, contexts, window, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "vectors": np.resize(vectors, (contexts, window, vectors.shape[1])),
        "floor": rng.integers(0, 2, (contexts, window)),
        "num_utterances": rng.integers(1, window + 1, contexts),
        "topic": rng.integers(0, len(manifest.features.topics) + 1, contexts),
        "profile": rng.random((contexts, 8), np.float32),
    }


@pytest.mark.parametrize(("rows", "longest"), [(1, 1), (1, 9), (5, 14), (16, 3), (40, 30)])
def test_utterances_of_any_number_and_length_get_what_the_graph_gives(
    sessions, graphs, manifest, rows, longest
):
    assert isinstance(sessions.utterance_encoder, CpuUtteranceEncoder)
    told = {"ids": some_ids(manifest, rows, longest)}
    (got,), (expected,) = (each.utterance_encoder.run(told) for each in (sessions, graphs))
    assert got.shape == expected.shape and np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("contexts", "window"), [(1, 1), (1, 6), (4, 3), (33, 9)])
def test_dialogs_of_any_number_and_length_get_what_the_graph_gives(
    sessions, graphs, manifest, contexts, window
):
    assert isinstance(sessions.dialog_encoder, CpuDialogEncoder)
    (vectors,) = graphs.utterance_encoder.run({"ids": some_ids(manifest, 20, 9)})
    told = some_turns(manifest, vectors, contexts, window)
    (got,), (expected,) = (each.dialog_encoder.run(told) for each in (sessions, graphs))
    assert got.shape == expected.shape and np.allclose(got, expected, atol=1e-5)


def test_an_utterance_of_nothing_but_padding_counts_as_one_token(sessions, graphs):
    told = {"ids": np.zeros((2, 4), np.int64)}
    (got,), (expected,) = (each.utterance_encoder.run(told) for each in (sessions, graphs))
    assert np.allclose(got, expected, atol=1e-5)


@ALONE_OR_HELPED
def test_a_vector_has_the_same_bits_alone_and_beside_others_with_and_without_helpers(
    sessions, manifest, cores
):
    ids = some_ids(manifest, 37, 12)
    (together,) = sessions.utterance_encoder.run({"ids": ids})
    told = some_turns(manifest, together, 21, 5)
    (contexts,) = sessions.dialog_encoder.run(told)
    cpu_library().allow(1)
    for row in (0, 5, 36):
        length = int((ids[row] != 0).sum())
        (alone,) = sessions.utterance_encoder.run({"ids": ids[row : row + 1, :length]})
        assert np.array_equal(alone[0], together[row])
    (alone,) = sessions.dialog_encoder.run({name: values[7:8] for name, values in told.items()})
    assert np.array_equal(alone[0], contexts[7])


@ALONE_OR_HELPED
@pytest.mark.parametrize("units", [7, 16, 40])
def test_two_directions_together_come_to_what_each_comes_to_alone(units, cores):
    rng = np.random.default_rng(units)
    shapes = ((2, 3 * units, 9), (2, 3 * units, units), (2, 6 * units))
    weights = [rng.standard_normal(shape, np.float32) for shape in shapes]
    rows = [rng.standard_normal((length, 9), np.float32) for length in (1, 4, 2)]
    lengths, both = np.array([1, 4, 2]), np.empty((3, 2 * units), np.float32)
    cpu_encoder._CpuGru(cpu_library(), *weights).run(np.concatenate(rows), None, lengths, both)
    cpu_library().allow(1)
    turned = [row[::-1] for row in rows]
    for way, told in enumerate((rows, turned)):
        alone = np.full((3, units + 5), 8, np.float32)
        gru = cpu_encoder._CpuGru(cpu_library(), *(w[way : way + 1] for w in weights))
        gru.run(np.concatenate(told), None, lengths, alone, 3)
        assert np.array_equal(alone[:, 3:-2], both[:, way * units : (way + 1) * units])
        assert (alone[:, :3] == 8).all() and (alone[:, -2:] == 8).all()


def test_contexts_are_encoded_by_them_as_by_the_graphs(sessions, graphs, manifest):
    rng = np.random.default_rng(1)
    contexts = [
        Context(
            tuple(
                tuple(rng.integers(4, manifest.sizes.vocabulary, rng.integers(1, 9)).tolist())
                for _ in range(turns)
            ),
            tuple(rng.integers(0, 2, turns).tolist()),
        )
        for turns in (1, 3, 5)
    ]
    pad = manifest.tokens.pad
    got, expected = (ContextEncoder(each, pad).encode(contexts) for each in (sessions, graphs))
    assert np.allclose(got, expected, atol=1e-5)


def test_utterances_of_all_lengths_are_encoded_in_one_run(sessions, graphs, manifest, monkeypatch):
    told = []
    encode = CpuUtteranceEncoder.encode

    def counted(self, utterances):
        told.append(len(utterances))
        return encode(self, utterances)

    monkeypatch.setattr(CpuUtteranceEncoder, "encode", counted)
    utterances = [(2, *([7] * length), 3) for length in range(1, 39)]
    contexts = [Context(tuple(utterances[at : at + 9]), (0,) * 9) for at in range(29)]
    pad = manifest.tokens.pad
    got = ContextEncoder(sessions, pad).encode(contexts)
    assert told == [37]
    assert np.allclose(got, ContextEncoder(graphs, pad).encode(contexts), atol=1e-5)


def test_what_are_no_utterances_is_refused(sessions, manifest):
    for utterances in ([(2, 3), ()], [(2, manifest.sizes.vocabulary, 3)], [(2, -1, 3)]):
        with pytest.raises(ValueError, match="no sequences of known inputs"):
            sessions.utterance_encoder.encode(utterances)


def test_encoders_of_other_kinds_are_refused_by_name(bundle, manifest):
    weights, library = weights_of(bundle), cpu_library()
    without = {name: w for name, w in weights.items() if name != "utterance_encoder.gru.R"}
    with pytest.raises(NotFused, match=r"the encoder has no utterance_encoder.gru.R"):
        CpuUtteranceEncoder(library, without)
    one_way = {name: w[:1] for name, w in weights.items() if name.startswith("utterance_encoder")}
    with pytest.raises(NotFused, match="not bidirectional"):
        CpuUtteranceEncoder(library, {**weights, **one_way})
    without = {name: w for name, w in weights.items() if name != "context_encoder.gru.W"}
    with pytest.raises(NotFused, match=r"the encoder has no context_encoder.gru.W"):
        CpuDialogEncoder(library, without, manifest.sizes.context)


def test_encoders_that_do_not_do_what_the_graphs_do_are_left_to_onnxruntime(
    bundle, graphs, monkeypatch
):
    monkeypatch.setattr(cpu_encoder, "_FROM_ONNX", [0, 1, 2])  # gates in another order
    with pytest.raises(NotFused, match="they differ from its encoders by"):
        load_encoders_on_cpu(open_bundle(bundle), graphs.utterance_encoder, graphs.dialog_encoder)
    sessions = load_sessions(open_bundle(bundle), "cpu", 1)
    assert not isinstance(sessions.utterance_encoder, CpuUtteranceEncoder)
    assert isinstance(sessions.decoder, CpuDecoder)


def test_encoders_whose_shapes_do_not_fit_are_left_to_onnxruntime(bundle, graphs, monkeypatch):
    class Narrow(CpuUtteranceEncoder):
        def run(self, inputs):
            return [super().run(inputs)[0][:, :3]]

    monkeypatch.setattr(loading, "CpuUtteranceEncoder", Narrow)
    with pytest.raises(NotFused, match="shapes of its encoders do not fit"):
        load_encoders_on_cpu(open_bundle(bundle), graphs.utterance_encoder, graphs.dialog_encoder)


@pytest.mark.parametrize("inputs", [25, 32])
def test_weights_in_float16_give_the_same_bits_as_in_float32(inputs, monkeypatch):
    rng = np.random.default_rng(inputs)
    shapes = ((2, 3 * 20, inputs), (2, 3 * 20, 20), (2, 6 * 20))
    weights = [rng.standard_normal(shape).astype(np.float16).astype(np.float32) for shape in shapes]
    steps = rng.standard_normal((19, 7, inputs), np.float32)
    lengths = rng.integers(1, 8, 19)
    states = []
    for kind in (Kind.FLOAT16, Kind.FLOAT32):
        assert kind_of(*weights[:2]) is Kind.FLOAT16
        monkeypatch.setattr(cpu_encoder, "kind_of", lambda *_, kind=kind: kind)
        gru = cpu_encoder._CpuGru(cpu_library(), *weights)
        for rows in (19, 4):  # a matrix is expanded for many
            states.append(np.empty((rows, 40), np.float32))
            told = steps[:rows][np.arange(7) < lengths[:rows, None]]
            gru.run(told, None, lengths[:rows], states[-1])
    assert np.array_equal(states[0], states[2]) and np.array_equal(states[1], states[3])
    assert np.array_equal(states[0][:4], states[1])
