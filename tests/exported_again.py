"""A bundle exported again by the version that wrote it is the same; bundles with files changed."""

from __future__ import annotations

from pathlib import Path

from siserve.bundle import Description, open_bundle, write_bundle
from siserve.bundle.tensors import MANIFEST_FILE
from siserve_training.export.again import export_again

#: Fields of a manifest that tell of the export itself.
_OF_THE_EXPORT = {"created", "provenance", "metrics", "sha256", "files"}


def is_the_same_exported_again(path: Path, out: Path) -> None:
    """Export a bundle again and compare: every file byte by byte, and what it says of itself."""
    old = open_bundle(path).manifest
    new = export_again(path, out)
    assert open_bundle(out).manifest == new
    for name in {file.name for file in path.iterdir()} - {MANIFEST_FILE}:
        assert (out / name).read_bytes() == (path / name).read_bytes(), name
    assert new.files == old.files
    told = [each.model_dump(exclude=_OF_THE_EXPORT) for each in (old, new)]
    assert told[0] == told[1]
    assert {**new.provenance, "exported_from": 0} == {**old.provenance, "exported_from": 0}
    assert new.provenance["exported_from"]["sha256"] == old.sha256  # type: ignore[call-overload,index]
    assert {**new.metrics, "parity_largest_difference": 0} == {
        **old.metrics,
        "parity_largest_difference": 0,
    }
    assert new.metrics["parity_largest_difference"] >= old.metrics["parity_largest_difference"]


def with_files(bundle: Path, target: Path, **changed: bytes | None) -> Path:
    """Copy a bundle, its manifest made anew, some files changed or, where None, left out."""
    about = open_bundle(bundle).manifest.model_dump(exclude={"files", "sha256"})
    files: dict[str, bytes | Path | None] = {
        path.name: path for path in bundle.iterdir() if path.name != MANIFEST_FILE
    }
    for name in files:
        files[name] = changed.get(name.replace(".", "_"), files[name])
    kept = {name: content for name, content in files.items() if content is not None}
    write_bundle(target, kept, Description.model_validate(about))
    return target
