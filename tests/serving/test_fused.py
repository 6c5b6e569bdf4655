"""The kernels of our own give what decoder.onnx gives, but for TF32's rounding, on a CPU too."""

import numpy as np
import onnxruntime
import pytest
from bundle_factory import tiny_bundle
from cpu_machine import COMPILER, CpuMachine
from siserve.bundle import open_bundle
from siserve.bundle.tensors import UNROLLED_STEPS
from siserve.serving.engine import Engine, EngineOptions
from siserve.serving.fused.cuda import CudaError
from siserve.serving.fused.layout import Layout
from siserve.serving.fused.loading import NotFused, load_fused
from siserve.serving.fused.tapes import FusedTape, fused_tapes, kernel_source
from siserve.serving.fused.weights import DecoderWeights
from siserve.serving.recorded import RecordedDecoder
from siserve.serving.rows import RowTable
from siserve.serving.sessions import load_sessions
from wide_decoder import Wide, weights_of

from .test_engine import Records, generate, replaced, varied_job
from .test_recorded import chunk
from .test_rows import all_ended

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to run the kernels by")


def on_cpu(folder):
    return lambda definitions, kernels: CpuMachine(definitions, kernels, folder)


@pytest.fixture(scope="module")
def fused(bundle, graphs, tmp_path_factory):
    """In TF32."""
    machine = on_cpu(tmp_path_factory.mktemp("kernels"))
    return load_fused(open_bundle(bundle), graphs.exact_decoder, (8, 16, 32), make_machine=machine)


@pytest.fixture(scope="module")
def exact(bundle, graphs, tmp_path_factory):
    """In float32, with a stand-in that can decode nothing for what goes another way."""
    machine = on_cpu(tmp_path_factory.mktemp("exact"))
    decoder = load_fused(
        open_bundle(bundle), graphs.exact_decoder, (8, 32), is_exact=True, make_machine=machine
    )
    decoder._other = None  # type: ignore[assignment]
    return decoder


BY_STEP = ("uniform", "forced")
PLAYED = {"turns": 14, "most": 44, "num_steps": UNROLLED_STEPS, "top_k": 1}


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 31])
def test_any_number_of_rows_gets_what_the_loop_gives(fused, graphs, manifest, rows):
    inputs = chunk(manifest, np.random.default_rng(rows), rows)
    tokens, log_probs, states = fused.run(inputs)
    expected = graphs.exact_decoder.run(inputs)
    is_same = (tokens == expected[0]).all(axis=0)
    assert is_same.mean() >= 0.9
    assert np.allclose(log_probs[:, is_same], expected[1][:, is_same], atol=0.02)
    goes_on = is_same & (tokens[-1] != manifest.tokens.end)  # nobody reads the others' states
    assert np.allclose(states[goes_on], expected[2][goes_on], atol=1e-3)


@pytest.mark.parametrize("rows", [5, 29])
def test_in_float32_it_gives_just_that(exact, graphs, manifest, rows):
    inputs = chunk(manifest, np.random.default_rng(rows), rows)
    tokens, log_probs, states = exact.run(inputs)
    expected = graphs.exact_decoder.run(inputs)
    assert np.array_equal(tokens, expected[0])
    assert np.allclose(log_probs, expected[1], atol=1e-5)
    goes_on = tokens[-1] != manifest.tokens.end
    assert np.allclose(states[goes_on], expected[2][goes_on], atol=1e-5)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1), (3, 1), (500, 1), (0, 0.9), (0, 1e-6), (20, 0.5), (4, 0.99)]
)
def test_rows_that_draw_among_few_words_get_what_the_loop_gives(
    exact, graphs, manifest, top_k, top_p
):
    inputs = chunk(manifest, np.random.default_rng(top_k), 6)
    inputs["top_k"][1:], inputs["top_p"][1:] = top_k, top_p  # the first row draws among all
    inputs["temperature"][:5] = 1.5
    tokens, log_probs, _ = exact.run(inputs)
    expected = graphs.exact_decoder.run(inputs)
    assert np.array_equal(tokens, expected[0])
    assert np.allclose(log_probs, expected[1], atol=1e-5)


def test_a_rows_bits_depend_on_no_neighbour_and_no_number_of_rows(fused, manifest):
    alone = chunk(manifest, np.random.default_rng(0), 7)
    expected = fused.run(alone)
    for rows, first in ((8, 1), (16, 9), (31, 17)):
        inputs = chunk(manifest, np.random.default_rng(rows), rows)
        mine = slice(first, first + 7)
        for name, values in alone.items():
            inputs[name][(slice(None), mine) if values.ndim == 2 and name in BY_STEP else mine] = (
                values
            )
        tokens, log_probs, states = fused.run(inputs)
        assert np.array_equal(tokens[:, mine], expected[0])
        assert np.array_equal(log_probs[:, mine], expected[1])
        assert np.array_equal(states[mine], expected[2])


