"""What engines tell the event loop reaches it once, in order, whoever sends."""

import asyncio
import threading

from siserve.serving.post import Post


def test_what_is_sent_in_one_breath_wakes_the_loop_once(monkeypatch):
    async def run():
        loop = asyncio.get_running_loop()
        post, done, wakes = Post(), [], []
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda act: (wakes.append(act), wake(act))[1]
        )
        for number in range(5):
            post.send(lambda number=number: done.append(number))
        assert not done and len(wakes) == 1
        await asyncio.sleep(0)
        assert done == [*range(5)]
        post.send(lambda: done.append(5))
        await asyncio.sleep(0)
        assert done == [*range(6)] and len(wakes) == 2

    asyncio.run(run())


def test_nothing_is_lost_or_out_of_order_when_threads_send_at_once():
    async def run():
        post, done, every = Post(), [], asyncio.Event()

        def act(thread, number):
            done.append((thread, number))
            if len(done) == 4 * 500:
                every.set()

        def send(thread):
            for number in range(500):
                post.send(lambda number=number: act(thread, number))

        threads = [threading.Thread(target=send, args=(each,)) for each in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(every.wait(), 30)
        for thread in range(4):
            assert [number for each, number in done if each == thread] == [*range(500)]

    asyncio.run(run())


def test_what_comes_after_the_loop_is_nobody_s_error():
    async def make():
        return Post()

    post = asyncio.run(make())
    post.send(lambda: None)
