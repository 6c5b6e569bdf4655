"""A bundle is used whole and unchanged, or not at all; the refusal names the file."""

import random
from pathlib import Path

import onnx
import pytest
from siserve.bundle import BundleError, open_bundle
from siserve.bundle.tensors import (
    DIALOG_ENCODER,
    FILES,
    GRAPHS,
    MANIFEST_FILE,
    OPTIONAL_GRAPHS,
    UTTERANCE_ENCODER,
    WEIGHTS_FILE,
)
from siserve.cli import run

ALL_GRAPHS = [graph.file for graph in (*GRAPHS, *OPTIONAL_GRAPHS)]
LISTED = {*FILES, *ALL_GRAPHS}
ALL_FILES = sorted({*LISTED, MANIFEST_FILE})


def refused(path: Path) -> BundleError:
    with pytest.raises(BundleError) as error:
        open_bundle(path)
    return error.value


def test_a_whole_bundle_opens(whole_bundle, capsys):
    bundle = open_bundle(whole_bundle)
    assert set(bundle.manifest.files) == LISTED
    assert run(["verify", str(whole_bundle)]) == 0
    assert bundle.manifest.full_name in capsys.readouterr().out


@pytest.mark.parametrize("name", ALL_FILES)
def test_one_flipped_bit_is_refused_naming_the_file(bundle, name, capsys):
    content = (bundle / name).read_bytes()
    dice = random.Random(name)
    places = {0, len(content) - 1, *(dice.randrange(len(content)) for _ in range(20))}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << dice.randrange(8)
        (bundle / name).write_bytes(damaged)
        error = refused(bundle)
        assert error.file == name and name in str(error)
    assert run(["verify", str(bundle)]) == 1
    assert name in capsys.readouterr().err
    (bundle / name).write_bytes(content)
    open_bundle(bundle)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_missing_file_is_refused_by_name(bundle, name):
    (bundle / name).unlink()
    assert refused(bundle).file == name


@pytest.mark.parametrize("name", ALL_FILES)
def test_an_empty_file_is_refused_by_name(bundle, name):
    (bundle / name).write_bytes(b"")
    assert refused(bundle).file == name


@pytest.mark.parametrize("name", ["notes.txt", "model.pt", ".hidden", "decoder2.onnx", "a.pkl"])
def test_an_extra_file_is_refused_by_name(bundle, name):
    (bundle / name).write_bytes(b"x")
    error = refused(bundle)
    assert error.file == name and "remove it" in str(error)
    assert ("pickle" in str(error)) == name.endswith((".pt", ".pkl"))


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_link_in_place_of_a_file_is_refused(bundle, name, tmp_path):
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    assert refused(bundle).file == name


def test_a_folder_inside_is_refused(bundle):
    (bundle / "sub").mkdir()
    assert refused(bundle).file == "sub"


def test_the_folder_itself_may_be_reached_by_a_link(bundle, tmp_path):
    (tmp_path / "current").symlink_to(bundle)
    open_bundle(tmp_path / "current")


def test_no_folder_and_no_bundle_say_what_was_expected(tmp_path):
    assert "does not exist" in str(refused(tmp_path / "none"))
    (tmp_path / "file").write_text("x")
    assert "not a folder" in str(refused(tmp_path / "file"))
    assert refused(tmp_path).file == MANIFEST_FILE


def test_weights_that_are_no_safetensors_are_refused_whatever_the_manifest_says(bundle, reseal):
    (bundle / WEIGHTS_FILE).write_bytes(b"\x80\x04\x95" + bytes(1000))
    reseal(bundle)
    assert refused(bundle).file == WEIGHTS_FILE


@pytest.mark.parametrize("graph", ALL_GRAPHS)
def test_a_graph_that_is_no_onnx_is_refused_whatever_the_manifest_says(bundle, reseal, graph):
    (bundle / graph).write_bytes(b"PK\x03\x04 not a graph")
    reseal(bundle)
    assert refused(bundle).file == graph


