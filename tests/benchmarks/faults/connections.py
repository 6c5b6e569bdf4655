"""Connections that say nothing, half of it or nonsense, beside clients who want answers."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .http2 import flood, hold
from .load import Outcome, codes, open_loop, p
from .server import Served, serving
from .trial import Setting, Verdict

__all__ = ["Beside", "connections", "resets"]

_HANDSHAKE_S, _IDLE_S = 3.0, 8.0
_RATE = 20.0


def _others(server: Served, seconds: float, seed: int) -> list[Outcome]:
    return asyncio.run(open_loop(server.address, _RATE, seconds, seed=seed))


def connections(setting: Setting) -> Verdict:
    """A thousand connections that ask for nothing are closed in time, and hurt nobody."""
    count, seconds = setting.count(1000, least=40), 3 * _IDLE_S
    limits = ("--handshake-seconds", _HANDSHAKE_S, "--idle-seconds", _IDLE_S)
    with serving(setting, *limits, "--http-port", 0) as server:
        _others(server, 4, seed=1)
        alone = _others(server, seconds, seed=2)
        before = (server.mib(), server.process.num_fds())
        held = Beside(hold, server.address, server.url("page"), count, seconds - 1)
        beside = _others(server, seconds, seed=2)
        closed: dict[str, list[float | None]] = held.result()
        after = (server.mib(), server.process.num_fds())
    late = Counter(
        kind
        for kind, times in closed.items()
        for at in times
        if at is None or at > _IDLE_S * 1.3 + (_HANDSHAKE_S if kind != "idle" else 0)
    )
    slowest = ", ".join(
        f"{kind} {len(times)} within {max(at or float('inf') for at in times):.1f} s"
        for kind, times in closed.items()
    )
    told = (
        f"closed: {slowest}; others {codes(beside)}, p99 {p(0.99, alone):.0f} ms alone and "
        f"{p(0.99, beside):.0f} ms beside them; {after[0] - before[0]:+.1f} MiB, "
        f"{after[1] - before[1]:+d} descriptors"
    )
    holds = not late and _is_within_twice(alone, beside) and after[1] - before[1] < 10
    bar = f"all closed by {_HANDSHAKE_S:.0f} s (silent) or {_IDLE_S:.0f} s (idle), p99 within 2x"
    return Verdict(holds, bar, told)


def resets(setting: Setting) -> Verdict:
    """Calls begun and reset as fast as one connection can (CVE-2023-44487) hurt nobody else."""
    count = setting.count(100_000, least=2000)
    with serving(setting) as server:
        _others(server, 4, seed=1)
        alone, before = _others(server, 20, seed=2), server.mib()
        flooded = Beside(flood, server.address, count)
        beside: list[Outcome] = []
        while flooded.is_running():
            beside += _others(server, 5, seed=3 + len(beside))
        told_by_flood: dict[str, float] = flooded.result()
        freed = server.wait_idle()
        grown, after = server.mib() - before, _others(server, 10, seed=4)
    took = told_by_flood["seconds"]
    told = (
        f"{told_by_flood['resets']:.0f} resets in {took:.1f} s ({count / took:.0f} a second) over "
        f"{told_by_flood['connections']:.0f} connections; others {codes(beside)}, p99 "
        f"{p(0.99, alone):.0f} ms alone, {p(0.99, beside):.0f} ms beside it, "
        f"{p(0.99, after):.0f} ms after; idle {freed:.2f} s later, {grown:+.1f} MiB"
    )
    holds = _is_within_twice(alone, beside) and told_by_flood["resets"] >= count
    return Verdict(holds and grown < 0.1 * before, "others' p99 within 2x, memory flat", told)


def _is_within_twice(alone: list[Outcome], beside: list[Outcome]) -> bool:
    answered = all(outcome.code == "OK" for outcome in (*alone, *beside))
    return answered and len(beside) > 0 and p(0.99, beside) <= 2 * p(0.99, alone)


class Beside:
    """An attack in a process of its own, so that who measures is not slowed by it."""

    def __init__(self, attack: Callable[..., Any], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, other = context.Pipe()
        self._process = context.Process(target=_send_back, args=(other, attack, arguments))
        self._process.start()
        other.close()
        assert self._end.recv() == "begins"

    def is_running(self) -> bool:
        """Say whether it goes on."""
        return not self._end.poll()

    def result(self) -> Any:
        """Wait for its end; return what it tells."""
        told = self._end.recv()
        self._process.join()
        return told


def _send_back(end: Connection, attack: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    end.send("begins")
    end.send(attack(*arguments))
