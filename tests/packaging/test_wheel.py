"""What `pip install siserve` brings: both packages whole, and nothing beside them."""

import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"siserve": ROOT / "service", "siserve_training": ROOT / "training"}


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[PurePosixPath]:
    """Paths inside a wheel built from this checkout, by the installed backend and offline."""
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


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
