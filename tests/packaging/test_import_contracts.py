"""The arrows between the rooms hold, and the check that guards them is not blind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the linter with the packages that lie in `folder`, whatever else is installed."""
    paths = os.pathsep.join([str(folder / "service"), str(folder / "training")])
    return subprocess.run(
        [str(LINT), "--config", str(ROOT / ".importlinter"), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for room in ("service", "training"):
        shutil.copytree(
            ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("models", "__pycache__")
        )
    return tmp_path


def test_every_import_points_along_the_arrows() -> None:
    checked = lint(ROOT)
    assert checked.returncode == 0, checked.stdout
    assert "0 broken" in checked.stdout


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("service/siserve/serving/metrics.py", "import siserve_training"),
        ("service/siserve/serving/metrics.py", "import torch"),
        ("service/siserve/bundle/manifest.py", "import siserve.serving"),
        ("training/siserve_training/errors.py", "import siserve.serving"),
    ],
)
def test_an_import_against_the_arrows_is_caught(copy: Path, module: str, statement: str) -> None:
    path = copy / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{statement}\n", encoding="utf-8")
    checked = lint(copy)
    assert checked.returncode == 1, checked.stdout
    assert "1 broken" in checked.stdout or "2 broken" in checked.stdout, checked.stdout
