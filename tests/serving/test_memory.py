"""What a retired model held goes back to the system."""

import gc
import platform
import subprocess
import sys
import weakref

import numpy as np
import psutil
import pytest
from siserve.client.answer import make_request, make_score_request
from siserve.serving.dialog_model import DialogModel
from siserve.serving.engine import Engine, EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.memory import give_back, hold_little
from siserve.serving.metrics import Metrics
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement, Runs


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_memory_that_was_freed_in_small_parts_goes_back():
    process = psutil.Process()
    parts = [np.ones(8000, np.float64) for _ in range(2000)]  # 128 MB, none large enough for mmap
    kept = [np.ones(8000, np.float64)]  # above them: malloc alone would not shrink
    held = process.memory_info().rss
    del parts
    give_back()
    assert held - process.memory_info().rss > 100e6
    assert kept[0].sum() == 8000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_arrays_of_a_thread_go_back_though_larger_ones_came_before():
    code = """
import sys, threading
import numpy as np, psutil
from siserve.serving.memory import give_back, hold_little
def use():
    for megabytes in (24, 20, 16, 12):
        np.ones(megabytes << 20, np.uint8)
if sys.argv[1] == "little":
    hold_little()
before = psutil.Process().memory_info().rss
thread = threading.Thread(target=use)
thread.start()
thread.join()
give_back()
print(psutil.Process().memory_info().rss - before)
"""
    kept = {
        how: int(subprocess.check_output([sys.executable, "-c", code, how]))
        for how in ("little", "much")
    }
    assert kept["little"] < 4 << 20 < 12 << 20 < kept["much"]


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_back()
    hold_little()


def test_a_model_that_was_stopped_is_let_go_of_at_once(bundle):
    model = load_model(
        bundle,
        Placement("cpu"),
        RequestLimits(),
        EngineOptions(workers=2),
        Metrics().engine_observer(),
    )
    model.start()
    request = make_request([("A", "hello")], n=64, diversity=0.5)
    jobs = [model.submit(model.check(request)) for _ in range(8)]
    assert all(len(job.result.result(60).rows) == 64 for job in jobs)
    scores = make_score_request([("A", "hello")], ["yes"], num_samples=4)
    model.submit_scores(model.check_scores(scores)).result.result(60)
    model.stop()
    gc.collect()
    gc.disable()  # what cycles hold stays from now on
    try:
        held = [weakref.ref(each) for each in (model, *graphs_of(model))]
        del model, jobs
        assert [each() for each in held if each() is not None] == []
    finally:
        gc.enable()


def graphs_of(model: DialogModel) -> list[Runs]:
    """The graphs that a model's workers run: most of its memory."""
    assert isinstance(model.engine, Engine)
    sessions = model.engine._workers[0]._sessions
    return [sessions.prior, sessions.si_sampler]


def test_cycles_are_looked_for_again_once_a_server_serves_but_not_among_what_it_loaded(bundle):
    code = """
import gc, os, signal, sys
from siserve import cli
from siserve.serving import server
class Told:
    def write(self, text):
        if text.startswith("serving"):
            sys.stderr.write(f"{gc.isenabled()} {gc.get_freeze_count() > 10_000}")
            os.kill(os.getpid(), signal.SIGTERM)
    def flush(self):
        pass
load = server.open_library
def open_library(*given):
    sys.stderr.write(f"{gc.isenabled()} ")
    return load(*given)
server.open_library = open_library
sys.argv = ["siserve", "serve", "--model", sys.argv[1], "--port", "0", "--metrics-port", "0"]
sys.argv += ["--log-format", "json"]
sys.stdout = Told()
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], stderr=subprocess.PIPE, text=True, timeout=120
    )
    told = "".join(part for line in done.stderr.splitlines() for part in line.partition("{")[:1])
    assert (done.returncode, told.split()) == (0, ["False", "True", "True"]), done.stderr
