"""Callers who may not call, and certificates and keys that change while a server runs."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

from siserve.client import Client, ClientError, Credentials

from tests.certificates import Authority, Signed

from .server import Served, run, serving
from .trial import Setting, Verdict

__all__ = ["security"]

_DIALOG = [("A", "do you have any pets")]


def security(setting: Setting) -> Verdict:
    """Whoever may not call is refused alike and counted; changes of files hold at once."""
    seen: dict[str, bool] = {}
    _keys(setting, seen)
    _certificates(setting, seen)
    failed = [what for what, holds in seen.items() if not holds]
    told = f"{len(seen)} tried: {', '.join(seen)}; failed: {failed or 'none'}"
    return Verdict(not failed, "refused, counted, nothing told; service goes on", told)


def _answer(address: str, credentials: Credentials | None = None) -> str:
    """Ask; return "OK", or the status and the message."""
    with Client(address, 3, credentials) as client:
        try:
            return "OK" if len(client.generate(_DIALOG).responses) == 5 else "short"
        except ClientError as error:
            return f"{error.code.name} {error}"


def _keys(setting: Setting, seen: dict[str, bool]) -> None:
    path = setting.scratch / "keys.txt"
    keys = {name: run("key", name, "--file", path).stdout.strip() for name in ("ann", "bob")}
    with serving(setting, "--keys-file", path) as server:
        good = {name: Credentials(key=key) for name, key in keys.items()}
        seen["a good key answers"] = _answer(server.address, good["ann"]) == "OK"
        refusals = {
            _answer(server.address, credentials)
            for credentials in (None, Credentials(key="wrong"), Credentials(key=keys["ann"][:-1]))
        }
        seen["no key, a wrong key and part of one are refused alike"] = len(
            refusals
        ) == 1 and refusals.pop().startswith("UNAUTHENTICATED")
        seen["they are counted"] = server.answered("UNAUTHENTICATED") == 3
        seen["nothing of a key is logged"] = not any(
            key in server.logged() for key in (*keys.values(), "wrong")
        )
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines if not line.startswith("ann ")))
        seen["a revoked key is refused within 2 s"] = _becomes(
            lambda: _answer(server.address, good["ann"]).startswith("UNAUTHENTICATED"), 2
        )
        seen["the other key goes on"] = _answer(server.address, good["bob"]) == "OK"
        path.write_text("nonsense\n")
        time.sleep(1.5)
        seen["a broken file of keys changes nothing"] = (
            _answer(server.address, good["bob"]) == "OK" and "keys in use stay" in server.logged()
        )


def _certificates(setting: Setting, seen: dict[str, bool]) -> None:
    ours = Authority(setting.scratch / "ours")
    other = Authority(setting.scratch / "other", "other")
    first, second, expired = ours.sign("first"), ours.sign("second"), ours.sign("old", days=-1)
    files = Signed(setting.scratch / "server.crt", setting.scratch / "server.key")
    _put(first, files)
    options = ("--tls-cert", files.certificate, "--tls-key", files.key)
    with serving(setting, *options, "--tls-client-ca", ours.certificate) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        good = _shown(ours, ours.sign("client"))
        seen["a certificate of our authority answers"] = _answer(address, good) == "OK"
        for what, credentials in (
            ("a certificate of another authority", _shown(ours, other.sign("client2"))),
            ("an expired certificate of a client", _shown(ours, ours.sign("late", days=-1))),
            ("no certificate", Credentials(tls_ca=ours.certificate)),
        ):
            refused = _refused(server)
            told = _answer(address, credentials)
            seen[f"{what} is refused"] = not told.startswith("OK")
            seen[f"{what} is counted"] = _refused(server) > refused
            seen[f"{what} is told nothing"] = not any(
                word in told for word in (str(setting.scratch), "Traceback", "siserve/serving")
            )
        _put(second, files)
        seen["a swapped certificate is shown within 3 s"] = _becomes(
            lambda: _shown_by(server, ours, good) == "second", 3
        )
        _put(expired, files)
        time.sleep(1.5)
        seen["an expired one changes nothing"] = (
            _answer(address, good) == "OK"
            and _shown_by(server, ours, good) == "second"
            and "expired" in server.logged()
        )


def _refused(server: Served) -> float:
    """Count the handshakes that brought no call."""
    now = server.metrics()
    return now["siserve_tls_handshakes_total"] - now["siserve_tls_connections_total"]


def _put(signed: Signed, files: Signed) -> None:
    files.key.write_bytes(signed.key.read_bytes())
    files.certificate.write_bytes(signed.certificate.read_bytes())


def _shown(authority: Authority, signed: Signed) -> Credentials:
    return Credentials(
        tls_ca=authority.certificate, tls_cert=signed.certificate, tls_key=signed.key
    )


def _shown_by(server: Served, authority: Authority, client: Credentials) -> str:
    """Name in the certificate that a server shows to a new connection."""
    context = ssl.create_default_context(cafile=authority.certificate)
    assert client.tls_cert is not None
    context.load_cert_chain(client.tls_cert, client.tls_key)
    context.set_alpn_protocols(["h2"])
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secured:
            subject = (secured.getpeercert() or {})["subject"]
    return str({part[0][0]: part[0][1] for part in subject}["commonName"])


def _becomes(holds: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return holds()
