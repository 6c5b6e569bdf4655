"""The life of a server: take the port, load, warm up, serve, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from siserve.bundle.errors import UsageError
from siserve.serving.cores import take_turns
from siserve.serving.dialog_model import DialogModel
from siserve.serving.front import Front
from siserve.serving.gate import check_exposure, is_loopback
from siserve.serving.health import Health
from siserve.serving.library import Library, open_library
from siserve.serving.loops import loop_factory
from siserve.serving.memory import hold_little, keep_all
from siserve.serving.metrics import Metrics
from siserve.serving.models import Models
from siserve.serving.options import ServerOptions, join_address
from siserve.serving.scrape import serve_metrics

if TYPE_CHECKING:
    from siserve.serving.rpc_processes import RpcProcesses

__all__ = ["run_server"]

#: A scrape waits no longer for what other processes have counted.
_GATHER_SECONDS = 2.0

_log = logging.getLogger(__name__)


def run_server(options: ServerOptions, announce: Callable[[str], None]) -> int:
    """Serve until a signal; return the exit code.

    Args:
        options: what to serve, and where.
        announce: takes the one line that says that the server is ready.

    Returns:
        0 after SIGTERM or SIGINT once every call was answered; 1 if a second signal or
        `drain_seconds` cut calls short.

    Raises:
        SiserveError: if the server cannot start.
    """
    take_turns()
    hold_little()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(options, announce))


async def _serve(options: ServerOptions, announce: Callable[[str], None]) -> int:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    metrics = Metrics()
    _check(options)
    # Before the models load: a taken port is told at once.
    front, gather = _open_front(options, metrics)
    try:
        state = Health(front.tell)
        probes = {"/livez": state.is_live, "/readyz": state.is_ready}
        scraped = serve_metrics(
            metrics.registry,
            probes,
            options.metrics_host,
            options.metrics_port,
            gather,
        )
    except BaseException:
        await front.stop()
        raise
    try:
        await state.begin()
        await front.begin()
        library = await asyncio.to_thread(open_library, options, metrics)
        keep_all()
        await front.serve(library)
        watchers = [
            asyncio.create_task(library.watch(options.watch_seconds)),
            asyncio.create_task(state.watch(lambda: _stalled_seconds(library))),
        ]
        await state.set_ready(True)
        _log.info("metrics on http://%s:%d/metrics", options.metrics_host, scraped.port)
        announce(f"serving {_names(library.models)} on {join_address(options.host, front.port)}")
        await signals.get()
        _log.info("draining; a second signal stops at once")
        await state.set_ready(False)
        drain = asyncio.create_task(front.drain())
        again = asyncio.create_task(signals.get())
        done, _ = await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        in_time = drain in done and drain.result()
        for task in (drain, again, *watchers):
            task.cancel()
        await front.stop()
        await asyncio.to_thread(_stop_all, library.models.all, in_time)
        return 0 if in_time else 1
    finally:
        await front.stop()
        scraped.stop()


def _check(options: ServerOptions) -> None:
    check_exposure("--host", options.host, options.tls is not None, options.insecure)
    if options.admin and options.keys is None and not is_loopback(options.host):
        raise UsageError(
            f"--admin on {options.host} would let anybody change the models; "
            "give --keys-file with a key marked admin"
        )


def _open_front(
    options: ServerOptions, metrics: Metrics
) -> tuple[Front | RpcProcesses, Callable[[], None] | None]:
    """Take the port; return the doors and, if they are in other processes, what a scrape awaits."""
    if not options.rpc_processes:
        return Front(options, metrics), None
    from siserve.serving.rpc_processes import RpcProcesses  # late: most servers have none

    processes, loop = RpcProcesses(options, metrics), asyncio.get_running_loop()

    def gather() -> None:
        """Have all processes tell what they counted; called in a scrape's thread."""
        try:
            asyncio.run_coroutine_threadsafe(processes.settle(), loop).result(_GATHER_SECONDS)
        except (TimeoutError, RuntimeError):  # the loop is busy or closed: then what is known
            return

    return processes, gather


def _stalled_seconds(library: Library) -> float:
    return max(model.engine.stalled_seconds for model in library.models.all)


def _stop_all(models: tuple[DialogModel, ...], finish: bool) -> None:
    for model in models:
        model.stop(finish)


def _names(models: Models) -> str:
    return ",".join(model.full_name for model in models.all)
