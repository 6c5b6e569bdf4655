"""`siserve serve`, `verify` and `key`; only this parser is loaded before a command runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siserve.command import run_app
from siserve.serving.tools import key, verify

__all__ = ["run"]

_app = typer.Typer(add_completion=False, rich_markup_mode=None)


class _Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class _Precision(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    INT8 = "int8"


class _Kernels(StrEnum):
    AUTO = "auto"
    OFF = "off"


class _LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


@_app.callback()
def _siserve() -> None:
    """Serve a bundle, check one, or make a key."""


@_app.command()
def serve(
    model: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            envvar="SISERVE_MODEL",
            help="A bundle to serve; repeat it for more, the first is the default [embedded].",
        ),
    ] = [],  # noqa: B006 (typer copies it)
    model_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            exists=True,
            file_okay=False,
            envvar="SISERVE_MODEL_DIR",
            help="A folder of bundles that is watched: new ones are served without a gap.",
        ),
    ] = None,
    watch_seconds: Annotated[
        float,
        typer.Option(min=0, envvar="SISERVE_WATCH_SECONDS", help="Between looks there; 0 = none."),
    ] = 2.0,
    admin: Annotated[
        bool,
        typer.Option("--admin", envvar="SISERVE_ADMIN", help="Let models be changed by calls."),
    ] = False,
    device: Annotated[
        _Device,
        typer.Option(envvar="SISERVE_DEVICE", help="auto takes CUDA where it works."),
    ] = _Device.AUTO,
    host: Annotated[
        str, typer.Option(envvar="SISERVE_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, envvar="SISERVE_PORT", help="gRPC port; 0 = any.")
    ] = 50051,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            envvar="SISERVE_HTTP_PORT",
            help="HTTP/JSON and a page to try it, on the same host; 0 = any [none].",
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(envvar="SISERVE_METRICS_HOST", help="Address of the metrics.")
    ] = "127.0.0.1",
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, envvar="SISERVE_METRICS_PORT", help="Prometheus port; 0 = any."
        ),
    ] = 9464,
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            envvar="SISERVE_THREADS",
            help="CPU threads of one run, beside those of workers without work; 0 = auto.",
        ),
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            max=256,
            envvar="SISERVE_WORKERS",
            help="Decode at once; 0 = one a core, on CUDA at most 4.",
        ),
    ] = 0,
    rpc_processes: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            envvar="SISERVE_RPC_PROCESSES",
            help="Take calls beside the engine's process, on one port; 0 = in it.",
        ),
    ] = 0,
    precision: Annotated[
        _Precision,
        typer.Option(envvar="SISERVE_PRECISION", help="auto is int8 where it was tried."),
    ] = _Precision.AUTO,
    kernels: Annotated[
        _Kernels,
        typer.Option(
            envvar="SISERVE_KERNELS",
            help="off = onnxruntime runs all graphs, not siserve's kernels.",
        ),
    ] = _Kernels.AUTO,
    max_responses: Annotated[
        int, typer.Option(min=1, envvar="SISERVE_MAX_RESPONSES", help="Largest n of a request.")
    ] = 64,
    max_turns: Annotated[
        int, typer.Option(min=1, envvar="SISERVE_MAX_TURNS", help="Most turns of a context.")
    ] = 64,
    max_text_bytes: Annotated[
        int,
        typer.Option(min=1, envvar="SISERVE_MAX_TEXT_BYTES", help="Most text of a context."),
    ] = 16384,
    max_name_bytes: Annotated[
        int,
        typer.Option(min=1, envvar="SISERVE_MAX_NAME_BYTES", help="Longest name in a request."),
    ] = 256,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, envvar="SISERVE_MAX_TOKENS", help="Longest response, at most."),
    ] = 4096,
    max_score_samples: Annotated[
        int,
        typer.Option(
            min=1, envvar="SISERVE_MAX_SCORE_SAMPLES", help="Samples of one scoring request."
        ),
    ] = 6400,
    max_message_bytes: Annotated[
        int,
        typer.Option(min=1024, envvar="SISERVE_MAX_MESSAGE_BYTES", help="Largest message."),
    ] = 2 << 20,
    max_metadata_bytes: Annotated[
        int,
        typer.Option(min=1024, envvar="SISERVE_MAX_METADATA_BYTES", help="Headers of a call."),
    ] = 16 << 10,
    max_streams: Annotated[
        int,
        typer.Option(min=1, envvar="SISERVE_MAX_STREAMS", help="Calls at once on a connection."),
    ] = 256,
    idle_seconds: Annotated[
        float,
        typer.Option(min=0.1, envvar="SISERVE_IDLE_SECONDS", help="Idle connections are closed."),
    ] = 300.0,
    handshake_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, envvar="SISERVE_HANDSHAKE_SECONDS", help="Silent connections are closed."
        ),
    ] = 5.0,
    connection_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, envvar="SISERVE_CONNECTION_SECONDS", help="Then a connection is made anew."
        ),
    ] = 3600.0,
    max_queue_rows: Annotated[
        int,
        typer.Option(min=1, envvar="SISERVE_MAX_QUEUE_ROWS", help="Most responses that wait."),
    ] = 1024,
    max_rows: Annotated[
        int, typer.Option(min=1, envvar="SISERVE_MAX_ROWS", help="Most responses in one batch.")
    ] = 128,
    oversample: Annotated[
        int,
        typer.Option(
            min=1,
            max=16,
            envvar="SISERVE_OVERSAMPLE",
            help="Candidates for each response of a request with diversity; all in one batch.",
        ),
    ] = 6,
    cache_utterances: Annotated[
        int,
        typer.Option(min=0, envvar="SISERVE_CACHE_UTTERANCES", help="Encoded turns to keep."),
    ] = 8192,
    rate: Annotated[
        float,
        typer.Option(
            min=0, envvar="SISERVE_RATE", help="Responses a second of each caller; 0 = any."
        ),
    ] = 0.0,
    burst: Annotated[
        int,
        typer.Option(
            min=1,
            envvar="SISERVE_BURST",
            help="Responses at once after a pause, where a rate holds.",
        ),
    ] = 256,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0, envvar="SISERVE_DRAIN_SECONDS", help="Time for calls in flight after SIGTERM."
        ),
    ] = 30.0,
    notice_seconds: Annotated[
        float,
        typer.Option(
            min=0, envvar="SISERVE_NOTICE_SECONDS", help="Not ready before calls are refused."
        ),
    ] = 0.2,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="SISERVE_TLS_CERT", help="Certificate chain; read on change."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar="SISERVE_TLS_KEY", help="Its private key."),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="SISERVE_TLS_CLIENT_CA", help="Clients need a certificate of it."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", envvar="SISERVE_INSECURE", help="Serve other machines without TLS."
        ),
    ] = False,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar="SISERVE_KEYS_FILE", help="Ask for a key; see siserve key."
        ),
    ] = None,
    log_format: Annotated[
        _LogFormat, typer.Option(envvar="SISERVE_LOG_FORMAT", help="Lines for people or machines.")
    ] = _LogFormat.TEXT,
    otlp_endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL", envvar="SISERVE_OTLP_ENDPOINT", help="Send traces there by OTLP."
        ),
    ] = "",
    exemplars: Annotated[
        bool,
        typer.Option(
            "--exemplars", envvar="SISERVE_EXEMPLARS", help="Metrics name traces (OpenMetrics)."
        ),
    ] = False,
    reflection: Annotated[
        bool | None,
        typer.Option(
            envvar="SISERVE_REFLECTION", help="Tell clients the API [on, unless keys are asked]."
        ),
    ] = None,
) -> int:
    """Serve responses over gRPC until SIGTERM or Ctrl-C; a second one stops at once.

    Prints one line, "serving MODEL on HOST:PORT", when it is ready.

    Example: siserve serve --model ./my-bundle --port 50051
    """
    # gRPC's C core would add lines of its own to an error that is told in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from siserve.serving.admission import RateLimit
    from siserve.serving.engine import EngineOptions
    from siserve.serving.logs import start_log
    from siserve.serving.options import ConnectionLimits, ServerOptions
    from siserve.serving.requests import RequestLimits
    from siserve.serving.server import run_server
    from siserve.serving.sessions import Placement
    from siserve.serving.tls import CertificateFiles

    start_log(log_format.value)
    options = ServerOptions(
        models=tuple(model),
        model_dir=model_dir,
        watch_seconds=watch_seconds,
        admin=admin,
        placement=Placement(device.value, precision.value, threads, kernels.value),
        host=host,
        port=port,
        rpc_processes=rpc_processes,
        http_port=http_port,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        drain_seconds=drain_seconds,
        notice_seconds=notice_seconds,
        reflection=reflection,
        tls=CertificateFiles.of(tls_cert, tls_key, tls_client_ca),
        insecure=insecure,
        keys=keys_file,
        log_format=log_format.value,
        otlp_endpoint=otlp_endpoint,
        exemplars=exemplars,
        limits=RequestLimits(
            max_responses,
            max_turns,
            max_text_bytes,
            max_name_bytes,
            max_tokens,
            max_score_samples,
        ),
        engine=EngineOptions(
            workers,
            max_queue_rows,
            max_rows,
            oversample=oversample,
            cache_utterances=cache_utterances,
        ),
        connections=ConnectionLimits(
            max_message_bytes,
            max_metadata_bytes,
            max_streams,
            idle_seconds,
            handshake_seconds,
            connection_seconds,
        ),
        rate=RateLimit(rate, burst),
    )
    return run_server(options, _announce)


_app.command()(verify)
_app.command()(key)


def _announce(line: str) -> None:
    print(line, flush=True)


def run(arguments: Sequence[str]) -> int:
    """Run a command of this room, the command's name first; return the exit code."""
    return run_app(_app, arguments)
