"""Load on a server: clients that wait for their answers, or arrivals that wait for nobody.

The generator shares a machine with the server, so it is cheap: requests are bytes that were made
before, replies are read after the measurement, several connections.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import grpc

__all__ = ["Call", "Outcome", "arrivals", "callers", "closed_loop", "open_loop"]

#: (request, number of the client) to (status, reply).
Call = Callable[[bytes, int], Awaitable[tuple[str, bytes]]]
#: Of the client to its next request.
Take = Callable[[int], bytes]


@dataclass
class Outcome:
    """What became of requests.

    Attributes:
        seconds: for which requests were sent.
        latencies: of answered requests in seconds, from when they were meant to be sent.
        late: how much later than meant each request was sent, in seconds.
        codes: number of requests by status.
        replies: serialised, of answered requests.
        finished: requests that were answered or failed, those before and after the time included.
        generator_cpu: processor time of this process over the same time, in seconds.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    replies: list[bytes] = field(default_factory=list)
    finished: int = 0
    generator_cpu: float = 0.0

    def add(self, intended: float, sent: float, done: float, code: str, reply: bytes) -> None:
        """Take in one request; times are of time.perf_counter()."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.late.append(sent - intended)
        if code == grpc.StatusCode.OK.name:
            self.latencies.append(done - intended)
            self.replies.append(reply)


async def closed_loop(call: Call, take: Take, clients: int, seconds: float) -> Outcome:
    """Let clients ask, each its next question when the last is answered.

    Only what was answered within the time counts.
    """
    outcome = Outcome(seconds=seconds)
    cpu = time.process_time()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        while (sent := time.perf_counter()) < end:
            code, reply = await call(take(number), number)
            outcome.finished += 1
            if (done := time.perf_counter()) <= end:
                outcome.add(sent, sent, done, code, reply)

    running = [asyncio.ensure_future(client(number)) for number in range(clients)]
    await asyncio.sleep(seconds)
    outcome.generator_cpu = time.process_time() - cpu
    await asyncio.gather(*running)
    return outcome


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the times of a Poisson process: seconds from its beginning, ascending.

    Given their number, the arrivals of a Poisson process are uniform and independent. The number
    is the expected one, never one by chance: 100 expected arrivals vary by a tenth, and a p99
    by more.
    """
    dice = random.Random(seed)
    return sorted(dice.uniform(0.0, seconds) for _ in range(round(rate * seconds)))


def callers(number: int, seed: int) -> list[int]:
    """Draw the order in which as many callers ask, each once.

    If every R-th caller asks the same replica, each of R has an equal share of the arrivals, and
    they are a Poisson process as before; in turns they would be more even than that.
    """
    return random.Random(f"callers {seed}").sample(range(number), number)


async def open_loop(
    call: Call, take: Take, times: Sequence[float], seconds: float, order: Sequence[int] = ()
) -> Outcome:
    """Send requests at given times, whatever became of earlier ones, and wait for all.

    A latency counts from the intended time, so a server that stalls, or a generator that falls
    behind, shows in every request that should have been sent meanwhile.

    Args:
        call: sends.
        take: makes a request.
        times: when to send, ascending, in seconds from when requests begin to count; what is
            sent before that has a negative time, and warms up.
        seconds: for how long they count.
        order: the client of each; by default they are counted.
    """
    outcome = Outcome(seconds=seconds)
    loop, running = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    begin = time.perf_counter() - min([0.0, *times[:1]])

    async def one(number: int, intended: float) -> None:
        sent = time.perf_counter()
        code, reply = await call(take(number), number)
        outcome.finished += 1
        if intended >= begin:
            outcome.add(intended, sent, time.perf_counter(), code, reply)

    def send(number: int, intended: float) -> None:
        task = loop.create_task(one(number, intended))
        running.add(task)
        task.add_done_callback(running.discard)

    def pace() -> None:
        """An event loop's own timers are exact to a millisecond only."""
        for number, at in zip(order or range(len(times)), times, strict=True):
            time.sleep(max(0.0, begin + at - time.perf_counter()))
            loop.call_soon_threadsafe(send, number, begin + at)

    pacer = threading.Thread(target=pace, name="pacer", daemon=True)
    pacer.start()
    await asyncio.sleep(max(0.0, begin - time.perf_counter()))
    cpu = time.process_time()
    await asyncio.sleep(max(0.0, begin + seconds - time.perf_counter()))
    outcome.generator_cpu = time.process_time() - cpu
    while pacer.is_alive() or running:
        await asyncio.sleep(0.01)
    return outcome
