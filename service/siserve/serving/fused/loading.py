"""Make the fused decoders of a bundle, or say why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from siserve.bundle.manifest import Manifest
from siserve.bundle.tensors import DECODER, UNROLLED_STEPS
from siserve.bundle.verify import Bundle
from siserve.serving.fused.cpu import CpuDecoder, CpuTables
from siserve.serving.fused.cpu_encoder import CpuDialogEncoder, CpuUtteranceEncoder
from siserve.serving.fused.cpu_prior import CpuPrior
from siserve.serving.fused.native import CpuLibrary, cpu_library
from siserve.serving.fused.weights import DecoderWeights, Floats, NotFused, read_weights
from siserve.serving.graphs import AnyArray, Runs, at_rows, place_of_rows
from siserve.serving.recorded import RecordedDecoder

if TYPE_CHECKING:
    from siserve.serving.fused.tapes import Machine

__all__ = [
    "NotFused",
    "load_decoders_on_cpu",
    "load_encoders_on_cpu",
    "load_fused",
    "load_prior_on_cpu",
]

#: Log-probabilities by products in TF32 and in float32 may differ by so much; eight steps of the
#: embedded model showed 0.01.
_TOLERANCE = 0.05
#: Of the rows so many must say the same first word: where a uniform number falls beside the border
#: of two words, rounding decides.
_LEAST_EQUAL = 0.8
_CHECKED_ROWS = 60
_CHECKED_UTTERANCES = 6
_TOLERANCE_OF_ENCODERS = 1e-4  # float32 in another order; the embedded model shows 1e-6
_ROWS_TOGETHER = 21  # more than a tile of AMX


def load_fused(
    bundle: Bundle,
    other: Runs,
    counts: Sequence[int],
    is_exact: bool = False,
    make_machine: Callable[[str, str], Machine] | None = None,
) -> RecordedDecoder:
    """Compile the kernels for a bundle's decoder, record them, and hold them against another.

    Args:
        bundle: a checked bundle.
        other: its decoder.onnx, for rows that no tape can decode, and as what is right.
        counts: rows of the tapes.
        is_exact: whether products are in float32 and not in TF32.
        make_machine: of what `kernel_source` gives; None = the CUDA device.

    Raises:
        NotFused: if the kernels are not for this model, this device or this installation, or do not
            do what the other decoder does.
    """
    from siserve.serving.fused.cuda import CudaMachine  # late: servers on CPUs need none of it
    from siserve.serving.fused.layout import Layout
    from siserve.serving.fused.tapes import fused_tapes, kernel_source

    layout = Layout.of(DecoderWeights.read(bundle), bundle.manifest, is_exact)
    try:
        machine = (make_machine or CudaMachine)(*kernel_source(layout))
        tapes = fused_tapes(machine, layout, counts)
        fused = RecordedDecoder(tapes, other, bundle.manifest.tokens)
        _hold_against(fused, other, bundle.manifest)
    except RuntimeError as error:  # CudaError, and what the bindings raise without CUDA's libraries
        raise NotFused((str(error).strip().splitlines() or [type(error).__name__])[0]) from None
    return fused


def load_decoders_on_cpu(bundle: Bundle, has_integers: bool) -> tuple[CpuDecoder, CpuDecoder]:
    """Make the decoders of a bundle that run on this CPU.

    Nothing holds them against decoder.onnx, which takes as long to load as all else together: the
    bundle's golden request does, once the whole model is there.

    Args:
        bundle: a checked bundle.
        has_integers: whether responses are drawn in 8-bit integers.

    Returns:
        The one in float32 and the one that draws responses, which may be the same.

    Raises:
        NotFused: if the kernels are not for this model, this CPU or this installation.
    """
    if bundle.manifest.golden is None:
        raise NotFused(f"{bundle.manifest.full_name} has no golden request to try them by")
    library = cpu_library()
    weights = DecoderWeights.of(
        _read_wide(library, bundle, "decoder.", "embedding."), bundle.manifest
    )
    tables = CpuTables(weights, bundle.manifest)
    exact = CpuDecoder(library, tables, weights, False)
    _check_rows_alone(exact, bundle.manifest)
    if not has_integers:
        return exact, exact
    drawing = CpuDecoder(library, tables, weights, True)
    _check_rows_alone(drawing, bundle.manifest)
    return exact, drawing


def load_encoders_on_cpu(
    bundle: Bundle, utterance_encoder: Runs, dialog_encoder: Runs
) -> tuple[CpuUtteranceEncoder, CpuDialogEncoder]:
    """Make the encoders of a bundle that run on this CPU, and hold them against its graphs.

    Raises:
        NotFused: if the kernels are not for this model, this CPU or this installation, or do not
            do what the graphs do.
    """
    library, sizes = cpu_library(), bundle.manifest.sizes
    of_contexts = ("utterance_encoder.", "context_encoder.", "topic_embedding.", "embedding.")
    weights = _read_wide(library, bundle, *of_contexts)
    utterance = CpuUtteranceEncoder(library, weights)
    dialog = CpuDialogEncoder(library, weights, sizes.context)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, sizes.vocabulary, (_CHECKED_UTTERANCES, 9))
    ids[0, 1:], ids[1, 4:] = 0, 0  # padding
    told = {"ids": ids}
    expected = utterance_encoder.run(told)[0]
    shape = (2, _CHECKED_UTTERANCES // 2, -1)
    turns = {
        "vectors": expected.reshape(shape),
        "floor": rng.integers(0, 2, shape[:2]),
        "num_utterances": np.array([1, shape[1]]),
        "topic": np.array([0, 1]),
        "profile": rng.random((2, 8), np.float32),
    }
    try:
        pairs = [
            (utterance.run(told)[0], expected),
            (dialog.run(turns)[0], dialog_encoder.run(turns)[0]),
        ]
        off = max(float(np.abs(got - wanted).max()) for got, wanted in pairs)
    except (ValueError, IndexError) as error:
        raise NotFused(f"shapes of its encoders do not fit: {error}") from None
    if not off < _TOLERANCE_OF_ENCODERS:
        raise NotFused(f"they differ from its encoders by {off:.2g}")
    return utterance, dialog


def load_prior_on_cpu(bundle: Bundle, graph: Runs) -> CpuPrior:
    """Make the prior of a bundle that runs on this CPU, and hold it against its graph.

    Raises:
        NotFused: if the kernels are not for this model, this CPU or this installation, or do not
            do what the graph does.
    """
    library = cpu_library()
    weights = _read_wide(library, bundle, "prior_net.")
    return CpuPrior(library, weights, bundle.manifest.sizes, graph)


def _read_wide(library: CpuLibrary, bundle: Bundle, *beginnings: str) -> dict[str, Floats]:
    """Read those weights of a bundle whose names begin so, in float32."""
    stored = read_weights(bundle, *beginnings)
    return {name: library.widened(values) for name, values in stored.items()}


def _check_rows_alone(decoder: Runs, manifest: Manifest) -> None:
    """Decode a few rows together, which AMX multiplies where it can, and two of them alone.

    Raises:
        NotFused: if a row's bits depend on the others.
    """
    inputs = at_rows(_checked_rows(manifest), slice(_ROWS_TOGETHER))
    together = decoder.run(inputs)
    for row in (0, _ROWS_TOGETHER - 1):
        mine = slice(row, row + 1)
        alone = decoder.run(at_rows(inputs, mine))
        for values, own, tensor in zip(together, alone, DECODER.outputs, strict=True):
            if not np.array_equal(values[place_of_rows(tensor.name, mine)], own):
                raise NotFused(f"on this CPU a row's {tensor.name} depends on its neighbours")


def _hold_against(fused: Runs, other: Runs, manifest: Manifest) -> None:
    """Decode a few rows both ways: the names of weights tell little of what a model does with them.

    Raises:
        NotFused: if they differ by more than rounding.
    """
    inputs = _checked_rows(manifest)
    tokens, log_probs, states = fused.run(inputs)
    expected_tokens, expected_log_probs, expected_states = other.run(inputs)
    is_first = tokens[0] == expected_tokens[0]
    is_same = (tokens == expected_tokens).all(axis=0)
    goes_on = is_same & (tokens[-1] != manifest.tokens.end)
    off = max(
        float(np.abs(log_probs - expected_log_probs)[0, is_first].max(initial=0)),
        float(np.abs(log_probs - expected_log_probs)[:, is_same].max(initial=0)),
        float(np.abs(states - expected_states)[goes_on].max(initial=0)),
    )
    if not (off < _TOLERANCE and is_first.mean() >= _LEAST_EQUAL):
        raise NotFused(
            f"they differ from decoder.onnx by {off:.2g} (at most {_TOLERANCE}) and say the same "
            f"first word in {100 * is_first.mean():.0f} % of the rows (at least "
            f"{100 * _LEAST_EQUAL:.0f} %)"
        )


def _checked_rows(manifest: Manifest) -> dict[str, AnyArray]:
    sizes, rng = manifest.sizes, np.random.default_rng(0)
    token = rng.integers(0, sizes.vocabulary, _CHECKED_ROWS)
    token[::2] = manifest.tokens.start
    top_k, top_p = np.zeros(_CHECKED_ROWS, np.int64), np.ones(_CHECKED_ROWS, np.float32)
    top_k[::20], top_p[::15] = 9, 0.8
    return {
        "c": 0.5 * rng.standard_normal((_CHECKED_ROWS, sizes.context), np.float32),
        "z": rng.standard_normal((_CHECKED_ROWS, sizes.latent), np.float32),
        "state": np.tanh(rng.standard_normal((_CHECKED_ROWS, sizes.state), np.float32)),
        "token": token,
        "uniform": rng.random((UNROLLED_STEPS, _CHECKED_ROWS), np.float32),
        "forced": np.full((UNROLLED_STEPS, _CHECKED_ROWS), -1),
        "temperature": np.tile(np.array([0, 0.7, 1], np.float32), _CHECKED_ROWS // 3),
        "top_k": top_k,
        "top_p": top_p,
    }
