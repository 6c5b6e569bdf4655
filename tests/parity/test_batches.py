"""Rows, steps and padding: nothing that shares a batch with a row changes its answer by one bit."""

import numpy as np
import pytest
from bundle_factory import TinySizes, tiny_bundle, tiny_model
from siserve.bundle.tensors import CONTEXT_ENCODER, DECODER, DECODER_INT8, PRIOR, SI_SAMPLER

from .conftest import Graphs, every_int8_decoder, normal

#: Wide enough that matrix products take the same routes as in a model of the paper's sizes.
WIDE = {
    "word_embedding": 200,
    "utterance_hidden": 150,
    "context_hidden": 300,
    "latent": 200,
    "noise": 100,
    "prior_hidden": 250,
    "post_hidden": 350,
    "state": 400,
    "logit_gain": 3.0,
}
BATCH = 6


@pytest.fixture(scope="module", params=["tiny", "wide"])
def sized(request, tmp_path_factory):
    sizes = WIDE if request.param == "wide" else {}
    with every_int8_decoder():
        path = tiny_bundle(tmp_path_factory.mktemp("sized") / "bundle", **sizes)
    return Graphs(path, tiny_model(0, TinySizes(**sizes)), TinySizes(**sizes))


def row(graph, inputs, index):
    """The inputs of one row, whichever axis its rows lie on."""
    alone = {}
    for tensor in graph.inputs:
        axis = next(i for i, name in enumerate(tensor.axes) if name in ("B", "R"))
        alone[tensor.name] = np.take(inputs[tensor.name], [index], axis)
    return alone


def rows_alone_equal_rows_together(graphs, graph, inputs, batch=BATCH):
    name = graph.file.removesuffix(".onnx")
    together = graphs.run(name, **inputs)
    for index in range(batch):
        alone = graphs.run(name, **row(graph, inputs, index))
        for tensor, one, all_rows in zip(graph.outputs, alone, together, strict=True):
            axis = next(i for i, name in enumerate(tensor.axes) if name in ("B", "R"))
            row_of_all = np.take(all_rows, [index], axis)
            assert np.array_equal(one, row_of_all, equal_nan=True), tensor.name


def test_contexts_alone_equal_contexts_in_a_batch(sized, rng):
    inputs = sized.contexts(rng, BATCH, 5, 9)
    rows_alone_equal_rows_together(sized, CONTEXT_ENCODER, inputs)


def test_padding_changes_nothing(sized, rng):
    inputs = sized.contexts(rng, BATCH, 5, 9)
    (c,) = sized.run("context_encoder", **inputs)
    padded = dict(inputs)
    padded["utterances"] = np.pad(inputs["utterances"], ((0, 0), (0, 4), (0, 31)))
    padded["floor"] = np.pad(inputs["floor"], ((0, 0), (0, 4)), constant_values=1)
    assert np.array_equal(sized.run("context_encoder", **padded)[0], c)


def test_the_floor_of_a_padding_utterance_changes_nothing(sized, rng):
    inputs = sized.contexts(rng, BATCH, 5, 9)
    (c,) = sized.run("context_encoder", **inputs)
    is_padding = ~inputs["utterances"].any(axis=2)
    assert is_padding.any()
    inputs["floor"] = np.where(is_padding, 1 - inputs["floor"], inputs["floor"])
    assert np.array_equal(sized.run("context_encoder", **inputs)[0], c)


def test_latents_alone_equal_latents_in_a_batch(sized, rng):
    c, eps_z = sized.latents(rng, BATCH)
    rows_alone_equal_rows_together(sized, PRIOR, {"c": c, "eps_z": eps_z})
    inputs = {
        "c": c,
        "response": sized.utterances(rng, BATCH, 7),
        "eps_lam": normal(rng, BATCH, 4, sized.sizes.noise),
        "eps_z": eps_z,
    }
    rows_alone_equal_rows_together(sized, SI_SAMPLER, inputs)


