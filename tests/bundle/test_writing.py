"""A bundle is written whole or not at all, and never over anything."""

from pathlib import Path

import pytest
from siserve.bundle import BundleError, UsageError, open_bundle, write_bundle
from siserve.bundle.tensors import MANIFEST_FILE


@pytest.fixture
def files(whole_bundle: Path) -> dict[str, bytes | Path]:
    return {path.name: path for path in whole_bundle.iterdir() if path.name != MANIFEST_FILE}


def test_what_is_written_opens_and_is_what_was_given(tmp_path, files, description, whole_bundle):
    manifest = write_bundle(tmp_path / "made" / "b", files, description)
    assert open_bundle(tmp_path / "made" / "b").manifest == manifest
    assert manifest == open_bundle(whole_bundle).manifest
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["b"]


def test_bytes_and_paths_give_the_same_bundle(tmp_path, files, description):
    from_bytes = {name: Path(path).read_bytes() for name, path in files.items()}
    first = write_bundle(tmp_path / "a", files, description)
    second = write_bundle(tmp_path / "b", from_bytes, description)
    assert first.sha256 == second.sha256


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path, files, description):
    (tmp_path / "b").mkdir()
    write_bundle(tmp_path / "b", files, description)
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        write_bundle(tmp_path / "b", files, description)
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(UsageError, match="exists"):
        write_bundle(tmp_path / "file", files, description)
    assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("change", [{"extra.bin": b"x"}, {"prior.onnx": None}])
def test_a_wrong_set_of_files_leaves_nothing_behind(tmp_path, files, description, change):
    wrong = {name: content for name, content in {**files, **change}.items() if content}
    with pytest.raises(BundleError, match=next(iter(change))):
        write_bundle(tmp_path / "b", wrong, description)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_pass_the_check_leaves_nothing_behind(tmp_path, files, description):
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        write_bundle(tmp_path / "b", {**files, "decoder.onnx": b"no graph"}, description)
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_source_leaves_nothing_behind(tmp_path, files, description):
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "b", {**files, "README.md": tmp_path / "none"}, description)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_at_the_last_moment_leaves_nothing_behind(
    tmp_path, files, description, monkeypatch
):
    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(tmp_path / "b", files, description)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_readable_by_others_than_its_maker(tmp_path, files, description):
    write_bundle(tmp_path / "b", files, description)
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "b").stat().st_mode == plain.stat().st_mode
