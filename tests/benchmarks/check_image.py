"""Run an image that serves as a cluster would, and see it answer, keep to itself and drain.

    python tests/benchmarks/check_image.py siserve:0.1.0 [--engine podman] [--largest-mb 400]
      [--engine-option=--runtime=runc] [--run-option=--ulimit=nofile=1024:1024]

The container has a read-only root, no capability, no new privileges, the image's own numeric user
and 512 MiB of memory. It shares the host's network, as some builders' machines have no other. Ends
with 1 and the reason where the image is too large, a write outside /tmp succeeds, the health check
or a call fails, or a stop loses a call in flight or ends with another code than 0.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from siserve.client import Client

DIALOG = [("A", "how was your weekend?")]
IN_FLIGHT = 8
HARDENED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
HARDENED += ["--network=host", "--memory=512m", "--pids-limit=256"]
LOOK = """
import pathlib
status = dict(line.split(':\\t', 1) for line in open('/proc/1/status') if ':\\t' in line)
written = []
for folder in ('/', '/etc', '/opt/siserve', '/var/lib', '/tmp'):
    try:
        (pathlib.Path(folder) / 'written').write_text('x')
        written.append(folder)
    except OSError:
        pass
print(status['Uid'].split()[0], int(status['CapEff'], 16), int(status['CapBnd'], 16),
      status['NoNewPrivs'].strip(), ','.join(written))
"""


class Engine:
    """docker or podman, and with what it makes a container."""

    def __init__(self, name: str, options: list[str], run_options: list[str]) -> None:
        self._command = [name, *options]
        self._run_options = run_options

    def try_(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever comes of it."""
        return subprocess.run([*self._command, *arguments], capture_output=True, text=True)

    def __call__(self, *arguments: str) -> str:
        """Run a command and return what it prints, without the last newline."""
        done = self.try_(*arguments)
        if done.returncode != 0:
            sys.exit(f"{' '.join(arguments[:2])} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout.strip()

    def image(self, name: str) -> dict[str, Any]:
        """What the engine knows of an image; docker and podman keep the health check apart."""
        (found,) = json.loads(self("inspect", "--type=image", name))
        found["Healthcheck"] = found.get("Healthcheck") or found["Config"].get("Healthcheck")
        if found["Healthcheck"] is None:
            sys.exit("no health check in the image; with buildah add --format docker to the build")
        return dict(found)

    @contextmanager
    def container(self, image: str, port: int, metrics_port: int) -> Iterator[str]:
        """A container that serves on these two ports of the host."""
        variables = {"HOST": "127.0.0.1", "METRICS_HOST": "127.0.0.1"}
        variables |= {"PORT": str(port), "METRICS_PORT": str(metrics_port)}
        made = [f"--env=SISERVE_{name}={value}" for name, value in variables.items()]
        made += [*HARDENED, *self._run_options]
        name = self("run", "--detach", *made, image)
        try:
            yield name
        finally:
            self.try_("rm", "--force", name)


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def await_health(engine: Engine, name: str, command: list[str], limit_s: float = 60) -> float:
    """Run the image's health check until it passes; return the seconds that took."""
    begin = time.monotonic()
    while engine.try_("exec", name, *command).returncode != 0:
        if time.monotonic() - begin > limit_s:
            sys.exit(f"not healthy after {limit_s:g} s: {engine.try_('logs', name).stderr}")
        time.sleep(0.2)
    return time.monotonic() - begin


def look_inside(engine: Engine, name: str, user: str) -> None:
    """See who the server is, what it may do, and where in its container even root cannot write."""
    seen = engine("exec", "--user=0:0", name, "/opt/siserve/bin/python", "-c", LOOK)
    wanted = f"{user} 0 0 1 /tmp"
    if seen != wanted:
        sys.exit(f"uid, capabilities (two masks), no new privileges, written: {seen}, not {wanted}")


def ask_and_stop(engine: Engine, name: str, address: str) -> dict[str, Any]:
    """Stop the container while calls are in flight: all are answered, then it ends with 0."""
    with Client(address, timeout_s=60) as client, ThreadPoolExecutor(IN_FLIGHT + 1) as pool:
        first = client.generate(DIALOG, n=5, seed=7)
        calls = [pool.submit(client.generate, DIALOG, n=64, seed=i) for i in range(IN_FLIGHT)]
        time.sleep(0.1)  # Until they have reached the server.
        waiting = sum(not call.done() for call in calls)
        begin = time.monotonic()
        engine("stop", "--time=40", name)
        stopped_s = time.monotonic() - begin
        answered = sum(call.exception() is None for call in calls)
    code = json.loads(engine("inspect", name))[0]["State"]["ExitCode"]
    if not waiting or answered != IN_FLIGHT or code != 0:
        sys.exit(f"{waiting} calls in flight, {answered} of {IN_FLIGHT} answered, exit code {code}")
    return {"responses": [reply.text for reply in first.responses], "in_flight": waiting,
            "answered": answered, "stop_s": round(stopped_s, 2), "exit_code": code}  # fmt: skip


def main() -> None:
    """Check and print what was seen as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--engine", default="podman", help="podman or docker")
    parser.add_argument("--engine-option", action="append", default=[])
    parser.add_argument("--run-option", action="append", default=[])
    parser.add_argument("--largest-mb", type=float, default=400)
    options = parser.parse_args()
    engine = Engine(options.engine, options.engine_option, options.run_option)
    image = engine.image(options.image)
    size_mb = image["Size"] / 1e6
    if size_mb > options.largest_mb:
        sys.exit(f"{size_mb:.0f} MB, more than {options.largest_mb:g}")
    user = image["Config"]["User"].partition(":")[0]
    port, metrics_port = free_port(), free_port()
    with engine.container(options.image, port, metrics_port) as name:
        _, *command = image["Healthcheck"]["Test"]
        healthy_s = await_health(engine, name, command)
        look_inside(engine, name, user)
        seen = ask_and_stop(engine, name, f"127.0.0.1:{port}")
    print(json.dumps({"size_mb": round(size_mb), "healthy_s": round(healthy_s, 2), **seen}))


if __name__ == "__main__":
    main()
