"""OpenTelemetry traces: a span for each call with one for each stage in it; the extra `otel`.

The context of a caller comes by the W3C header ``traceparent``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from siserve.bundle.errors import UsageError

__all__ = ["Tracing"]

_STAGES = ("queue_seconds", "encode_seconds", "decode_seconds")


class Tracing:
    """Sends spans to a collector.

    Args:
        endpoint: of OTLP over gRPC, as in http://localhost:4317.
        exporter: takes the spans instead; for who has no collector.

    Raises:
        UsageError: if the packages are not installed.
    """

    def __init__(self, endpoint: str, exporter: Any = None) -> None:
        """Set up a tracer of our own; nothing global is touched."""
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import (
                TraceContextTextMapPropagator,
            )

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
                    OTLPSpanExporter,
                )

                exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"))
        except ModuleNotFoundError:
            raise UsageError(
                "--otlp-endpoint needs OpenTelemetry, which is not installed: "
                "pip install 'siserve[otel]'"
            ) from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": "siserve"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("siserve")
        self._propagator = TraceContextTextMapPropagator()

    def tell(
        self,
        method: str,
        code: str,
        seconds: float,
        metadata: Mapping[str, str],
        facts: Mapping[str, Any],
    ) -> str:
        """Tell of a call that has just been answered.

        Args:
            method: full name, as in siserve.v1.DialogService/GetModel.
            code: name of the gRPC status.
            seconds: from its arrival until now.
            metadata: its headers, of which the caller's context is taken.
            facts: what the log tells of it; the stages become spans, the rest attributes.

        Returns:
            The id of the trace, 32 hexadecimal digits.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        end = time.time_ns()
        started = end - round(seconds * 1e9)
        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(dict(metadata)),
            kind=SpanKind.SERVER,
            start_time=started,
            attributes={f"siserve.{name}": value for name, value in facts.items()},
        )
        span.set_attribute("rpc.system", "grpc")
        span.set_attribute("rpc.grpc.status_code", code)
        if code != "OK":
            span.set_status(Status(StatusCode.ERROR, code))
        within, at = set_span_in_context(span), started
        for name in _STAGES:
            if name in facts:
                stage = self._tracer.start_span(
                    name.removesuffix("_seconds"), context=within, start_time=at
                )
                at += round(float(facts[name]) * 1e9)
                stage.end(at)
        span.end(end)
        return f"{span.get_span_context().trace_id:032x}"

    def stop(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()
