"""Serving needs no torch: not to start, not to answer --help, not to say what is missing."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

LIST_LOADED = """
import sys
from siserve.cli import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""

IMPORT_ALL = """
import importlib, pkgutil, sys
import siserve
for module in pkgutil.walk_packages(siserve.__path__, "siserve."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""

LIST_SERVER = """
import os, sys
from siserve.cli import run
run(["serve", "--help"])
import numpy
print("threads", len(os.listdir("/proc/self/task")))
print("told", os.environ["OPENBLAS_NUM_THREADS"], os.environ["PYDANTIC_DISABLE_PLUGINS"])
import siserve.serving.server
print("loaded", *sorted(sys.modules))
"""

# Python runs a sitecustomize.py that it finds on its path before anything else.
WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def no_torch(tmp_path: Path) -> str:
    """A folder that, on PYTHONPATH, makes torch look like it is not installed."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH, encoding="utf-8")
    assert python("-c", "import torch", PYTHONPATH=str(tmp_path)).returncode == 1
    return str(tmp_path)


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_serve_help_answers_in_under_half_a_second() -> None:
    seconds = []
    for _ in range(4):  # processor time, the least of four: a busy machine slows the clock only
        before = cpu_seconds_of_children()
        asked = python("-m", "siserve", "serve", "--help")
        seconds.append(cpu_seconds_of_children() - before)
        assert asked.returncode == 0, asked.stderr
    assert "--port" in asked.stdout
    assert min(seconds) < 0.5


def test_serve_help_leaves_the_heavy_libraries_unloaded() -> None:
    asked = python("-c", LIST_LOADED, "serve", "--help")
    assert asked.returncode == 0, asked.stderr
    loaded = set(asked.stderr.splitlines()[-1].split())
    assert "siserve" in loaded
    heavy = {"torch", "transformers", "siserve_training", "onnxruntime", "grpc", "pydantic"}
    assert loaded & heavy == set()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_server_starts_no_threads_of_numpy_and_loads_no_door_that_it_was_not_asked_for() -> None:
    asked = python("-c", LIST_SERVER, OPENBLAS_NUM_THREADS="", PYDANTIC_DISABLE_PLUGINS="")
    assert asked.returncode == 0, asked.stderr
    threads, told, loaded = asked.stdout.splitlines()[-3:]
    assert (threads, told) == ("threads 1", "told 1 1")
    rare = ("http_door", "rpc_processes", "fused.cuda", "fused.tapes")
    assert set(loaded.split()) & {"h11", *(f"siserve.serving.{name}" for name in rare)} == set()
    theirs = python("-c", LIST_SERVER, OPENBLAS_NUM_THREADS="3", PYDANTIC_DISABLE_PLUGINS="some")
    assert theirs.stdout.splitlines()[-2] == "told 3 some"  # who says how many gets them


def test_importing_the_whole_service_leaves_torch_unloaded() -> None:
    imported = python("-W", "ignore", "-c", IMPORT_ALL)
    assert imported.returncode == 0, imported.stderr
    loaded = set(imported.stderr.splitlines()[-1].split())
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "transformers", "onnx", "siserve_training"} == set()


@pytest.mark.parametrize("command", ["train", "export"])
def test_without_torch_a_training_command_prints_the_install_line(
    command: str, no_torch: str
) -> None:
    asked = python("-m", "siserve", command, PYTHONPATH=no_torch)
    assert asked.returncode == 2, asked.stderr
    assert "pip install" in asked.stderr and "[train]" in asked.stderr
    assert len(asked.stderr.splitlines()) == 1 and asked.stdout == ""
