"""Too many calls, calls given up, calls too late, calls that make no sense."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from siserve.client import Client
from siserve.client.answer import make_request
from siserve.v1 import dialog_pb2_grpc

from .connections import Beside
from .load import Outcome, closed_loop, codes, open_loop, p
from .mutate import METHODS, mutate, seeds
from .raw import raw_open_loop
from .server import Served, serving
from .trial import Setting, Verdict

__all__ = ["cancels", "deadlines", "mutations", "overload", "peak_of"]

_CONTEXT = [("A", "do you have any pets")]
#: What a mutated request may be answered with: never UNKNOWN, never INTERNAL.
_SOUND = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}


def peak_of(address: str, seconds: float, n: int = 5) -> float:
    """Answers a second under a closed loop of 64 callers, the first fifth left out."""
    began = time.monotonic()
    outcomes = asyncio.run(closed_loop(address, 64, seconds, n))
    return _goodput(outcomes, began + seconds / 5, began + seconds)


def _goodput(outcomes: list[Outcome], first: float, last: float) -> float:
    ended = [o.began + o.seconds for o in outcomes if o.code == "OK"]
    return sum(first <= at < last for at in ended) / (last - first)


def overload(setting: Setting) -> Verdict:
    """Four times as many calls as can be answered: the rest is refused at once."""
    seconds, n = max(4.0, 20 * setting.scale), setting.responses
    with serving(setting) as server:
        peak_of(server.address, 3, n)
        peak = peak_of(server.address, seconds, n)
        server.wait_idle()
        flooded = Beside(raw_open_loop, server.address, 4 * peak, seconds, n)
        health = _looks_at_health(server, flooded)
        outcomes: list[Outcome] = flooded.result()
        server.wait_idle()
        after = peak_of(server.address, seconds / 2, n)
    began = min(outcome.began for outcome in outcomes)
    goodput = _goodput(outcomes, began + seconds / 5, began + seconds)
    refused = [o for o in outcomes if o.code == "RESOURCE_EXHAUSTED"]
    odd = {o.code for o in outcomes} - {"OK", "RESOURCE_EXHAUSTED"}
    best = max(peak, after)
    told = (
        f"n={n}: peak {peak:.0f} before and {after:.0f} a second after; at {4 * peak:.0f}: "
        f"{goodput:.0f} a second ({goodput / best:.0%}), {codes(outcomes)}; refusals p50 "
        f"{p(0.5, refused):.1f} ms, p99 {p(0.99, refused):.1f} ms; {len(health)} looks at "
        f"health: {sorted(set(health))}"
    )
    holds = goodput >= 0.9 * best and p(0.99, refused) < 50 and not odd
    holds = holds and set(health) == {"SERVING"}
    return Verdict(holds, "goodput 90 % of peak, refusals p99 < 50 ms, health SERVING", told)


def _looks_at_health(server: Served, flooded: Beside) -> list[str]:
    """Ask for health, under every name, until the flood has ended."""
    names, health = health_pb2.HealthCheckResponse.ServingStatus, []
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while flooded.is_running():
            for name in ("", "liveness", "readiness"):
                reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=1)
                health.append(names.Name(reply.status))
            time.sleep(0.1)
    return health


def cancels(setting: Setting) -> Verdict:
    """Calls that are given up at once or in flight leave nothing behind."""
    count, dice = setting.count(10_000, least=200), random.Random(1)
    with serving(setting) as server, grpc.insecure_channel(server.address) as channel:
        stub = dialog_pb2_grpc.DialogServiceStub(channel)
        peak_of(server.address, 5, n=64)  # the largest batches there are: memory grows to hold them
        _cancel(stub, count // 10, dice)
        server.wait_idle()
        before = (server.mib(), server.process.num_threads(), server.process.num_fds())
        _cancel(stub, count, dice)
        freed = server.wait_idle()
        stub.GenerateResponses(make_request(_CONTEXT), timeout=60)
        after = (server.mib(), server.process.num_threads(), server.process.num_fds())
    grown, threads, files = (late - early for late, early in zip(after, before, strict=True))
    told = (
        f"{count} cancels, idle {1000 * freed:.0f} ms after the last; {grown:+.1f} MiB, "
        f"{threads:+d} threads, {files:+d} descriptors"
    )
    holds = freed < 0.25 and grown < 0.05 * before[0] and threads <= 2 and files <= 2
    return Verdict(holds, "idle within 0.25 s, nothing leaks (memory within 5 %)", told)


def _cancel(stub: dialog_pb2_grpc.DialogServiceStub, count: int, dice: random.Random) -> None:
    for start in range(0, count, 50):
        request = make_request(_CONTEXT, n=dice.randint(1, 40))
        calls = [stub.GenerateResponses.future(request) for _ in range(min(50, count - start))]
        time.sleep(dice.random() * 0.02)
        for call in calls:
            call.cancel()


def deadlines(setting: Setting) -> Verdict:
    """Calls whose deadline passes while they wait are never decoded."""
    count, seconds = setting.count(2000, least=100), 10.0

    async def load(doomed: bool) -> list[Outcome]:
        rate = count / seconds if doomed else 0.001
        late = asyncio.create_task(
            open_loop(server.address, rate, seconds, n=20, seed=2, timeout_s=0.03)
        )
        await closed_loop(server.address, 24, seconds, n=20)
        return await late

    def rows_per_answer() -> float:
        now = server.metrics()
        rows = now["siserve_batch_rows_sum"] - before["siserve_batch_rows_sum"]
        name = next(name for name in now if name.startswith("siserve_responses_total"))
        return rows / (now[name] - before[name])

    with serving(setting, "--max-rows", 40) as server:
        peak_of(server.address, 2, n=20)
        before = server.metrics()
        asyncio.run(load(doomed=False))
        alone, before = rows_per_answer(), server.metrics()
        outcomes = asyncio.run(load(doomed=True))
        with_doomed = rows_per_answer()
        server.wait_idle()
    late = sum(o.code == "DEADLINE_EXCEEDED" for o in outcomes)
    told = (
        f"{codes(outcomes)} with 30 ms to live in a queue of half a second; rows decoded for each "
        f"response {alone:.2f} without and {with_doomed:.2f} with them"
    )
    holds = late > 0.95 * len(outcomes) and with_doomed < 1.02 * alone
    return Verdict(holds, "over 95 % late, none of them decoded (within 2 %)", told)


def _code(call: Any, streams: bool) -> str:
    """Return the status of a call, once it has ended and all that it streams was read."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call if streams else ():
            pass
    return str(call.code().name)


