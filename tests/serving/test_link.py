"""What crosses a link comes out as it went in; what is no frame ends it."""

import asyncio
import math
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from siserve.serving.encoding import Context
from siserve.serving.errors import (
    InvalidRequest,
    QueueFull,
    RateExceeded,
    RequestError,
    ShuttingDown,
    UnknownModel,
)
from siserve.serving.flight import Generation, Job, Row, Variation
from siserve.serving.link import Link, open_link
from siserve.serving.parcels import (
    pack_error,
    pack_job,
    pack_result,
    unpack_error,
    unpack_job,
    unpack_result,
    unpack_rows,
)
from siserve.serving.scoring import Estimate, ScoreJob, Scores


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[list[Any]] = []
        self.came, self.lost = asyncio.Event(), asyncio.Event()

    def hear(self, *frame: Any) -> None:
        self.heard.append(list(frame))
        self.came.set()


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Ear, Ear]]:
    """A link; what its own end and the other end hear."""
    near, far = Ear(), Ear()
    ours, theirs = socket.socketpair()
    link = await open_link(ours, near.hear, near.lost.set)
    other = await open_link(theirs, far.hear, far.lost.set)
    yield link, near, far
    link.close()
    other.close()


def carried(value: Any) -> Any:
    """Send a value through a link."""

    async def carry() -> Any:
        async with linked() as (link, _, far):
            link.send("value", value)
            await asyncio.wait_for(far.came.wait(), 10)
        return far.heard[0][1]

    return asyncio.run(carry())


def test_frames_come_in_order_whatever_their_size():
    async def run() -> None:
        async with linked() as (link, _, far):
            sizes = [1, 300_000, 0, 70_000, *range(100)]
            for number, size in enumerate(sizes):
                link.send("frame", number, "\n€" * size)
            while len(far.heard) < len(sizes):
                far.came.clear()
                await asyncio.wait_for(far.came.wait(), 10)
            assert far.heard == [["frame", n, "\n€" * size] for n, size in enumerate(sizes)]

    asyncio.run(run())


@pytest.mark.parametrize("said", [b"\x80\x04K\x01.\n", b"[1\n", b"{}\n", b"7\n", b"\xff\n"])
def test_what_is_no_frame_ends_the_link(said):
    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        ear = Ear()
        ours, theirs = socket.socketpair()
        await open_link(ours, ear.hear, ear.lost.set)
        with theirs:
            theirs.sendall(said)
            await asyncio.wait_for(ear.lost.wait(), 10)

    asyncio.run(run())


def test_both_ends_learn_that_the_other_is_gone():
    async def run() -> None:
        async with linked() as (link, near, far):
            link.close()
            await asyncio.wait_for(asyncio.gather(near.lost.wait(), far.lost.wait()), 10)
            link.send("nothing")  # is nobody's error

    asyncio.run(run())


def test_a_job_comes_out_as_it_went_in():
    dice = random.Random(1)
    context = Context(((1, 2, 3), (4,)), (0, 1), 7)
    sampling = (dice.random(), 50, dice.random(), 40, dice.random())
    for variation in (None, Variation((5, 6), dice.random())):
        job = Job(context, 3, 2**64 - 1, *sampling, variation=variation, deadline=dice.random())
        found, is_told = unpack_job(carried(pack_job(job)))
        job.result = found.result  # type: ignore[assignment]
        assert found == job and not is_told
        hash(found.context.utterances)  # encoders look them up
    job.on_rows, job.deadline = print, math.inf
    found, is_told = unpack_job(carried(pack_job(job)))
    assert is_told and found.deadline == math.inf
    scored = ScoreJob(context, ((1, 2), (3,)), 100, 30, 0)
    found, _ = unpack_job(carried(pack_job(scored)))
    scored.result = found.result  # type: ignore[assignment]
    assert found == scored


def test_a_result_comes_out_to_the_last_bit():
    dice = random.Random(2)
    rows = tuple(
        Row(tuple(dice.choices(range(10_000), k=n)), -dice.expovariate(1), n % 2 == 0)
        for n in range(40)
    )
    generation = Generation(rows, dice.random(), 1e-300, 0.1 + 0.2)
    assert unpack_result(carried(pack_result(generation))) == generation
    assert unpack_rows(carried([*enumerate(rows)])) == [*enumerate(rows)]
    estimates = (Estimate(-dice.random(), 5e-324), Estimate(-math.inf, 0.0))
    scores = Scores(estimates, True, dice.random(), 0.0, 2.0)
    assert unpack_result(carried(pack_result(scores))) == scores


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("generate.n", "must be more"),
        QueueFull("8 responses wait already", 1.5),
        RateExceeded("more than 1 responses a second were asked", 0.123456),
        ShuttingDown("the server is shutting down; ask another one"),
        UnknownModel("model: no such model here; served: a@1"),
    ],
)
def test_an_error_comes_out_with_its_kind_and_its_facts(error):
    found = unpack_error(carried(pack_error(error)))
    assert type(found) is type(error) and str(found) == str(error)
    assert vars(found) == vars(error)


def test_an_error_that_is_none_of_ours_names_no_class_of_the_other_end():
    for strange in (["SystemExit", "1"], ["RuntimeError", "x"], ["SiserveError", "x"]):
        found = unpack_error(strange)
        assert type(found) is RuntimeError and not isinstance(found, RequestError)
    assert "ValueError: broke" in str(unpack_error(carried(pack_error(ValueError("broke")))))
