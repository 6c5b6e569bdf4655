"""onnxruntime sessions on the device that was asked for, or a reason why not."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from siserve.bundle.errors import BundleError, UsageError
from siserve.bundle.tensors import (
    CONTEXT_ENCODER,
    DECODER,
    DIALOG_ENCODER,
    PRIOR,
    SI_SAMPLER,
    UTTERANCE_ENCODER,
    Graph,
)
from siserve.bundle.verify import Bundle

__all__ = ["AnyArray", "Device", "Runs", "Sessions", "default_threads", "load_sessions"]

Device = Literal["auto", "cuda", "cpu"]
AnyArray = NDArray[Any]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_log = logging.getLogger(__name__)


class GraphSession:
    """One graph, run by the names that siserve.bundle.tensors gives."""

    def __init__(self, graph: Graph, session: onnxruntime.InferenceSession) -> None:
        """Keep the order of the outputs."""
        self._session = session
        self._outputs = [tensor.name for tensor in graph.outputs]

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return the outputs in the graph's order."""
        outputs: Sequence[AnyArray] = self._session.run(self._outputs, dict(inputs))
        return outputs


class Runs(Protocol):
    """Whatever answers as a graph does."""

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return the outputs in the graph's order."""


class _ContextEncoderInSteps:
    """Answers as context_encoder.onnx by the two graphs of its steps."""

    def __init__(self, utterance_encoder: Runs, dialog_encoder: Runs) -> None:
        self._utterance_encoder, self._dialog_encoder = utterance_encoder, dialog_encoder

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        told = dict(inputs)
        utterances = told.pop("utterances")  # (B, U, T)
        is_real = utterances.any(axis=2)  # (B, U)
        (vectors,) = self._utterance_encoder.run({"ids": utterances[is_real]})
        placed = np.zeros((*is_real.shape, vectors.shape[1]), np.float32)  # (B, U, F)
        placed[is_real] = vectors
        counts = is_real.sum(axis=1)
        return self._dialog_encoder.run({"vectors": placed, "num_utterances": counts, **told})


@dataclass(frozen=True)
class Sessions:
    """The graphs of a bundle, ready to run.

    Attributes:
        utterance_encoder: the first step of the context encoder, where the bundle has both.
        dialog_encoder: the second one.
    """

    context_encoder: Runs
    prior: GraphSession
    si_sampler: GraphSession
    decoder: GraphSession
    device: Literal["cuda", "cpu"]
    utterance_encoder: GraphSession | None = None
    dialog_encoder: GraphSession | None = None

    def run(self, graph: Graph, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Run one of the graphs of siserve.bundle.tensors."""
        session: Runs = getattr(self, graph.file.removesuffix(".onnx"))
        return session.run(inputs)


def default_threads() -> int:
    """Two threads where there are two cores: more help only batches that rarely come."""
    return min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def load_sessions(bundle: Bundle, device: Device, threads: int) -> Sessions:
    """Load the graphs of a bundle.

    Args:
        bundle: a checked bundle.
        device: auto takes CUDA where it works and says why if it does not.
        threads: CPU threads of one run.

    Raises:
        UsageError: if CUDA was asked for and cannot be had; the message says why.
        BundleError: if onnxruntime refuses a graph.
    """
    if device != "cpu":
        try:
            return _load(bundle, "cuda", threads)
        except _NoCuda as reason:
            if device == "cuda":
                raise UsageError(
                    f"--device cuda: {reason}; take --device cpu, or pip uninstall onnxruntime "
                    "and pip install 'siserve[gpu]'"
                ) from None
            _log.info("running on the CPU: %s", reason)
    return _load(bundle, "cpu", threads)


class _NoCuda(Exception):
    """CUDA cannot be had; the message says why."""


def _load(bundle: Bundle, device: Literal["cuda", "cpu"], threads: int) -> Sessions:
    if device == "cuda":
        _check_cuda()
    prior, sampler, decoder = (
        GraphSession(graph, _session(bundle, graph, device, threads))
        for graph in (PRIOR, SI_SAMPLER, DECODER)
    )
    # One thread: a second one is waited for at each of some 80 short steps, and where something
    # else has its core, that is 20 ms instead of 2.
    if not bundle.has(DIALOG_ENCODER.file):
        whole = GraphSession(CONTEXT_ENCODER, _session(bundle, CONTEXT_ENCODER, device, 1))
        return Sessions(whole, prior, sampler, decoder, device)
    # On the CPU whatever the device: there a row's bits are known not to depend on the batch.
    utterance, dialog = (
        GraphSession(graph, _session(bundle, graph, "cpu", 1))
        for graph in (UTTERANCE_ENCODER, DIALOG_ENCODER)
    )
    encoder = _ContextEncoderInSteps(utterance, dialog)
    return Sessions(encoder, prior, sampler, decoder, device, utterance, dialog)


def _check_cuda() -> None:
    if _CUDA not in onnxruntime.get_available_providers():
        raise _NoCuda(f"onnxruntime {onnxruntime.__version__} as installed cannot use CUDA")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA libraries that pip installed


def _session(
    bundle: Bundle, graph: Graph, device: Literal["cuda", "cpu"], threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes differ from run to run
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # TF32 off: fp32 is the exact reference on every device.
    providers = [(_CUDA, {"use_tf32": "0"}), _CPU] if device == "cuda" else [_CPU]
    try:
        session = onnxruntime.InferenceSession(
            str(bundle.file(graph.file)), sess_options=options, providers=providers
        )
    except Exception as error:  # onnxruntime has no common base class for what it raises
        if device == "cuda":
            raise _NoCuda(f"CUDA failed to start ({_first_line(error)})") from None
        raise BundleError(
            f"{graph.file} is refused by onnxruntime {onnxruntime.__version__} "
            f"({_first_line(error)}); export the model again",
            graph.file,
        ) from None
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise _NoCuda("CUDA failed to start; check the driver and the CUDA libraries")
    return session


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
