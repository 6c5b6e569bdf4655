"""The engine: what a request gets depends on that request alone; what nobody awaits is not run."""

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from siserve.bundle.manifest import Manifest
from siserve.serving.encoding import Context
from siserve.serving.engine import Engine, EngineOptions
from siserve.serving.errors import DeadlinePassed, QueueFull, RequestCancelled, ShuttingDown
from siserve.serving.flight import Generation, Job
from siserve.serving.sessions import Sessions


class Records:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.rows: list[int] = []
        self.batches: list[int] = []
        self.found: list[tuple[int, int]] = []

    def queue_changed(self, requests: int, rows: int) -> None:
        assert (rows > 0) == (requests > 0)
        self.queue.append(rows)

    def rows_changed(self, rows: int) -> None:
        self.rows.append(rows)

    def batch_ran(self, rows: int) -> None:
        self.batches.append(rows)

    def utterances_found(self, hits: int, misses: int) -> None:
        self.found.append((hits, misses))


class Gate:
    """A graph that waits before each run until it is let through, and counts its runs."""

    def __init__(self, graph) -> None:
        self.graph = graph
        self.runs = 0
        self.entered = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.is_open = False

    def run(self, inputs):
        self.runs += 1
        self.entered.release()
        if not self.is_open:
            assert self.passes.acquire(timeout=20)
        return self.graph.run(inputs)

    def open(self) -> None:
        self.is_open = True
        self.passes.release()


class Failing:
    """A graph that fails while it is told to."""

    def __init__(self, graph) -> None:
        self.graph = graph
        self.fails = True

    def run(self, inputs):
        if self.fails:
            raise RuntimeError("the graph broke")
        return self.graph.run(inputs)


@contextmanager
def running(
    sessions: Sessions, manifest: Manifest, options: EngineOptions | None = None
) -> Iterator[tuple[Engine, Records]]:
    records = Records()
    engine = Engine(sessions, manifest, options or EngineOptions(), records)
    engine.start()
    try:
        yield engine, records
    finally:
        engine.stop(finish=False)


def replaced(sessions: Sessions, **graphs) -> Sessions:
    return dataclasses.replace(sessions, **graphs)


def make_job(manifest: Manifest, seed: int, **changes) -> Job:
    dice = random.Random(seed)
    start, end = manifest.tokens.start, manifest.tokens.end
    words = range(7, manifest.sizes.vocabulary)
    turns = [
        (start, *dice.choices(words, k=dice.randint(1, 12)), end)
        for _ in range(dice.randint(1, manifest.limits.context_utterances))
    ]
    fields = {
        "context": Context(tuple(turns), tuple(dice.randint(0, 1) for _ in turns)),
        "n": 5,
        "seed": seed,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_tokens": 40,
    }
    return Job(**{**fields, **changes})


def varied_job(manifest: Manifest, seed: int) -> Job:
    """A job whose size and sampling options depend on its seed too."""
    dice = random.Random(f"options {seed}")
    return make_job(
        manifest,
        seed,
        n=dice.randint(1, 9),
        temperature=dice.choice([0.0, 0.7, 1.0, 1.3]),
        top_k=dice.choice([0, 0, 3, 20]),
        top_p=dice.choice([1.0, 1.0, 0.9, 0.5]),
        max_tokens=dice.choice([1, 7, 40]),
    )


def generate(engine: Engine, job: Job) -> Generation:
    return engine.submit(job).result(timeout=20)


def test_same_seed_gives_the_same_rows_alone_and_among_shuffled_neighbours(sessions, manifest):
    seeds = list(range(40))
    with running(sessions, manifest) as (engine, records):
        alone = {seed: generate(engine, varied_job(manifest, seed)).rows for seed in seeds}
        largest_alone = max(records.batches)
        for shuffle in range(4):
            random.Random(shuffle).shuffle(seeds)
            results = {seed: engine.submit(varied_job(manifest, seed)) for seed in seeds}
            assert {seed: result.result(20).rows for seed, result in results.items()} == alone
        assert max(records.batches) > 4 * largest_alone  # they did share batches


