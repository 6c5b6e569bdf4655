"""Measure a server at several loads, in turns."""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from siserve.bench.channels import Channels
from siserve.bench.load import Outcome, arrivals, callers, closed_loop, open_loop
from siserve.bench.processes import Usage
from siserve.bench.rounds import alternating, percentile
from siserve.bench.talk import Dialogs, Kind, Talk
from siserve.client.credentials import Credentials
from siserve.v1 import dialog_pb2

__all__ = ["Level", "LoadPlan", "Spread", "measure_load", "merge", "summarise"]

Spread = Literal["turns", "callers"]

_Result = TypeVar("_Result")

_REPLIES = 400
_TIMEOUT_SECONDS = 10.0
_WARM_SECONDS = 1.0
_WARM_SEEDS = 1 << 32
#: Dialogs that grow at the same time where arrivals are on their own.
_OPEN_DIALOGS = 64
_MOST_CHANNELS = 16


@dataclass(frozen=True)
class Level:
    """One load: clients that wait for their answers, or arrivals a second if `clients` is 0."""

    clients: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class LoadPlan:
    """What is measured.

    Attributes:
        levels: each is visited once a round.
        n: responses of a request.
        turns: of a context.
        dialogs: what contexts are like.
        spread: over replicas: one caller that takes them in turns, or many that know one each.
        seconds: of one load, at least.
        requests: of one load, at least, if its arrivals have a rate.
        deadline_s: an answer within it is good.
        seed: of contexts and arrivals; those of each visit are others, so that no burst is met by
            all levels.
    """

    levels: Sequence[Level]
    n: int
    turns: int
    dialogs: Kind
    spread: Spread
    seconds: float
    requests: int
    deadline_s: float
    rounds: int
    seed: int

    def seconds_of(self, level: Level) -> float:
        """How long a visit of a level lasts."""
        return max(self.seconds, self.requests / level.rate) if level.rate else self.seconds

    def seed_of(self, level: Level, number: int) -> int:
        """Seed of the arrivals of a level in a round."""
        return self.seed + number * len(self.levels) + self.levels.index(level)


