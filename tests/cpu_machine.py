"""The kernels of siserve.serving.fused on a CPU, by a C++ compiler and enough of CUDA for them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

_KERNEL = re.compile(
    r"^extern \"C\" __global__ void (?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", re.MULTILINE
)
COMPILER = shutil.which("g++")
_LAUNCHERS = """
#include <utility>
template <typename... Kinds, std::size_t... At>
static void call(void (*kernel)(Kinds...), void **values, std::index_sequence<At...>) {
  kernel(*static_cast<Kinds *>(values[At])...);
}
template <typename... Kinds>
static void launch_with(int x, int y, int threads, void **values, void (*kernel)(Kinds...)) {
  launch({x, y, 1}, threads, [=] { call(kernel, values, std::index_sequence_for<Kinds...>()); });
}
"""


class CpuMachine:
    """A machine as `fused_tapes` wants it."""

    def __init__(self, definitions: str, source: str, folder: Path) -> None:
        own = Path(__file__).with_name("cuda_on_cpu.hpp").read_text("utf-8")
        names = re.findall(_KERNEL, source)
        launchers = [
            f'extern "C" void launch_{name}(int x, int y, int threads, void **values) '
            f"{{ launch_with(x, y, threads, values, {name}); }}"
            for name in names
        ]
        path, library = folder / "kernels.cpp", folder / "kernels.so"
        path.write_text("\n".join([definitions, own, source, _LAUNCHERS, *launchers]), "utf-8")
        assert COMPILER is not None
        told = subprocess.run(
            [
                COMPILER,
                "-std=c++20",
                "-O1",
                "-w",
                "-shared",
                "-fPIC",
                "-pthread",
                path,
                "-o",
                library,
            ],
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, told.stderr
        self._library = ctypes.CDLL(str(library))
        self._memory: list[np.ndarray] = []

    def memory(self, num_bytes: int) -> int:
        return int(self.host_memory(num_bytes).ctypes.data)

    def host_memory(self, num_bytes: int) -> np.ndarray:
        self._memory.append(np.zeros(num_bytes // 8 + 2, np.float64).view(np.uint8)[:num_bytes])
        return self._memory[-1]

    def fill(self, address: int, values: np.ndarray) -> None:
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def read(self, values: np.ndarray, address: int) -> None:
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def copy_in(self, address: int, values: np.ndarray) -> None:
        self.fill(address, values)

    def copy_out(self, values: np.ndarray, address: int) -> None:
        self.read(values, address)

    def launch(self, kernel, grid, threads, addresses, rows):
        values = [*(ctypes.c_void_p(address) for address in addresses), ctypes.c_int(rows)]
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
        )
        getattr(self._library, f"launch_{kernel}")(*grid, threads, pointers)

    def record(self, work):
        return work
