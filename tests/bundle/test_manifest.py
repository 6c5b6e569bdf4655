"""The manifest: one canonical form, and any change of it is noticed."""

import json

import pytest
from pydantic import ValidationError
from siserve.bundle import (
    BundleError,
    Description,
    Features,
    FileEntry,
    Golden,
    Limits,
    Sampling,
    Sizes,
    Tokens,
)
from siserve.bundle.manifest import Manifest, parse_manifest, seal


def description(**changes) -> Description:
    fields = {
        "name": "tiny",
        "version": "1",
        "task": "dialog",
        "method": "si-cvae",
        "created": "2026-01-02T03:04:05+00:00",
        "tokens": Tokens(pad=0, unk=1, start=2, end=3, dialog_start=4),
        "sizes": Sizes(
            vocabulary=20,
            word_embedding=6,
            context=11,
            latent=4,
            noise=3,
            state=9,
            num_parameters=1234,
        ),
        "limits": Limits(),
        "features": Features(topics=("MUSIC", "café"), profile=True),
        "sampling": Sampling(temperature=0.8),
        "provenance": {"seeds": [1, 2], "corpus": "ünïcode", "rate": 0.1},
        "metrics": {"valid_kl": 8.25, "elbo": -61.0},
    }
    return Description.model_validate({**fields, **changes})


@pytest.fixture
def manifest() -> Manifest:
    return seal(description(), {"README.md": FileEntry(sha256="0" * 64, bytes=5)})


def test_reading_what_was_written_gives_the_same_manifest(manifest):
    assert parse_manifest(manifest.to_bytes()) == manifest


def test_one_flipped_bit_in_any_byte_is_refused(manifest):
    serialized = manifest.to_bytes()
    for position in range(len(serialized)):
        damaged = bytearray(serialized)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BundleError, match=r"manifest\.json") as refused:
            parse_manifest(bytes(damaged))
        assert refused.value.file == "manifest.json"


def test_another_spelling_of_the_same_values_is_refused(manifest):
    compact = json.dumps(json.loads(manifest.to_bytes())).encode()
    with pytest.raises(BundleError, match="changed after it was written"):
        parse_manifest(compact)


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.5])
def test_another_format_version_is_refused_by_name(manifest, version):
    content = json.loads(manifest.to_bytes()) | {"format_version": version}
    with pytest.raises(BundleError, match="format_version"):
        parse_manifest(json.dumps(content).encode())


@pytest.mark.parametrize(
    "damaged", [b"", b"[]", b"{", b"\xff\xfe", b"null", b'{"format_version": 1}', b"[" * 100_000]
)
def test_what_is_no_manifest_is_refused_with_a_reason(damaged):
    with pytest.raises(BundleError, match=r"^manifest\.json .*again"):
        parse_manifest(damaged)


@pytest.mark.parametrize(
    "changes",
    [
        {"surprise": 1},
        {"name": "../evil"},
        {"name": ""},
        {"task": "chess"},
        {"metrics": {"kl": float("nan")}},
        {"sampling": {"temperature": -1.0}},
        {"sampling": {"top_p": 0.0}},
        {"limits": {"utterance_tokens": 2}},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValidationError):
        description(**changes)


def sizes(**changes: int) -> Sizes:
    return Sizes.model_validate(description().sizes.model_dump() | changes)


def test_a_prior_takes_as_much_noise_as_z_has_numbers_unless_the_manifest_says_more():
    assert sizes().prior_noise == sizes().latent
    wide = seal(description(sizes=sizes(prior_noise=7)), {})
    assert parse_manifest(wide.to_bytes()).sizes.prior_noise == 7
    assert parse_manifest(wide.to_bytes()).sizes.by_axis()["P"] == 7
    with pytest.raises(ValidationError, match="prior_noise is 3, expected at least latent, 4"):
        sizes(prior_noise=3)


def test_the_width_of_a_gaussian_priors_noise_is_left_out_of_the_manifest(manifest):
    assert b"prior_noise" not in manifest.to_bytes()
    assert seal(description(sizes=sizes(prior_noise=4)), dict(manifest.files)) == manifest
    content = json.loads(manifest.to_bytes())
    content["sizes"]["prior_noise"] = 4
    told = json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    with pytest.raises(BundleError, match="changed after it was written"):
        parse_manifest(told.encode())


def test_the_digest_covers_every_field(manifest):
    other = seal(description(metrics={"valid_kl": 8.26}), dict(manifest.files))
    assert other.sha256 != manifest.sha256


def test_a_golden_request_is_kept_to_the_last_digit_and_named_only_where_there_is_one(manifest):
    golden = Golden(
        context=(("A", "hi"), ("B", "héllo")),
        responder="A",
        response=(2, 9, 3),
        expected={"c": (0.1, -2.5e-07), "log_prob": (-12.345678,)},
    )
    sealed = seal(description(golden=golden), manifest.files)
    assert parse_manifest(sealed.to_bytes()).golden == golden
    assert b"golden" not in manifest.to_bytes()
    assert parse_manifest(manifest.to_bytes()).golden is None
