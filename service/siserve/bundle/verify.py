"""Check a bundle and open it. Nothing of a bundle is used before every byte has been checked."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from siserve.bundle.errors import BundleError
from siserve.bundle.manifest import FileEntry, Manifest, parse_manifest
from siserve.bundle.onnx_facts import GraphFacts, read_graph_facts
from siserve.bundle.tensors import (
    CONTEXT_TOKENIZER_FILE,
    DECODER_INT8,
    DECODER_UNROLLED,
    DIALOG_ENCODER,
    FILES,
    GRAPHS,
    MANIFEST_FILE,
    OPTIONAL_FILES,
    POSTERIOR,
    TOKENIZER_FILE,
    UTTERANCE_ENCODER,
    WEIGHTS_FILE,
    Graph,
    Tensor,
)
from siserve.bundle.wire import WireError

__all__ = ["Bundle", "digest_file", "open_bundle"]

MAX_MANIFEST_BYTES = 4 << 20
MAX_GRAPH_BYTES = 1 << 30
MAX_HEADER_BYTES = 64 << 20

_PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".npy", ".joblib"})
#: Operators of ONNX and those that onnxruntime itself brings; code of others is never loaded.
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file has been checked against its manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one file of the bundle."""
        return self.path / name

    def has(self, name: str) -> bool:
        """Say whether the bundle has a file that not all have."""
        return name in self.manifest.files


def open_bundle(path: Path) -> Bundle:
    """Check the bundle in a folder and open it.

    Args:
        path: the bundle's folder (it may be reached by a link, its files may not).

    Returns:
        The bundle; its files have the sizes and digests that its manifest tells.

    Raises:
        BundleError: naming the file and saying what to do, if anything is missing, too much,
            changed, not a plain file, or not of format 1.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise BundleError(f"{path} {what}; expected the folder of an exported bundle")
    present = _plain_files(path)
    if MANIFEST_FILE not in present:
        raise BundleError(
            f"{path} has no {MANIFEST_FILE}; expected the folder that `siserve export` wrote",
            MANIFEST_FILE,
        )
    if present[MANIFEST_FILE] > MAX_MANIFEST_BYTES:
        raise _off(MANIFEST_FILE, f"is larger than {MAX_MANIFEST_BYTES} bytes")
    manifest = parse_manifest(_read(path, MANIFEST_FILE))
    _check_names(set(present) - {MANIFEST_FILE}, set(manifest.files))
    for name, entry in manifest.files.items():
        _check_file(path / name, name, entry)
    _check_weights(path)
    for name in {TOKENIZER_FILE, CONTEXT_TOKENIZER_FILE} & set(manifest.files):
        _check_tokenizer(path, name)
    for graph in (*GRAPHS, POSTERIOR, DECODER_INT8, DECODER_UNROLLED):
        if graph.file in manifest.files:
            _check_graph(path, graph, manifest)
    if UTTERANCE_ENCODER.file in manifest.files:
        found = _check_graph(path, UTTERANCE_ENCODER, manifest)
        width = found.outputs["vectors"].axes[1]
        _check_graph(path, DIALOG_ENCODER, manifest, width)
    return Bundle(path, manifest)


def digest_file(path: Path) -> FileEntry:
    """Return the digest and the size of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileEntry(sha256=digest.hexdigest(), bytes=stream.tell())


def _plain_files(path: Path) -> dict[str, int]:
    """Sizes of the files of a folder by name; whatever is not a plain file is refused."""
    sizes = {}
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    raise _off(entry.name, "is a link; replace it by the file itself", "")
                if not stat.S_ISREG(status.st_mode):
                    raise _off(entry.name, "is not a plain file; a bundle is one flat folder", "")
                sizes[entry.name] = status.st_size
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); check its rights") from None
    return sizes


