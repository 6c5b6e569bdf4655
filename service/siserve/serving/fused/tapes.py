"""Runs of the kernels: fixed numbers of rows and steps, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from siserve.bundle.manifest import Tokens
from siserve.bundle.tensors import UNROLLED_STEPS
from siserve.serving.fused.layout import Layout
from siserve.serving.graphs import OF_STARTS, AnyArray

__all__ = ["FusedTape", "Machine", "fused_tapes", "kernel_source"]

_STEPS = UNROLLED_STEPS
_FEW = 16  # rows up to which the kernels for few rows run
_BLOCK_OF_WORDS = 64  # BLOCK in kernels.cu
_NUM_BYTES = 4  # of a number, whatever its kind
_OF_ROWS = ("token", "temperature", "top_k", "top_p", "uniform")  # what all rows need


class Machine(Protocol):
    """What runs the kernels."""

    def memory(self, num_bytes: int) -> int:
        """Return the address of new memory on the device."""

    def host_memory(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return new memory of the host that the device reads and writes."""

    def fill(self, address: int, values: NDArray[Any]) -> None:
        """Write to the device's memory, in turn, and wait."""

    def read(self, values: NDArray[Any], address: int) -> None:
        """Read from the device's memory, in turn, and wait."""

    def copy_in(self, address: int, values: NDArray[np.uint8]) -> None:
        """Copy from the host's memory to the device's, in turn."""

    def copy_out(self, values: NDArray[np.uint8], address: int) -> None:
        """Copy from the device's memory to the host's, in turn."""

    def launch(
        self, kernel: str, grid: tuple[int, int], threads: int, addresses: Sequence[int], rows: int
    ) -> None:
        """Run a kernel, in turn; its arguments are addresses and, last, the number of rows."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record copies and launches; what is returned does them all and waits for their end."""


def kernel_source(layout: Layout) -> tuple[str, str]:
    """Return the constants of a model and the kernels; what a device adds stands between them."""
    kernels = (resources.files(__package__) / "kernels.cu").read_text("utf-8")
    return layout.definitions(), kernels


def fused_tapes(machine: Machine, layout: Layout, counts: Sequence[int]) -> dict[int, FusedTape]:
    """Record a run for each number of rows: multiples of 8, of 32 where there are more than 16.

    They share weights and buffers, so that only one of them may run at a time.
    """
    desk = _Desk.of(machine, layout, max(counts))
    return {count: FusedTape(machine, layout, desk, count) for count in sorted(counts)}


