"""Write a bundle: the whole of it or nothing."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from siserve.bundle.errors import BundleError, UsageError
from siserve.bundle.manifest import Description, Manifest, seal
from siserve.bundle.tensors import FILES, MANIFEST_FILE, OPTIONAL_FILES
from siserve.bundle.verify import digest_file, open_bundle

__all__ = ["write_bundle"]


def write_bundle(
    target: Path, files: Mapping[str, bytes | Path], description: Description
) -> Manifest:
    """Write a bundle into a folder beside `target`, check it, and rename it into place.

    Args:
        target: folder to make; it may exist only if it is empty.
        files: content of every file but the manifest, as bytes or as a path to copy from.
        description: the manifest's fields but the digests.

    Returns:
        The manifest that was written.

    Raises:
        UsageError: if `target` is there already.
        BundleError: if the files are not those of a bundle. Nothing is left behind then.
    """
    if target.is_symlink() or (target.exists() and not _is_empty_folder(target)):
        raise UsageError(f"{target} exists; a bundle never replaces anything, name a new folder")
    for name in sorted(set(FILES) ^ set(files).difference(OPTIONAL_FILES)):
        what = "is missing" if name in FILES else "is no file of a bundle"
        raise BundleError(f"{name} {what}; expected {', '.join(FILES)}", name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir()
        for name, content in files.items():
            _write(partial / name, content)
        manifest = seal(description, {name: digest_file(partial / name) for name in files})
        _write(partial / MANIFEST_FILE, manifest.to_bytes())
        open_bundle(partial)
        _sync_folder(partial)
        partial.rename(target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write(path: Path, content: bytes | Path) -> None:
    with path.open("xb") as stream:
        if isinstance(content, Path):
            with content.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
        else:
            stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
