"""A bundle that is exported again by the version that wrote it is the same bundle."""

from __future__ import annotations

from pathlib import Path

from siserve.bundle import open_bundle
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