def test_the_size_of_a_chunk_changes_nothing(sessions, manifest):
    rows = []
    for steps in (1, 3, 4, 64):
        options = EngineOptions(chunk_steps=steps)
        with running(sessions, manifest, options) as (engine, _):
            rows.append([generate(engine, varied_job(manifest, seed)).rows for seed in range(12)])
    assert rows[1:] == rows[:1] * 3


def test_another_seed_gives_other_rows(sessions, manifest):
    context = make_job(manifest, 0).context
    with running(sessions, manifest) as (engine, _):
        rows = [generate(engine, make_job(manifest, s, context=context)).rows for s in range(10)]
    assert len(set(rows)) == 10


def test_another_context_gives_other_rows_under_the_same_seed(sessions, manifest):
    with running(sessions, manifest) as (engine, _):
        contexts = [make_job(manifest, seed).context for seed in range(10)]
        rows = [generate(engine, make_job(manifest, 7, context=c)).rows for c in contexts]
    assert len(set(rows)) == 10


def test_a_response_has_words_only_and_ends_or_is_cut(sessions, manifest):
    special = set(manifest.tokens.model_dump().values())
    with running(sessions, manifest) as (engine, _):
        for seed in range(20):
            job = make_job(manifest, seed, max_tokens=9)
            for row in generate(engine, job).rows:
                assert 1 <= len(row.tokens) <= 9
                assert not special & set(row.tokens)
                assert row.ended or len(row.tokens) == 9
                assert row.log_prob < 0


def test_a_shorter_limit_cuts_the_same_response(sessions, manifest):
    with running(sessions, manifest) as (engine, _):
        whole = generate(engine, make_job(manifest, 3)).rows
        for limit in (1, 2, 5, 8):
            for row, full in zip(
                generate(engine, make_job(manifest, 3, max_tokens=limit)).rows, whole, strict=True
            ):
                assert row.tokens == full.tokens[:limit]
                assert row.ended == (len(full.tokens) < limit)


def test_log_prob_is_what_the_decoder_scores_the_response_with(sessions, manifest):
    job = make_job(manifest, 5, temperature=0.5, top_k=10)
    recorded = []

    class Recording:
        def run(self, inputs):
            recorded.append({name: np.array(value) for name, value in inputs.items()})
            return sessions.decoder.run(inputs)

    with running(replaced(sessions, decoder=Recording()), manifest) as (engine, _):
        rows = generate(engine, job).rows
    longest = max(len(row.tokens) for row in rows) + 1
    forced = np.full((longest, len(rows)), manifest.tokens.end)
    for index, row in enumerate(rows):
        forced[: len(row.tokens), index] = row.tokens
    inputs = recorded[0] | {"forced": forced, "uniform": np.zeros(forced.shape, np.float32)}
    _, log_probs, _ = sessions.decoder.run(inputs)
    for index, row in enumerate(rows):
        assert row.ended
        scored = log_probs[: len(row.tokens) + 1, index].sum()
        assert row.log_prob == pytest.approx(scored, abs=1e-4)


def test_rows_that_ended_leave_and_the_engine_stops_with_the_last(sessions, manifest):
    with running(sessions, manifest, EngineOptions(chunk_steps=2)) as (engine, records):
        rows = generate(engine, make_job(manifest, 1, n=30)).rows
    steps = [len(row.tokens) + row.ended for row in rows]
    expected = [sum(count > 2 * chunk for count in steps) for chunk in range(max(steps))]
    assert records.batches == [rows for rows in expected if rows]


