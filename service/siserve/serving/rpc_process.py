"""A process that takes calls and has the engine's process decode: the child of rpc_processes.

Here are all of gRPC, HTTP and TLS, messages, keys, checks and text; what goes over the link are ids
and numbers. When the link ends, so does the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial

from pydantic import TypeAdapter

from siserve.bundle.errors import SiserveError
from siserve.serving.cores import take_turns
from siserve.serving.dialog_model import DialogModel
from siserve.serving.front import Front
from siserve.serving.link import open_link
from siserve.serving.logs import start_log
from siserve.serving.loops import loop_factory
from siserve.serving.memory import keep_all
from siserve.serving.models import Models
from siserve.serving.options import ServerOptions
from siserve.serving.parcels import Parcel, unpack_model
from siserve.serving.remote import Desk, RemoteAdmin, RemoteEngine, RemoteMetrics
from siserve.serving.servicer import DialogServicer

__all__ = ["main"]


def main() -> None:
    """Serve until the link, whose descriptor is the argument, ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which go to the whole group: the parent drains
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    take_turns()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(end))


async def _serve(end: socket.socket) -> None:
    desk = Desk()
    desk.link = await open_link(end, desk.hear, lambda: os._exit(0))
    _, told, health, models = await desk.orders.get()  # "begin", which comes first
    options = TypeAdapter(ServerOptions).validate_python(told)
    start_log(options.log_format)
    try:
        front = Front(options, RemoteMetrics(desk), shares_port=True)
        shelf = _Shelf(front, desk, options)
        for name, is_serving in health.items():
            await front.tell((name,), is_serving)
        if models:
            await shelf.hold(models)
        await front.begin()
    except SiserveError as error:
        desk.link.send("refused", str(error), error.exit_code)
        await asyncio.Event().wait()  # until the parent has read that
        return
    keep_all()
    desk.link.send("up")
    await _obey(desk, front, shelf)


async def _obey(desk: Desk, front: Front, shelf: _Shelf) -> None:
    """Do what the parent says, one after another, for ever."""
    drains = []
    while True:
        kind, *values = await desk.orders.get()
        match kind:
            case "health":
                await front.tell(*values)
            case "models":
                await shelf.hold(*values)
            case "ping":  # all that was told before goes before the answer
                desk.post.send(partial(desk.link.send, "pong", *values))
            case "drain":
                drains.append(asyncio.create_task(_drain(desk, front)))


async def _drain(desk: Desk, front: Front) -> None:
    in_time = await front.drain()
    await front.stop()
    desk.post.send(partial(desk.link.send, "drained", in_time))


class _Shelf:
    """The models that the parent holds, as calls find them here."""

    def __init__(self, front: Front, desk: Desk, options: ServerOptions) -> None:
        self._front, self._desk, self._options = front, desk, options
        self._held: dict[int, DialogModel] = {}

    async def hold(self, told: Sequence[tuple[int, Parcel]]) -> None:
        """Answer by these models from now on.

        Args:
            told: number and content of each; of each name the current one first.
        """
        desk, limits = self._desk, self._options.limits
        held: dict[int, DialogModel] = {}
        for number, parcel in told:
            if number in self._held:
                held[number] = self._held[number]
            else:
                engine = RemoteEngine(number, desk)
                held[number] = await asyncio.to_thread(unpack_model, parcel, engine, limits)
        self._held = held
        takes = bool(self._options.rate.responses_per_second)

        async def take(caller: str, responses: int) -> None:
            if takes:
                await desk.ask("take", caller, responses)

        models, metrics = Models(list(held.values())), RemoteMetrics(desk)
        dialogs = DialogServicer(models, metrics, self._options, take)
        self._front.answer_by(dialogs, RemoteAdmin(desk))


if __name__ == "__main__":
    main()
