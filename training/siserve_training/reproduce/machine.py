"""What runs ran on: noted beside each run, since a table may come from several machines."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from siserve import __version__

__all__ = ["machine", "machines"]


def machine() -> dict[str, Any]:
    """Tell what this process runs on."""
    has_gpu = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "siserve": __version__,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machines(noted: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join what was noted: where runs differ, every value in the order of its first run."""
    values: dict[str, list[Any]] = {}
    for facts in noted:
        for name, value in facts.items():
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return {
        name: known[0] if len(known) == 1 else "; ".join(map(str, known))
        for name, known in values.items()
    }
