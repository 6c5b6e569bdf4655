"""The Prometheus metrics of a server: names and labels are part of the contract.

Label values are bounded: methods are those of the proto, codes those of gRPC, models and versions
those that are served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from siserve.serving.models import Models

__all__ = ["CallMetrics", "Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHARES = tuple(step / 20 for step in range(1, 21))
_TOKENS = (1, 2, 3, 5, 8, 12, 16, 24, 32, 40, 64)
_ROWS = (1, 2, 5, 10, 20, 40, 64, 80, 128, 256, 512)


class CallMetrics(Protocol):
    """What is told by who answers calls, which may be in another process than the metrics."""

    def certificate_taken(self, expires: float) -> None:
        """See Metrics."""

    def handshake_began(self) -> None:
        """See Metrics."""

    def connection_met(self) -> None:
        """See Metrics."""

    def call_answered(self, method: str, code: str, seconds: float, trace_id: str = "") -> None:
        """See Metrics."""

    def timed(self, queue_seconds: float, encode_seconds: float, decode_seconds: float) -> None:
        """See Metrics."""

    def generated(self, model: str, lengths: Sequence[int], shares: Sequence[float]) -> None:
        """See Metrics."""


class Metrics:
    """Every metric of design.md in a registry of its own; an Observer of the engine."""

    def __init__(self) -> None:
        """Make the metrics; nothing is shared with other instances."""
        # Creation times would be a second series for each of ours.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "siserve_requests",
            "Calls that were answered, by method and gRPC status code.",
            ["method", "code"],
            registry=registry,
        )
        self._request_seconds = _seconds(
            registry,
            "request",
            "Time from a call's arrival to its answer, but for RESOURCE_EXHAUSTED.",
            ["method"],
        )
        self._queue_seconds = _seconds(registry, "queue", "Time that a request waited.")
        self._encode_seconds = _seconds(
            registry, "encode", "Time to encode a request's context and draw its latents."
        )
        self._decode_seconds = _seconds(
            registry, "decode", "Time of the decoder runs that a request took part in."
        )
        self._responses = Counter(
            "siserve_responses", "Responses that were returned.", ["model"], registry=registry
        )
        self._tokens = Counter(
            "siserve_tokens", "Tokens of the returned responses.", ["model"], registry=registry
        )
        self._batch_rows = Histogram(
            "siserve_batch_rows",
            "Responses that one decoder run works on.",
            buckets=_ROWS,
            registry=registry,
        )
        self._inflight_rows = Gauge(
            "siserve_inflight_rows", "Responses that are being decoded.", registry=registry
        )
        self._queue_requests = Gauge(
            "siserve_queue_requests", "Requests that wait for the decoder.", registry=registry
        )
        self._queue_rows = Gauge(
            "siserve_queue_rows", "Responses that waiting requests ask for.", registry=registry
        )
        self._distinct = tuple(
            Histogram(
                f"siserve_distinct_{order}_ratio",
                f"Share of different {order}-grams in the responses to one request.",
                ["model"],
                buckets=_SHARES,
                registry=registry,
            )
            for order in (1, 2)
        )
        self._response_tokens = Histogram(
            "siserve_response_tokens",
            "Length of the returned responses in tokens.",
            ["model"],
            buckets=_TOKENS,
            registry=registry,
        )
        self._cache = tuple(
            Counter(f"siserve_utterance_cache_{name}", documentation, registry=registry)
            for name, documentation in (
                ("hits", "Utterances of contexts whose encoding was kept."),
                ("misses", "Utterances of contexts that were encoded."),
            )
        )
        self._certificate_expiry = Gauge(
            "siserve_certificate_expiry_timestamp_seconds",
            "End of validity of the certificate in use, since 1970; 0 without TLS.",
            registry=registry,
        )
        self._tls_handshakes = Counter(
            "siserve_tls_handshakes", "TLS handshakes that clients began.", registry=registry
        )
        self._tls_connections = Counter(
            "siserve_tls_connections",
            "TLS connections that brought a call; the other handshakes were refused or given up.",
            registry=registry,
        )
        self._model_loads = Counter(
            "siserve_model_loads",
            "Bundles that came while the server ran, by what became of them.",
            ["result"],
            registry=registry,
        )
        for result in ("served", "refused"):
            self._model_loads.labels(result)
        self._model_info = Gauge(
            "siserve_model_info",
            "The models that are held: 1 = answers for its name, 0 = for name@version alone.",
            ["model", "version", "device"],
            registry=registry,
        )
        # Looked up by their labels once: that takes as long as to count.
        self._of_call = cache(self._requests.labels)
        self._of_method = cache(self._request_seconds.labels)
        self._of_model = cache(self._for_model)

    def certificate_taken(self, expires: float) -> None:
        """Tell when the certificate that is in use from now on expires, seconds since 1970."""
        self._certificate_expiry.set(expires)

    def handshake_began(self) -> None:
        """Count a TLS handshake, whatever comes of it."""
        self._tls_handshakes.inc()

    def connection_met(self) -> None:
        """Count a TLS connection that is in use."""
        self._tls_connections.inc()

    def engine_observer(self) -> EngineGauges:
        """Make the observer of one engine; gauges add up over engines."""
        return EngineGauges(
            self._queue_requests,
            self._queue_rows,
            self._inflight_rows,
            self._batch_rows,
            self._cache,
        )

    def models_changed(self, models: Models) -> None:
        """Tell which models are held; their counters begin at zero."""
        self._model_info.clear()
        for model in models.all:
            version = model.bundle.manifest.version
            is_current = model in models.current
            self._model_info.labels(model.name, version, model.device).set(is_current)
            self._of_model(model.name)

    def load_ended(self, result: Literal["served", "refused"]) -> None:
        """Count a bundle that came while the server ran."""
        self._model_loads.labels(result).inc()

    def call_answered(self, method: str, code: str, seconds: float, trace_id: str = "") -> None:
        """Count a call, whatever came of it; a trace goes with its time as an exemplar.

        Calls that were not taken have no time: under overload they would be the median.
        """
        self._of_call(method, code).inc()
        if code == "RESOURCE_EXHAUSTED":
            return
        exemplar = {"trace_id": trace_id} if trace_id else None
        self._of_method(method).observe(seconds, exemplar)

    def timed(self, queue_seconds: float, encode_seconds: float, decode_seconds: float) -> None:
        """Observe the stages of one request."""
        self._queue_seconds.observe(queue_seconds)
        self._encode_seconds.observe(encode_seconds)
        self._decode_seconds.observe(decode_seconds)

    def generated(self, model: str, lengths: Sequence[int], shares: Sequence[float]) -> None:
        """Observe the result of one generation.

        Args:
            model: its name.
            lengths: of the responses, in tokens.
            shares: of different words and of different pairs of words.
        """
        counted = self._of_model(model)
        counted.responses.inc(len(lengths))
        counted.tokens.inc(sum(lengths))
        for distinct, share in zip(counted.distinct, shares, strict=True):
            distinct.observe(share)
        for length in lengths:
            counted.response_tokens.observe(length)

    def _for_model(self, model: str) -> _OfModel:
        return _OfModel(
            self._responses.labels(model),
            self._tokens.labels(model),
            self._response_tokens.labels(model),
            tuple(distinct.labels(model) for distinct in self._distinct),
        )


@dataclass(frozen=True)
class _OfModel:
    """What is counted for each model."""

    responses: Counter
    tokens: Counter
    response_tokens: Histogram
    distinct: tuple[Histogram, ...]


class EngineGauges:
    """What one engine adds to the gauges that all engines share."""

    def __init__(
        self,
        queue: Gauge,
        queue_rows: Gauge,
        rows: Gauge,
        batch: Histogram,
        cache: tuple[Counter, ...],
    ) -> None:
        """Begin with nothing waiting and nothing in flight."""
        self._hits, self._misses = cache
        self._queue, self._queue_rows, self._rows, self._batch = queue, queue_rows, rows, batch
        self._num_waiting = self._num_waiting_rows = self._num_rows = 0

    def queue_changed(self, requests: int, rows: int) -> None:
        """Set how many requests wait, and for how many rows."""
        self._queue.inc(requests - self._num_waiting)
        self._queue_rows.inc(rows - self._num_waiting_rows)
        self._num_waiting, self._num_waiting_rows = requests, rows

    def rows_changed(self, rows: int) -> None:
        """Set how many rows are in flight."""
        self._rows.inc(rows - self._num_rows)
        self._num_rows = rows

    def batch_ran(self, rows: int) -> None:
        """Observe the size of a batch."""
        self._batch.observe(rows)

    def utterances_found(self, hits: int, misses: int) -> None:
        """Count what the cache of utterances saved and what it did not."""
        self._hits.inc(hits)
        self._misses.inc(misses)


def _seconds(
    registry: CollectorRegistry, stage: str, documentation: str, labels: list[str] | None = None
) -> Histogram:
    return Histogram(
        f"siserve_{stage}_seconds",
        documentation,
        labels or [],
        buckets=_SECONDS,
        registry=registry,
    )
