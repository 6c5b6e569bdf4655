"""Load: calls of raw bytes over grpc.aio, timed one by one; cheap, as it shares the machine."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc
from siserve.client.answer import make_request

__all__ = [
    "GENERATE",
    "Outcome",
    "ask",
    "channels",
    "closed_loop",
    "codes",
    "open_loop",
    "p",
    "say",
]

GENERATE = "/siserve.v1.DialogService/GenerateResponses"
_TURNS = (
    "do you have any pets",
    "i have two dogs and they like the yard",
    "what kind of music do you listen to when you drive to work in the morning",
    "well we have been to the movies last week and it was a pretty good one i thought",
    "yeah",
    "oh really",
)


@dataclass(frozen=True)
class Outcome:
    """One call: when it began (time.monotonic), how long it took, how it ended."""

    began: float
    seconds: float
    code: str


Ask = Callable[[], Awaitable[object]]


def say(dice: random.Random, n: int = 5) -> bytes:
    """Make a request of a random dialog of one to eight turns."""
    turns = [("AB"[i % 2], dice.choice(_TURNS)) for i in range(dice.randint(1, 8))]
    return make_request(turns, n=n, seed=dice.getrandbits(40)).SerializeToString()


def channels(address: str, count: int) -> list[grpc.aio.Channel]:
    """Open channels that do not share a connection."""
    return [
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        for _ in range(count)
    ]


async def ask(channel: grpc.aio.Channel, serialized: bytes, timeout_s: float = 60.0) -> Outcome:
    """Make one call; nothing that goes wrong with it is raised."""
    call = channel.unary_unary(GENERATE, request_serializer=None, response_deserializer=None)
    began = time.monotonic()
    try:
        await call(serialized, timeout=timeout_s)
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        if code in ("UNAVAILABLE", "UNKNOWN", "INTERNAL"):  # whose reasons are many
            code += f" ({str(error.details())[:120]})"
    return Outcome(began, time.monotonic() - began, code)


async def closed_loop(
    address: str, workers: int, seconds: float, n: int = 5, seed: int = 1
) -> list[Outcome]:
    """Let workers ask one call after another."""
    dice, end = random.Random(seed), time.monotonic() + seconds
    outcomes: list[Outcome] = []
    pool = channels(address, 4)

    async def work(number: int) -> None:
        while time.monotonic() < end:
            outcomes.append(await ask(pool[number % len(pool)], say(dice, n)))

    await asyncio.gather(*(work(number) for number in range(workers)))
    await asyncio.gather(*(channel.close(None) for channel in pool))
    return outcomes


async def open_loop(
    address: str,
    per_second: float,
    seconds: float,
    n: int = 5,
    seed: int = 1,
    timeout_s: float = 60.0,
) -> list[Outcome]:
    """Begin calls at random moments of a steady rate, whatever becomes of those before."""
    dice, begun = random.Random(seed), time.monotonic()
    pool, tasks = channels(address, 4), []
    at = begun
    while (at := at + dice.expovariate(per_second)) < begun + seconds:
        if (delay := at - time.monotonic()) > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(ask(dice.choice(pool), say(dice, n), timeout_s)))
    outcomes = list(await asyncio.gather(*tasks))
    await asyncio.gather(*(channel.close(None) for channel in pool))
    return outcomes


def p(share: float, outcomes: Sequence[Outcome]) -> float:
    """Quantile of the times of calls, in milliseconds."""
    times = sorted(outcome.seconds for outcome in outcomes)
    return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def codes(outcomes: Sequence[Outcome]) -> str:
    """How many calls ended how."""
    counted = Counter(outcome.code for outcome in outcomes)
    return ", ".join(f"{number} {code}" for code, number in counted.most_common())
