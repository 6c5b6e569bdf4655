"""The load generator: what it sends, when, and what it makes of the answers."""

import asyncio
import time

import grpc
import pytest
from siserve.bench.channels import single_addresses
from siserve.bench.load import Outcome, arrivals, callers, closed_loop, open_loop
from siserve.bench.processes import Usage
from siserve.bench.serving_load import Level, LoadPlan, merge, summarise
from siserve.bench.talk import Dialogs, Talk
from siserve.v1 import dialog_pb2

REPLIES = ["i like dogs a lot", "yeah we have two cats and a bird", "oh that is nice to hear"]
REPLY = dialog_pb2.GenerateResponsesResponse(
    responses=[
        dialog_pb2.Response(num_tokens=4, finish_reason=dialog_pb2.FINISH_REASON_STOP),
        dialog_pb2.Response(num_tokens=8, finish_reason=dialog_pb2.FINISH_REASON_LENGTH),
    ],
    timings=dialog_pb2.Timings(queue_seconds=0.001, encode_seconds=0.002, decode_seconds=0.003),
).SerializeToString()


class FakeServer:
    """Answers after a while, and to nobody while it stalls."""

    def __init__(self, seconds: float = 0.005, stall: tuple[float, float] = (0.0, 0.0)) -> None:
        self.seconds, self.stall = seconds, stall
        self.begin = time.perf_counter()
        self.asked = 0

    async def call(self, request: bytes, client: int) -> tuple[str, bytes]:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        now = time.perf_counter() - self.begin
        if self.stall[0] <= now < self.stall[1]:
            await asyncio.sleep(self.stall[1] - now)
        return grpc.StatusCode.OK.name, REPLY


def take(client: int) -> bytes:
    return b""


async def test_clients_of_a_closed_loop_wait_for_their_answers() -> None:
    server = FakeServer(0.02)
    outcome = await closed_loop(server.call, take, clients=3, seconds=0.5)
    assert 3 * 3 <= len(outcome.latencies) <= 3 * 25  # each asks every 20 ms at most
    assert outcome.finished == server.asked
    assert len(outcome.latencies) >= server.asked - 3  # what came after the end does not count
    assert min(outcome.latencies) >= 0.02


async def test_a_stall_shows_in_every_request_that_should_have_been_sent_meanwhile() -> None:
    server = FakeServer(0.001, stall=(0.2, 0.6))
    times = [0.01 * number for number in range(80)]
    outcome = await open_loop(server.call, take, times, seconds=0.8)
    assert server.asked == len(outcome.latencies) == 80  # it did not wait with sending
    slow = [latency for latency in outcome.latencies if latency > 0.05]
    assert len(slow) >= 30  # of the 40 within the stall all but the last few
    assert max(slow) > 0.35


async def test_a_generator_that_falls_behind_counts_from_the_intended_time() -> None:
    async def call(request: bytes, client: int) -> tuple[str, bytes]:
        if client == 0:
            time.sleep(0.2)  # nothing else can be sent meanwhile
        return grpc.StatusCode.OK.name, REPLY

    outcome = await open_loop(call, take, [0.0, 0.02, 0.04], seconds=0.3)
    assert sorted(outcome.latencies)[0] > 0.1 and max(outcome.late) > 0.1


def test_arrivals_are_a_poisson_process_of_the_rate_and_repeatable() -> None:
    times = arrivals(200.0, 50.0, seed=1)
    assert times == sorted(times) and times == arrivals(200.0, 50.0, seed=1)
    assert len(times) == 10_000  # never more or fewer by chance
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    squares = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert squares == pytest.approx(mean**2, rel=0.1)  # as of an exponential, not of a clock


def squared_variation(times: list[float]) -> float:
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    return sum((gap - mean) ** 2 for gap in gaps) / len(gaps) / mean**2


def test_replicas_have_equal_shares_of_callers_that_come_as_unevenly_as_before() -> None:
    times = arrivals(200.0, 50.0, seed=1)
    of_callers = [
        [at for at, caller in zip(times, callers(10_000, 1), strict=True) if caller % 2 == replica]
        for replica in (0, 1)
    ]
    assert [len(each) for each in of_callers] == [5_000, 5_000]
    assert all(squared_variation(each) == pytest.approx(1, rel=0.1) for each in of_callers)
    assert squared_variation(times[::2]) == pytest.approx(0.5, rel=0.1)


def test_servers_that_are_listed_are_told_apart_and_a_name_is_not() -> None:
    assert single_addresses("ipv4:10.0.0.1:1,10.0.0.2:2") == ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:2"]
    assert single_addresses("ipv6:[::1]:1") == ["ipv6:[::1]:1"]
    for whole in ("127.0.0.1:50051", "dns:///replies:50051"):
        assert single_addresses(whole) == [whole]


async def test_what_is_sent_before_the_time_counts_is_answered_and_does_not_count() -> None:
    asked: list[int] = []

    async def call(request: bytes, client: int) -> tuple[str, bytes]:
        asked.append(client)
        return grpc.StatusCode.OK.name, REPLY

    outcome = await open_loop(call, take, [-0.1, -0.05, 0.0, 0.02], seconds=0.05)
    assert asked == [0, 1, 2, 3] and outcome.finished == 4
    assert len(outcome.latencies) == len(outcome.replies) == 2 == outcome.codes["OK"]


