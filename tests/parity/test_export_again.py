"""A bundle whose run is gone can be exported again, and answers as before or not at all."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import safetensors.numpy
from bundle_factory import tiny_arrays, tiny_bundle
from exported_again import is_the_same_exported_again, with_files
from siserve.bundle import open_bundle
from siserve.bundle.errors import UsageError
from siserve.bundle.tensors import FILES, MANIFEST_FILE, OPTIONAL_GRAPHS, WEIGHTS_FILE
from siserve.cli import run
from siserve_training.export import ExportError
from siserve_training.export.again import export_again
from siserve_training.export.stored import read_stored_weights
from siserve_training.methods import METHODS

from .test_methods_in_batches import SIZES, make


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("old") / "bundle")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_come_back_as_they_went_in(tmp_path, dtype):
    path = tiny_bundle(tmp_path / "bundle", dtype=dtype)
    arrays, found = read_stored_weights(path / WEIGHTS_FILE)
    expected = tiny_arrays()
    assert found == dtype and arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, expected[name].astype(dtype).astype(np.float32)), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_out_the_same(method, tmp_path):
    make(tmp_path / "bundle", method, SIZES["tiny"])
    is_the_same_exported_again(tmp_path / "bundle", tmp_path / "again")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "si-cvae", "noise_entry": "multiplied"},
        {"method": "si-cvae", "logvar_clamp": 0.1},
        {"method": "dialogwae-gmp", "logvar_clamp": 0.3},
        {"method": "cvae-co", "logvar_clamp": 2.0},
    ],
    ids=str,
)
def test_choices_that_no_weight_tells_are_kept(settings, tmp_path):
    method = settings.pop("method")
    make(tmp_path / "bundle", method, {**SIZES["tiny"], **settings})
    is_the_same_exported_again(tmp_path / "bundle", tmp_path / "again")


@pytest.mark.parametrize("changes", [{"dtype": "float16"}, {"profile": False, "topics": ()}])
def test_stored_types_and_features_are_kept(changes, tmp_path):
    path = tiny_bundle(tmp_path / "bundle", **changes)
    is_the_same_exported_again(path, tmp_path / "again")


def test_a_bundle_of_before_gets_the_graphs_that_it_lacks(bundle, tmp_path):
    lacks = {graph.file.replace(".", "_"): None for graph in OPTIONAL_GRAPHS}
    old = with_files(bundle, tmp_path / "old", **lacks)
    assert set(open_bundle(old).manifest.files) == set(FILES)
    manifest = export_again(old, tmp_path / "new")
    assert set(manifest.files) == set(open_bundle(bundle).manifest.files)
    for name in (*FILES, *(graph.file for graph in OPTIONAL_GRAPHS)):
        assert manifest.files[name] == open_bundle(bundle).manifest.files[name], name


def test_what_is_asked_for_is_changed_and_nothing_else(bundle, tmp_path, capsys):
    asked = ["--name", "other", "--version", "7", "--temperature", "0.5"]
    assert run(["export", str(bundle), "--out", str(tmp_path / "new"), *asked]) == 0
    assert "exported other@7" in capsys.readouterr().err
    old, new = (open_bundle(path).manifest for path in (bundle, tmp_path / "new"))
    assert new.full_name == "other@7"
    assert new.sampling == old.sampling.model_copy(update={"temperature": 0.5})
    assert (new.sizes, new.limits, new.features) == (old.sizes, old.limits, old.features)
    assert (tmp_path / "new" / "README.md").read_text().startswith("# other@7\n")
    assert new.files[WEIGHTS_FILE] == old.files[WEIGHTS_FILE]


def test_graphs_that_answered_otherwise_are_not_replaced(bundle, tmp_path):
    model = onnx.load(bundle / "prior.onnx", load_external_data=False)
    (exp,) = [node for node in model.graph.node if node.op_type == "Exp"]
    exp.op_type = "Softplus"
    old = with_files(bundle, tmp_path / "old", prior_onnx=model.SerializeToString())
    with pytest.raises(ExportError, match="prior z of the graphs differs"):
        export_again(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_of_an_unknown_type_are_refused(bundle, tmp_path):
    stored = safetensors.numpy.load_file(bundle / WEIGHTS_FILE)
    (tmp_path / "w").write_bytes(
        safetensors.numpy.save({name: array.astype(np.float64) for name, array in stored.items()})
    )
    with pytest.raises(ExportError, match="of type float64; expected all in float32"):
        read_stored_weights(tmp_path / "w")


@pytest.mark.parametrize("flag", [["--dtype", "float16"], ["--checkpoint", "last"]])
def test_what_only_a_run_has_is_refused_in_one_line(bundle, tmp_path, flag, capsys):
    assert run(["export", str(bundle), "--out", str(tmp_path / "new"), *flag]) == 2
    said = capsys.readouterr().err
    assert f"{' '.join(flag)} is for a run" in said and len(said.splitlines()) == 1


def test_nothing_is_written_over(bundle, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("x")
    with pytest.raises(UsageError, match="exists"):
        export_again(bundle, tmp_path / "new")


def test_a_damaged_bundle_is_not_exported(bundle, tmp_path, capsys):
    damaged = with_files(bundle, tmp_path / "damaged")
    manifest = json.loads((damaged / MANIFEST_FILE).read_text())
    (damaged / MANIFEST_FILE).write_text(json.dumps({**manifest, "version": "9"}))
    assert run(["export", str(damaged), "--out", str(tmp_path / "new")]) == 1
    assert "changed after it was written" in capsys.readouterr().err
