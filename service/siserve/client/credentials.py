"""How a client reaches a server: in the open or by TLS, with a key or a certificate of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from siserve.bundle.errors import UsageError

__all__ = ["Credentials"]


@dataclass(frozen=True)
class Credentials:
    """What a client trusts and what it shows.

    Attributes:
        key: API key; "" = none. It is sent with every call.
        tls: encrypt, and trust the authorities that this machine trusts.
        tls_ca: encrypt, and trust the authorities in this PEM file instead.
        tls_cert: certificate of the client, PEM; with `tls_key`.
        tls_key: its private key, PEM.
    """

    key: str = ""
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse halves.

        Raises:
            UsageError: if a certificate has no key or a key no certificate.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("a client's certificate needs both --tls-cert and --tls-key")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Headers of every call."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    def of_channel(self) -> grpc.ChannelCredentials | None:
        """Return what gRPC takes; None = in the open.

        Raises:
            UsageError: naming the file that cannot be read.
        """
        if not (self.tls or self.tls_ca or self.tls_cert):
            return None
        ca, key, certificate = (_read(p) for p in (self.tls_ca, self.tls_key, self.tls_cert))
        return grpc.ssl_channel_credentials(ca, key, certificate)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
