"""What files, ports and rights can do to a server: full, read-only, taken, not allowed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siserve.client import Client, ClientError

from tests.certificates import Authority

from .server import Served, run, serving, start
from .swaps import version_of
from .trial import Setting, Verdict

__all__ = ["disk", "starts"]

_DIALOG = [("A", "do you have any pets")]
_ANY = ("--port", 0, "--metrics-port", 0)


@contextmanager
def _small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a memory disk and, beside it, a view of it that can be made read-only."""
    view = _view(folder)
    folder.mkdir()
    view.mkdir()
    _mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
    _mount("--bind", folder, view)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(view), str(folder)], check=True)


def _view(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-view")


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _fill(folder: Path) -> None:
    with (folder / "full").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 4096)
        except OSError:
            pass


def disk(setting: Setting) -> Verdict:
    """A disk that is full or read-only: what needs it is refused by name, what does not goes on."""
    bar = "each refused in one line that says why, or service goes on"
    if os.geteuid() != 0:
        return Verdict(False, bar, "not tried: mounting a small disk needs root")
    seen: dict[str, bool] = {}
    with _small_disk(setting.scratch / "disk", "size=64m") as small:
        _copies(setting, small, seen)
        _logs(setting, small, seen)
        _fill(small)
        ended = run("key", "ann", "--file", small / "keys.txt")
        seen["siserve key: exit code 1"] = _told(ended, 1, "No space left", "keys.txt")
        ended = run("key", "ann", "--file", "/proc/keys.txt")
        seen["siserve key where nothing can be made"] = _told(ended, 1, "keys.txt")
    failed = [what for what, holds in seen.items() if not holds]
    return Verdict(
        not failed, bar, f"{len(seen)} tried: {', '.join(seen)}; failed: {failed or 'none'}"
    )


def _copies(setting: Setting, small: Path, seen: dict[str, bool]) -> None:
    """The server copies a bundle of the watched folder aside before it loads it."""
    shelf, variables = setting.scratch / "shelf", {"TMPDIR": str(_view(small))}
    shutil.copytree(setting.bundle, shelf / "first")
    arguments = ("--model-dir", shelf, "--admin", "--watch-seconds", 0)
    server = start(setting, *arguments, variables=variables)
    try:
        version_of(setting.bundle, shelf / "second", 2, is_other=False)
        _fill(small)
        seen["swap on a full disk"] = _refuses(server, "second", "No space left")
        (small / "full").unlink()
        _mount("-o", "remount,ro,bind", _view(small))
        seen["swap on a read-only disk"] = _refuses(server, "second", "Read-only")
        _mount("-o", "remount,rw,bind", _view(small))
        seen["exit code 0 after it"] = server.stop() == 0
    finally:
        server.child.kill()
        server.child.wait()


def _refuses(server: Served, bundle: str, why: str) -> bool:
    """Say whether a load is refused for a reason that it tells, and service goes on."""
    with Client(server.address, 30) as client:
        try:
            client.load_model(bundle)
            told = ""
        except ClientError as error:
            told = f"{error.code.name} {error}"
        answers = len(client.generate(_DIALOG).responses) == 5
    holds = answers and told.startswith("FAILED_PRECONDITION") and why in told
    if not holds:
        print(f"expected {why!r}, got {told!r}", file=sys.stderr)
    return holds


def _logs(setting: Setting, small: Path, seen: dict[str, bool]) -> None:
    """A log that cannot be written stops nobody."""
    command = [sys.executable, "-m", "siserve", "serve", "--model", str(setting.bundle)]
    with (small / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, *map(str, _ANY)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            _fill(small)
            with Client(address, 30) as client:
                answers = [len(client.generate(_DIALOG).responses) for _ in range(200)]
            server.terminate()
            ended = server.wait(30)
        finally:
            server.kill()
            server.wait()
    seen["log on a full disk"] = answers == [5] * 200 and ended == 0
    (small / "full").unlink()
    (small / "log").unlink()


def _told(ended: subprocess.CompletedProcess[str], code: int, *words: str) -> bool:
    """Say whether a command ended with a code and one line that has these words."""
    lines = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    holds = ended.returncode == code and len(lines) == 1 and not ended.stdout
    holds = holds and all(word in lines[0] for word in words)
    if not holds:
        print(
            f"expected {code} and {words}, got {ended.returncode}: {ended.stderr}", file=sys.stderr
        )
    return holds


def starts(setting: Setting) -> Verdict:
    """What keeps a server from starting is told in one line, with its exit code."""
    seen: dict[str, bool] = {}
    with serving(setting, "--http-port", 0) as other, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port, metrics = taken.getsockname()[1], other.url("metrics").split(":")[2].split("/")[0]
        page = other.url("page").split(":")[2].strip("/")
        for what, ports in (
            ("port", ("--port", port, "--metrics-port", 0)),
            ("gRPC port of another siserve", ("--port", other.address.split(":")[1])),
            ("metrics port", ("--port", 0, "--metrics-port", metrics)),
            ("HTTP port", (*_ANY, "--http-port", page)),
        ):
            ended = run("serve", "--model", setting.bundle, *ports)
            seen[f"{what} taken"] = _told(
                ended, 1, "cannot listen", str(ports[-1]) if what != "port" else str(port)
            )
    _rights(setting, seen)
    _certificates(setting, seen)
    failed = [what for what, holds in seen.items() if not holds]
    told = f"{len(seen)} tried: {', '.join(seen)}; failed: {failed or 'none'}"
    return Verdict(not failed, "one named message and exit code each", told)


def _rights(setting: Setting, seen: dict[str, bool]) -> None:
    bundle = Path(shutil.copytree(setting.bundle, setting.scratch / "bundle"))
    keys = setting.scratch / "keys.txt"
    run("key", "ann", "--file", keys)
    for what, path, arguments in (
        ("the folder", bundle, ()),
        ("manifest.json", bundle / "manifest.json", ()),
        ("weights.safetensors", bundle / "weights.safetensors", ()),
        ("keys.txt", keys, ("--keys-file", keys)),
    ):
        mode = path.stat().st_mode
        path.chmod(0)
        ended = _without_rights("serve", "--model", bundle, *_ANY, *arguments)
        path.chmod(mode)
        word = "bundle" if what == "the folder" else what
        code = 2 if what in ("the folder", "keys.txt") else 1  # the command line itself sees those
        seen[f"no permission on {what}"] = _told(ended, code, word)
    ended = run("serve", "--model", setting.scratch / "none", *_ANY)
    seen["no such bundle"] = _told(ended, 2, "none", "--model")


def _without_rights(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a user to whom modes of files apply; root is one without capabilities."""
    command = [sys.executable, "-m", "siserve", *map(str, arguments)]
    if os.geteuid() == 0:
        command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _certificates(setting: Setting, seen: dict[str, bool]) -> None:
    authority = Authority(setting.scratch / "tls")
    expired, good = authority.sign("expired", days=-1), authority.sign("good")
    for what, certificate, key, word in (
        ("expired certificate", expired.certificate, expired.key, "expired"),
        ("key of another certificate", good.certificate, expired.key, "belongs together"),
        ("certificate that is not there", good.key.parent / "none.crt", good.key, "cannot be read"),
    ):
        files = ("--tls-cert", certificate, "--tls-key", key)
        ended = run("serve", "--model", setting.bundle, *_ANY, *files)
        seen[what] = _told(ended, 1, word)
