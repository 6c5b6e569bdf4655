"""API keys: made here, kept as digests, compared in constant time, read again when they change.

A line of the file is ``NAME sha256:HEX``, with ``admin`` after it where the key may also change the
models. A key holds 256 random bits, so that its digest needs no salt and no stretching.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from siserve.bundle.errors import SiserveError
from siserve.serving.errors import Unauthenticated

__all__ = ["Caller", "KeysError", "Keyring", "add_key"]

_LOOK_SECONDS = 0.5
_PREFIX = "siserve-"
_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+sha256:([0-9a-f]{64})(\s+admin)?")
_REFUSAL = "this server wants a valid key, as in 'authorization: Bearer KEY'"
_log = logging.getLogger(__name__)


class KeysError(SiserveError):
    """A file of keys cannot be used."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key or the client's certificate; "" = anybody.
        is_admin: whether it may change the models.
    """

    name: str = ""
    is_admin: bool = False


class Keyring:
    """The keys that open the service.

    Args:
        path: the file.

    Raises:
        KeysError: naming the line that is wrong.
    """

    def __init__(self, path: Path) -> None:
        """Read the file."""
        self._path = path
        self._looked = time.monotonic()
        self._signature = self._sign()
        self._keys = _read(path)

    def identify(self, authorization: Iterable[str | bytes]) -> Caller:
        """Say whose key a call carries.

        Args:
            authorization: every value of that header.

        Raises:
            Unauthenticated: with one message, whatever is wrong.
        """
        self._refresh()
        found = None
        for value in authorization:
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            scheme, _, key = text.partition(" ")
            digest = hashlib.sha256(key.strip().encode()).hexdigest()
            for known, caller in self._keys:  # all of them: time must tell nothing
                if hmac.compare_digest(known, digest) and scheme.lower() == "bearer":
                    found = caller
        if found is None:
            raise Unauthenticated(_REFUSAL)
        return found

    def _refresh(self) -> None:
        """Read the file again if it changed; one that is wrong changes nothing."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = _read(self._path)
            _log.info("%d keys are in use now: %s", len(self._keys), self._path)
        except KeysError as error:
            _log.error("the keys in use stay: %s", error)

    def _sign(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)


def add_key(path: Path, name: str, is_admin: bool = False) -> str:
    """Make a key, add its digest to a file and return the key, which is kept nowhere.

    Raises:
        KeysError: if the name is taken or no name, or if the file is wrong.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    line += " admin" if is_admin else ""
    if not _LINE.fullmatch(line):
        raise KeysError(f"{name!r} is no name of a key: letters, digits, '.', '_', '-', up to 64")
    before = _read(path) if path.exists() else ()
    if name in {caller.name for _, caller in before}:
        raise KeysError(f"{path} has a key named {name}; remove its line or take another name")
    try:
        path.touch(mode=0o600)
        content = path.read_text(encoding="utf-8")
        joint = "" if not content or content.endswith("\n") else "\n"
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{joint}{line}\n")
    except OSError as error:
        raise KeysError(f"{path} cannot be written ({error.strerror})") from None
    return key


def _read(path: Path) -> tuple[tuple[str, Caller], ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise KeysError(f"{path} cannot be read ({reason}); make it with siserve key") from None
    keys: dict[str, tuple[str, Caller]] = {}
    for number, line in enumerate(lines, start=1):
        written = line.partition("#")[0].strip()
        if not written:
            continue
        match = _LINE.fullmatch(written)
        if match is None:  # the line itself may hold a key: it is not shown
            raise KeysError(
                f"{path}:{number}: expected 'NAME sha256:HEX'; make it with siserve key"
            )
        name, digest, admin = match.groups()
        if name in keys:
            raise KeysError(f"{path}:{number}: a second key named {name}; rename one of them")
        keys[name] = (digest, Caller(name, bool(admin)))
    if not keys:
        raise KeysError(f"{path} holds no key; make one with siserve key NAME --file {path}")
    return tuple(keys.values())
