"""Processor time of other processes, as Linux tells it under /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "cpu_seconds", "listener", "usage_of"]

_PROC = Path("/proc")
_LISTENING = "0A"
_LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class Usage:
    """Processor time of a server from its start, in seconds.

    Attributes:
        cpu: in all.
        graphs: in the model's graphs; None = unknown, and so is `engine`.
        engine: of the threads that run the graphs, Python included.
    """

    cpu: float
    graphs: float | None = None
    engine: float | None = None


def usage_of(pid: int | None) -> Usage | None:
    """Return what cpu_seconds() tells of a process; None if nothing does, or if there is none."""
    seconds = None if pid is None else cpu_seconds(pid)
    return None if seconds is None else Usage(seconds)


def cpu_seconds(pid: int) -> float | None:
    """Add up the processor time of a process and of all its descendants; None if nothing tells."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            told = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it ended meanwhile
            continue
        fields = _fields(told)
        each = int(path.parent.name)
        parents[each] = int(fields[1])
        seconds[each] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if pid not in seconds:
        return None
    return sum(used for each, used in seconds.items() if _descends(each, pid, parents))


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid and pid != ancestor:
        pid = parents.get(pid, 0)
    return pid == ancestor


def listener(address: str) -> int | None:
    """Find the process that listens at an address of this machine; None if nothing tells.

    Of several that share the port it is the one that began first, their parent as a rule; of
    siserve's own RPC processes it is the parent, which does not listen itself.
    """
    host, _, port = address.rpartition(":")
    if host not in _LOCAL or not port.isdigit():
        return None
    sockets = {inode for table in ("tcp", "tcp6") for inode in _sockets(table, int(port))}
    found = [pid for pid in _pids() if sockets & _open_sockets(pid)]
    first = min(found, default=None)
    return first if first is None or not _is_rpc_process(first) else _parent(first)


def _is_rpc_process(pid: int) -> bool:
    try:
        return b"siserve.serving.rpc_process" in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return False


def _parent(pid: int) -> int | None:
    try:
        told = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(_fields(told)[1])


def _fields(stat: str) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name may hold spaces and brackets."""
    return stat[stat.rindex(")") + 2 :].split()


def _sockets(table: str, port: int) -> list[str]:
    """Inodes of the sockets that listen at a port."""
    try:
        lines = (_PROC / "net" / table).read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [
        row[9]
        for row in rows
        if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port
    ]


def _pids() -> list[int]:
    return [int(path.name) for path in _PROC.glob("[0-9]*")]


def _open_sockets(pid: int) -> set[str]:
    try:
        links = [os.readlink(path) for path in (_PROC / str(pid) / "fd").iterdir()]
    except OSError:  # another user's, or ended
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}