def _check_names(present: set[str], listed: set[str]) -> None:
    for name in sorted(listed - {*FILES, *OPTIONAL_FILES}):
        raise _off(MANIFEST_FILE, f"lists {name!r}, which is no file of format 1")
    for name in sorted(set(FILES) - listed):
        raise _off(MANIFEST_FILE, f"does not list {name}")
    halves = {UTTERANCE_ENCODER.file, DIALOG_ENCODER.file} - listed
    if len(halves) == 1:
        raise _off(MANIFEST_FILE, f"does not list {halves.pop()}, the other half of an encoder")
    for name in sorted(present - listed):
        if Path(name).suffix in _PICKLE_SUFFIXES:
            raise _off(name, "may hold a pickle, which can run code; remove it", "")
        raise _off(name, f"is not in {MANIFEST_FILE}; remove it", "")
    for name in sorted(listed - present):
        raise _off(name, "is missing")


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    try:
        found = digest_file(path)
    except OSError as error:
        raise _off(name, f"cannot be read ({error.strerror}); check its rights", "") from None
    if found.bytes != entry.bytes:
        raise _off(name, f"has {found.bytes} bytes, {MANIFEST_FILE} says {entry.bytes}")
    if found.sha256 != entry.sha256:
        raise _off(name, f"was changed: its SHA-256 is not the one in {MANIFEST_FILE}")


def _check_weights(path: Path) -> None:
    """A safetensors file begins with the size of a JSON header (8 bytes) and that header."""
    with (path / WEIGHTS_FILE).open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(size)) if size <= MAX_HEADER_BYTES else None
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise _off(WEIGHTS_FILE, "is no safetensors file; pickles and archives are never loaded")


def _check_tokenizer(path: Path, name: str) -> None:
    try:
        content = json.loads(_read(path, name))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _off(name, "is no JSON object")


def _check_graph(
    path: Path, graph: Graph, manifest: Manifest, width: int | str = "F"
) -> GraphFacts:
    """Check the tensors and operators of a graph and that its weights lie in the bundle.

    `width` is F, which no manifest tells as it tells no S; a name stands for any size.
    """
    files, sizes = manifest.files, {**manifest.sizes.by_axis(), "F": width}
    if files[graph.file].bytes > MAX_GRAPH_BYTES:
        raise _off(graph.file, f"is larger than {MAX_GRAPH_BYTES} bytes")
    try:
        facts = read_graph_facts(_read(path, graph.file))
    except (WireError, RecursionError) as error:
        raise _off(graph.file, f"is no ONNX model: it {error}") from None
    for what, found, expected in (
        ("inputs", facts.inputs, graph.inputs),
        ("outputs", facts.outputs, graph.outputs),
    ):
        types = {name: tensor.dtype for name, tensor in found.items()}
        wanted = {tensor.name: tensor.dtype for tensor in expected}
        if types != wanted:
            raise _off(graph.file, f"has {what} {types}, expected {wanted}")
        for tensor in expected:
            _check_axes(graph.file, tensor, found[tensor.name].axes, sizes)
    foreign = sorted(facts.domains - _KNOWN_DOMAINS)
    if foreign:
        raise _off(
            graph.file,
            f"uses operators of {foreign[0]!r}, only those of ONNX and onnxruntime are run",
        )
    for data in facts.external:
        if data.location != WEIGHTS_FILE:
            raise _off(graph.file, f"takes weights from {data.location!r}, not {WEIGHTS_FILE}")
        if not 0 <= data.offset <= data.offset + data.length <= files[WEIGHTS_FILE].bytes:
            raise _off(graph.file, f"takes weights from beyond the end of {WEIGHTS_FILE}")
    return facts


def _check_axes(
    file: str, tensor: Tensor, found: tuple[int | str, ...], sizes: Mapping[str, int | str]
) -> None:
    """Check the axes whose size the contract or the manifest fixes."""
    wanted = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in tensor.axes]
    fits = len(found) == len(wanted) and all(
        isinstance(size, str) or axis == size for axis, size in zip(found, wanted, strict=True)
    )
    if not fits:
        raise _off(file, f"has {tensor.name} of shape {list(found)}, expected {wanted}")


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise _off(name, f"cannot be read ({error.strerror}); check its rights", "") from None


def _off(name: str, what: str, remedy: str = "fetch or export the bundle again") -> BundleError:
    return BundleError(f"{name} {what}" + (f"; {remedy}" if remedy else ""), name)
