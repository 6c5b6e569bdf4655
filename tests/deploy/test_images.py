"""What the images are made of, told before one is built."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .conftest import ROOT, find_tool

DOCKERFILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(path for path in REQUIREMENTS.glob("image-*.txt") if "overrides" not in path.name)
# Load every module of the server, answer once, and print the distributions that this took.
LOADED = """
import sys
at_start = set(sys.modules)  # what .pth files of the environment load

import json, pkgutil
from importlib import import_module
from importlib.metadata import packages_distributions
import siserve.serving
from siserve.client.in_process import InProcess
from siserve.v1 import dialog_pb2

for module in pkgutil.walk_packages(siserve.serving.__path__, "siserve.serving."):
    import_module(module.name)
request = dialog_pb2.GenerateResponsesRequest(n=1)
request.context.add(speaker="A", text="hi")
with InProcess() as model:
    assert len(model.send(request).responses) == 1
loaded = {name.partition(".")[0] for name in sys.modules.keys() - at_start}
known = packages_distributions()
print(json.dumps({name: known[name] for name in loaded if name in known}))
"""


def name_of(path: Path) -> str:
    return path.name


def pins(path: Path) -> dict[str, str]:
    """The version of each package that a file names."""
    found = re.findall(r"^([\w.-]+)(?:\[.*\])?==([\w.!+]+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def needed(*extras: str) -> set[str]:
    """Names of the packages that siserve itself asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    return {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", line)[0]).lower() for line in lines}


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_hadolint_finds_nothing(path):
    done = subprocess.run([find_tool("hadolint"), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_an_image_runs_as_a_number_and_holds_what_was_hashed(path):
    text = path.read_text()
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["65532:65532"]
    commands = re.split(r"&&|\n", text.replace("\\\n", " "))
    installs = [line for line in commands if "/pip " in line and " install " in line]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install
    (lock,) = re.findall(r"^ARG REQUIREMENTS=(.*)$", text, re.MULTILINE)
    assert (REQUIREMENTS / lock).is_file()


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_what_an_image_copies_is_in_the_repository_and_reaches_the_build(path):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        assert any(entry.split("/")[0] == source.rstrip("/") for entry in allowed), source


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_older_builders_know_all_that_is_used(path):
    text = path.read_text()
    assert "--link" not in text
    assert "<<" not in text


@pytest.mark.parametrize("path", LOCKS, ids=name_of)
def test_every_pinned_package_has_a_hash(path):
    blocks = re.split(r"^(?=\w)", path.read_text(), flags=re.MULTILINE)
    assert len(pins(path)) == len(blocks[1:]) > 0
    assert all("--hash=sha256:" in block for block in blocks[1:])


@pytest.mark.parametrize("path", LOCKS, ids=name_of)
def test_images_hold_the_versions_that_the_tests_run_with(path):
    tested = pins(REQUIREMENTS / "constraints.txt")
    pinned = pins(path)
    differing = {name for name in pinned.keys() & tested.keys() if pinned[name] != tested[name]}
    assert differing == set(), "run make locks"


@pytest.mark.parametrize(
    ("lock", "extra"), [("image-cpu", "cpu"), ("image-gpu", "gpu"), ("image-train", "train")]
)
def test_nothing_that_siserve_needs_is_missing_from_an_image(lock, extra):
    pinned = set(pins(REQUIREMENTS / f"{lock}.txt"))
    assert needed(extra) - pinned == set(), "run make locks"
    assert ("torch" in pinned) == (extra == "train")
    assert not {"onnxruntime", "onnxruntime-gpu"} <= pinned  # they share a folder


def test_the_server_loads_nothing_that_an_image_leaves_out():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held = set(pins(REQUIREMENTS / "image-cpu.txt")) | {"siserve"}
    loaded = json.loads(done.stdout)
    assert {"grpc", "numpy", "onnxruntime", "tokenizers"} <= set(loaded)
    for module, owners in loaded.items():
        names = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
        assert names & held, f"{module} of {owners}"
