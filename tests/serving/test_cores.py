"""Threads of a server: none keeps Python's lock, or the core, from who answers calls."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bundle_factory import tiny_text
from siserve.serving.cores import give_way, take_turns


@contextmanager
def computing_thread(switch_seconds: float) -> Iterator[None]:
    """Run a thread that lets go of Python's lock only when it has to."""
    before, started, ended = sys.getswitchinterval(), threading.Event(), threading.Event()

    def compute() -> None:
        started.set()
        while not ended.is_set():
            sum(range(1000))

    sys.setswitchinterval(switch_seconds)
    thread = threading.Thread(target=compute)
    thread.start()
    try:
        started.wait()
        yield
    finally:
        sys.setswitchinterval(before)
        ended.set()
        thread.join()


def seconds_of(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_a_dialog_is_encoded_without_letting_go_of_the_lock():
    text = tiny_text()
    with computing_thread(switch_seconds=0.5):  # for so long who lets go of it waits for it
        tries = [seconds_of(lambda: text.encode_utterances(["hi thére"] * 60)) for _ in range(5)]
    assert sorted(tries)[2] < 0.4  # neighbours on the cores slow the clock now and then


def test_a_thread_that_computes_hands_the_lock_over_at_once():
    before = sys.getswitchinterval()
    try:
        take_turns()
        with computing_thread(sys.getswitchinterval()):
            waited = min(seconds_of(lambda: time.sleep(0.001)) for _ in range(50))
    finally:
        sys.setswitchinterval(before)
    assert waited < before  # 5 ms unless somebody changed it


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux alone")
def test_who_gives_way_is_nicer_than_it_was_and_alone():
    told: list[int] = []

    def work() -> None:
        thread = threading.get_native_id()
        for _ in range(2):
            give_way()
            told.append(os.getpriority(os.PRIO_PROCESS, thread))

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert own < told[0] < told[1] or own >= 10
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