def test_a_batch_has_at_most_max_rows_unless_one_request_is_larger(sessions, manifest):
    with running(sessions, manifest, EngineOptions(max_rows=6)) as (engine, records):
        jobs = [make_job(manifest, seed, n=n) for seed, n in enumerate([5, 1, 5, 3, 3, 2])]
        for result in [engine.submit(job) for job in jobs]:
            result.result(20)
        assert max(records.batches) <= 6
        generate(engine, make_job(manifest, 9, n=20))
        assert max(records.batches) == 20


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_cancelling_a_request_ends_its_decoding_at_the_next_chunk(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    with running(gated, manifest, EngineOptions(chunk_steps=1)) as (engine, records):
        job = make_job(manifest, 0)
        result = engine.submit(job)
        assert gate.entered.acquire(timeout=10)
        job.cancel()
        gate.open()
        with pytest.raises(RequestCancelled):
            result.result(10)
        wait_until(lambda: records.rows[-1:] == [0])
        assert gate.runs == 1
        assert len(generate(engine, make_job(manifest, 1)).rows) == 5


def test_a_deadline_that_passes_ends_the_decoding(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    with running(gated, manifest, EngineOptions(chunk_steps=1)) as (engine, _):
        result = engine.submit(make_job(manifest, 0, deadline=time.monotonic() + 0.3))
        assert gate.entered.acquire(timeout=10)
        time.sleep(0.35)
        gate.open()
        with pytest.raises(DeadlinePassed):
            result.result(10)
        assert gate.runs == 1


def test_what_expires_or_is_cancelled_in_the_queue_is_never_run(sessions, manifest):
    gate, encoder = Gate(sessions.decoder), Gate(sessions.dialog_encoder)
    encoder.open()
    gated = replaced(sessions, decoder=gate, dialog_encoder=encoder)
    with running(gated, manifest) as (engine, _):
        first = engine.submit(make_job(manifest, 0))
        assert gate.entered.acquire(timeout=10)
        expired = engine.submit(make_job(manifest, 1, deadline=time.monotonic() + 0.1))
        time.sleep(0.15)
        given_up = make_job(manifest, 2)
        cancelled = engine.submit(given_up)
        given_up.cancel()
        gate.open()
        assert len(first.result(10).rows) == 5
        with pytest.raises(DeadlinePassed):
            expired.result(10)
        with pytest.raises(RequestCancelled):
            cancelled.result(10)
        assert encoder.runs == 1


def test_beyond_the_queue_a_request_is_refused_at_once(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    options = EngineOptions(max_queue_rows=11, max_rows=5)
    with running(gated, manifest, options) as (engine, records):
        results = [engine.submit(make_job(manifest, 0))]
        assert gate.entered.acquire(timeout=10)
        results += [engine.submit(make_job(manifest, seed)) for seed in (1, 2)]
        with pytest.raises(QueueFull, match="10 responses wait") as refused:
            engine.submit(make_job(manifest, 3, n=2))
        assert 0.05 <= refused.value.retry_after_s <= 10
        results.append(engine.submit(make_job(manifest, 3, n=1)))
        gate.open()
        assert [len(result.result(10).rows) for result in results] == [5, 5, 5, 1]
        assert max(records.queue) == 11


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    with running(gated, manifest, EngineOptions(max_queue_rows=3, max_rows=5)) as (engine, _):
        first = engine.submit(make_job(manifest, 0))
        assert gate.entered.acquire(timeout=10)
        large = engine.submit(make_job(manifest, 1, n=7))
        with pytest.raises(QueueFull):
            engine.submit(make_job(manifest, 2, n=1))
        gate.open()
        assert (len(first.result(10).rows), len(large.result(10).rows)) == (5, 7)


def test_a_deadline_that_has_passed_is_refused_before_it_takes_a_place(sessions, manifest):
    with running(sessions, manifest) as (engine, records):
        with pytest.raises(DeadlinePassed):
            engine.submit(make_job(manifest, 0, deadline=time.monotonic() - 0.001))
        assert records.queue == []


def test_the_places_of_abandoned_requests_go_to_others(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    with running(gated, manifest, EngineOptions(max_queue_rows=5, max_rows=5)) as (engine, _):
        engine.submit(make_job(manifest, 0))
        assert gate.entered.acquire(timeout=10)
        given_up = make_job(manifest, 1)
        cancelled = engine.submit(given_up)
        with pytest.raises(QueueFull):
            engine.submit(make_job(manifest, 2))
        given_up.cancel()
        taken = engine.submit(make_job(manifest, 2))
        with pytest.raises(RequestCancelled):
            cancelled.result(0)
        gate.open()
        assert len(taken.result(10).rows) == 5


def test_room_is_told_before_a_job_is_made(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    with running(gated, manifest, EngineOptions(max_queue_rows=5, max_rows=5)) as (engine, _):
        engine.check_room()
        engine.submit(make_job(manifest, 0))
        assert gate.entered.acquire(timeout=10)
        waiting = engine.submit(make_job(manifest, 1))
        with pytest.raises(QueueFull) as refused:
            engine.check_room()
        assert refused.value.retry_after_s > 0
        gate.open()
        waiting.result(10)
        engine.check_room()


def test_room_for_less_than_what_waits_usually_asks_for_is_none_for_a_job_unread(
    sessions, manifest
):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    with running(gated, manifest, EngineOptions(max_queue_rows=14, max_rows=5)) as (engine, _):
        engine.submit(make_job(manifest, 0))
        assert gate.entered.acquire(timeout=10)
        engine.submit(make_job(manifest, 1))
        engine.check_room()
        waiting = engine.submit(make_job(manifest, 2))
        with pytest.raises(QueueFull, match="10 responses wait"):
            engine.check_room()
        small = engine.submit(make_job(manifest, 3, n=4))  # a job that was read has its place
        gate.open()
        waiting.result(10)
        small.result(10)
        engine.check_room()


def test_stopping_finishes_what_was_taken_and_takes_no_more(sessions, manifest):
    with running(sessions, manifest) as (engine, _):
        results = [engine.submit(make_job(manifest, seed)) for seed in range(30)]
        engine.stop()
        assert all(len(result.result(0).rows) == 5 for result in results)
        with pytest.raises(ShuttingDown):
            engine.submit(make_job(manifest, 99))


def test_stopping_at_once_ends_every_request(sessions, manifest):
    gate = Gate(sessions.decoder)
    gated = replaced(sessions, decoder=gate)
    options = EngineOptions(chunk_steps=1, max_rows=5)
    with running(gated, manifest, options) as (engine, _):
        results = [engine.submit(make_job(manifest, seed)) for seed in range(3)]
        assert gate.entered.acquire(timeout=10)
        stopper = threading.Thread(target=engine.stop, args=(False,))
        stopper.start()
        gate.open()
        stopper.join(10)
        for result in results:
            with pytest.raises(RequestCancelled):
                result.result(0)


@pytest.mark.parametrize("graph", ["decoder", "utterance_encoder", "dialog_encoder", "prior"])
def test_a_graph_that_fails_fails_its_requests_and_not_the_engine(sessions, manifest, graph):
    failing = Failing(getattr(sessions, graph))
    broken = replaced(sessions, **{graph: failing})
    with running(broken, manifest) as (engine, records):
        with pytest.raises(RuntimeError, match="the graph broke"):
            generate(engine, make_job(manifest, 0))
        failing.fails = False
        assert len(generate(engine, make_job(manifest, 0)).rows) == 5
        wait_until(lambda: records.rows[-1] == 0)


def test_gauges_end_where_they_began(sessions, manifest):
    with running(sessions, manifest, EngineOptions(max_rows=10)) as (engine, records):
        for result in [engine.submit(make_job(manifest, seed)) for seed in range(12)]:
            result.result(20)
        wait_until(lambda: records.rows[-1] == 0)
        assert records.queue[-1] == 0
        assert max(records.rows) <= 10


def test_the_time_of_a_request_is_told_by_stages(sessions, manifest):
    with running(sessions, manifest) as (engine, _):
        started = time.perf_counter()
        generation = generate(engine, make_job(manifest, 0))
        whole = time.perf_counter() - started
    stages = (generation.queue_seconds, generation.encode_seconds, generation.decode_seconds)
    assert all(stage > 0 for stage in stages) and sum(stages) <= whole


def test_an_engine_that_could_do_nothing_is_refused():
    for name in ("max_queue_rows", "max_rows", "chunk_steps", "oversample"):
        with pytest.raises(ValueError, match=name):
            EngineOptions(**{name: 0})
