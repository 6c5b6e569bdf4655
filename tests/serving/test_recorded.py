"""The unrolled decoder gives what the one with a loop gives, whatever fills its runs up."""

import numpy as np
import onnxruntime
import pytest
from siserve.bundle import open_bundle
from siserve.bundle.tensors import DECODER_UNROLLED, UNROLLED_STEPS
from siserve.serving.engine import Engine, EngineOptions
from siserve.serving.recorded import RecordedDecoder, session_tapes
from siserve.serving.sessions import load_sessions

from .test_engine import Records, generate, replaced, varied_job


@pytest.fixture(scope="module")
def session(bundle):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(bundle / DECODER_UNROLLED.file, options, providers)


@pytest.fixture
def recorded(session, graphs, manifest):
    tapes = session_tapes(session, manifest, "cpu", counts=(4, 16, 32))
    made = RecordedDecoder(tapes, graphs.decoder, manifest.tokens)
    made.warm_up()
    return made


def chunk(manifest, rng, rows, steps=UNROLLED_STEPS):
    sizes, tokens = manifest.sizes, manifest.tokens
    token = rng.integers(7, sizes.vocabulary, rows)
    token[::3], token[1::5] = tokens.start, tokens.end
    return {
        "c": rng.standard_normal((rows, sizes.context), np.float32),
        "z": rng.standard_normal((rows, sizes.latent), np.float32),
        "state": np.tanh(rng.standard_normal((rows, sizes.state), np.float32)),
        "token": token,
        "uniform": rng.random((steps, rows), np.float32),
        "forced": np.full((steps, rows), -1),
        "temperature": rng.choice([0, 0.7, 1.0, 2.0], rows).astype(np.float32),
        "top_k": np.zeros(rows, np.int64),
        "top_p": np.ones(rows, np.float32),
    }


@pytest.mark.parametrize("rows", [1, 4, 5, 16, 31, 32, 33, 100])
def test_any_number_of_rows_gets_what_the_loop_gives(recorded, graphs, manifest, rows):
    inputs = chunk(manifest, np.random.default_rng(rows), rows)
    tokens, log_probs, state = recorded.run(inputs)
    expected = graphs.decoder.run(inputs)
    assert np.array_equal(tokens, expected[0])
    assert np.allclose(log_probs, expected[1], atol=1e-5)
    goes_on = tokens[-1] != manifest.tokens.end  # nobody reads the states of the others
    assert goes_on.any() or rows < 16
    assert np.allclose(state[goes_on], expected[2][goes_on], atol=1e-6)


def test_rows_that_it_cannot_decode_go_another_way_without_changing_others(
    recorded, graphs, manifest
):
    rng = np.random.default_rng(0)
    inputs = chunk(manifest, rng, 24)
    plain = recorded.run(inputs)
    inputs["top_k"][3], inputs["top_p"][7] = 2, 0.5
    inputs["forced"][:, 11] = 9
    mixed, expected = recorded.run(inputs), graphs.decoder.run(inputs)
    others = np.ones(24, bool)
    others[[3, 7, 11]] = False
    assert np.array_equal(mixed[0][:, others], plain[0][:, others])
    assert np.array_equal(mixed[1][:, others], plain[1][:, others])
    assert np.array_equal(mixed[0], expected[0])


def test_another_number_of_steps_goes_another_way(recorded, graphs, manifest):
    inputs = chunk(manifest, np.random.default_rng(1), 6, steps=7)
    for got, expected in zip(recorded.run(inputs), graphs.decoder.run(inputs), strict=True):
        assert np.array_equal(got, expected)


def test_what_a_run_left_in_the_buffers_changes_nothing(recorded, manifest):
    small = chunk(manifest, np.random.default_rng(2), 3)
    before = recorded.run(small)
    recorded.run(chunk(manifest, np.random.default_rng(3), 4))
    for got, expected in zip(recorded.run(small), before, strict=True):
        assert np.array_equal(got, expected)


def test_an_engine_answers_by_it_as_by_the_other(recorded, graphs, manifest):
    rows = []
    for decoder in (recorded, graphs.decoder):
        options = EngineOptions(workers=2, chunk_steps=UNROLLED_STEPS)
        engine = Engine(replaced(graphs, decoder=decoder), manifest, options, Records())
        engine.start()
        jobs = [generate(engine, varied_job(manifest, seed)) for seed in range(20)]
        rows.append([[row.tokens for row in job.rows] for job in jobs])
        engine.stop()
    assert rows[0] == rows[1]


def test_cuda_replays_what_it_recorded(bundle, manifest):
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime as installed has no CUDA")
    sessions = load_sessions(open_bundle(bundle), "cuda", 1, "fp32")
    assert isinstance(sessions.decoder, RecordedDecoder)
    for rows in (1, 8, 100):
        inputs = chunk(manifest, np.random.default_rng(rows), rows)
        got, expected = sessions.decoder.run(inputs), sessions.exact_decoder.run(inputs)
        assert np.array_equal(got[0], expected[0])
        assert np.allclose(got[1], expected[1], atol=1e-4)
