"""A request with diversity: n chosen among more candidates, by its own candidates alone."""

import json
import urllib.request

import pytest
from siserve.bundle.selection import consensus, select_diverse
from siserve.client import ClientError
from siserve.serving.engine import EngineOptions

from .test_engine import generate, make_job, running, varied_job

DIALOG = [("A", "hi , how was your weekend?"), ("B", "oh it was great"), ("A", "what did you do")]
OVERSAMPLE = EngineOptions().oversample


def test_no_diversity_gives_the_rows_of_the_first_latents(sessions, manifest):
    with running(sessions, manifest) as (engine, records):
        plain = generate(engine, make_job(manifest, 4)).rows
        assert generate(engine, make_job(manifest, 4, diversity=0.0)).rows == plain
        assert max(records.batches) == 5


def test_the_rows_are_chosen_among_those_of_more_latents(sessions, manifest):
    with running(sessions, manifest) as (engine, records):
        for seed, diversity in ((1, 0.3), (2, 0.85), (3, 1.0)):
            more = generate(engine, make_job(manifest, seed, n=4 * OVERSAMPLE)).rows
            records.batches.clear()
            job = make_job(manifest, seed, n=4, diversity=diversity)
            chosen = generate(engine, job).rows
            assert records.batches[0] == 4 * OVERSAMPLE
            said = [row.tokens for row in more]
            expected = select_diverse(consensus(said), said, 4, diversity)
            assert chosen == tuple(more[i] for i in expected)
            assert chosen != more[:4]


def test_a_diverse_request_gets_the_same_alone_and_among_neighbours(sessions, manifest):
    def diverse(seed):
        return make_job(manifest, seed, n=3, diversity=0.85)

    options = EngineOptions(chunk_steps=3)
    with running(sessions, manifest) as (engine, records):
        alone = [generate(engine, diverse(seed)).rows for seed in range(8)]
        records.batches.clear()
        results = []
        for seed in range(8):
            results.append(engine.submit(diverse(seed)))
            engine.submit(varied_job(manifest, seed))
        assert [result.result(20).rows for result in results] == alone
        assert max(records.batches) > 3 * OVERSAMPLE
    with running(sessions, manifest, options) as (engine, _):
        assert [generate(engine, diverse(seed)).rows for seed in range(8)] == alone


@pytest.mark.parametrize(
    ("options", "n", "rows"),
    [
        (EngineOptions(oversample=3), 4, 12),
        (EngineOptions(oversample=3, max_rows=10), 4, 10),
        (EngineOptions(oversample=3, max_rows=2), 4, 4),
        (EngineOptions(oversample=1), 4, 4),
    ],
)
def test_candidates_are_as_many_as_the_options_allow(sessions, manifest, options, n, rows):
    with running(sessions, manifest, options) as (engine, records):
        found = generate(engine, make_job(manifest, 0, n=n, diversity=0.5)).rows
    assert len(found) == n and records.batches[0] == rows


def test_candidates_count_for_the_room_in_a_batch(sessions, manifest):
    with running(sessions, manifest, EngineOptions(max_rows=20, oversample=4)) as (engine, records):
        jobs = [make_job(manifest, seed, n=3, diversity=0.5) for seed in range(6)]
        for result in [engine.submit(job) for job in jobs]:
            result.result(20)
    assert max(records.batches) <= 20


@pytest.fixture
def client(server):
    with server.client() as made:
        yield made


def test_a_server_returns_n_that_differ_more_and_repeats_them(client):
    plain = [client.generate(DIALOG, n=8, seed=seed) for seed in range(5)]
    diverse = [client.generate(DIALOG, n=8, seed=seed, diversity=0.9) for seed in range(5)]
    assert all(len({reply.text for reply in answer.responses}) == 8 for answer in diverse)
    assert sum(a.distinct_2 for a in diverse) > sum(a.distinct_2 for a in plain)
    assert client.generate(DIALOG, n=8, seed=0, diversity=0.9).responses == diverse[0].responses


def test_diversity_of_zero_is_no_diversity(client):
    plain = client.generate(DIALOG, seed=6)
    assert client.generate(DIALOG, seed=6, diversity=0.0).responses == plain.responses


def test_only_what_is_returned_is_counted_as_response(start_server):
    server = start_server("--oversample", "5")
    with server.client() as client:
        client.generate(DIALOG, n=4, diversity=0.8)
        with pytest.raises(ClientError, match=r"^diversity: must be from 0 to 1, got 1\.5"):
            client.generate(DIALOG, diversity=1.5)
    with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    assert 'siserve_responses_total{model="tiny"} 4.0' in lines
    assert 'siserve_response_tokens_count{model="tiny"} 4.0' in lines
    batches = dict(line.split() for line in lines if line.startswith("siserve_batch_rows"))
    small, all_batches = (
        batches[f'siserve_batch_rows_bucket{{le="{le}"}}'] for le in (10.0, "+Inf")
    )
    assert float(all_batches) > float(small)  # some batch held more than 10 of the 20 candidates


def test_the_factor_is_an_option_with_bounds(run_siserve):
    refused = run_siserve("serve", "--oversample", "17")
    assert refused.returncode == 2 and "--oversample" in refused.stderr
    assert run_siserve("serve", SISERVE_OVERSAMPLE="0").returncode == 2


def test_ask_takes_diversity_with_and_without_a_server(run_siserve, server, bundle):
    asked = ("ask", "how was your weekend?", "--seed", "7", "--diversity", "0.9", "--json")
    answers = [
        json.loads(run_siserve(*asked, *where).stdout)
        for where in (("--address", server.address), ("--bundle", bundle))
    ]
    assert answers[0]["responses"] == answers[1]["responses"]
    plain = json.loads(run_siserve(*asked[:4], "--json", "--bundle", bundle).stdout)
    assert plain["responses"] != answers[0]["responses"]
    refused = run_siserve(*asked[:4], "--diversity", "2", "--bundle", bundle)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "diversity: must be from 0 to 1" in refused.stderr
