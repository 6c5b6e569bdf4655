"""A whole tiny bundle, and ways to make damaged ones that only the check under test refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bundle_factory import tiny_bundle
from siserve.bundle.manifest import Description, Manifest, seal
from siserve.bundle.tensors import FILES, MANIFEST_FILE, OPTIONAL_FILES
from siserve.bundle.verify import digest_file, open_bundle

Reseal = Callable[[Path], Manifest]


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture
def bundle(whole_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole_bundle, tmp_path / "tiny"))


@pytest.fixture
def description(whole_bundle: Path) -> Description:
    manifest = open_bundle(whole_bundle).manifest
    return Description.model_validate(manifest.model_dump(exclude={"files", "sha256"}))


@pytest.fixture
def reseal(description: Description) -> Reseal:
    """Write a manifest whose digests fit the files as they are: only their content is wrong."""

    def write(path: Path) -> Manifest:
        names = [name for name in (*FILES, *OPTIONAL_FILES) if (path / name).exists()]
        entries = {name: digest_file(path / name) for name in names}
        manifest = seal(description, entries)
        (path / MANIFEST_FILE).write_bytes(manifest.to_bytes())
        return manifest

    return write