async def test_requests_are_sent_by_the_callers_in_the_order_that_was_drawn() -> None:
    asked: list[int] = []

    async def call(request: bytes, client: int) -> tuple[str, bytes]:
        asked.append(client)
        return grpc.StatusCode.OK.name, REPLY

    await open_loop(call, take, [0.0, 0.02, 0.04], seconds=0.06, order=[2, 0, 1])
    assert asked == [2, 0, 1]


def test_a_rate_is_visited_until_it_had_its_requests_and_no_two_visits_are_alike() -> None:
    slow, fast, waiting = Level(rate=5.0), Level(rate=100.0), Level(clients=4)
    plan = LoadPlan([slow, fast, waiting], 5, 5, "new", "turns", 3.0, 200, 0.1, rounds=4, seed=7)
    assert [plan.seconds_of(level) for level in plan.levels] == [40.0, 3.0, 3.0]
    seeds = {plan.seed_of(level, number) for level in plan.levels for number in range(4)}
    assert len(seeds) == 12 and min(seeds) == 7


def contexts(requests: list[bytes]) -> list[list[tuple[str, str]]]:
    read = [dialog_pb2.GenerateResponsesRequest.FromString(request) for request in requests]
    assert all(message.n == 3 and not message.HasField("seed") for message in read)
    return [[(turn.speaker, turn.text) for turn in message.context] for message in read]


def test_new_dialogs_never_say_an_utterance_twice() -> None:
    dialogs = Dialogs(Talk(REPLIES, seed=0), "new", turns=4, n=3)
    dialogs.prepare(20)
    sent = contexts([dialogs.take(0) for _ in range(60)])
    said = [text for context in sent for _, text in context]
    assert len(said) == 240 == len(set(said))
    assert [speaker for speaker, _ in sent[0]] == ["A", "B", "A", "B"]


def test_a_growing_dialog_gains_one_turn_of_the_other_speaker() -> None:
    dialogs = Dialogs(Talk(REPLIES, seed=0), "growing", turns=3, n=3, dialogs=2)
    first, other, second, third = contexts([dialogs.take(i) for i in (0, 1, 0, 0)])
    assert second[:2] == first[1:] and third[:2] == second[1:]
    assert [speaker for speaker, _ in (*first, second[-1])] in (list("ABAB"), list("BABA"))
    assert not {text for _, text in other} & {text for _, text in first}


def test_the_same_dialog_is_the_same() -> None:
    dialogs = Dialogs(Talk(REPLIES, seed=0), "same", turns=2, n=3)
    assert len({dialogs.take(client) for client in range(5)}) == 1


def test_what_is_said_is_made_of_the_servers_words() -> None:
    talk = Talk(REPLIES, seed=0)
    known = {word for reply in REPLIES for word in reply.split()}
    assert set(" ".join(talk.utterance() for _ in range(20)).split()) <= known
    assert Talk([], seed=0).utterance()  # a server that says nothing is asked all the same


def test_a_record_follows_from_the_outcome() -> None:
    outcome = Outcome(seconds=2.0, finished=5, generator_cpu=0.5)
    for latency in (0.01, 0.02, 0.03, 0.2):
        outcome.add(1.0, 1.001, 1.0 + latency, "OK", REPLY)
    outcome.add(1.0, 1.0, 1.5, "RESOURCE_EXHAUSTED", b"")
    record = summarise(Level(clients=4), outcome, 0.1, Usage(cpu=0.05, graphs=0.04, engine=0.045))
    assert record["answered"] == 4 and record["errors"] == {"RESOURCE_EXHAUSTED": 1}
    assert (record["requests_per_s"], record["goodput_per_s"]) == (2.0, 1.5)
    assert record["responses_per_s"] == 4.0  # two a reply
    assert record["p50_ms"] == pytest.approx(20) and record["p99_ms"] == pytest.approx(200)
    assert record["response_tokens"] == 6.0 and record["cut_share"] == 0.5
    assert record["decode_ms"] == pytest.approx(3.0)
    assert record["server_cpu_ms_per_request"] == pytest.approx(10.0)
    assert record["python_cpu_ms_per_request"] == pytest.approx(2.0)
    assert record["rpc_cpu_ms_per_request"] == pytest.approx(1.0)
    assert record["generator_cpu_share"] == 0.25


def test_rounds_are_joined_by_medians_and_sums() -> None:
    records = []
    for count in (1, 2, 6):
        outcome = Outcome(seconds=1.0, finished=count)
        for _ in range(count):
            outcome.add(0.0, 0.0, 0.01 * count, "OK", REPLY)
        outcome.add(0.0, 0.0, 1.0, "UNAVAILABLE", b"")
        records.append(summarise(Level(rate=9.0), outcome, 0.1, None))
    merged = merge(records)
    assert merged["answered"] == 9 and merged["errors"] == {"UNAVAILABLE": 3}
    assert merged["requests_per_s"] == 2.0 and merged["p50_ms"] == pytest.approx(20)
    assert merged["server_cpu_ms_per_request"] is None and merged["rate"] == 9.0
    assert len(merged["rounds"]) == 3


def test_a_load_without_any_answer_has_no_latency() -> None:
    outcome = Outcome(seconds=1.0, finished=1)
    outcome.add(0.0, 0.0, 1.0, "UNAVAILABLE", b"")
    record = summarise(Level(clients=1), outcome, 0.1, None)
    assert record["requests_per_s"] == 0 and record["p50_ms"] is None
    assert record["response_tokens"] is None
