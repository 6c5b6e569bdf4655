"""Certificates for tests, made by openssl: authorities, and what they sign."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Signed:
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for localhost and for clients; keeps all files in one folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.certificate = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        self._make("req", "-x509", *new_key(self._key), "-subj", f"/CN={name}", "-days", "2")

    def sign(self, name: str, days: int = 2) -> Signed:
        """Sign a certificate for localhost; a negative number of days makes an expired one."""
        signed = Signed(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        request, extensions = self.folder / "request.csr", self.folder / "extensions.txt"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="utf-8")
        run("req", *new_key(signed.key), "-subj", f"/CN={name}", "-out", request)
        authority = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial")
        options = ("-extfile", extensions, "-days", days, "-out", signed.certificate)
        run("x509", "-req", "-in", request, *authority, *options)
        return signed

    def _make(self, *arguments: object) -> None:
        run(*arguments, "-out", self.certificate)


def new_key(path: Path) -> tuple[object, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def run(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
