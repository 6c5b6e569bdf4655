"""An engine with a full queue: many requests in flight together, or one after the other.

Requests go through the served model's own way in, with the bundle's default options, so responses
are as long as the model makes them.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from siserve.bench.talk import Dialogs, Talk
from siserve.serving.dialog_model import DialogModel
from siserve.serving.engine import EngineOptions
from siserve.serving.flight import Generation
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement
from siserve.v1 import dialog_pb2

__all__ = ["EngineLoad"]

_TURNS = 5
_REPLIES = 400
_LEAST_REQUESTS = 100
#: Requests of a run for each that can be in flight, so that most of them find a full engine.
_TIMES_IN_FLIGHT = 4
#: Share of the requests that fill the engine before one looks.
_RAMP = 0.1


class EngineLoad:
    """A model in this process, asked as fast as it answers.

    Args:
        path: folder of a bundle.
        placement: where and how it runs.
        workers: of the engine.
        max_rows: in flight in a worker; as many as one request has, with one worker, = one request
            at a time; None = the default.
    """

    def __init__(
        self, path: Path, placement: Placement, workers: int = 1, max_rows: int | None = None
    ) -> None:
        """Load the model, start its engine, and learn what it says."""
        options = EngineOptions(workers, max_queue_rows=1 << 30)
        options = replace(options, max_rows=max_rows or options.max_rows)
        observer = Metrics().engine_observer()
        self._model = load_model(path, placement, RequestLimits(), options, observer)
        self._model.start()
        self._replies = _replies(self._model)
        self._talk = Talk(self._replies, seed=0)
        self._seed, self._rate = 0, 0.0
        self._most_rows = workers * options.max_rows

    def full_queue(self, n: int, kind: str, seconds: float) -> dict[str, Any]:
        """Measure the rate of requests while none finds the queue empty.

        Args:
            n: responses of a request.
            kind: of the contexts, see Dialogs.
            seconds: how long, about.
        """
        least = max(_LEAST_REQUESTS, _TIMES_IN_FLIGHT * self._most_rows // n)
        if not self._rate:
            self._rate = self._run(n, kind, least)["requests_per_s"]
        found = self._run(n, kind, max(least, round(self._rate * seconds)))
        self._rate = found["requests_per_s"]
        return found

    def cost(self, n: int, seconds: float) -> dict[str, Any]:
        """Measure the mean time of a request of n responses, alone, context known.

        Context and seeds are the same for every n. The mean and not the median: a request lasts as
        long as its longest response, and as lengths are skewed, that of two may well be more than
        twice as long as that of one, in the median.
        """
        dialogs = Dialogs(Talk(self._replies, seed=0), "same", _TURNS, n)
        self._seed, times = 0, list[float]()
        self._ask(dialogs).result()
        while sum(times) < seconds or len(times) < 5:
            started = time.perf_counter()
            self._ask(dialogs).result()
            times.append(time.perf_counter() - started)
        return {"seconds": statistics.fmean(times)}

    def _run(self, n: int, kind: Any, requests: int) -> dict[str, Any]:
        dialogs = Dialogs(self._talk, kind, _TURNS, n)
        dialogs.prepare(requests)
        done: list[float] = []
        jobs = []
        for _ in range(requests):
            job = self._ask(dialogs)
            job.add_done_callback(lambda _: done.append(time.monotonic()))
            jobs.append((time.monotonic(), job))
        generations = [(submitted, job.result()) for submitted, job in jobs]
        emptied = max(at + generation.queue_seconds for at, generation in generations)
        ramp = int(_RAMP * requests)
        while_full = [at for at in sorted(done) if at <= emptied][ramp:]
        lengths = [len(row.tokens) for _, generation in generations for row in generation.rows]
        return {
            "requests_per_s": (len(while_full) - 1) / (while_full[-1] - while_full[0]),
            "response_tokens": statistics.fmean(lengths),
        }

    def _ask(self, dialogs: Dialogs) -> Future[Generation]:
        message = dialog_pb2.GenerateResponsesRequest.FromString(dialogs.take(0))
        message.seed = self._seed
        self._seed += 1
        return self._model.submit(self._model.check(message)).result


def _replies(model: DialogModel) -> list[str]:
    """Ask until there are enough replies to make contexts of, each question a reply before."""
    found: dict[str, None] = {}
    text = "hello , how are you ?"
    for number in range(2 * _REPLIES // 32):
        message = dialog_pb2.GenerateResponsesRequest(
            context=[dialog_pb2.Utterance(speaker="A", text=text)], n=32, seed=number
        )
        reply = model.reply(number, model.submit(model.check(message)).result.result())
        said = [each.text for each in reply.responses if each.text]
        found.update(dict.fromkeys(said))
        text = said[0] if said else text
        if len(found) >= _REPLIES:
            break
    return [*found]
