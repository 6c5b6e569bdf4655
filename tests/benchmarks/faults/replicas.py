"""Two replicas under load from the shipped client: restarts one by one, and a kill."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from siserve.client import AsyncClient, ClientError

from .server import Served, free_port, start
from .trial import Setting, Verdict

__all__ = ["kill", "rolling"]

_ASKERS = 8
#: A restart follows the one before after this time, as a deployment's minReadySeconds has it.
_BETWEEN_S = 1.0


@dataclass
class _Seen:
    answers: int = 0
    slowest_s: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def told(self) -> str:
        failed = f" ({', '.join(self.failures)})" if self.failures else ""
        count = sum(self.failures.values())
        return f"{count} of {self.answers + count} failed{failed}, slowest {self.slowest_s:.2f} s"


@contextmanager
def _replicas(setting: Setting) -> Iterator[tuple[list[Served], list[int]]]:
    ports = [free_port(), free_port()]
    served = [start(setting, "--model", setting.bundle, port=port) for port in ports]
    try:
        yield served, ports
    finally:
        for server in served:
            server.child.kill()
            server.child.wait()


async def _keep_asking(client: AsyncClient, seen: _Seen, stop: asyncio.Event, seed: int) -> None:
    dice = random.Random(seed)
    while not stop.is_set():
        began = time.monotonic()
        try:
            answer = await client.generate([("A", "do you have any pets")], n=dice.randint(1, 8))
            assert answer.responses
            seen.answers += 1
        except ClientError as error:
            seen.failures[f"{error.code.name}: {error}"[:160]] += 1
        seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)


async def _under_load(ports: list[int], disturb: asyncio.Task[None], seen: _Seen) -> None:
    address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    stop = asyncio.Event()
    async with AsyncClient(address) as client:
        asking = [
            asyncio.create_task(_keep_asking(client, seen, stop, seed)) for seed in range(_ASKERS)
        ]
        await disturb
        stop.set()
        await asyncio.gather(*asking)


def rolling(setting: Setting) -> Verdict:
    """SIGTERM and start again, one replica after the other; no call may fail."""
    count, seen, starts = setting.count(10, least=2), _Seen(), []

    async def restart(served: list[Served], ports: list[int]) -> None:
        for _ in range(count):
            for which in (0, 1):
                await asyncio.sleep(_BETWEEN_S)
                code = await asyncio.to_thread(served[which].stop)
                assert code == 0, served[which].logged()[-2000:]
                served[which] = await asyncio.to_thread(
                    start, setting, "--model", setting.bundle, port=ports[which]
                )
                starts.append(served[which].ready_s)

    async def trial(served: list[Served], ports: list[int]) -> None:
        await _under_load(ports, asyncio.create_task(restart(served, ports)), seen)

    with _replicas(setting) as (served, ports):
        asyncio.run(trial(served, ports))
    told = (
        f"{len(starts)} restarts in {count} rounds: {seen.told}; SERVING after "
        f"{max(starts):.2f} s at most"
    )
    holds = not seen.failures and seen.answers > 0 and max(starts) < 3
    return Verdict(holds, "0 failed, exit code 0 each, SERVING within 3 s", told)


def kill(setting: Setting) -> Verdict:
    """Kill -9 one of two again and again; no call may fail."""
    count, seen, starts = setting.count(5), _Seen(), []

    async def strike(served: list[Served], ports: list[int]) -> None:
        for turn in range(count):
            which = turn % 2
            await asyncio.sleep(2 * _BETWEEN_S)
            served[which].child.kill()
            await asyncio.to_thread(served[which].child.wait)
            await asyncio.sleep(_BETWEEN_S)
            served[which] = await asyncio.to_thread(
                start, setting, "--model", setting.bundle, port=ports[which]
            )
            starts.append(served[which].ready_s)
        await asyncio.sleep(_BETWEEN_S)

    async def trial(served: list[Served], ports: list[int]) -> None:
        await _under_load(ports, asyncio.create_task(strike(served, ports)), seen)

    with _replicas(setting) as (served, ports):
        asyncio.run(trial(served, ports))
    told = f"{count} kills: {seen.told}; SERVING again after {max(starts):.2f} s at most"
    return Verdict(not seen.failures and seen.answers > 0, "0 failed", told)
