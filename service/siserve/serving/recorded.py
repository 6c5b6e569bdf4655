"""Decoding in runs of fixed shape, which a device records once and replays.

A replay costs one launch instead of some hundred, but shapes and addresses must stay. So rows are
filled up to one of a few counts, each of which has a tape. Rows that no tape can decode (forced
ones, and those with top-k or top-p unless the tapes narrow) go through the decoder with a loop,
whoever is beside them, so that a row's way depends on its own request alone.

A tape of `session_tapes` is a recording of decoder_unrolled.onnx, which onnxruntime makes; one of
`siserve.serving.fused` a recording of kernels of our own. These can leave the rows' states on the
device from one run to the next, in a seat of the caller's own.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from siserve.bundle.manifest import Manifest, Tokens
from siserve.bundle.tensors import DECODER, DECODER_UNROLLED, UNROLLED_STEPS, Tensor
from siserve.serving.graphs import OF_STARTS, AnyArray, Runs, at_rows, place_of_rows

__all__ = ["COUNTS", "HoldingTape", "RecordedDecoder", "Seat", "Tape", "session_tapes"]

#: Rows of a run; a batch is filled up to the next of them.
COUNTS = (8, 16, 32, 64, 128, 256, 320, 384, 512, 1024, 2048, 4096)

_DTYPES: dict[str, Any] = {"int64": np.int64, "float32": np.float32}


class Tape(Protocol):
    """A recorded run of so many rows and UNROLLED_STEPS steps.

    Attributes:
        narrows: whether it draws rows with top-k or top-p too.
    """

    narrows: bool

    def run(self, inputs: Mapping[str, AnyArray], tokens: Tokens) -> Sequence[AnyArray]:
        """Run rows, those that are missing as ended ones; return copies of their results."""


@runtime_checkable
class HoldingTape(Tape, Protocol):
    """A tape that leaves states on the device, if it is asked to; all of a decoder do or none.

    Attributes:
        bytes_of_state: what a row's state takes there.
    """

    @property
    def bytes_of_state(self) -> int: ...

    def room_for(self, rows: int) -> int:
        """Return the address of new memory for the states of so many rows."""

    def run_held(
        self,
        inputs: Mapping[str, AnyArray],
        tokens: Tokens,
        places: NDArray[np.int32],
        before: int,
        after: int,
    ) -> Sequence[AnyArray]:
        """Run rows whose states lie at their places from `before`; the new ones go to `after`."""


class RecordedDecoder:
    """Answers as decoder.onnx does; several threads may share it.

    Args:
        tapes: by their rows. They may share memory: one runs at a time.
        other: the decoder with a loop.
        tokens: ids of the special tokens.
    """

    def __init__(self, tapes: Mapping[int, Tape], other: Runs, tokens: Tokens) -> None:
        self._other = other
        self._tokens = tokens
        self._lock = threading.Lock()
        self._tapes = dict(sorted(tapes.items()))
        self._narrows = all(tape.narrows for tape in tapes.values())

    @property
    def is_fused(self) -> bool:
        """Whether the tapes are of siserve's own kernels."""
        return all(isinstance(tape, HoldingTape) for tape in self._tapes.values())

    def seat(self) -> Seat | None:
        """Make a seat for one caller; None if the tapes hold no states."""
        tapes = {n: tape for n, tape in self._tapes.items() if isinstance(tape, HoldingTape)}
        return Seat(tapes, self._lock, self._tokens) if tapes else None

    def warm_up(self) -> None:
        """Run every count, twice where the first run records."""
        for tape in self._tapes.values():
            for _ in range(2):
                tape.run({}, self._tokens)

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return tokens (K, R), log-probs (K, R) and states (R, H)."""
        is_plain = np.asarray((inputs["forced"] < 0).all(axis=0))
        if not self._narrows:
            is_plain &= (inputs["top_k"] == 0) & (inputs["top_p"] >= 1)
        if len(inputs["uniform"]) != UNROLLED_STEPS or not is_plain.any():
            return self._other.run(inputs)
        largest = max(self._tapes)
        if is_plain.all() and len(is_plain) <= largest:
            return self._replay(inputs)
        rows = np.flatnonzero(is_plain)
        parts = [rows[first : first + largest] for first in range(0, len(rows), largest)]
        answers = [(part, self._replay(at_rows(inputs, part))) for part in parts]
        if not is_plain.all():
            others = np.flatnonzero(~is_plain)
            answers.append((others, self._other.run(at_rows(inputs, others))))
        return _joined(answers, len(is_plain))

    def _replay(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        with self._lock:
            return _fitting(self._tapes, len(inputs["token"])).run(inputs, self._tokens)


class Seat:
    """Decodes as a RecordedDecoder, for one caller, whose rows' states stay on the device.

    What stands for a row's state, before and after a run, is its place among the rows of the last
    run, (R, 1). So a caller moves places about as it would move states. Rows may be narrow, but
    none may be forced.

    Args:
        tapes: by their rows, the fewest first.
        lock: held while a tape runs.
        tokens: ids of the special tokens.
    """

    #: Of no row.
    no_states: NDArray[np.int32] = np.zeros((0, 1), np.int32)

    def __init__(
        self, tapes: Mapping[int, HoldingTape], lock: threading.Lock, tokens: Tokens
    ) -> None:
        self._tapes, self._lock, self._tokens = tapes, lock, tokens
        self._largest = max(tapes)
        with lock:
            self._before, self._after = self._room(self._largest), self._room(self._largest)

    def run(self, inputs: Mapping[str, AnyArray]) -> Sequence[AnyArray]:
        """Return tokens (K, R), log-probs (K, R) and places (R, 1)."""
        places = inputs["state"][:, 0]
        rows = len(places)
        firsts = range(0, rows, self._largest)
        with self._lock:
            if self._after.rows < self._largest * len(firsts):
                self._after = self._room(self._largest * len(firsts))
            answers = [self._replay(inputs, places, first) for first in firsts]
        self._before, self._after = self._after, self._before
        if len(answers) > 1:
            answers = [[np.concatenate(told, axis=1) for told in zip(*answers, strict=True)]]
        return [*answers[0], np.arange(rows, dtype=np.int32)[:, None]]

    def _replay(
        self, inputs: Mapping[str, AnyArray], places: NDArray[np.int32], first: int
    ) -> Sequence[AnyArray]:
        part = slice(first, first + self._largest)
        tape = _fitting(self._tapes, len(places[part]))
        after = self._after.address + first * tape.bytes_of_state
        told = at_rows(inputs, part)
        return tape.run_held(told, self._tokens, places[part], self._before.address, after)

    def _room(self, rows: int) -> _Room:
        return _Room(self._tapes[self._largest].room_for(rows), rows)


class _Room(NamedTuple):
    """The device's memory for the states of so many rows."""

    address: int
    rows: int


