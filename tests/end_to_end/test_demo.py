"""`make demo` as a newcomer runs it, here on a tiny bundle."""

import os
import subprocess
import sys
from pathlib import Path


def demo(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "siserve.client.demo"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_demo_prints_three_times_five_responses_and_stops_its_server(bundle: Path) -> None:
    shown = demo(SISERVE_MODEL=str(bundle))
    assert shown.returncode == 0, shown.stderr
    rows = [
        line
        for line in shown.stdout.splitlines()
        if line.strip()[:2] in map("{} ".format, range(1, 6))
    ]
    assert len(rows) == 15
    for figure in ("distinct-1 ", "distinct-2 ", " ms "):
        assert shown.stdout.count(figure) == 3
    address = shown.stdout.split("\n")[0].split()[-1]
    assert subprocess.run(
        [sys.executable, "-m", "siserve", "ask", "hi", "--address", address, "--timeout", "2"],
        capture_output=True,
    ).returncode == 1  # fmt: skip


def test_the_demo_says_in_one_line_that_there_is_nothing_to_serve(tmp_path: Path) -> None:
    shown = demo(SISERVE_MODEL=str(tmp_path / "absent"))
    assert shown.returncode == 1
    assert "absent" in shown.stderr and "Traceback" not in shown.stderr
