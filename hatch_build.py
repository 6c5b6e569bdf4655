"""Compile the decoder's kernels for x86-64 CPUs beside their source, where there is a compiler.

Without one, and on other systems, the package is made without them: onnxruntime decodes then.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("service/siserve/serving/fused")
LIBRARY = FOLDER / "libsiserve_kernels.so.1"
#: What the kernels take of a CPU is looked for before they are loaded.
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
    *("-mamx-tile", "-mamx-int8", "-static-libgcc", "-static-libstdc++"),
)


class KernelHook(BuildHookInterface):  # type: ignore[misc]
    """Adds the compiled kernels to a wheel, which is for this platform then."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile them; called by hatchling before it collects files."""
        root = Path(self.root)
        if self.target_name != "wheel" or not compiled(root):
            return
        build_data["artifacts"].append(str(LIBRARY))
        if version != "editable":
            build_data["pure_python"] = False
            tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{tag}"


def compiled(root: Path) -> bool:
    """Say whether there are kernels of the sources as they are, and make them if there are none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    sources = sorted((root / FOLDER).glob("*.[ch]pp"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    library = root / LIBRARY
    if library.exists() and digest.encode() in library.read_bytes():
        return True
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if shutil.which(compiler[0]) is None:
        print(f"no {compiler[0]}: siserve is made without kernels for CPUs", file=sys.stderr)
        return False
    units = [str(path) for path in sources if path.suffix == ".cpp"]
    made = library.with_suffix(f".{os.getpid()}")
    told = subprocess.run(
        [*compiler, *FLAGS, f'-DSOURCE="{digest}"', *units, "-lmvec", "-o", str(made)],
        capture_output=True,
        text=True,
    )
    if told.returncode:
        print(f"siserve is made without kernels for CPUs: {told.stderr}", file=sys.stderr)
        made.unlink(missing_ok=True)
        return False
    made.replace(library)
    return True
