"""What engines tell the event loop reaches it once, in order, whoever sends."""

import asyncio
import threading
from functools import partial

from siserve.serving.post import Post


def test_what_is_sent_in_one_breath_wakes_the_loop_once(monkeypatch):
    async def run():
        loop = asyncio.get_running_loop()
        post = Post()
        done: list[int] = []
        wakes: list[object] = []
        wake = loop.call_soon_threadsafe

        def counted(act):
            wakes.append(act)
            return wake(act)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        for number in range(5):
            post.send(partial(done.append, number))
        assert not done and len(wakes) == 1
        await asyncio.sleep(0)
        assert done == [*range(5)]
        post.send(lambda: done.append(5))
        await asyncio.sleep(0)
        assert done == [*range(6)] and len(wakes) == 2

    asyncio.run(run())


def test_nothing_is_lost_or_out_of_order_when_threads_send_at_once():
    async def run():
        post, every = Post(), asyncio.Event()
        done: list[tuple[int, int]] = []

        def act(thread, number):
            done.append((thread, number))
            if len(done) == 4 * 500:
                every.set()

        def send(thread):
            for number in range(500):
                post.send(partial(act, thread, number))

        threads = [threading.Thread(target=send, args=(each,)) for each in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(every.wait(), 30)
        for sender in range(4):
            assert [number for each, number in done if each == sender] == [*range(500)]

    asyncio.run(run())


def test_what_comes_after_the_loop_is_nobody_s_error():
    async def make():
        return Post()

    post = asyncio.run(make())
    post.send(lambda: None)