def test_an_engine_answers_by_it_as_by_the_other(fused, graphs, manifest):
    said = []
    for decoder in (fused, graphs.exact_decoder):
        options = EngineOptions(workers=2, chunk_steps=UNROLLED_STEPS)
        engine = Engine(replaced(graphs, decoder=decoder), manifest, options, Records())
        engine.start()
        jobs = [generate(engine, varied_job(manifest, seed)) for seed in range(12)]
        said.append([row.tokens for job in jobs for row in job.rows])
        engine.stop()
    same = [mine == others for mine, others in zip(*said, strict=True)]
    assert np.mean(same) >= 0.9


@pytest.fixture(scope="module")
def of_few(fused, graphs, manifest):
    """Takes many rows in several runs."""
    tapes = {count: fused._tapes[count] for count in (8, 16)}
    return RecordedDecoder(tapes, graphs.exact_decoder, manifest.tokens)


@pytest.fixture(scope="module")
def ended_without_a_seat(of_few, manifest):
    return list(all_ended(RowTable(manifest), manifest, of_few, **PLAYED))


def test_states_that_stay_on_the_device_are_those_that_would_come_and_go(
    of_few, manifest, ended_without_a_seat
):
    seat, num_rows = of_few.seat(), []
    table = RowTable(manifest, seat.no_states)

    class Seen:
        def run(self, inputs):
            num_rows.append(len(inputs["token"]))
            return seat.run(inputs)

    assert list(all_ended(table, manifest, Seen(), **PLAYED)) == ended_without_a_seat
    assert sum(map(len, ended_without_a_seat)) > 40
    assert max(num_rows) > 2 * 16 and min(num_rows) < 16  # in several runs and in one


def test_who_has_a_seat_is_not_disturbed_by_others(of_few, manifest, ended_without_a_seat):
    tables = []
    for _ in range(2):
        seat = of_few.seat()
        table = RowTable(manifest, seat.no_states)
        tables.append(all_ended(table, manifest, seat, **PLAYED))
    ahead = [next(tables[1])]
    for expected in ended_without_a_seat:
        of_few.run(chunk(manifest, np.random.default_rng(0), 3))  # whose states come and go
        assert next(tables[0]) == expected
        ahead.append(next(tables[1], None))
    assert ahead == [*ended_without_a_seat, None]


def test_where_the_device_has_no_room_states_come_and_go(fused, graphs, monkeypatch, caplog):
    def full(tape, rows):
        raise CudaError("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY")

    sessions = replaced(graphs, decoder=fused)
    assert sessions.seat(None) is not None
    monkeypatch.setattr(FusedTape, "room_for", full)
    with caplog.at_level("WARNING"):
        assert sessions.seat(None) is None
    assert "states do not stay on the device: cuMemAlloc failed" in caplog.text


@pytest.fixture(scope="module")
def wide(manifest, tmp_path_factory):
    model = Wide(manifest, np.random.default_rng(0))
    layout = Layout.of(model.decoder_weights, model.manifest)
    machine = CpuMachine(*kernel_source(layout), tmp_path_factory.mktemp("wide"))
    tapes = fused_tapes(machine, layout, (16, 160))
    return model, RecordedDecoder(tapes, model, model.manifest.tokens)


@pytest.mark.parametrize("rows", [13, 150])
def test_blocks_of_words_units_and_rows_fit_together(wide, rows):
    model, decoder = wide
    inputs = chunk(model.manifest, np.random.default_rng(rows), rows)
    tokens, log_probs, _ = decoder.run(inputs)
    expected_tokens, expected, _ = model.run(inputs)
    is_same = (tokens == expected_tokens).all(axis=0)
    assert (tokens[0] == expected_tokens[0]).mean() >= 0.95
    assert is_same.mean() >= 0.85
    assert np.allclose(log_probs[:, is_same], expected[:, is_same], atol=0.05)
    assert len(np.unique(tokens // 64)) == 5  # words of every block are said


def test_what_may_not_be_said_is_not_said_and_weighs_all_the_same(wide):
    model, decoder = wide
    inputs = chunk(model.manifest, np.random.default_rng(1), 16)
    tokens, log_probs, _ = decoder.run(inputs)
    marks = model.manifest.tokens
    assert not np.isin(tokens, [marks.pad, marks.unk, marks.start, marks.dialog_start]).any()
    assert not (tokens[0][inputs["token"] == marks.start] == marks.end).any()
    goes_on = tokens != marks.end
    assert log_probs[goes_on].max() < -1  # <unk> holds most of the mass


def test_of_equally_likely_words_a_greedy_row_says_the_first(manifest, tmp_path):
    model = Wide(manifest, np.random.default_rng(2))
    model.weights["decoder.out.kernel"][:, [70, 200]] = 0
    model.weights["decoder.out.bias"][[70, 200]] = 50
    layout = Layout.of(model.decoder_weights, model.manifest)
    (tape,) = fused_tapes(CpuMachine(*kernel_source(layout), tmp_path), layout, (8,)).values()
    inputs = chunk(model.manifest, np.random.default_rng(3), 8)
    inputs["temperature"][:], inputs["token"][:] = 0, 9
    tokens, _, _ = tape.run(inputs, model.manifest.tokens)
    assert (tokens == 70).all()


def without(weights, name):
    return {key: values for key, values in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: without(w, "decoder.gru.kernel_hh"), "the decoder has no decoder.gru.kernel_hh"),
        (lambda w: {**w, "decoder.more": np.zeros(3)}, "the decoder has decoder.more too"),
        (
            lambda w: {**w, "decoder.gru.kernel_ih": np.zeros((20, 48))},
            r"decoder.gru.kernel_ih has shape \(20, 48\), expected \(12, 48\)",
        ),
        (
            lambda w: without(without(w, "decoder.init.kernel"), "decoder.init.bias"),
            "nothing makes its first state, of 16 numbers",
        ),
    ],
)
def test_another_decoder_is_refused_by_name(bundle, manifest, change, reason):
    with pytest.raises(NotFused, match=reason):
        DecoderWeights.of(change(weights_of(bundle)), manifest)