_AnyTape = TypeVar("_AnyTape", bound=Tape)


def _fitting(tapes: Mapping[int, _AnyTape], rows: int) -> _AnyTape:
    """Return the smallest tape for so many rows."""
    return next(tape for count, tape in tapes.items() if count >= rows)


def session_tapes(
    session: onnxruntime.InferenceSession,
    manifest: Manifest,
    device: Literal["cuda", "cpu"],
    counts: Sequence[int] = COUNTS,
) -> dict[int, Tape]:
    """Make tapes of onnxruntime's; the first run of each records.

    Args:
        session: of decoder_unrolled.onnx.
        manifest: of the bundle.
        device: where the buffers lie; only "cuda" records.
        counts: see COUNTS.
    """
    sizes = manifest.sizes.by_axis()
    return {count: _SessionTape(session, count, sizes, device) for count in counts}


class _SessionTape:
    """Buffers for runs of one number of rows, and the recording that reads and writes them."""

    narrows = False

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        count: int,
        sizes: Mapping[str, int],
        device: Literal["cuda", "cpu"],
    ) -> None:
        self._session = session
        self._count = count
        self._host = {t.name: _zeros(t, count, sizes) for t in DECODER_UNROLLED.inputs}
        self._given = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
            for name, values in self._host.items()
        }
        self._binding = session.io_binding()
        for name, value in self._given.items():
            self._binding.bind_ortvalue_input(name, value)
        self._results = {
            t.name: onnxruntime.OrtValue.ortvalue_from_numpy(_zeros(t, count, sizes), device, 0)
            for t in DECODER_UNROLLED.outputs
        }
        for name, value in self._results.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = onnxruntime.RunOptions()
        if device == "cuda":
            self._options.add_run_config_entry("gpu_graph_id", str(count))

    def run(self, inputs: Mapping[str, AnyArray], tokens: Tokens) -> Sequence[AnyArray]:
        """Run rows, those that are missing as ended ones; return copies of their results.

        c and z, which are most of what goes to the device, are read of starting rows alone; where
        none starts, what an earlier run left there does.
        """
        rows = len(inputs["token"]) if inputs else 0
        self._host["token"][rows:] = tokens.end
        starts = bool(inputs) and bool((inputs["token"] == tokens.start).any())
        for name, values in self._host.items():
            if name in OF_STARTS and not starts:
                continue
            if inputs:
                values[place_of_rows(name, slice(rows))] = inputs[name]
            self._given[name].update_inplace(values)
        self._session.run_with_iobinding(self._binding, self._options)
        return [
            value.numpy()[place_of_rows(name, slice(rows))].copy()
            for name, value in self._results.items()
        ]


def _zeros(tensor: Tensor, count: int, sizes: Mapping[str, int]) -> NDArray[Any]:
    shape = [axis if isinstance(axis, int) else {**sizes, "R": count}[axis] for axis in tensor.axes]
    return np.zeros(shape, _DTYPES[tensor.dtype])


def _joined(
    answers: Sequence[tuple[NDArray[np.int64], Sequence[AnyArray]]], count: int
) -> list[AnyArray]:
    if len(answers) == 1:
        return list(answers[0][1])
    joined = []
    for number, tensor in enumerate(DECODER.outputs):
        first = answers[0][1][number]
        shape = (len(first), count) if "K" in tensor.axes else (count, first.shape[1])
        whole = np.empty(shape, first.dtype)
        for rows, answer in answers:
            whole[place_of_rows(tensor.name, rows)] = answer[number]
        joined.append(whole)
    return joined
