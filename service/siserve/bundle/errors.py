"""What a user or a bundle did wrong, as one tree.

SiserveError
├── UsageError    wrong use of a command or option: exit code 2
└── BundleError   a bundle is damaged, incomplete or of another format: exit code 1
"""

from __future__ import annotations

__all__ = ["BundleError", "SiserveError", "UsageError"]


class SiserveError(Exception):
    """Root of every error whose message is meant for the user; commands print it as one line."""

    exit_code = 1


class UsageError(SiserveError):
    """A command or an option was used wrongly; nothing was done."""

    exit_code = 2


class BundleError(SiserveError):
    """A bundle cannot be trusted or read.

    Attributes:
        file: name of the file inside the bundle that is at fault ("" if it is the folder itself).
    """

    def __init__(self, message: str, file: str = "") -> None:
        """Keep the file's name beside the message, so that callers need not parse it."""
        super().__init__(message)
        self.file = file
