"""What gRPC's asyncio server takes for a call that it echoes: no server built on it takes less.

    python tests/benchmarks/bench_bare_grpc.py [--clients 16,1] [--pause-ms 0] [--rounds 3]

Tells the processor time of the server's process for a call, and the median time of a call. The load
generator shares the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc
from siserve.bench.machine import machine_facts
from siserve.serving.loops import loop_factory

_METHOD = "/siserve.bench.Echo/Echo"
_REQUEST = bytes(300)  # as long as five turns


class _Echo(grpc.GenericRpcHandler):
    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def echo(request: bytes, _: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(echo)


def _run_server(end: Connection) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(end))


async def _serve(end: Connection) -> None:
    """Tell the port, and then, whenever it is asked, the processor time up to now."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    end.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    while await asyncio.to_thread(end.recv):
        end.send(time.process_time())
    await server.stop(0)


@contextmanager
def _serving() -> Iterator[tuple[str, Connection]]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_server, args=(theirs,))
    process.start()
    try:
        yield f"127.0.0.1:{ours.recv()}", ours
    finally:
        ours.send(False)
        process.join()


def _spent(end: Connection) -> float:
    end.send(True)
    return float(end.recv())


async def _ask(address: str, clients: int, pause: float, seconds: float) -> list[float]:
    """Let clients call one call after the other; return how long each took, in milliseconds."""
    taken: list[float] = []
    end, own_connection = time.monotonic() + seconds, [("grpc.use_local_subchannel_pool", 1)]
    pool = [grpc.aio.insecure_channel(address, own_connection) for _ in range(min(4, clients))]

    async def work(number: int) -> None:
        channel = pool[number % len(pool)]
        call = channel.unary_unary(_METHOD, request_serializer=None, response_deserializer=None)
        while time.monotonic() < end:
            began = time.perf_counter()
            await call(_REQUEST)
            taken.append(1e3 * (time.perf_counter() - began))
            await asyncio.sleep(pause)

    await asyncio.gather(*(work(number) for number in range(clients)))
    await asyncio.gather(*(channel.close(None) for channel in pool))
    return taken


def main() -> None:
    """Measure and print medians over the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", default="16,1")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="of a client, between calls")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine_facts())
    for clients in map(int, options.clients.split(",")):
        rounds = []
        for _ in range(options.rounds):
            with _serving() as (address, end), asyncio.Runner(loop_factory=loop_factory()) as loop:
                loop.run(_ask(address, clients, 0, 0.5))
                before = _spent(end)
                taken = loop.run(_ask(address, clients, options.pause_ms / 1e3, options.seconds))
                cpu = 1e3 * (_spent(end) - before) / len(taken)
            rounds.append((len(taken) / options.seconds, cpu, statistics.median(taken)))
        rate, cpu, p50 = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(
            f"{clients} client(s): {rate:.0f} calls/s, {cpu:.2f} ms of the server, p50 {p50:.2f} ms"
        )


if __name__ == "__main__":
    main()