def every_tensor(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += every_tensor(attribute.g) if attribute.HasField("g") else []
    return found


def external_entries(model: onnx.ModelProto) -> list[onnx.StringStringEntryProto]:
    return [entry for tensor in every_tensor(model.graph) for entry in tensor.external_data]


def edit(path: Path, change) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("graph", ALL_GRAPHS)
@pytest.mark.parametrize("location", ["../weights.safetensors", "/etc/passwd", "README.md", ""])
def test_weights_from_elsewhere_are_refused(bundle, reseal, graph, location):
    def redirect(model: onnx.ModelProto) -> None:
        entries = [entry for entry in external_entries(model) if entry.key == "location"]
        entries[-1].value = location

    edit(bundle / graph, redirect)
    reseal(bundle)
    error = refused(bundle)
    assert error.file == graph and WEIGHTS_FILE in str(error)


@pytest.mark.parametrize("key, value", [("offset", "-8"), ("length", "999999999"), ("offset", "x")])
def test_weights_beyond_the_file_are_refused(bundle, reseal, key, value):
    def stretch(model: onnx.ModelProto) -> None:
        next(entry for entry in external_entries(model) if entry.key == key).value = value

    edit(bundle / "decoder.onnx", stretch)
    reseal(bundle)
    assert refused(bundle).file == "decoder.onnx"


def test_operators_that_are_not_standard_are_refused(bundle, reseal):
    def add_custom(model: onnx.ModelProto) -> None:
        model.graph.node.add(op_type="Anything", domain="com.example")

    edit(bundle / "prior.onnx", add_custom)
    reseal(bundle)
    assert "com.example" in str(refused(bundle))


def test_a_graph_with_other_tensors_is_refused(bundle, reseal):
    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "condition"

    edit(bundle / "prior.onnx", rename)
    reseal(bundle)
    error = refused(bundle)
    assert error.file == "prior.onnx" and "condition" in str(error)


def test_a_graph_of_another_width_than_the_manifest_tells_is_refused(bundle, reseal):
    def widen(model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.shape.dim[1].dim_value += 1

    edit(bundle / "prior.onnx", widen)
    reseal(bundle)
    error = refused(bundle)
    assert error.file == "prior.onnx" and "eps_z of shape ['R', 7], expected ['R', 6]" in str(error)


def test_a_graph_with_a_tensor_of_another_rank_is_refused(bundle, reseal):
    def flatten(model: onnx.ModelProto) -> None:
        del model.graph.output[0].type.tensor_type.shape.dim[1]

    edit(bundle / "prior.onnx", flatten)
    reseal(bundle)
    assert "z of shape ['R']" in str(refused(bundle))


def test_a_manifest_that_leaves_a_file_out_is_refused(bundle, reseal):
    (bundle / "README.md").unlink()
    reseal(bundle)
    error = refused(bundle)
    assert error.file == MANIFEST_FILE and "README.md" in str(error)


@pytest.mark.parametrize("graph", [UTTERANCE_ENCODER, DIALOG_ENCODER], ids=lambda graph: graph.file)
def test_half_an_encoder_is_refused(bundle, reseal, graph):
    (bundle / graph.file).unlink()
    reseal(bundle)
    error = refused(bundle)
    assert error.file == MANIFEST_FILE and f"does not list {graph.file}" in str(error)


def test_a_bundle_without_the_graphs_that_only_some_have_opens(bundle, reseal):
    for graph in OPTIONAL_GRAPHS:
        (bundle / graph.file).unlink()
    reseal(bundle)
    assert not any(open_bundle(bundle).has(graph.file) for graph in OPTIONAL_GRAPHS)


def test_two_steps_of_different_widths_are_refused(bundle, reseal):
    def widen(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value += 1

    edit(bundle / UTTERANCE_ENCODER.file, widen)
    reseal(bundle)
    error = refused(bundle)
    assert error.file == DIALOG_ENCODER.file and "vectors of shape" in str(error)
