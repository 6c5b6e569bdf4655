"""Several workers, both precisions, large and small requests: who does the work changes nothing."""

import random
import threading
import time
from functools import partial

import pytest
from siserve.bundle import open_bundle
from siserve.bundle.errors import UsageError
from siserve.serving.cores import usable_cores
from siserve.serving.engine import Engine, EngineOptions
from siserve.serving.errors import RequestCancelled
from siserve.serving.fused.cpu import CpuDecoder
from siserve.serving.jobs import JobQueue
from siserve.serving.sessions import Placement, load_sessions

from .test_engine import Gate, Records, generate, make_job, replaced, varied_job


@pytest.fixture(scope="session", params=["fp32", "int8"])
def precise_sessions(request, bundle):
    return load_sessions(open_bundle(bundle), "cpu", 1, request.param)


def test_rows_are_the_same_alone_and_among_neighbours_in_any_worker(precise_sessions, manifest):
    seeds = list(range(60))
    records = Records()
    one = Engine(precise_sessions, manifest, EngineOptions(), records)
    one.start()
    alone = {seed: generate(one, varied_job(manifest, seed)).rows for seed in seeds}
    one.stop()
    engine = Engine(precise_sessions, manifest, EngineOptions(workers=3, max_rows=40), records)
    engine.start()
    try:
        for shuffle in range(3):
            random.Random(shuffle).shuffle(seeds)
            results = {seed: engine.submit(varied_job(manifest, seed)) for seed in seeds}
            assert {seed: result.result(20).rows for seed, result in results.items()} == alone
    finally:
        engine.stop()


def test_requests_that_wait_are_spread_over_idle_workers(sessions, manifest):
    gate = Gate(sessions.decoder)
    records = Records()
    options = EngineOptions(workers=2, chunk_steps=1)
    engine = Engine(replaced(sessions, decoder=gate), manifest, options, records)
    engine.start()
    try:
        results = [engine.submit(make_job(manifest, seed)) for seed in range(2)]
        assert gate.entered.acquire(timeout=20) and gate.entered.acquire(timeout=20)
        assert gate.runs == 2  # two runs at a time: one worker each
        gate.passes.release(1000)
        gate.is_open = True
        assert all(len(result.result(20).rows) == 5 for result in results)
    finally:
        engine.stop(finish=False)


class Occupied(CpuDecoder):
    """A decoder that notes how many workers have work, after each change and in each run."""

    def __init__(self, decoder):
        self.decoder, self.lock = decoder, threading.Lock()
        self.busy, self.changes, self.in_runs = 0, [], []

    def occupy(self, change):
        with self.lock:
            self.busy += change
            self.changes.append(self.busy)

    def take_steps(self, rows, state, num_steps):
        self.in_runs.append(self.busy)
        if len(self.in_runs) == 7:
            raise RuntimeError("a run that fails")
        return self.decoder.take_steps(rows, state, num_steps)


def test_workers_tell_that_they_have_work_until_they_have_none(sessions, manifest):
    decoder = Occupied(sessions.decoder)
    options = EngineOptions(workers=2, chunk_steps=1)
    engine = Engine(replaced(sessions, decoder=decoder), manifest, options, Records())
    engine.start()
    jobs = [varied_job(manifest, seed) for seed in range(30)]
    try:
        results = [engine.submit(job) for job in jobs]
        for job in jobs[::4]:
            job.cancel()
        ends = [result.exception(20) for result in results]
    finally:
        engine.stop()
    assert {type(end) for end in ends} >= {type(None), RequestCancelled, RuntimeError}
    assert min(decoder.in_runs) >= 1 and set(decoder.changes) == {0, 1, 2}
    assert decoder.busy == 0


def test_a_small_request_does_not_wait_for_a_flood_of_large_ones(sessions, manifest):
    """A row costs more of its place in the queue than a moment of waiting gains."""
    gate = Gate(sessions.decoder)
    engine = Engine(
        replaced(sessions, decoder=gate), manifest, EngineOptions(max_rows=64), Records()
    )
    engine.start()
    finished: list[str] = []

    def finish(name, _):
        finished.append(name)

    try:
        first = engine.submit(make_job(manifest, 0, n=64))
        assert gate.entered.acquire(timeout=20)
        large = [engine.submit(make_job(manifest, seed, n=64)) for seed in range(1, 6)]
        small = engine.submit(make_job(manifest, 9, n=1))
        for number, result in enumerate(large):
            result.add_done_callback(partial(finish, f"large {number}"))
        small.add_done_callback(partial(finish, "small"))
        gate.open()
        for result in (first, small, *large):
            result.result(20)
        assert finished[0] == "small"
    finally:
        engine.stop(finish=False)


def test_a_large_request_is_not_overtaken_for_ever(manifest):
    """What came some time later is due later, however small it is."""
    queue = JobQueue(EngineOptions(), Records())
    large = make_job(manifest, 0, n=64)
    queue.put(large)
    time.sleep(0.2)
    queue.put(make_job(manifest, 1, n=1))
    taken = queue.take(0, False)
    assert taken is not None and taken[0] is large


def test_int8_is_refused_where_a_bundle_has_none(bundle, tmp_path):
    from bundle_factory import tiny_bundle

    without = open_bundle(tiny_bundle(tmp_path / "without", seed=1))
    assert not without.has("decoder_int8.onnx")
    with pytest.raises(UsageError, match="has no decoder in 8-bit integers"):
        load_sessions(without, "cpu", 1, "int8")
    assert load_sessions(without, "cpu", 1, "auto").precision == "fp32"
    found = load_sessions(open_bundle(bundle), "cpu", 1, "auto")
    assert found.precision == "int8" and found.decoder is not found.exact_decoder


def test_threads_share_the_cores_with_workers():
    assert Placement().threads_beside(0) == Placement().threads_beside(4) == 1
    assert Placement().threads_beside(1) == min(2, usable_cores())
    assert Placement(threads=3).threads_beside(4) == 3


@pytest.mark.parametrize(
    ("told", "expected"), [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None)]
)
def test_a_quota_of_a_container_counts_as_cores(tmp_path, told, expected):
    quota = tmp_path / "cpu.max"
    quota.write_text(told)
    assert usable_cores(quota) == (expected or usable_cores(tmp_path / "none"))


def test_a_server_with_workers_tells_its_precision(start_server):
    server = start_server("--workers", 2, "--precision", "int8")
    with server.client() as client:
        assert client.get_model().precision == "int8"
        asked = [("A", "do you have a dog")]
        first = client.generate(asked, n=5, seed=3).responses
    other = start_server("--workers", 1, "--precision", "int8", "--cache-utterances", 0)
    with other.client() as client:
        again = client.generate(asked, n=5, seed=3).responses
    assert [(r.text, r.log_prob) for r in again] == [(r.text, r.log_prob) for r in first]
