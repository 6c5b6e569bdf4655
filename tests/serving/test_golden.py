"""The golden request: a bundle that computes otherwise than at export is refused, by name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import tiny_bundle
from siserve.bundle import BundleError, Description, open_bundle
from siserve.bundle.golden import pattern
from siserve.bundle.manifest import seal
from siserve.bundle.tensors import MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from siserve.bundle.verify import digest_file
from siserve.client import ClientError
from siserve.serving.engine import EngineOptions
from siserve.serving.loading import load_model
from siserve.serving.metrics import Metrics
from siserve.serving.requests import RequestLimits
from siserve.serving.sessions import Placement, load_sessions


def load(bundle: Path, threads: int = 1) -> None:
    observer = Metrics().engine_observer()
    load_model(
        bundle, Placement("cpu", threads=threads), RequestLimits(), EngineOptions(), observer
    )


def sign_again(bundle: Path, **changes: object) -> Path:
    """Make every digest of a bundle fit its files, and change fields of its manifest."""
    content = json.loads((bundle / MANIFEST_FILE).read_bytes())
    names = content.pop("files")
    del content["sha256"]
    about = Description.model_validate(content | changes)
    manifest = seal(about, {name: digest_file(bundle / name) for name in names})
    (bundle / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    assert open_bundle(bundle).manifest == manifest
    return bundle


def scale_weight(bundle: Path, weight: str, factor: float) -> None:
    """Multiply one tensor in place, in the file."""
    content = bytearray((bundle / WEIGHTS_FILE).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    first, end = (start + at for at in json.loads(content[8:start])[weight]["data_offsets"])
    values = np.frombuffer(content[first:end], np.float32) * np.float32(factor)
    content[first:end] = values.tobytes()
    (bundle / WEIGHTS_FILE).write_bytes(content)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("weight", "number"),
    [
        ("utterance_encoder.gru.R", "c"),
        ("context_encoder.gru.W", "c"),
        ("embedding.weight", "c"),
        ("prior_net.out.bias", "z"),
        ("posterior_net.hidden.kernel_noise", "posterior_z"),
        ("posterior_net.out.kernel", "posterior_z"),
        ("decoder.gru.kernel_hh", "log_prob"),
        ("decoder.out.kernel", "log_prob"),
    ],
)
def test_changed_weights_that_are_signed_again_are_refused(copy, weight, number):
    scale_weight(copy, weight, 1.05)
    with pytest.raises(BundleError, match=rf"tiny@1 fails its golden request: it gives {number} "):
        load(sign_again(copy))


def test_a_changed_tokenizer_that_is_signed_again_is_refused(copy):
    tokenizer = json.loads((copy / TOKENIZER_FILE).read_text())
    words = tokenizer["model"]["vocab"]
    words["you"], words["dog"] = words["dog"], words["you"]
    (copy / TOKENIZER_FILE).write_text(json.dumps(tokenizer))
    with pytest.raises(BundleError, match="golden request"):
        load(sign_again(copy))


def test_what_was_signed_again_and_not_changed_is_loaded(copy):
    load(sign_again(copy))


def test_a_bundle_without_a_golden_request_is_loaded_as_before(copy):
    sign_again(copy, golden=None)
    assert "golden" not in json.loads((copy / MANIFEST_FILE).read_bytes())
    load(copy)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_threads_and_stored_precision_stay_within_a_tenth_of_the_tolerance(tmp_path, dtype):
    bundle = tiny_bundle(tmp_path / "b", dtype=dtype)
    golden = open_bundle(bundle).manifest.golden
    assert golden is not None and golden.tolerance == 1e-3
    tighter = golden.model_copy(update={"tolerance": 1e-4})
    load(sign_again(bundle, golden=tighter), threads=2)


def test_a_tensor_more_or_less_is_named(copy):
    golden = open_bundle(copy).manifest.golden
    assert golden is not None
    for expected in (golden.expected | {"more": (1.0,)}, golden.expected | {"c": (1.0,)}):
        with pytest.raises(BundleError, match="golden request: it gives"):
            load(sign_again(copy, golden=golden.model_copy(update={"expected": expected})))


def test_ids_beyond_the_vocabulary_end_in_one_line(copy):
    golden = open_bundle(copy).manifest.golden
    assert golden is not None
    response = (golden.response[0], 10**6, golden.response[-1])
    with pytest.raises(BundleError, match="golden request: it ends in an error") as refused:
        load(sign_again(copy, golden=golden.model_copy(update={"response": response})))
    assert "\n" not in str(refused.value)


def test_the_noise_of_the_golden_request_is_even_and_fills_every_place():
    noise = pattern(2, 3, 1024)
    assert noise.shape == (2, 3, 1024) and noise.dtype == np.float32
    assert len(np.unique(noise[0, :2])) == 2048 and abs(noise.mean()) < 1e-3
    assert (noise.min(), noise.max()) == (-2, 2 - 1 / 512)


def test_a_server_goes_on_with_the_model_it_has_and_does_not_start_on_none(
    start_server, run_siserve, bundle, tmp_path
):
    shelf = tmp_path / "shelf"
    whole = Path(shutil.copytree(bundle, shelf / "whole"))
    server = start_server("--model-dir", shelf, "--admin", without_model=True)
    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    scale_weight(damaged, "decoder.out.kernel", 0.9)
    sign_again(damaged, version="2").rename(shelf / "damaged")
    with server.client() as client:
        with pytest.raises(ClientError, match="tiny@2 fails its golden request: it gives log_prob"):
            client.load_model("damaged")
        assert client.get_model().version == "1"
        assert len(client.generate([("A", "hello")]).responses) == 5
    ports = ("--port", "0", "--metrics-port", "0")
    ended = run_siserve("serve", "--model", shelf / "damaged", *ports)
    assert ended.returncode == 1 and whole.is_dir()
    assert "tiny@2 fails its golden request" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_the_decoder_that_draws_is_asked_too_where_it_is_another_one(bundle, tmp_path):
    from siserve.bundle.text import Text
    from siserve.serving import loading

    opened = open_bundle(bundle)
    text = Text.from_file(bundle / TOKENIZER_FILE, 40)
    ours = load_sessions(opened, "cpu", 1, "int8")
    other = load_sessions(open_bundle(tiny_bundle(tmp_path / "b", seed=2)), "cpu", 1, "int8")
    assert ours.decoder is not ours.exact_decoder
    loading._check_golden(ours, opened.manifest, text)
    with pytest.raises(BundleError, match="golden request: it gives log_prob"):
        loading._check_golden(replace(ours, decoder=other.decoder), opened.manifest, text)
