"""The kernels for CPUs give what onnxruntime gives by the decoder's graphs."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from siserve.bundle import open_bundle
from siserve.bundle.errors import BundleError
from siserve.serving.cores import usable_cores
from siserve.serving.engine import EngineOptions
from siserve.serving.fused import cpu, native
from siserve.serving.fused.cpu import CpuDecoder, CpuTables
from siserve.serving.fused.loading import load_decoders_on_cpu
from siserve.serving.fused.native import CpuLibrary, Kind, cpu_library, source_digest
from siserve.serving.fused.weights import DecoderWeights, NotFused
from siserve.serving.graphs import at_rows, place_of_rows
from siserve.serving.loading import load_model
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement, load_sessions
from wide_decoder import Wide, weights_of

from .test_engine import Records
from .test_recorded import chunk


def why_not():
    try:
        cpu_library()
        return ""
    except NotFused as reason:
        return str(reason)


LIBRARY = Path(native.__file__).with_name("libsiserve_kernels.so.1")
REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=f"no kernels for CPUs here: {REASON}")
BOTH = pytest.mark.parametrize("has_integers", [False, True], ids=["float32", "integers"])


def made(weights, manifest, has_integers, library=None):
    tables = CpuTables(weights, manifest)
    return CpuDecoder(library or cpu_library(), tables, weights, has_integers)


ALONE_OR_HELPED = pytest.mark.parametrize("cores", [1, 2, 5], indirect=True)


@pytest.fixture(scope="module")
def weights(bundle):
    return DecoderWeights.read(open_bundle(bundle))


@pytest.fixture(scope="module")
def exact(weights, manifest):
    return made(weights, manifest, False)


def same(got, expected, tokens):
    """Whether two answers are equal to the last bit, the states of ended rows aside."""
    goes_on = got[0][-1] != tokens.end
    return (
        np.array_equal(got[0], expected[0])
        and np.array_equal(got[1], expected[1])
        and np.array_equal(got[2][goes_on], expected[2][goes_on])
    )


def assert_close(got, expected, tokens, off):
    assert np.array_equal(got[0], expected[0])
    assert np.allclose(got[1], expected[1], atol=off)
    goes_on = got[0][-1] != tokens.end
    assert np.allclose(got[2][goes_on], expected[2][goes_on], atol=off)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 16, 17, 29, 70])
def test_in_float32_any_number_of_rows_gets_what_the_loop_gives(exact, graphs, manifest, rows):
    inputs = chunk(manifest, np.random.default_rng(rows), rows)
    expected = graphs.exact_decoder.run(inputs)
    assert_close(exact.run(inputs), expected, manifest.tokens, 1e-5)


def test_in_integers_rows_get_what_the_loop_in_integers_gives(bundle, weights, manifest):
    graphs = load_sessions(open_bundle(bundle), "cpu", 1, "int8", kernels="off")
    inputs = chunk(manifest, np.random.default_rng(0), 200, steps=1)
    got, expected = made(weights, manifest, True).run(inputs), graphs.decoder.run(inputs)
    # The graph has the words that are never said in float32, the kernels in integers like others.
    is_same = (got[0] == expected[0]).all(axis=0)
    assert is_same.mean() > 0.98
    assert np.abs(got[1] - expected[1])[:, is_same].mean() < 0.01
    assert np.allclose(got[2][is_same], expected[2][is_same], atol=0.01)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1), (3, 1), (500, 1), (0, 0.9), (0, 1e-6), (20, 0.5), (4, 0.99)]
)
def test_rows_that_draw_among_few_words_get_what_the_loop_gives(
    exact, graphs, manifest, top_k, top_p
):
    inputs = chunk(manifest, np.random.default_rng(top_k), 23)
    inputs["top_k"][1:], inputs["top_p"][1:] = top_k, top_p  # the first row draws among all
    inputs["temperature"][:20] = 1.5
    expected = graphs.exact_decoder.run(inputs)
    assert_close(exact.run(inputs), expected, manifest.tokens, 1e-5)


def test_told_words_are_said_whatever_they_are(exact, graphs, manifest):
    rng = np.random.default_rng(0)
    inputs = chunk(manifest, rng, 40)
    told = rng.integers(-1, manifest.sizes.vocabulary, inputs["forced"].shape)
    told[0, :7] = list(manifest.tokens.model_dump().values())[:1] * 7
    inputs["forced"][:, 5:] = told[:, 5:]  # <s> among them, after which a row starts anew
    inputs["forced"][2, 5] = manifest.tokens.start
    expected = graphs.exact_decoder.run(inputs)
    assert_close(exact.run(inputs), expected, manifest.tokens, 1e-5)


@BOTH
@ALONE_OR_HELPED
def test_a_rows_bits_depend_on_no_neighbour_no_number_of_rows_and_no_helper(
    weights, manifest, has_integers, cores
):
    decoder = made(weights, manifest, has_integers)
    alone = chunk(manifest, np.random.default_rng(0), 7)
    alone["top_k"][2] = 5
    cpu_library().allow(1)
    expected = decoder.run(alone)
    cpu_library().allow(cores)
    for rows, first in ((8, 1), (16, 9), (31, 17), (90, 40)):
        inputs = chunk(manifest, np.random.default_rng(rows), rows)
        mine = slice(first, first + 7)
        for name, values in alone.items():
            inputs[name][place_of_rows(name, mine)] = values
        tokens, log_probs, states = decoder.run(inputs)
        assert same((tokens[:, mine], log_probs[:, mine], states[mine]), expected, manifest.tokens)


@BOTH
def test_how_steps_are_cut_into_chunks_changes_no_bit(weights, manifest, has_integers):
    decoder = made(weights, manifest, has_integers)
    inputs = chunk(manifest, np.random.default_rng(0), 20)
    tokens, log_probs, states = decoder.run(inputs)
    uniform = inputs["uniform"]
    told: list[np.ndarray] = []
    said: list[np.ndarray] = []
    for steps in (slice(0, 3), slice(3, 4), slice(4, 8)):
        own = {**inputs, "uniform": uniform[steps], "forced": inputs["forced"][steps]}
        for answer, kept in zip(decoder.run(own), (said, told, []), strict=True):
            kept.append(answer)
            inputs["state"] = answer  # the last one is it
        inputs["token"] = said[-1][-1]
    whole = (np.concatenate(said), np.concatenate(told), inputs["state"])
    assert same(whole, (tokens, log_probs, states), manifest.tokens)


def test_products_by_vnni_and_by_amx_are_the_same_to_the_last_bit(weights, manifest):
    if not cpu_library().may_use_tiles:
        pytest.skip("no AMX here")
    without = made(weights, manifest, True, library=CpuLibrary(LIBRARY, False))
    inputs = chunk(manifest, np.random.default_rng(0), 50)
    for rows in (3, 16, 50):
        some = at_rows(inputs, slice(rows))
        got = without.run(some)
        assert same(got, made(weights, manifest, True).run(some), manifest.tokens)


def test_weights_in_float16_give_the_same_bits_as_in_float32(manifest, monkeypatch):
    model = Wide(manifest, np.random.default_rng(0))
    weights = {name: w.astype(np.float16) for name, w in model.weights.items()}
    read = DecoderWeights.of(weights, model.manifest)
    by_halves = made(read, model.manifest, False)
    monkeypatch.setattr(cpu, "kind_of", lambda *_: Kind.FLOAT32)
    by_wholes = made(read, model.manifest, False)
    kinds = [each._decoder.kind for each in (by_halves, by_wholes)]
    assert kinds == [Kind.FLOAT16, Kind.FLOAT32]
    for rows in (1, 6, 7, 40):
        inputs = chunk(model.manifest, np.random.default_rng(rows), rows)
        assert same(by_halves.run(inputs), by_wholes.run(inputs), model.manifest.tokens)


@BOTH
@ALONE_OR_HELPED
def test_several_threads_may_share_a_decoder(weights, manifest, has_integers, cores):
    decoder = made(weights, manifest, has_integers)
    asked = [chunk(manifest, np.random.default_rng(seed), 5 + 13 * seed) for seed in range(4)]
    expected = [decoder.run(inputs) for inputs in asked]
    wrong = []

    def ask(number):
        for _ in range(50):
            if not same(decoder.run(asked[number]), expected[number], manifest.tokens):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(usable_cores() < 2, reason="one core: nobody helps")
def test_a_run_is_helped_if_it_may_take_more_cores_than_its_own(wide):
    model, decoder = wide
    inputs = chunk(model.manifest, np.random.default_rng(0), 64)
    taken = {}
    for cores in (1, 2):
        cpu_library().allow(cores)
        time.sleep(0.05)  # who has helped falls asleep
        before = cpu_library().helped_seconds()
        for _ in range(20):
            decoder.run(inputs)
        taken[cores] = cpu_library().helped_seconds() - before
    cpu_library().allow(1)
    assert taken[1] == 0 < taken[2]


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "integers"])
def wide(manifest, request):
    model = Wide(manifest, np.random.default_rng(0), has_integers=request.param)
    return model, made(model.decoder_weights, model.manifest, request.param)


@pytest.mark.parametrize("rows", [13, 150])
def test_blocks_of_words_units_and_rows_fit_together(wide, rows):
    model, decoder = wide
    inputs = chunk(model.manifest, np.random.default_rng(rows), rows)
    tokens, log_probs, _ = decoder.run(inputs)
    expected_tokens, expected, _ = model.run(inputs)
    is_same = (tokens == expected_tokens).all(axis=0)
    assert is_same.mean() >= (0.98 if model.has_integers else 1)
    off = np.abs(log_probs - expected)[:, is_same]
    # Where float32 rounds a state another way, an integer may be the next one.
    assert off.max() < 1e-4 or (model.has_integers and (off < 1e-4).mean() > 0.95)
    assert len(np.unique(tokens // 64)) == 5  # words of every block are said


def test_what_may_not_be_said_is_not_said_and_weighs_all_the_same(wide):
    model, decoder = wide
    inputs = chunk(model.manifest, np.random.default_rng(1), 16)
    inputs["top_k"][::2] = 200
    tokens, log_probs, _ = decoder.run(inputs)
    marks = model.manifest.tokens
    assert not np.isin(tokens, [marks.pad, marks.unk, marks.start, marks.dialog_start]).any()
    assert not (tokens[0][inputs["token"] == marks.start] == marks.end).any()
    goes_on = tokens != marks.end
    assert log_probs[goes_on].max() < -1  # <unk> holds most of the mass


def test_of_equally_likely_words_a_greedy_row_says_the_first(manifest):
    model = Wide(manifest, np.random.default_rng(2))
    model.weights["decoder.out.kernel"][:, [70, 200]] = 0
    model.weights["decoder.out.bias"][[70, 200]] = 50
    inputs = chunk(model.manifest, np.random.default_rng(3), 8)
    inputs["temperature"][:], inputs["token"][:] = 0, 9
    for has_integers in (False, True):
        tokens, _, _ = made(model.decoder_weights, model.manifest, has_integers).run(inputs)
        assert (tokens == 70).all()


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 30.0])
def test_no_temperature_is_too_low_or_too_high(wide, temperature):
    model, decoder = wide
    inputs = chunk(model.manifest, np.random.default_rng(4), 60)
    inputs["temperature"][:] = temperature
    tokens, log_probs, _ = decoder.run(inputs)
    expected, _, _ = model.run(inputs)
    assert (tokens[0] == expected[0]).mean() >= 0.95
    assert np.isfinite(log_probs).all()


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("token", np.full(4, 10**6), "a token is none of the vocabulary"),
        ("token", np.full(4, -1), "a token is none of the vocabulary"),
        ("forced", np.full((8, 4), 10**6), "a token is none of the vocabulary"),
        ("z", np.zeros((4, 3)), r"z: \(4, 3\), expected"),
        ("top_k", np.zeros(3), r"top_k: \(3,\), expected"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_read(exact, manifest, name, values, reason):
    inputs = {**chunk(manifest, np.random.default_rng(0), 4), name: values}
    with pytest.raises(ValueError, match=reason):
        exact.run(inputs)


@BOTH
def test_numbers_that_are_none_end_in_some_word_and_nowhere_else(weights, manifest, has_integers):
    inputs = chunk(manifest, np.random.default_rng(0), 24)
    inputs["c"][::2], inputs["state"][1::4] = np.nan, np.inf
    inputs["top_k"][::5] = 3
    with np.errstate(all="ignore"):
        tokens, _, _ = made(weights, manifest, has_integers).run(inputs)
    assert (tokens >= 0).all() and (tokens < manifest.sizes.vocabulary).all()


def test_no_rows_are_no_work(exact, manifest):
    inputs = chunk(manifest, np.random.default_rng(0), 1)
    tokens, log_probs, state = exact.run(at_rows(inputs, slice(0)))
    assert tokens.shape == log_probs.shape == (8, 0) and len(state) == 0


def test_halves_are_widened_and_known_to_be_such_to_the_last_of_them():
    library, every = cpu_library(), np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for halves in (every, every[:37], every[:32].reshape(2, 16).T, every[5:6], every[:0]):
        with np.errstate(invalid="ignore"):
            expected = halves.astype(np.float32)
        got = library.widened(halves)
        assert got.dtype == np.float32 and np.array_equal(got, expected, equal_nan=True)
    finite = library.widened(every[np.isfinite(every)])
    for size in (1, 15, 16, 37, len(finite)):
        some = finite[-size:].copy()
        assert library.are_halves(some)
        for off in (1 + 2**-11, 65536, np.nan):
            some[-1] = off
            assert not library.are_halves(some)
    assert library.widened(finite) is finite


@pytest.mark.parametrize("width", [Wide.UNITS, 32])
def test_what_words_add_to_gates_is_their_embedding_times_the_matrix_and_biases(
    manifest, monkeypatch, width
):
    monkeypatch.setattr(
        "siserve.serving.fused.weights._WORDS_AT_ONCE", 64
    )  # 300 words are no multiple of it
    model = Wide(manifest, np.random.default_rng(0))
    w, units = model.weights, Wide.UNITS
    expected = w["embedding.weight"] @ w["decoder.gru.kernel_ih"] + w["decoder.gru.bias_ih"]
    expected[:, : 2 * units] += w["decoder.gru.bias_hh"][: 2 * units]
    table = np.zeros((Wide.VOCABULARY, 3, width), np.float32)
    model.decoder_weights.put_of_words(table)
    expected = expected.reshape(-1, 3, units)
    np.testing.assert_allclose(table[:, :, :units], expected, rtol=1e-5, atol=1e-5)
    assert not table[:, :, units:].any()


def test_floats_are_narrowed_to_the_nearest_half():
    library = cpu_library()
    rng = np.random.default_rng(0)
    floats = (rng.standard_normal((41, 37)) * 10.0 ** rng.integers(-9, 6, (41, 37))).astype("f4")
    for some in (floats, floats.T, floats[:, ::3], floats[0, :15], floats[:0]):
        with np.errstate(over="ignore"):
            expected = some.astype(np.float16)
        got = library.narrowed(some)
        assert got.dtype == np.float16 and np.array_equal(got, expected)
    assert library.narrowed(floats.T).flags.f_contiguous  # columns stay beside each other


def test_a_cpu_without_their_instructions_is_told_by_the_first_of_them(monkeypatch):
    monkeypatch.setattr(native, "_cpu_flags", lambda: {"avx512f", "avx512bw"})
    with pytest.raises(NotFused, match="the CPU has no avx512dq"):
        native._load.__wrapped__()


def test_an_installation_without_them_or_with_those_of_another_source_is_told(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(native, "_LIBRARY", "no.so")
    with pytest.raises(NotFused, match="made without a C\\+\\+ compiler"):
        native._load.__wrapped__()
    monkeypatch.undo()
    other = tmp_path / LIBRARY.name
    other.write_bytes(LIBRARY.read_bytes().replace(source_digest().encode(), b"0" * 64))
    with pytest.raises(NotFused, match="was made of other sources; install siserve again"):
        CpuLibrary(other, False)


def test_words_that_add_too_much_are_left_to_onnxruntime(weights, manifest, monkeypatch):
    monkeypatch.setattr(cpu, "_LARGEST_TABLE", 1000)
    with pytest.raises(NotFused, match=r"add to the gates of 16 units takes more than"):
        CpuTables(weights, manifest)


def test_a_bundle_without_a_golden_request_is_left_to_onnxruntime(bundle):
    opened = open_bundle(bundle)
    without = replace(opened, manifest=opened.manifest.model_copy(update={"golden": None}))
    with pytest.raises(NotFused, match="has no golden request to try them by"):
        load_decoders_on_cpu(without, True)
    assert not isinstance(load_sessions(without, "cpu", 1).decoder, CpuDecoder)


def test_kernels_whose_rows_depend_on_each_other_are_not_used(bundle, monkeypatch):
    run = CpuDecoder.run

    def by_number(self, inputs):
        tokens, log_probs, state = run(self, inputs)
        return tokens, log_probs + 1e-6 * log_probs.shape[1], state

    monkeypatch.setattr(CpuDecoder, "run", by_number)
    with pytest.raises(NotFused, match="a row's log_probs depends on its neighbours"):
        load_decoders_on_cpu(open_bundle(bundle), False)


def model_of(path, kernels="auto"):
    return load_model(
        path, Placement("cpu", kernels=kernels), RequestLimits(), EngineOptions(), Records()
    )


def decoder_of(model):
    return model.engine._workers[0]._sessions.decoder


def test_a_model_decodes_by_them_unless_it_is_told_not_to(bundle):
    assert isinstance(decoder_of(model_of(bundle)), CpuDecoder)
    assert not isinstance(decoder_of(model_of(bundle, "off")), CpuDecoder)


def test_where_the_golden_request_comes_out_wrong_by_them_onnxruntime_decodes(
    bundle, monkeypatch, caplog
):
    run = CpuDecoder.run
    monkeypatch.setattr(
        CpuDecoder, "run", lambda self, inputs: [run(self, inputs)[0], *np.ones((2, 8, 1))]
    )
    monkeypatch.setattr("siserve.serving.fused.loading._check_rows_alone", lambda *_: None)
    assert not isinstance(decoder_of(model_of(bundle)), CpuDecoder)
    assert "onnxruntime does all, not siserve's kernels: by them" in caplog.text


def test_a_bundle_that_is_wrong_by_both_is_refused(bundle, monkeypatch):
    def refuse(*_):
        raise BundleError("its golden request gives nothing")

    monkeypatch.setattr("siserve.serving.loading.check_golden", refuse)
    with pytest.raises(BundleError, match="gives nothing"):
        model_of(bundle)


def test_weights_of_another_kind_of_decoder_are_refused_by_name(bundle, manifest):
    weights = {**weights_of(bundle), "decoder.more": np.zeros(3)}
    with pytest.raises(NotFused, match="the decoder has decoder.more too"):
        DecoderWeights.of(weights, manifest)


def test_few_rows_have_longer_chunks_and_those_of_a_loop_do_not(sessions, graphs):
    assert [sessions.chunk_steps(rows) for rows in (1, 5, 20, 40, 500)] == [16, 16, 8, 4, 4]
    assert [graphs.chunk_steps(rows) for rows in (1, 33)] == [4, 4]