def mutations(setting: Setting) -> Verdict:
    """Requests broken where it hurts, to every method: a sound status each, a server that lives."""
    count, dice, seen = setting.count(100_000, least=500), random.Random(2), Counter[str]()
    # Small limits: many more of the mutants break one, and those that break none are soon done.
    limits = ("--max-responses", 4, "--max-score-samples", 16, "--max-tokens", 4)
    small = ("--cache-utterances", 64)  # what it keeps shall not look like a leak
    with (
        serving(setting, "--admin", *limits, *small) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls: dict[str, Any] = {
            name: (channel.unary_stream if streams else channel.unary_unary)(path, None, None)
            for name, (path, streams) in METHODS.items()
        }
        begin = 0.0
        for start in range(0, count, 100):
            if start >= count // 10 and not begin:
                server.wait_idle()
                begin = server.mib()
            sent: list[tuple[Any, bool]] = []
            for _ in range(min(100, count - start)):
                name, message = dice.choice(seeds())
                streams = METHODS[name][1]
                call = calls[name] if streams else calls[name].future
                sent.append((call(mutate(dice, message), timeout=60), streams))
            seen.update(_code(*each) for each in sent)
        server.wait_idle()
        grown = server.mib() - begin
        alive = server.child.poll() is None
        with Client(server.address, 60) as client:
            assert len(client.generate(_CONTEXT, n=2).responses) == 2
        failed = server.answered("INTERNAL") + server.answered("UNKNOWN")
    told = ", ".join(f"{number} {code}" for code, number in seen.most_common())
    told += (
        f"; {failed:.0f} INTERNAL or UNKNOWN by its metrics; {grown:+.1f} MiB after the first tenth"
    )
    holds = alive and set(seen) <= _SOUND and not failed and grown < 0.05 * begin
    return Verdict(holds, "no crash, UNKNOWN, INTERNAL; memory within 5 %", told)
