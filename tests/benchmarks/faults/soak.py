"""Long under load, and through jumps of the clock: nothing may grow, nothing may stop."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from siserve.client import AsyncClient, Client, ClientError

from .flood import peak_of
from .load import Outcome, closed_loop, codes, open_loop, p
from .server import Served, serving
from .trial import Setting, Verdict

__all__ = ["clock", "soak"]

_EVERY_S = 5.0
#: Responses of a call and callers at a time that fill all workers' batches in every way.
_BATCHES = {64: 8, 20: 16, 3: 32}
#: Callers that fill the queue of a server with calls of five responses, and more.
_MOST_CALLS = 512
#: Callers of all else at a time, which share its largest batches too.
_VARIED = 8
_DIALOG = [("A", "do you have any pets")]


@dataclass(frozen=True)
class _Sample:
    """How a server is at a moment: seconds since the start, MiB, threads, descriptors."""

    at: float
    mib: float
    threads: int
    files: int


def soak(setting: Setting) -> Verdict:
    """Half an hour at four fifths of the peak, or at a given rate, of every kind and length.

    First come the largest batches of every graph and the longest queue that there can be.
    onnxruntime and malloc keep what the largest so far took, and of this load alone all workers
    have a full batch at once only now and then: a step of some 20 MiB, at any time, through which a
    line looks like a leak. A leak grows after them as before.
    """
    seconds = 60 * setting.minutes
    with serving(setting) as server:
        asyncio.run(_fill(server.address))
        server.wait_idle()
        rate = setting.rate or 0.8 * peak_of(server.address, 10)
        samples, outcomes, others = asyncio.run(_soak(server, rate, seconds))
        failed = server.answered("INTERNAL") + server.answered("UNKNOWN")
    settled = [s for s in samples if s.at >= max(60.0, seconds / 4)] or samples[len(samples) // 4 :]
    minutes, sizes = np.array([s.at / 60 for s in settled]), [s.mib for s in settled]
    slope = float(np.polyfit(minutes, sizes, 1)[0])
    size = float(np.mean(sizes))
    threads, files = {s.threads for s in settled}, [s.files for s in settled]
    told = (
        f"{seconds / 60:.1f} min at {rate:.0f} a second: {codes(outcomes)}, p50 "
        f"{p(0.5, outcomes):.0f} ms, p99 {p(0.99, outcomes):.0f} ms; beside them {dict(others)}; "
        f"{min(sizes):.0f} to {max(sizes):.0f} MiB, slope {slope:+.3f} MiB a minute "
        f"({60 * slope / size:+.1%} an hour) over the last {minutes[-1] - minutes[0]:.1f} min; "
        f"threads {sorted(threads)}, descriptors {min(files)} to {max(files)}; "
        f"{failed:.0f} INTERNAL or UNKNOWN"
    )
    holds = slope * 30 < 0.02 * size and len(threads) == 1 and max(files) - min(files) <= 4
    holds = holds and not failed and {o.code for o in outcomes} <= {"OK", "RESOURCE_EXHAUSTED"}
    return Verdict(holds, "growth < 2 % in 30 min, threads and descriptors constant", told)


async def _fill(address: str) -> None:
    """Have batches of every size up to the largest in all workers at once, then a full queue.

    Beside them several ask for all that `_vary` does.
    """
    async with AsyncClient(address, 60) as client:
        varied = [asyncio.create_task(_vary(client, Counter(), seed)) for seed in range(_VARIED)]
        crowd = (closed_loop(address, callers, 20, n) for n, callers in _BATCHES.items())
        await asyncio.gather(*crowd)
        await closed_loop(address, _MOST_CALLS, 10)
        await asyncio.sleep(20)  # without the crowd they get further
        for task in varied:
            task.cancel()
        await asyncio.gather(*varied, return_exceptions=True)


async def _soak(
    server: Served, rate: float, seconds: float
) -> tuple[list[_Sample], list[Outcome], Counter[str]]:
    samples: list[_Sample] = []
    others, began, process = Counter[str](), time.monotonic(), server.process

    async def watch() -> None:
        while True:
            at = time.monotonic() - began
            sample = (server.mib(), process.num_threads(), process.num_fds())
            samples.append(_Sample(at, *sample))
            await asyncio.sleep(_EVERY_S)

    watching = asyncio.create_task(watch())
    async with AsyncClient(server.address, 30) as client:
        varying = asyncio.create_task(_vary(client, others))
        outcomes = await open_loop(server.address, rate, seconds)
        varying.cancel()
        watching.cancel()
        await asyncio.gather(varying, watching, return_exceptions=True)
    return samples, outcomes, others


async def _vary(client: AsyncClient, others: Counter[str], seed: int = 9) -> None:
    """Ask now and then for all else that a server does, and give some of it up."""
    dice = random.Random(seed)
    while True:
        n, turns = dice.choice((1, 3, 20, 64)), dice.randint(1, 60)
        dialog = [("AB"[i % 2], "well " * dice.randint(1, 30)) for i in range(turns)]
        try:
            kind = dice.choice(("generate", "stream", "vary", "score", "give up"))
            if kind == "generate":
                await client.generate(dialog, n=n, diversity=dice.choice((0.0, 0.8)))
            elif kind == "stream":
                async for _ in client.stream(dialog, n=n):
                    pass
            elif kind == "vary":
                await client.vary(dialog, "yes i do", n=n)
            elif kind == "score":
                await client.score(dialog, ["yes i do", "no"], num_samples=16)
            else:
                task = asyncio.create_task(client.generate(dialog, n=n))
                await asyncio.sleep(dice.random() * 0.05)
                task.cancel()
            others[kind] += 1
        except ClientError as error:
            others[error.code.name] += 1
        await asyncio.sleep(0.5)


def clock(setting: Setting) -> Verdict:
    """The wall clock jumps by hours and back: deadlines, limits and health go on."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    bar = "jumps of +5 h, -9 h and back: all answered, p99 as before"
    if library is None:
        return Verdict(False, bar, "not tried: faketime is not installed")
    told, holds = [], True
    offset = setting.scratch / "offset"
    offset.write_text("+0\n")
    variables = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",  # s; else each look at a clock reads the file
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with serving(setting, "--rate", 100000, "--log-format", "json", variables=variables) as server:
        asyncio.run(open_loop(server.address, 20, 2))
        before: list[Outcome] = []
        for jump in ("+0", "+5h", "-4h", "+0"):
            offset.write_text(f"{jump}\n")
            outcomes = asyncio.run(open_loop(server.address, 20, max(3, 10 * setting.scale)))
            before = before or outcomes
            with Client(server.address, timeout_s=5) as client:
                assert client.generate(_DIALOG, n=64).responses
            holds = holds and {o.code for o in outcomes} == {"OK"}
            holds = holds and p(0.99, outcomes) < 2 * p(0.99, before)
            told.append(f"{jump}: {codes(outcomes)}, p99 {p(0.99, outcomes):.0f} ms")
        logged = [
            line.split('"')[3][:13] for line in server.logged().splitlines() if "GenerateR" in line
        ]
    told.append(f"hours in its log: {len(set(logged))}")
    return Verdict(holds and len(set(logged)) >= 3, bar, "; ".join(told))
