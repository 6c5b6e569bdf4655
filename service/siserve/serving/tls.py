"""The server's certificate: checked before it is used, and read again when its files change."""

from __future__ import annotations

import contextlib
import logging
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from siserve.bundle.errors import SiserveError, UsageError

__all__ = ["Certificate", "CertificateFiles", "Handshakes", "TlsError", "server_credentials"]

_LOOK_SECONDS = 0.5
_PEERS = 4096
_log = logging.getLogger(__name__)


class TlsError(SiserveError):
    """A certificate or key cannot be used."""


@dataclass(frozen=True)
class CertificateFiles:
    """Where a certificate lies, in PEM.

    Attributes:
        certificate: chain of the server, its own certificate first.
        key: private key, without a passphrase.
        client_ca: who signs the certificates of clients; None = clients need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(
        cls, certificate: Path | None, key: Path | None, client_ca: Path | None
    ) -> CertificateFiles | None:
        """Join the options of the command line; None = no TLS.

        Raises:
            UsageError: if one of them is missing.
        """
        if certificate is None and key is None and client_ca is None:
            return None
        if certificate is None or key is None:
            raise UsageError("TLS needs both --tls-cert and --tls-key; give the other one too")
        return cls(certificate, key, client_ca)


class Certificate:
    """What the files hold now, or held when they last held something that works.

    Args:
        files: where to read.
        expires: told the end of validity in seconds since 1970, whenever a certificate is taken.

    Raises:
        TlsError: naming the file and what is wrong with it.
    """

    def __init__(self, files: CertificateFiles, expires: Callable[[float], None]) -> None:
        """Read and check the files."""
        self._files = files
        self._expires = expires
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._signature = self._sign()
        self._contents = self._read()

    def refresh(self) -> bool:
        """Read the files again if they changed; say whether something new is in use.

        Files that do not work change nothing: they are named in the log, and the certificate that
        is in use stays.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked < _LOOK_SECONDS:
                return False
            self._looked = now
            signature = self._sign()
            if signature == self._signature:
                return False
            self._signature = signature
            try:
                contents = self._read()
            except TlsError as error:
                _log.error("the certificate in use stays: %s", error)
                return False
            self._contents = contents
            _log.info("a new certificate is in use: %s", self._files.certificate)
            return True

    def context(self) -> ssl.SSLContext:
        """Make a context for servers of the standard library."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(context)
        return context

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let a context that is in use answer with what the files hold now."""
        context.load_cert_chain(self._files.certificate, self._files.key)
        if self._files.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._files.client_ca)

    def grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return what is in use as gRPC takes it."""
        key, certificate, client_ca = self._contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    @property
    def asks_clients(self) -> bool:
        """Whether clients need a certificate too."""
        return self._files.client_ca is not None

    def _sign(self) -> tuple[object, ...]:
        signs: list[object] = []
        for path in (self._files.certificate, self._files.key, self._files.client_ca):
            with contextlib.suppress(OSError):
                status = path.stat() if path else None
                signs.append(status and (status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(signs)

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        files = self._files
        key, certificate = _read_file(files.key), _read_file(files.certificate)
        client_ca = _read_file(files.client_ca) if files.client_ca else None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files.certificate, files.key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or "no PEM"
            raise TlsError(
                f"{files.certificate} and {files.key} are no certificate and its key in PEM "
                f"({str(reason).lower().replace('_', ' ')}); give a pair that belongs together"
            ) from None
        self._expires(_end_of_validity(context, files.certificate))
        if files.client_ca:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(files.client_ca)
            except ssl.SSLError:
                raise TlsError(f"{files.client_ca} holds no certificate in PEM") from None
        return key, certificate, client_ca


class Handshakes:
    """Counts handshakes as they begin, and connections once they bring a call.

    gRPC tells nobody of a handshake that fails: it ends in its core, before there is a call. But it
    asks for the certificate before each, and each call names its peer. What began and brought no
    call was refused, given up or never used.

    Args:
        began: told of each handshake, in any thread.
        met: told of each connection.
    """

    def __init__(self, began: Callable[[], None], met: Callable[[], None]) -> None:
        """Begin with no peer."""
        self.begin, self.met = began, met
        self._peers: OrderedDict[str, None] = OrderedDict()

    def meet(self, peer: str) -> None:
        """A call came from a peer, an address and a port; those of the last calls are known."""
        if peer in self._peers:
            self._peers.move_to_end(peer)
            return
        self._peers[peer] = None
        if len(self._peers) > _PEERS:
            self._peers.popitem(last=False)
        self.met()


def server_credentials(certificate: Certificate, handshakes: Handshakes) -> grpc.ServerCredentials:
    """Make credentials that look at the certificate's files before each handshake."""

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        handshakes.begin()
        return certificate.grpc_configuration() if certificate.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        certificate.grpc_configuration(),
        fetch,  # type: ignore[arg-type]
        certificate.asks_clients,
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path} cannot be read ({error.strerror}); check its rights") from None


def _end_of_validity(server: ssl.SSLContext, path: Path) -> float:
    """Shake hands with ourselves in memory: the library then says whether the dates are good.

    Raises:
        TlsError: if the certificate has expired or is not valid yet.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusts what the file holds, CA or not
    client.load_verify_locations(path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asker = client.wrap_bio(to_client, to_server)
    answerer = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(4):
            for end in (asker, answerer):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise TlsError(
            f"{path} cannot be used: {error.verify_message}; give one that is valid now"
        ) from None
    told = asker.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(told["notAfter"])))
