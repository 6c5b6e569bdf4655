"""What a bundle fixes: files, tensor names, manifest, text. All that both rooms know."""

from siserve.bundle.errors import BundleError, SiserveError, UsageError
from siserve.bundle.manifest import (
    Description,
    Features,
    FileEntry,
    Golden,
    Limits,
    Manifest,
    Sampling,
    Sizes,
    Tokens,
)
from siserve.bundle.verify import Bundle, open_bundle
from siserve.bundle.writing import write_bundle

__all__ = [
    "Bundle",
    "BundleError",
    "Description",
    "Features",
    "FileEntry",
    "Golden",
    "Limits",
    "Manifest",
    "Sampling",
    "SiserveError",
    "Sizes",
    "Tokens",
    "UsageError",
    "open_bundle",
    "write_bundle",
]