def mixed_rows(graphs, rng, steps):
    """Rows that start, go on, have ended, are forced, greedy, drawn, cut by top-k and top-p."""
    tokens = graphs.model.tokens
    c, z = graphs.latents(rng, 12)
    forced = np.full((steps, 12), -1)
    forced[:, 3] = rng.choice(graphs.words, steps)
    forced[1, 4] = tokens.end
    return graphs.chunk(
        rng,
        c,
        z,
        steps,
        state=np.tanh(normal(rng, 12, graphs.sizes.state)),
        token=np.array([tokens.start] * 7 + [tokens.end] + [9, 20, 30, 40]),
        forced=forced,
        temperature=np.array([0, 1, 0.5, 0, 1, 2, 1, 1, 1, 3, 0, 0.7], np.float32),
        top_k=np.array([0, 0, 0, 0, 5, 1, 0, 0, 60, 0, 4, 0]),
        top_p=np.array([1, 1, 0.9, 1, 1, 0.5, 0.3, 1, 0.8, 0.99, 1, 1], np.float32),
    )


@pytest.mark.parametrize("decoder", [DECODER, DECODER_INT8], ids=lambda graph: graph.file)
def test_decoded_rows_alone_equal_rows_in_a_batch(sized, rng, decoder):
    rows_alone_equal_rows_together(sized, decoder, mixed_rows(sized, rng, 9), batch=12)


@pytest.mark.parametrize("decoder", ["decoder", "decoder_int8"])
def test_decoded_rows_do_not_depend_on_their_place(sized, rng, decoder):
    inputs = mixed_rows(sized, rng, 9)
    tokens, log_probs, state = sized.run(decoder, **inputs)
    order = rng.permutation(12)
    by_step = ("uniform", "forced")
    shuffled = {k: v[:, order] if k in by_step else v[order] for k, v in inputs.items()}
    got = sized.run(decoder, **shuffled)
    assert np.array_equal(got[0], tokens[:, order])
    assert np.array_equal(got[1], log_probs[:, order])
    assert np.array_equal(got[2], state[order])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_chunk_of_k_steps_equals_shorter_chunks(sized, rng, chunk):
    inputs = mixed_rows(sized, rng, 10)
    expected = sized.run("decoder", **inputs)
    tokens, log_probs = [], []
    going = dict(inputs)
    for start in range(0, 10, chunk):
        steps = slice(start, start + chunk)
        going["uniform"], going["forced"] = inputs["uniform"][steps], inputs["forced"][steps]
        some_tokens, some_log_probs, going["state"] = sized.run("decoder", **going)
        going["token"] = some_tokens[-1]
        tokens.append(some_tokens)
        log_probs.append(some_log_probs)
    assert np.array_equal(np.concatenate(tokens), expected[0])
    assert np.array_equal(np.concatenate(log_probs), expected[1])
    assert np.array_equal(going["state"], expected[2])


def test_rows_that_ended_stay_ended_and_keep_their_state(sized, rng):
    inputs = mixed_rows(sized, rng, 6)
    end = sized.model.tokens.end
    tokens, log_probs, state = sized.run("decoder", **inputs)
    assert (tokens[:, 7] == end).all() and (log_probs[:, 7] == 0).all()
    assert np.array_equal(state[7], inputs["state"][7])
    assert (tokens[1:, 4] == end).all() and (log_probs[2:, 4] == 0).all()
    assert log_probs[1, 4] < 0  # the </s> itself has its probability


def test_the_state_is_ignored_where_a_row_starts(sized, rng):
    inputs = mixed_rows(sized, rng, 4)
    expected = sized.run("decoder", **inputs)
    starts = inputs["token"] == sized.model.tokens.start
    inputs["state"] = np.where(starts[:, None], np.float32(7), inputs["state"])
    for got, wanted in zip(sized.run("decoder", **inputs), expected, strict=True):
        assert np.array_equal(got, wanted)


def test_the_latent_is_ignored_where_a_row_goes_on(sized, rng):
    inputs = mixed_rows(sized, rng, 4)
    expected = sized.run("decoder", **inputs)
    goes_on = inputs["token"] != sized.model.tokens.start
    inputs["z"] = np.where(goes_on[:, None], np.float32(7), inputs["z"])
    for got, wanted in zip(sized.run("decoder", **inputs), expected, strict=True):
        assert np.array_equal(got, wanted)
