"""What `pip install siserve` brings: both packages whole, and nothing beside them."""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"siserve": ROOT / "service", "siserve_training": ROOT / "training"}


KERNELS = PurePosixPath("siserve/serving/fused/libsiserve_kernels.so.1")
HAS_COMPILER = (
    sys.platform == "linux" and platform.machine() == "x86_64" and bool(shutil.which("g++"))
)


def build(root: Path, out: Path, **environment: str) -> Path:
    """Build a wheel by the installed backend and offline."""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def files_of(wheel: Path) -> set[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[PurePosixPath]:
    return files_of(wheel)


def source_files() -> set[PurePosixPath]:
    return {
        PurePosixPath(path.relative_to(room))
        for name, room in PACKAGES.items()
        for path in (room / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_of_both_packages_is_in_the_wheel(wheel_files: set[PurePosixPath]) -> None:
    assert source_files() - wheel_files == set()


def test_the_wheel_holds_no_other_top_level_package(wheel_files: set[PurePosixPath]) -> None:
    tops = {path.parts[0] for path in wheel_files}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize(
    "needed",
    [
        "siserve_training/data/__init__.py",
        "siserve/v1/dialog_pb2.py",
        "siserve/protos/siserve/v1/dialog.proto",
        "siserve/py.typed",
        "siserve_training/py.typed",
    ],
)
def test_the_wheel_holds(needed: str, wheel_files: set[PurePosixPath]) -> None:
    assert PurePosixPath(needed) in wheel_files


def test_the_shipped_proto_is_the_one_that_clients_compile(
    wheel_files: set[PurePosixPath],
) -> None:
    protos = {PurePosixPath(p.relative_to(ROOT)) for p in (ROOT / "protos").rglob("*.proto")}
    assert protos and {"siserve" / path for path in protos} <= wheel_files


def test_each_room_holds_one_package_only() -> None:
    for name, room in PACKAGES.items():
        children = {
            p.name for p in room.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))
        }
        assert children - {"results"} == {name}


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler for x86-64 here")
def test_a_wheel_with_kernels_is_for_its_platform(wheel: Path) -> None:
    assert KERNELS in files_of(wheel)
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")


def test_without_a_compiler_a_wheel_is_for_any_platform_and_whole(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        root.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root)
    for name in ("protos", "service", "training/siserve_training"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.so.1"))
    wheel = build(root, tmp_path / "out", CXX="no-compiler-of-this-name")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert source_files() - {KERNELS} - files_of(wheel) == set()