def measure_load(
    address: str,
    plan: LoadPlan,
    credentials: Credentials,
    usage: Callable[[], Usage | None],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load a server.

    Args:
        address: HOST:PORT.
        plan: what and how long.
        credentials: of the connections.
        usage: tells the server's processor time up to now, if anything does.
        say: told what is going on.

    Returns:
        The model and the contexts, and a record of each level.

    Raises:
        SiserveError: if the server does not answer.
    """
    return _run(_measure(address, plan, credentials, usage, say))


async def _measure(
    address: str,
    plan: LoadPlan,
    credentials: Credentials,
    usage: Callable[[], Usage | None],
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    most = max((level.clients or _MOST_CHANNELS) for level in plan.levels)
    channels = Channels(
        address,
        min(most, _MOST_CHANNELS),
        _TIMEOUT_SECONDS,
        credentials,
        in_turns=plan.spread == "turns",
    )
    async with channels:
        say(f"asking {address} for words")
        model = await channels.get_model()
        talk = Talk(await channels.replies(_REPLIES), plan.seed)
        found: defaultdict[Level, list[dict[str, Any]]] = defaultdict(list)
        for number, level in alternating(plan.levels, plan.rounds):
            say(f"{_name(level)}, round {number + 1} of {plan.rounds}")
            found[level].append(await _visit(channels, talk, level, plan, usage, number))
    told = {
        "name": f"{model.name}@{model.version}",
        "sha256": model.sha256,
        "method": model.method,
        "device": model.device,
        "context": {"turns": plan.turns, "words_per_turn": talk.words_per_utterance},
    }
    return told, [merge(found[level]) for level in plan.levels]


async def _visit(
    channels: Channels,
    talk: Talk,
    level: Level,
    plan: LoadPlan,
    usage: Callable[[], Usage | None],
    number: int,
) -> dict[str, Any]:
    """Load the server at one level, after a second that does not count."""
    dialogs = Dialogs(talk, plan.dialogs, plan.turns, plan.n, level.clients or _OPEN_DIALOGS)
    seconds = plan.seconds_of(level)
    if level.clients:
        warm = await closed_loop(channels.send, dialogs.take, level.clients, _WARM_SECONDS)
        dialogs.prepare(round(1.3 * warm.finished / _WARM_SECONDS * seconds) + 100)
        load = closed_loop(channels.send, dialogs.take, level.clients, seconds)
    else:
        times, order = _arrivals(plan, level, number)
        dialogs.prepare(len(times))
        load = open_loop(channels.send, dialogs.take, times, seconds, order)
    before = usage()
    outcome = await load
    after = usage()
    used = _between(before, after) if before is not None and after is not None else None
    return summarise(level, outcome, plan.deadline_s, used)


def _between(before: Usage, after: Usage) -> Usage:
    def less(now: float | None, then: float | None) -> float | None:
        return None if now is None or then is None else now - then

    return Usage(
        after.cpu - before.cpu,
        less(after.graphs, before.graphs),
        less(after.engine, before.engine),
    )


def _arrivals(plan: LoadPlan, level: Level, number: int) -> tuple[list[float], list[int]]:
    """Times and callers of a level in a round.

    It begins before it counts, so that no queue is empty when it does.
    """
    seed = plan.seed_of(level, number)
    warm = arrivals(level.rate, _WARM_SECONDS, seed + _WARM_SEEDS)
    counted = arrivals(level.rate, plan.seconds_of(level), seed)
    times = [at - _WARM_SECONDS for at in warm] + counted
    if plan.spread == "turns":
        return times, [*range(len(times))]
    return times, callers(len(warm), seed + _WARM_SEEDS) + callers(len(counted), seed)


def summarise(
    level: Level, outcome: Outcome, deadline_s: float, used: Usage | None
) -> dict[str, Any]:
    """Make a record of what happened.

    Args:
        level: the load.
        outcome: what became of its requests.
        deadline_s: an answer within it is good.
        used: processor time of the server meanwhile; None = unknown.
    """
    told = [dialog_pb2.GenerateResponsesResponse.FromString(reply) for reply in outcome.replies]
    ordered = sorted(outcome.latencies)
    good = sum(latency <= deadline_s for latency in ordered)
    responses = [response for reply in told for response in reply.responses]
    cuts = sum(each.finish_reason == dialog_pb2.FINISH_REASON_LENGTH for each in responses)
    cpu = None if used is None else used.cpu
    python = None if used is None or used.graphs is None else used.cpu - used.graphs
    rpc = None if used is None or used.engine is None else used.cpu - used.engine

    def per_request(seconds: float | None) -> float | None:
        return None if seconds is None else 1e3 * seconds / max(1, outcome.finished)

    return {
        "loop": "closed" if level.clients else "open",
        "clients": level.clients or None,
        "rate": level.rate or None,
        "seconds": outcome.seconds,
        "answered": len(ordered),
        "errors": {code: n for code, n in sorted(outcome.codes.items()) if code != "OK"},
        "requests_per_s": len(ordered) / outcome.seconds,
        "goodput_per_s": good / outcome.seconds,
        "responses_per_s": len(responses) / outcome.seconds,
        **{
            f"p{100 * share:.0f}_ms": 1e3 * percentile(ordered, share) if ordered else None
            for share in (0.5, 0.95, 0.99)
        },
        "mean_ms": _mean([1e3 * latency for latency in ordered]),
        "queue_ms": _mean([1e3 * reply.timings.queue_seconds for reply in told]),
        "encode_ms": _mean([1e3 * reply.timings.encode_seconds for reply in told]),
        "decode_ms": _mean([1e3 * reply.timings.decode_seconds for reply in told]),
        "response_tokens": _mean([float(each.num_tokens) for each in responses]),
        "cut_share": cuts / len(responses) if responses else None,
        "server_cpu_ms_per_request": per_request(cpu),
        "python_cpu_ms_per_request": per_request(python),
        "rpc_cpu_ms_per_request": per_request(rpc),
        "generator_cpu_share": outcome.generator_cpu / outcome.seconds,
        "sent_late_p99_ms": 1e3 * percentile(sorted(outcome.late), 0.99) if outcome.late else None,
    }


def merge(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the rounds of one level: medians of figures, sums of counts.

    The figures of each round are kept.
    """
    merged: dict[str, Any] = {}
    for name, first in records[0].items():
        values = [record[name] for record in records]
        if name == "errors":
            codes = {code for value in values for code in value}
            merged[name] = {code: sum(v.get(code, 0) for v in values) for code in sorted(codes)}
        elif name == "answered":
            merged[name] = sum(values)
        elif name == "loop" or any(value is None for value in values):
            merged[name] = first
        else:
            merged[name] = statistics.median(values)
    return {**merged, "rounds": list(records)}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _name(level: Level) -> str:
    return f"{level.clients} clients" if level.clients else f"{level.rate:g} arrivals a second"


def _run(measurement: Coroutine[Any, Any, _Result]) -> _Result:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(measurement)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measurement)
