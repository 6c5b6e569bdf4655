"""onnxruntime sessions on the device that was asked for, or a reason why not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnxruntime

from siserve.bundle.errors import BundleError, UsageError
from siserve.bundle.tensors import (
    CONTEXT_ENCODER,
    DECODER,
    DECODER_INT8,
    DECODER_UNROLLED,
    DIALOG_ENCODER,
    PRIOR,
    SI_SAMPLER,
    UNROLLED_STEPS,
    UTTERANCE_ENCODER,
    Graph,
)
from siserve.bundle.verify import Bundle
from siserve.serving.cores import usable_cores
from siserve.serving.fused.cpu import CpuDecoder
from siserve.serving.fused.loading import (
    NotFused,
    load_decoders_on_cpu,
    load_encoders_on_cpu,
    load_fused,
    load_prior_on_cpu,
)
from siserve.serving.graphs import AnyArray, GraphSession, Runs
from siserve.serving.recorded import COUNTS, RecordedDecoder, Seat, session_tapes

__all__ = [
    "AnyArray",
    "Device",
    "GraphSession",
    "Kernels",
    "Placement",
    "Precision",
    "Runs",
    "Sessions",
    "load_sessions",
]

Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "fp32", "int8"]
#: Whether siserve's own kernels decode and encode, where they are for the model and the machine.
Kernels = Literal["auto", "off"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CHUNK_STEPS = 4  # of a decoder with a loop
_MOST_STEPS, _ROWS_AND_STEPS = 16, 160  # of few rows in a kernel: some 3 ms
_log = logging.getLogger(__name__)


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
        decoder: what draws responses.
        exact_decoder: the decoder in float32, by which given responses are scored; the same one
            unless responses are drawn in 8-bit integers.
    """

    context_encoder: Runs
    prior: Runs
    si_sampler: GraphSession
    decoder: Runs
    exact_decoder: Runs
    device: Literal["cuda", "cpu"]
    precision: Literal["fp32", "int8", "tf32"]
    utterance_encoder: Runs | None = None
    dialog_encoder: Runs | None = None

    def chunk_steps(self, num_rows: int) -> int:
        """Steps of a run of the decoder: all of a recording, else few, so that rows come and go.

        Steps of few rows are short, and a kernel has no work with rows that have ended, so there a
        run may have more of them.
        """
        if isinstance(self.decoder, RecordedDecoder):
            return UNROLLED_STEPS
        if isinstance(self.decoder, CpuDecoder):
            return max(_CHUNK_STEPS, min(_MOST_STEPS, _ROWS_AND_STEPS // max(1, num_rows)))
        return _CHUNK_STEPS

    def seat(self, chunk_steps: int | None) -> Seat | None:
        """Make a seat for one worker that takes so many steps at a time, None = `chunk_steps`'s.

        None if the decoder has none, or the device no room for one: its rows' states come and go
        with each run then.
        """
        if isinstance(self.decoder, RecordedDecoder) and chunk_steps in (None, UNROLLED_STEPS):
            try:
                return self.decoder.seat()
            except RuntimeError as error:  # as CudaError is
                _log.warning("states do not stay on the device: %s", _first_line(error))
        return None

    def occupy(self, change: int) -> None:
        """Tell that one more worker has work (1), or one less (-1), whose core others may take."""
        if isinstance(self.decoder, CpuDecoder):
            self.decoder.occupy(change)

    def run(self, graph: Graph, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Run one of the graphs of siserve.bundle.tensors."""
        if graph is DECODER:
            return self.exact_decoder.run(inputs)
        session: Runs = getattr(self, graph.file.removesuffix(".onnx"))
        return session.run(inputs)


@dataclass(frozen=True)
class Placement:
    """Where and how a model is to run.

    Attributes:
        threads: CPU threads of one run of the decoder, beside those that workers without work leave
            to a kernel; 0 = one where several workers share the cores, two where one has them.
        kernels: whether siserve's own may decode and encode.
    """

    device: Device = "auto"
    precision: Precision = "auto"
    threads: int = 0
    kernels: Kernels = "auto"

    def threads_beside(self, workers: int) -> int:
        """Return the threads of one run; `workers` run at once, 0 = one for each core."""
        return self.threads or (min(2, usable_cores()) if workers == 1 else 1)


def load_sessions(
    bundle: Bundle,
    device: Device,
    threads: int,
    precision: Precision = "fp32",
    kernels: Kernels = "auto",
    workers: int = 1,
) -> Sessions:
    """Load the graphs of a bundle.

    Args:
        bundle: a checked bundle.
        device: auto takes CUDA where it works and says why if it does not.
        threads: CPU threads of one run.
        precision: of the decoder that draws responses; auto is int8 on a CPU, if the bundle holds
            a decoder in 8-bit integers, and TF32 on CUDA, if its decoder can be recorded.
        kernels: "off" leaves all to onnxruntime.
        workers: that run at once; a kernel helps itself to the threads of those that have no work.

    Raises:
        UsageError: if device or precision cannot be had; the message says why.
        BundleError: if onnxruntime refuses a graph.
    """
    if device != "cpu":
        try:
            return _load(bundle, "cuda", threads, precision, kernels)
        except _NoCuda as reason:
            if device == "cuda":
                raise UsageError(
                    f"--device cuda: {reason}; take --device cpu, or pip uninstall onnxruntime "
                    "and pip install 'siserve[gpu]'"
                ) from None
            _log.info("running on the CPU: %s", reason)
    sessions = _load(bundle, "cpu", threads, precision, kernels)
    if isinstance(sessions.decoder, CpuDecoder):
        sessions.decoder.allow(min(threads * workers, usable_cores()))
    return sessions


def _settled(
    bundle: Bundle, device: Literal["cuda", "cpu"], precision: Precision
) -> Literal["fp32", "int8"]:
    """Turn auto into what it means.

    Raises:
        UsageError: if int8 was asked for and cannot be had.
    """
    reason = ""
    if device == "cuda":
        reason = "on CUDA products are in float32"
    elif not bundle.has(DECODER_INT8.file):
        reason = f"{bundle.manifest.full_name} has no decoder in 8-bit integers"
    if precision == "int8" and reason:
        raise UsageError(
            f"--precision int8: {reason}; take --precision auto or fp32, or export the model "
            "again, which tells why it leaves the decoder out"
        )
    return "fp32" if precision == "fp32" or reason else "int8"


class _NoCuda(Exception):
    """CUDA cannot be had; the message says why."""


def _load(
    bundle: Bundle,
    device: Literal["cuda", "cpu"],
    threads: int,
    asked: Precision,
    kernels: Kernels,
) -> Sessions:
    if device == "cuda":
        _check_cuda()
    precision: Literal["fp32", "int8", "tf32"] = _settled(bundle, device, asked)
    with ThreadPoolExecutor(1) as beside:  # most of it does not hold Python's lock
        encoding = beside.submit(_encoders, bundle, kernels)
        # All but the decoder on the CPU whatever the device: there a row's bits are known not to
        # depend on the batch.
        sampler = GraphSession(SI_SAMPLER, _session(bundle, SI_SAMPLER, "cpu", threads))
        prior = _prior(bundle, threads, kernels)
        exact, decoder = _decoders(bundle, device, threads, precision, kernels)
        whole, *in_steps = encoding.result()
    if device == "cuda" and (recorded := _record(bundle, exact, asked, kernels)) is not None:
        decoder, precision = recorded, "fp32" if asked == "fp32" else "tf32"
    return Sessions(whole, prior, sampler, decoder, exact, device, precision, *in_steps)


def _encoders(bundle: Bundle, kernels: Kernels) -> tuple[Runs] | tuple[Runs, Runs, Runs]:
    """Make the context encoder and, where the bundle has both, those of its two steps."""
    # One thread: a second one is waited for at each of some 80 short steps, and where something
    # else has its core, that is 20 ms instead of 2.
    if not bundle.has(DIALOG_ENCODER.file):
        return (GraphSession(CONTEXT_ENCODER, _session(bundle, CONTEXT_ENCODER, "cpu", 1)),)
    utterance, dialog = (
        GraphSession(graph, _session(bundle, graph, "cpu", 1))
        for graph in (UTTERANCE_ENCODER, DIALOG_ENCODER)
    )
    encoders: tuple[Runs, Runs] = (utterance, dialog)
    if kernels == "auto":
        try:
            encoders = load_encoders_on_cpu(bundle, utterance, dialog)
        except NotFused as reason:
            _log.info("onnxruntime encodes contexts, not siserve's kernels: %s", reason)
    return (_ContextEncoderInSteps(*encoders), *encoders)


def _prior(bundle: Bundle, threads: int, kernels: Kernels) -> Runs:
    graph = GraphSession(PRIOR, _session(bundle, PRIOR, "cpu", threads))
    if kernels == "auto":
        try:
            return load_prior_on_cpu(bundle, graph)
        except NotFused as reason:
            _log.info("onnxruntime draws latents, not siserve's kernels: %s", reason)
    return graph


def _decoders(
    bundle: Bundle,
    device: Literal["cuda", "cpu"],
    threads: int,
    precision: Literal["fp32", "int8", "tf32"],
    kernels: Kernels,
) -> tuple[Runs, Runs]:
    """Make the decoder in float32 and the one that draws responses."""
    if device == "cpu" and kernels == "auto":
        try:
            return load_decoders_on_cpu(bundle, precision == "int8")
        except NotFused as reason:
            _log.info("onnxruntime decodes, not siserve's kernels: %s", reason)
    exact = GraphSession(DECODER, _session(bundle, DECODER, device, threads))
    if precision != "int8":
        return exact, exact
    return exact, GraphSession(DECODER_INT8, _session(bundle, DECODER_INT8, device, threads))


def _record(
    bundle: Bundle, other: Runs, asked: Precision, kernels: Kernels
) -> RecordedDecoder | None:
    """Make the decoder that CUDA records and replays; None, and the reason told, if it cannot.

    By kernels of our own where they are for the model, else by onnxruntime.
    """
    if kernels == "auto":
        try:
            return load_fused(bundle, other, COUNTS, is_exact=asked == "fp32")
        except NotFused as reason:
            _log.info("onnxruntime decodes, not siserve's kernels: %s", reason)
    if not bundle.has(DECODER_UNROLLED.file):
        _log.info("not recorded: %s has no unrolled decoder", bundle.manifest.full_name)
        return None
    options = {"enable_cuda_graph": "1", "use_tf32": "0" if asked == "fp32" else "1"}
    try:
        session = _session(bundle, DECODER_UNROLLED, "cuda", 1, options)
        tapes = session_tapes(session, bundle.manifest, "cuda")
        recorded = RecordedDecoder(tapes, other, bundle.manifest.tokens)
        recorded.warm_up()
    except Exception as error:  # onnxruntime has no common base class for what it raises
        _log.warning("not recorded, decoding in a loop: %s", _first_line(error))
        return None
    return recorded


def _check_cuda() -> None:
    if _CUDA not in onnxruntime.get_available_providers():
        raise _NoCuda(f"onnxruntime {onnxruntime.__version__} as installed cannot use CUDA")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA libraries that pip installed


def _session(
    bundle: Bundle,
    graph: Graph,
    device: Literal["cuda", "cpu"],
    threads: int,
    of_cuda: Mapping[str, str] = MappingProxyType({"use_tf32": "0"}),
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # shapes differ from run to run
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # TF32 off by default: fp32 is the exact reference on every device.
    providers = [(_CUDA, dict(of_cuda)), _CPU] if device == "cuda" else [_CPU]
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
