"""The chart as helm renders it, and the tools that `make test` installs to look at it."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "k8s" / "siserve"
SCENARIOS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").iterdir())
API_VERSIONS = ("monitoring.coreos.com/v1", "keda.sh/v1alpha1", "gateway.networking.k8s.io/v1")
NEWEST = "1.35"

Manifest = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
Render = Callable[..., list[Manifest]]


class OneKeyOnce(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """Refuses a mapping that has a key twice, of which most loaders keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{twice} twice in one mapping, {node.start_mark}"
        return super().construct_mapping(node, deep)


def find_tool(name: str) -> str:
    """Path of a tool of .venv-deploy or the system; without it the test is skipped by its name."""
    folders = [str(ROOT / ".venv-deploy" / "bin"), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Run helm with the given arguments and return what came of it."""
    path = find_tool("helm")
    home = tmp_path_factory.mktemp("helm")
    environment = {**os.environ, "HELM_CACHE_HOME": str(home), "HELM_CONFIG_HOME": str(home)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [path, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Render a scenario for a version of Kubernetes; values are set on top of it."""

    @cache
    def rendered(scenario: str, *values: str, version: str = NEWEST) -> list[Manifest]:
        done = helm("template", "replies", CHART, *options(scenario, *values, version=version))
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.load_all(done.stdout, OneKeyOnce) if document]

    return rendered


def options(scenario: str, *values: str, version: str = NEWEST) -> list[str | Path]:
    """Options of helm that choose a scenario's values, a cluster's version and its APIs."""
    chosen: list[str | Path] = ["--values", CHART / "ci" / f"{scenario}-values.yaml"]
    chosen += ["--namespace", "dialog", "--kube-version", f"{version}.0"]
    for value in values:
        chosen += ["--set", value]
    for api in API_VERSIONS:
        chosen += ["--api-versions", api]
    return chosen


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """The manifests of these kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def the(manifests: list[Manifest], kind: str) -> Manifest:
    """The one manifest of this kind."""
    (manifest,) = of_kind(manifests, kind)
    return manifest


def pod_of(manifests: list[Manifest]) -> Manifest:
    """The pod of the Deployment: metadata and spec."""
    pod: Manifest = the(manifests, "Deployment")["spec"]["template"]
    return pod


def server_of(manifests: list[Manifest]) -> Manifest:
    """The container that serves."""
    (container,) = pod_of(manifests)["spec"]["containers"]
    server: Manifest = container
    return server


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@pytest.fixture(scope="session")
def help_of() -> Callable[[str], str]:
    """What `siserve COMMAND --help` prints, whatever the width of the terminal."""

    @cache
    def printed(command: str) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("siserve")), command, "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "400"},
        )
        assert done.returncode == 0, done.stderr
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)

    return printed
