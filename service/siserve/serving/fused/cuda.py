"""The CUDA device as the kernels' machine, by NVIDIA's own bindings to its driver and compiler."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from cuda.bindings import driver, nvrtc
except ImportError:  # they come with siserve[gpu]
    driver = nvrtc = None

__all__ = ["CudaError", "CudaMachine"]

#: The first devices whose tensor cores take TF32 are of compute capability 8.0.
_LEAST_CAPABILITY = (8, 0)
_KERNELS = (
    "begin",
    "gru_of_few",
    "gru_of_many",
    "output_of_few",
    "output_of_many",
    "choose",
    "choose_among_few",
    "finish",
)


class CudaError(RuntimeError):
    """A call of CUDA's failed; the message says which and why."""


class CudaMachine:
    """The first device, whose primary context onnxruntime uses too.

    Calls may come from any thread, one at a time. Memory lives as long as the machine.

    Args:
        definitions, kernels: as `kernel_source` gives them.

    Raises:
        CudaError: if there is no such device, it is too old, the source does not compile, or the
            bindings are not installed.
    """

    def __init__(self, definitions: str, kernels: str) -> None:
        if driver is None:
            raise CudaError("cuda-bindings is not installed; pip install 'siserve[gpu]' brings it")
        _call(driver.cuInit, 0)
        self._device = _call(driver.cuDeviceGet, 0)
        self._context = _call(driver.cuDevicePrimaryCtxRetain, self._device)
        self._enter()
        self._held: list[Callable[[], Any]] = []  # what frees memory and recordings
        weakref.finalize(self, _release, self._context, self._device, self._held)
        kind = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        stream = self._stream = _call(driver.cuStreamCreate, kind)
        self._held.append(lambda: driver.cuStreamDestroy(stream))
        of = driver.CUdevice_attribute
        capability = tuple(
            _call(driver.cuDeviceGetAttribute, which, self._device)
            for which in (
                of.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                of.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        if capability < _LEAST_CAPABILITY:
            raise CudaError(
                f"the device's compute capability is {capability[0]}.{capability[1]}, TF32 takes "
                f"{_LEAST_CAPABILITY[0]}.{_LEAST_CAPABILITY[1]}"
            )
        own = (resources.files(__package__) / "tensor_cores.cu").read_text("utf-8")
        program = _compiled(definitions + own + kernels, f"sm_{capability[0]}{capability[1]}")
        module = _call(driver.cuModuleLoadData, program)
        self._held.append(lambda: driver.cuModuleUnload(module))
        self._kernels = {
            name: _call(driver.cuModuleGetFunction, module, name.encode()) for name in _KERNELS
        }

    def memory(self, num_bytes: int) -> int:
        """Return the address of new memory on the device."""
        self._enter()
        address = _call(driver.cuMemAlloc, num_bytes)
        self._held.append(lambda: driver.cuMemFree(address))
        return int(address)

    def host_memory(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return new memory of the host that the device reads and writes."""
        self._enter()
        address = int(_call(driver.cuMemHostAlloc, num_bytes, 0))
        self._held.append(lambda: driver.cuMemFreeHost(address))
        content = (ctypes.c_uint8 * num_bytes).from_address(address)
        return np.ctypeslib.as_array(content)

    def fill(self, address: int, values: NDArray[Any]) -> None:
        """Write to the device's memory, in turn, and wait."""
        self._enter()
        _call(driver.cuMemcpyHtoDAsync, address, values.ctypes.data, values.nbytes, self._stream)
        _call(driver.cuStreamSynchronize, self._stream)

    def read(self, values: NDArray[Any], address: int) -> None:
        """Read from the device's memory, in turn, and wait."""
        self._enter()
        _call(driver.cuMemcpyDtoHAsync, values.ctypes.data, address, values.nbytes, self._stream)
        _call(driver.cuStreamSynchronize, self._stream)

    def copy_in(self, address: int, values: NDArray[np.uint8]) -> None:
        """Copy from the host's memory to the device's, in turn."""
        _call(driver.cuMemcpyHtoDAsync, address, values.ctypes.data, values.nbytes, self._stream)

    def copy_out(self, values: NDArray[np.uint8], address: int) -> None:
        """Copy from the device's memory to the host's, in turn."""
        _call(driver.cuMemcpyDtoHAsync, values.ctypes.data, address, values.nbytes, self._stream)

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, addresses: Sequence[int], rows: int
    ) -> None:
        """Run a kernel, in turn; its arguments are addresses and, last, the number of rows."""
        values = (*addresses, rows)
        kinds = (*(ctypes.c_void_p for _ in addresses), ctypes.c_int)
        size = (*grid, 1, threads, 1, 1)
        _call(
            driver.cuLaunchKernel, self._kernels[kernel], *size, 0, self._stream, (values, kinds), 0
        )

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record copies and launches; what is returned does them all and waits for their end."""
        self._enter()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _call(driver.cuStreamBeginCapture, self._stream, mode)
        try:
            work()
        finally:
            graph = _call(driver.cuStreamEndCapture, self._stream)
        recording = _call(driver.cuGraphInstantiate, graph, 0)
        _call(driver.cuGraphDestroy, graph)
        self._held.append(lambda: driver.cuGraphExecDestroy(recording))

        def replay() -> None:
            self._enter()
            _call(driver.cuGraphLaunch, recording, self._stream)
            _call(driver.cuStreamSynchronize, self._stream)

        return replay

    def _enter(self) -> None:
        """Make the context the calling thread's."""
        _call(driver.cuCtxSetCurrent, self._context)


def _release(context: Any, device: Any, held: list[Callable[[], Any]]) -> None:
    """Give back what a machine had, the latest first; a driver that is gone has nothing left."""
    driver.cuCtxSetCurrent(context)
    while held:
        held.pop()()
    driver.cuDevicePrimaryCtxRelease(device)


def _compiled(source: str, architecture: str) -> bytes:
    """Compile the kernels to machine code.

    Raises:
        CudaError: with the compiler's first complaint.
    """
    program = _call(nvrtc.nvrtcCreateProgram, source.encode(), b"kernels.cu", 0, [], [])
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    try:
        _call(nvrtc.nvrtcCompileProgram, program, len(options), options)
    except CudaError as error:
        size = _call(nvrtc.nvrtcGetProgramLogSize, program)
        log = b" " * size
        _call(nvrtc.nvrtcGetProgramLog, program, log)
        told = [line for line in log.decode(errors="replace").splitlines() if "error" in line]
        raise CudaError(told[0] if told else str(error)) from None
    code: bytes = b" " * _call(nvrtc.nvrtcGetCUBINSize, program)
    _call(nvrtc.nvrtcGetCUBIN, program, code)
    _call(nvrtc.nvrtcDestroyProgram, program)
    return code


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the bindings: they return an error code and, if they have any, a result.

    Raises:
        CudaError: unless the code is that of success.
    """
    code, *results = function(*arguments)
    if int(code) != 0:
        raise CudaError(f"{function.__name__} failed: {code.name}")
    return results[0] if results else None
