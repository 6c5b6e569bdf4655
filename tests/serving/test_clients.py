"""The Python clients: sync and async are one API, tried again by one policy."""

import asyncio
import json
import time
from contextlib import aclosing

import grpc
import pytest
from siserve.client import AsyncClient, ClientError
from siserve.client.answer import make_request
from siserve.client.channel import SERVICE_CONFIG

DIALOG = [("A", "hi , how was your weekend?")]


async def test_the_async_client_gives_what_the_sync_one_gives(server):
    with server.client() as client:
        request = make_request(DIALOG, n=6, seed=2)
        whole, varied = client.send(request), client.vary(request, "it was great")
        scores = client.score(DIALOG, ["it was great"], num_samples=20, seed=1)
        model = client.get_model()
    async with AsyncClient(server.address, 30) as client:
        options = {"n": 6, "seed": 2}
        assert (await client.generate(DIALOG, **options)).responses == whole.responses
        streamed = {place: reply async for place, reply in client.stream(DIALOG, **options)}
        assert streamed == dict(enumerate(whole.responses))
        again = await client.vary(DIALOG, "it was great", **options)
        assert again.responses == varied.responses
        scored = await client.score(DIALOG, ["it was great"], num_samples=20, seed=1)
        assert scored == scores
        assert await client.get_model() == model
        with pytest.raises(TypeError):
            await client.generate(DIALOG, colour="red")


async def test_the_async_client_tells_refusals_alike(server):
    async with AsyncClient(server.address, 30) as client:
        with pytest.raises(ClientError, match="^n: must be from 1 to 64") as refused:
            await client.generate(DIALOG, n=0)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(ClientError, match="^generate.n: "):
            async for _ in client.stream(DIALOG, n=0):
                pass
    async with AsyncClient("127.0.0.1:1", 1) as client:
        with pytest.raises(ClientError, match="127.0.0.1:1"):
            await client.get_model()


async def test_a_cancelled_task_and_a_stream_that_is_left_free_the_server(server):
    async with AsyncClient(server.address, 30) as client:
        tasks = [asyncio.create_task(client.generate(DIALOG, n=64)) for _ in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with aclosing(client.stream(DIALOG, n=64)) as replies:
            await anext(replies)
        started = time.monotonic()
        assert len((await client.generate(DIALOG)).responses) == 5
        assert time.monotonic() - started < 20


def test_only_calls_that_no_server_has_begun_are_tried_again():
    (method,) = json.loads(SERVICE_CONFIG)["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method["name"] == [{"service": "siserve.v1.DialogService"}]