def laid_out(weights, manifest):
    return Layout.of(DecoderWeights.of(weights, manifest), manifest)


def test_a_first_state_that_is_told_by_c_alone_or_is_z_and_c_is_laid_out(bundle, manifest):
    weights, sizes = weights_of(bundle), manifest.sizes
    of_c = {**weights, "decoder.init.kernel": weights["decoder.init.kernel"][: sizes.context]}
    laid = laid_out(of_c, manifest).first_kernel
    assert laid.shape == (sizes.context + sizes.latent, 16) and not laid[sizes.context :].any()

    units = sizes.context + sizes.latent
    rng = np.random.default_rng(0)
    kernels = {
        "kernel_ih": rng.random((12, 3 * units)),
        "kernel_hh": rng.random((units, 3 * units)),
    }
    biases = {name: rng.random(3 * units) for name in ("bias_ih", "bias_hh")}
    gru = {f"decoder.gru.{name}": values for name, values in {**kernels, **biases}.items()}
    out = {"decoder.out.kernel": rng.random((units, sizes.vocabulary))}
    plain = without(without(weights, "decoder.init.kernel"), "decoder.init.bias")
    wider = manifest.model_copy(update={"sizes": sizes.model_copy(update={"state": units})})
    kernel = laid_out({**plain, **gru, **out}, wider).first_kernel
    told = rng.random(units, np.float32)
    c, z = told[: sizes.context], told[sizes.context :]
    assert np.array_equal((told @ kernel)[:units], np.concatenate([z, c]))


def test_kernels_that_do_not_do_what_the_decoder_does_are_refused(
    bundle, manifest, graphs, tmp_path
):
    other = tiny_bundle(tmp_path / "other", seed=1)
    (tmp_path / "kernels").mkdir()
    with pytest.raises(NotFused, match="they differ from decoder.onnx by"):
        load_fused(
            open_bundle(other),
            graphs.exact_decoder,
            (8, 64),
            make_machine=on_cpu(tmp_path / "kernels"),
        )


def test_without_a_device_the_reason_is_told(bundle, graphs):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime as installed has CUDA")
    with pytest.raises(NotFused, match=r"pip install 'siserve\[gpu\]'|CUDA|cuInit|libcuda"):
        load_fused(open_bundle(bundle), graphs.exact_decoder, (8,))


@pytest.mark.parametrize(("asked", "precision"), [("auto", "tf32"), ("fp32", "fp32")])
def test_cuda_decodes_by_them_and_a_seed_says_the_same_beside_others(
    bundle, manifest, asked, precision
):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime as installed has no CUDA")
    sessions = load_sessions(open_bundle(bundle), "cuda", 1, asked)
    assert isinstance(sessions.decoder, RecordedDecoder) and sessions.decoder.is_fused
    assert sessions.precision == precision
    said = []
    for beside in (1, 40):
        options = EngineOptions(chunk_steps=UNROLLED_STEPS)
        engine = Engine(sessions, manifest, options, Records())
        engine.start()
        jobs = [varied_job(manifest, seed) for seed in range(40)]
        for first in range(0, 40, beside):
            results = [engine.submit(job) for job in jobs[first : first + beside]]
            said += [row for result in results for row in result.result(30).rows]
        engine.stop()
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    inputs = chunk(manifest, np.random.default_rng(0), 100)
    inputs["top_k"][::4], inputs["top_p"][::6] = 5, 0.7
    got, expected = sessions.decoder.run(inputs), sessions.exact_decoder.run(inputs)
    is_same = (got[0] == expected[0]).all(axis=0)
    assert is_same.mean() >= (0.98 if precision == "fp32" else 0.9)
    off = 1e-4 if precision == "fp32" else 0.02
    assert np.allclose(got[1][:, is_same], expected[1][:, is_same], atol=off)
