"""Contexts are encoded to the same bits whatever is kept, and only what is new is work."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
from siserve.bundle import Description, open_bundle, write_bundle
from siserve.bundle.tensors import MANIFEST_FILE, OPTIONAL_GRAPHS
from siserve.serving.encoding import Context, ContextEncoder, runs_of
from siserve.serving.sessions import load_sessions


class Counting:
    """A graph that counts its runs and the rows that they had."""

    def __init__(self, graph) -> None:
        self.graph = graph
        self.rows: list[int] = []

    def run(self, inputs):
        self.rows.append(len(next(iter(inputs.values()))))
        return self.graph.run(inputs)


@pytest.fixture
def counted(sessions):
    """Sessions whose graphs of the two steps count."""
    return dataclasses.replace(
        sessions,
        utterance_encoder=Counting(sessions.utterance_encoder),
        dialog_encoder=Counting(sessions.dialog_encoder),
    )


@pytest.fixture(scope="module")
def whole_sessions(bundle, tmp_path_factory):
    """Sessions of the same model in a bundle that lacks the two steps."""
    manifest = open_bundle(bundle).manifest
    left_out = {MANIFEST_FILE, *(graph.file for graph in OPTIONAL_GRAPHS)}
    files = {path.name: path for path in bundle.iterdir() if path.name not in left_out}
    path = tmp_path_factory.mktemp("old") / "bundle"
    about = manifest.model_dump(exclude={"files", "sha256"})
    write_bundle(path, files, Description.model_validate(about))
    return load_sessions(open_bundle(path), "cpu", 1, kernels="off")


def utterance(rng, length):
    return (2, *rng.integers(7, 60, length - 2).tolist(), 3)


def contexts(rng, count, window=9, length=40):
    made = []
    for _ in range(count):
        used = int(rng.integers(1, window + 1))
        said = tuple(utterance(rng, int(rng.integers(2, length + 1))) for _ in range(used))
        floors = tuple(rng.integers(0, 2, used).tolist())
        made.append(Context(said, floors, int(rng.integers(0, 4))))
    return made


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_a_context_is_encoded_as_the_whole_graph_does(graphs, whole_sessions, manifest, rng):
    told = contexts(rng, 12)
    pad = manifest.tokens.pad
    in_steps = ContextEncoder(graphs, pad, 100).encode(told)
    assert whole_sessions.dialog_encoder is None
    assert np.array_equal(ContextEncoder(whole_sessions, pad, 100).encode(told), in_steps)
    assert len(np.unique(in_steps, axis=0)) == 12


def test_alone_or_together_kept_or_not_a_context_has_the_same_bits(sessions, manifest, rng):
    told = contexts(rng, 30)
    fresh = ContextEncoder(sessions, manifest.tokens.pad)
    alone = np.concatenate([fresh.encode([context]) for context in told])
    keeping = ContextEncoder(sessions, manifest.tokens.pad, 40)  # some are lost on the way
    for _ in range(40):
        rows = rng.integers(0, 30, rng.integers(1, 17))
        batch = [told[row] for row in rows]
        assert np.array_equal(keeping.encode(batch), alone[rows])
        assert np.array_equal(fresh.encode(batch), alone[rows])


def test_a_dialog_that_grows_encodes_one_utterance_a_turn(counted, manifest, rng):
    encoder = ContextEncoder(counted, manifest.tokens.pad, 100)
    said = tuple(utterance(rng, 3 + turn) for turn in range(20))
    for turn in range(1, 21):
        recent = said[max(0, turn - 9) : turn]
        encoder.encode([Context(recent, (0,) * len(recent))])
    assert counted.utterance_encoder.rows == [1] * 20
    assert counted.dialog_encoder.rows == [1] * 20


def test_a_batch_encodes_each_utterance_once_and_all_contexts_together(counted, manifest, rng):
    heard = []
    encoder = ContextEncoder(
        counted, manifest.tokens.pad, 100, lambda hits, misses: heard.append((hits, misses))
    )
    first, second, third = (utterance(rng, 9) for _ in range(3))
    batch = [
        Context((first, second), (0, 1)),
        Context((second, first, second), (1, 0, 1)),
        Context((third,), (0,)),
    ]
    encoder.encode(batch)
    encoder.encode(batch)
    assert counted.utterance_encoder.rows == [3]
    assert counted.dialog_encoder.rows == [3, 3]
    assert heard == [(3, 3), (6, 0)]


@pytest.mark.parametrize("capacity", [0, 1, 7])
def test_no_more_is_kept_than_may_be_and_what_was_used_last_stays(counted, manifest, rng, capacity):
    encoder = ContextEncoder(counted, manifest.tokens.pad, capacity)
    often, others = utterance(rng, 5), [utterance(rng, 6 + i) for i in range(20)]
    for other in others:
        encoder.encode([Context((other, often), (0, 1))])
        assert len(encoder) == min(capacity, sum(counted.utterance_encoder.rows))
    encodings = sum(counted.utterance_encoder.rows)
    if capacity == 7:
        assert encodings == 21
        encoder.encode([Context((*others[-6:], often), (0,) * 7)])
        assert sum(counted.utterance_encoder.rows) == encodings
        encoder.encode([Context(tuple(others[-8:-6]), (0, 0))])
        assert sum(counted.utterance_encoder.rows) == encodings + 2
    if capacity == 0:
        assert encodings == 40


def test_threads_that_share_an_encoder_get_their_own_contexts(sessions, manifest, rng):
    told = contexts(rng, 24, window=4, length=8)
    encoder = ContextEncoder(sessions, manifest.tokens.pad, 30)
    alone = ContextEncoder(sessions, manifest.tokens.pad)
    expected = np.concatenate([alone.encode([context]) for context in told])
    wrong: list[object] = []

    def work(seed: int) -> None:
        dice = np.random.default_rng(seed)
        try:
            for _ in range(60):
                rows = dice.integers(0, 24, 3)
                c = encoder.encode([told[row] for row in rows])
                if not np.array_equal(c, expected[rows]):
                    wrong.append(rows)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(encoder) == 30


def test_what_is_kept_does_not_hold_on_to_the_batch_it_came_from(counted, manifest, rng):
    encoder = ContextEncoder(counted, manifest.tokens.pad, 2)
    encoder.encode([Context(tuple(utterance(rng, 9) for _ in range(9)), (0,) * 9)])
    assert all(vector.base is None for vector in encoder._kept._vectors.values())


def plain_cost(runs):
    return sum(len(run[-1]) * (len(run) + 1.3) + 7 for run in runs)


def test_runs_are_the_cheapest_division_and_lose_no_utterance(rng):
    for count in range(1, 9):
        said = [utterance(rng, int(length)) for length in rng.integers(2, 41, count)]
        runs = runs_of(said)
        assert sorted(itertools.chain(*runs)) == sorted(said)
        rows = sorted(said, key=len)
        divisions = itertools.product((False, True), repeat=count - 1)
        cheapest = min(
            plain_cost(
                [
                    rows[start:stop]
                    for start, stop in itertools.pairwise(
                        [0, *(i + 1 for i, cut in enumerate(cuts) if cut), count]
                    )
                ]
            )
            for cuts in divisions
        )
        assert plain_cost(runs) == pytest.approx(cheapest)


def test_a_long_utterance_does_not_lengthen_short_ones(rng):
    short = [utterance(rng, 4) for _ in range(20)]
    assert sorted(map(len, runs_of([*short, utterance(rng, 40)]))) == [1, 20]
    assert max(map(len, runs_of([utterance(rng, 5) for _ in range(200)]))) <= 64