@dataclass(frozen=True)
class _Desk:
    """The device's memory, as addresses, and the host's that it is filled from and read to.

    Attributes:
        given, taken: what a run is given, and what it gives, each in one piece.
        host_given, host_taken: the same in the host's memory.
        held: states before and after a run whose caller has them with the host, (R, H) each.
        states: of the rows, twice: a step reads one and writes the other.
        kept: logits, (R, W).
        masses: of blocks of words, four numbers each, (R, W / 64, 4).
    """

    first_kernel: int
    first_bias: int
    of_words: int
    gates: int
    candidate_bias: int
    output: int
    output_bias: int
    given: int
    taken: int
    host_given: NDArray[np.uint8]
    host_taken: NDArray[np.uint8]
    held: tuple[int, int]
    states: tuple[int, int]
    kept: int
    masses: int

    @classmethod
    def of(cls, machine: Machine, layout: Layout, rows: int) -> _Desk:
        """Bring the weights to the device and make room for so many rows."""

        def loaded(values: NDArray[np.float32]) -> int:
            address = machine.memory(values.nbytes)
            machine.fill(address, np.ascontiguousarray(values))
            return address

        units, words = layout.constants["UNITS"], layout.constants["WORDS"]
        given = _num_bytes(_given_shapes(layout, rows))
        taken = _num_bytes(_taken_shapes(rows))
        of_row = _NUM_BYTES * rows
        return cls(
            first_kernel=loaded(layout.first_kernel),
            first_bias=loaded(layout.first_bias),
            of_words=loaded(layout.of_words),
            gates=loaded(layout.gates),
            candidate_bias=loaded(layout.candidate_bias),
            output=loaded(layout.output),
            output_bias=loaded(layout.output_bias),
            given=machine.memory(given),
            taken=machine.memory(taken),
            host_given=machine.host_memory(given),
            host_taken=machine.host_memory(taken),
            held=(_room_for(machine, layout, rows), _room_for(machine, layout, rows)),
            states=(machine.memory(of_row * units), machine.memory(of_row * units)),
            kept=machine.memory(of_row * words),
            masses=machine.memory(4 * of_row * (words // _BLOCK_OF_WORDS)),
        )


class FusedTape:
    """The run of one number of rows."""

    narrows = True

    def __init__(self, machine: Machine, layout: Layout, desk: _Desk, count: int) -> None:
        """Record it, with and without c and z, which starting rows alone need, and narrow rows."""
        assert count % (8 if count <= _FEW else 32) == 0, count
        self._machine, self._layout, self._desk, self._count = machine, layout, desk, count
        given, taken = _given_shapes(layout, count), _taken_shapes(count)
        self._given = _views(desk.host_given, given)
        self._taken = _views(desk.host_taken, taken)
        self._place = dict(zip(given, _offsets(given, desk.given), strict=True))
        self._place |= zip(taken, _offsets(taken, desk.taken), strict=True)
        of_start = _num_bytes({name: given[name] for name in OF_STARTS})
        sizes = {True: _num_bytes(given), False: _num_bytes(given) - of_start}
        self._runs = {
            (starts, narrow): machine.record(partial(self._work, sizes[starts], narrow))
            for starts in (True, False)
            for narrow in (True, False)
        }

    @property
    def bytes_of_state(self) -> int:
        """What a row's state takes of the device's memory."""
        return _NUM_BYTES * self._layout.constants["MODEL_UNITS"]

    def room_for(self, rows: int) -> int:
        """Return the address of new memory for the states of so many rows."""
        return _room_for(self._machine, self._layout, rows)

    def run(self, inputs: Mapping[str, AnyArray], tokens: Tokens) -> Sequence[AnyArray]:
        """Run rows, those that are missing as ended ones; return copies of their results.

        Args:
            inputs: of decoder.onnx; none to run no row at all.
            tokens: ids of the special tokens.

        Returns:
            Tokens (K, R), log-probs (K, R) and states (R, H).
        """
        before, after = self._desk.held
        rows = len(inputs["token"]) if inputs else 0
        if rows:
            self._machine.fill(before, np.ascontiguousarray(inputs["state"], np.float32))
        taken = self.run_held(inputs, tokens, np.arange(rows, dtype=np.int32), before, after)
        states = np.zeros((rows, self._layout.constants["MODEL_UNITS"]), np.float32)
        if rows:
            self._machine.read(states, after)
        return [*taken, states]

    def run_held(
        self,
        inputs: Mapping[str, AnyArray],
        tokens: Tokens,
        places: NDArray[np.int32],
        before: int,
        after: int,
    ) -> Sequence[AnyArray]:
        """Run rows as `run` does, but states lie on the device and stay there.

        Args:
            inputs: of decoder.onnx; the states are not read.
            tokens: ids of the special tokens.
            places: of the rows' states at `before`, (R,); of a row that starts any there is.
            before: address of states, (places, H).
            after: address that has room for states of the tape's number of rows, which begin with
                those of these rows.

        Returns:
            Tokens (K, R) and log-probs (K, R).
        """
        rows, given = len(places), self._given
        given["held"].view(np.uint64)[:] = before, after
        given["place"][:rows], given["place"][rows:] = places, 0
        given["token"][rows:] = tokens.end
        for name in _OF_ROWS if rows else ():
            (given[name][:, :rows] if name == "uniform" else given[name][:rows])[:] = inputs[name]
        starting = np.flatnonzero(given["token"] == tokens.start)
        which = slice(rows) if len(starting) == rows else starting
        for name in OF_STARTS if len(starting) else ():
            given[name][which] = inputs[name][which]  # of the others nobody reads them
        narrow = bool(rows) and bool((inputs["top_k"] > 0).any() or (inputs["top_p"] < 1).any())
        self._runs[len(starting) > 0, narrow]()
        return [
            self._taken["tokens"][:, :rows].astype(np.int64),
            self._taken["log_probs"][:, :rows].copy(),
        ]

    def _work(self, given_bytes: int, narrow: bool) -> None:
        """Launch all that a run does, from the copy of so many bytes to that of the results."""
        desk, place, rows, layout = self._desk, self._place, self._count, self._layout
        launch, units = self._machine.launch, layout.constants["UNITS"]
        self._machine.copy_in(desk.given, desk.host_given[:given_bytes])
        state, following = desk.states
        read = [place[name] for name in ("token", "place", "held", "c", "z")]
        read += [desk.first_kernel, desk.first_bias, state]
        launch("begin", (-(-units // 128), rows // 8), 128, read, rows)
        token = place["token"]
        for step in range(_STEPS):
            now = _NUM_BYTES * rows * step
            read = [token, desk.gates, desk.of_words, desk.candidate_bias, state, following]
            self._gru(read)
            state, following = following, state
            read = [token, place["temperature"], desk.output, desk.output_bias, state]
            self._output([*read, desk.kept, desk.masses])
            options = [place[name] for name in ("temperature", "top_k", "top_p")]
            read = [token, *options, place["uniform"] + now, desk.kept]
            token, told = place["tokens"] + now, place["log_probs"] + now
            chosen = [*read, desk.masses, token, told]
            launch("choose", (-(-rows // 4), 1), 128, chosen, rows)
            if narrow:
                launch("choose_among_few", (rows, 1), 256, [*read, token, told], rows)
        launch("finish", (rows, 1), 128, [state, place["held"]], rows)
        taken = _num_bytes(_taken_shapes(rows))
        self._machine.copy_out(desk.host_taken[:taken], desk.taken)

    def _gru(self, addresses: Sequence[int]) -> None:
        rows, unit_tiles = self._count, self._layout.constants["UNITS"] // 16
        if rows <= _FEW:
            self._machine.launch("gru_of_few", (unit_tiles, rows // 8), 256, addresses, rows)
        else:
            self._machine.launch("gru_of_many", (unit_tiles, rows // 32), 256, addresses, rows)

    def _output(self, addresses: Sequence[int]) -> None:
        rows, words = self._count, self._layout.constants["WORDS"]
        if rows <= _FEW:
            grid = (words // _BLOCK_OF_WORDS, rows // 8)
            self._machine.launch("output_of_few", grid, 128, addresses, rows)
        else:
            grid = (words // (2 * _BLOCK_OF_WORDS), -(-rows // 128))
            self._machine.launch("output_of_many", grid, 256, addresses, rows)


_Shapes = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]


def _given_shapes(layout: Layout, rows: int) -> _Shapes:
    """What a run is given, in the order in which it lies in memory.

    Two addresses, of states before and after, come first, which keeps them at multiples of 8; c and
    z come last.
    """
    told = layout.constants
    return {
        "held": (np.int32, (4,)),
        "place": (np.int32, (rows,)),
        "token": (np.int32, (rows,)),
        "temperature": (np.float32, (rows,)),
        "top_k": (np.int32, (rows,)),
        "top_p": (np.float32, (rows,)),
        "uniform": (np.float32, (_STEPS, rows)),
        "c": (np.float32, (rows, told["CONTEXT"])),
        "z": (np.float32, (rows, told["LATENT"])),
    }


def _taken_shapes(rows: int) -> _Shapes:
    return {"tokens": (np.int32, (_STEPS, rows)), "log_probs": (np.float32, (_STEPS, rows))}


def _room_for(machine: Machine, layout: Layout, rows: int) -> int:
    return machine.memory(_NUM_BYTES * rows * layout.constants["MODEL_UNITS"])


def _sizes(shapes: _Shapes) -> list[int]:
    return [_NUM_BYTES * int(np.prod(shape)) for _, shape in shapes.values()]


def _num_bytes(shapes: _Shapes) -> int:
    return sum(_sizes(shapes))


def _offsets(shapes: _Shapes, first: int) -> list[int]:
    sizes = _sizes(shapes)
    return [first + sum(sizes[:number]) for number in range(len(sizes))]


def _views(memory: NDArray[np.uint8], shapes: _Shapes) -> dict[str, AnyArray]:
    places = zip(shapes.items(), _offsets(shapes, 0), _sizes(shapes), strict=True)
    return {
        name: memory[first : first + size].view(kind).reshape(shape)
        for (name, (kind, shape)), first, size in places
    }
