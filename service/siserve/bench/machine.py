"""What a figure was measured on: it is worth nothing without."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from siserve.bundle.verify import Bundle

__all__ = ["machine_facts", "model_facts"]

#: Instruction sets that decide how fast products of matrices are, as /proc/cpuinfo names them.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_PACKAGES = ("siserve", "onnxruntime", "onnxruntime-gpu", "numpy", "grpcio", "uvloop", "torch")


def machine_facts() -> dict[str, Any]:
    """Tell the processor, the cores that may be used, the versions and the time."""
    cpu, flags = _processor()
    return {
        "cpu": cpu,
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": usable_cores(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def model_facts(bundle: Bundle) -> dict[str, Any]:
    """Tell what was measured."""
    manifest = bundle.manifest
    return {
        "name": manifest.full_name,
        "sha256": manifest.sha256,
        "method": manifest.method,
        "sizes": manifest.sizes.model_dump(),
    }


def usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> tuple[str, frozenset[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    found = {name.strip(): value.strip() for name, value in pairs}  # all cores are alike
    name = found.get("model name", platform.machine())
    if "model" in found:
        name += f", model {found['model']}"
    return name, frozenset(found.get("flags", "").split())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
