"""The manifest of a bundle: what it is, how large, how to sample, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from siserve.bundle.errors import BundleError
from siserve.bundle.tensors import MANIFEST_FILE

__all__ = [
    "FORMAT_VERSION",
    "Description",
    "Features",
    "FileEntry",
    "Golden",
    "Limits",
    "Manifest",
    "Sampling",
    "Sizes",
    "Tokens",
    "parse_manifest",
    "seal",
]

FORMAT_VERSION: Literal[1] = 1

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tokens(_Strict):
    """Ids of the special tokens."""

    pad: Count
    unk: Count
    start: Count
    end: Count
    dialog_start: Count


class Sizes(_Strict):
    """Sizes of the model, in numbers of units.

    Attributes:
        prior_noise: numbers that the prior draws z from, `latent` or more. A manifest tells it only
            where it is more, so that a Gaussian prior's bundle reads everywhere.
    """

    vocabulary: Size
    word_embedding: Size
    context: Size
    latent: Size
    noise: Size
    state: Size
    num_parameters: Size
    prior_noise: Size = Field(default_factory=lambda sizes: int(sizes.get("latent", 1)))

    @model_validator(mode="after")
    def _check_prior_noise(self) -> Sizes:
        if self.prior_noise < self.latent:
            raise ValueError(
                f"prior_noise is {self.prior_noise}, expected at least latent, {self.latent}"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_is_implied(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        if self.prior_noise == self.latent:
            del content["prior_noise"]
        return content

    def by_axis(self) -> dict[str, int]:
        """Return the sizes by the names of the axes in siserve.bundle.tensors."""
        return {
            "C": self.context,
            "D": self.latent,
            "E": self.noise,
            "H": self.state,
            "P": self.prior_noise,
        }


class Limits(_Strict):
    """The longest input that the model was trained on, and the longest response."""

    context_utterances: Size = 9
    utterance_tokens: Annotated[int, Field(ge=3)] = 40
    response_tokens: Size = 40


class Features(_Strict):
    """What a request may tell beside its text. The id of a topic is its place in the list + 1."""

    topics: tuple[str, ...] = ()
    profile: bool = False


class Sampling(_Strict):
    """Default sampling options: temperature 0 = the likeliest token, top_k 0 and top_p 1 = off."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_k: Count = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Size = 40


class Golden(_Strict):
    """A request and what the graphs gave for it at export; see siserve.bundle.golden.

    Attributes:
        context: (speaker, text) of each turn, oldest first.
        responder: who responds.
        response: ids from ``<s>`` to ``</s>``.
        expected: numbers by what they are of.
        tolerance: largest |found - expected| / max(1, |expected|) of graphs in float32.
    """

    context: tuple[tuple[str, str], ...]
    responder: str
    response: Annotated[tuple[Count, ...], Field(min_length=2)]
    expected: dict[str, tuple[float, ...]]
    tolerance: Annotated[float, Field(gt=0)] = 1e-3


class FileEntry(_Strict):
    """Digest and size of one file."""

    sha256: Digest
    bytes: Count


class Description(_Strict):
    """All that a bundle says of itself but the digests of its files.

    Attributes:
        golden: a manifest without one does not name it, as those written before it came.
    """

    format_version: Literal[1] = FORMAT_VERSION
    name: Name
    version: Name
    task: Literal["dialog", "lm"]
    method: Name
    created: str
    tokens: Tokens
    sizes: Sizes
    limits: Limits
    features: Features
    sampling: Sampling
    provenance: dict[str, JsonValue] = {}
    metrics: dict[str, float] = {}
    golden: Golden | None = None

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        if self.golden is None:
            content.pop("golden", None)
        return content

    @property
    def full_name(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"


class Manifest(Description):
    """A description, the digest of every other file, and the digest of the manifest itself."""

    files: dict[str, FileEntry]
    sha256: Digest

    def to_bytes(self) -> bytes:
        """Return the one canonical form, which the file must equal byte for byte."""
        return _canonical_bytes(self.model_dump(mode="json"))


def seal(description: Description, files: dict[str, FileEntry]) -> Manifest:
    """Join a description with the digests of its files and sign the whole with its own digest."""
    content = description.model_dump(mode="json")
    content["files"] = {name: entry.model_dump(mode="json") for name, entry in files.items()}
    digest = hashlib.sha256(_canonical_bytes(content)).hexdigest()
    return Manifest.model_validate({**content, "sha256": digest})


def parse_manifest(serialized: bytes) -> Manifest:
    """Read a manifest and check its form, its version and its own digest.

    Raises:
        BundleError: naming manifest.json, if any of these is off; one flipped bit is enough.
    """
    try:
        content = json.loads(serialized)
    except (ValueError, RecursionError) as error:
        raise _refused(f"is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _refused("is not a JSON object")
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{MANIFEST_FILE} says format_version {version!r}, this siserve reads "
            f"{FORMAT_VERSION}; export the model again or use the siserve that wrote it",
            MANIFEST_FILE,
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refused(f"is not valid at {where!r}: {first['msg']}") from None
    unsigned = manifest.model_dump(mode="json", exclude={"sha256"})
    if (
        manifest.to_bytes() != serialized
        or hashlib.sha256(_canonical_bytes(unsigned)).hexdigest() != manifest.sha256
    ):
        raise _refused("was changed after it was written: its digest is off")
    return manifest


def _canonical_bytes(content: dict[str, object]) -> bytes:
    text = json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _refused(what: str) -> BundleError:
    return BundleError(f"{MANIFEST_FILE} {what}; fetch or export the bundle again", MANIFEST_FILE)
