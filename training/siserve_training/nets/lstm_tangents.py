"""An LSTM with its tangents: how states and gradients move along a direction of its inputs.

Forward over reverse by hand, after Pearlmutter 1994 (fast exact multiplication by the Hessian): a
run carries the derivative of every state along the direction, and the run back carries that of
every gradient. Both halves go through each product together, as twice the rows. Nothing is a
difference of two nearly equal numbers, so the arithmetic may be bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from siserve_training.nets.lstm import StepProduct

__all__ = ["Pair", "TangentRun", "run_back", "run_with_tangents"]


@dataclass(frozen=True)
class Pair:
    """Something and its derivative along the direction, of one shape."""

    value: Tensor
    dot: Tensor


@dataclass(frozen=True)
class TangentRun:
    """What a run leaves for the run back; N packed places, gates in the order i, f, g, o.

    Attributes:
        gates: (N, 4, H).
        cells_before: (N, H).
        squashed: tanh of the cells, (N, H).
        states_before: of each step its dots, then its values, (2 N, H).
        states: (N, H).
        sizes: rows of each step.
    """

    gates: Pair
    cells_before: Pair
    squashed: Pair
    states_before: Tensor
    states: Pair
    sizes: list[int]


def run_with_tangents(
    inputs: Tensor, constant: Pair, state: Pair, cell: Pair, forth: StepProduct, sizes: list[int]
) -> TangentRun:
    """Run over packed places.

    Args:
        inputs: of the gates at each place, which the direction does not move, (N, 4H).
        constant: input of each row's gates at all of its steps, (R, 4H).
        state: first states, (R, H).
        cell: first cells, (R, H).
        forth: product with the recurrent weight.
        sizes: rows of each step.
    """
    places, hidden = len(inputs), state.value.shape[1]
    gates = Pair(inputs.clone(), torch.empty_like(inputs))
    cells_before, squashed, states = (
        Pair(inputs.new_empty(places, hidden), inputs.new_empty(places, hidden)) for _ in range(3)
    )
    states_before = inputs.new_empty(2 * places, hidden)
    h, h_dot, c, c_dot = state.value, state.dot, cell.value, cell.dot
    start = 0
    for size in sizes:
        at = slice(start, start + size)
        h, h_dot, c, c_dot = h[:size], h_dot[:size], c[:size], c_dot[:size]
        cells_before.value[at], cells_before.dot[at] = c, c_dot
        both = states_before[2 * start : 2 * (start + size)]
        torch.cat([h_dot, h], out=both)
        moved = forth(both)
        here, dots = gates.value[at], gates.dot[at]
        here += moved[size:]
        here += constant.value[:size]
        torch.add(moved[:size], constant.dot[:size], out=dots)
        here[:, : 2 * hidden].sigmoid_()
        here[:, 2 * hidden : 3 * hidden].tanh_()
        here[:, 3 * hidden :].sigmoid_()
        i, f, g, o = here.chunk(4, dim=1)
        dots[:, 2 * hidden : 3 * hidden].addcmul_(dots[:, 2 * hidden : 3 * hidden], g * g, value=-1)
        for part in (slice(0, 2 * hidden), slice(3 * hidden, 4 * hidden)):
            gate = here[:, part]
            dots[:, part].mul_(gate * (1 - gate))
        i_dot, f_dot, g_dot, o_dot = dots.chunk(4, dim=1)
        c_dot = (f * c_dot).addcmul_(f_dot, c).addcmul_(i_dot, g).addcmul_(i, g_dot)
        c = (f * c).addcmul_(i, g)
        s = torch.tanh(c, out=squashed.value[at])
        s_dot = torch.addcmul(c_dot, c_dot, s * s, value=-1, out=squashed.dot[at])
        h = torch.mul(o, s, out=states.value[at])
        h_dot = torch.mul(o, s_dot, out=states.dot[at]).addcmul_(o_dot, s)
        start += size
    shaped = Pair(*(part.view(places, 4, hidden) for part in (gates.value, gates.dot)))
    return TangentRun(shaped, cells_before, squashed, states_before, states, sizes)


@dataclass(frozen=True)
class Gradients:
    """What a run back finds.

    Attributes:
        inputs: dots of the gradient of the gates' inputs at each place, (N, 4H).
        constant: of the rows' constant inputs, (R, 4H).
        state: of the first states, (R, H).
        cell: of the first cells, (R, H).
        weight: dot of the gradient of the recurrent weight, (4H, H).
    """

    inputs: Tensor
    constant: Pair
    state: Pair
    cell: Pair
    weight: Tensor


def run_back(run: TangentRun, of_states: Pair, back: StepProduct) -> Gradients:
    """Carry gradients of the states, and how they move, back through a run.

    Args:
        run: what went forth.
        of_states: gradients of its states, (N, H).
        back: product with the transpose of the recurrent weight.
    """
    slopes, slopes_dot, to_cell, to_cell_dot = _slopes(run)
    f, f_dot = run.gates.value[:, 1], run.gates.dot[:, 1]
    places, hidden = f.shape
    rows = run.sizes[0]
    found = f.new_empty(2 * places, 4, hidden)  # of each step its values, then its dots
    h, h_dot, c, c_dot = (f.new_zeros(rows, hidden) for _ in range(4))
    constant = Pair(f.new_zeros(rows, 4 * hidden), f.new_zeros(rows, 4 * hidden))
    inputs = f.new_empty(places, 4, hidden)
    stop = places
    for size in reversed(run.sizes):
        at = slice(stop - size, stop)
        of_h, of_h_dot, of_c, of_c_dot = h[:size], h_dot[:size], c[:size], c_dot[:size]
        of_h += of_states.value[at]
        of_h_dot += of_states.dot[at]
        of_c.addcmul_(of_h, to_cell[at])
        of_c_dot.addcmul_(of_h_dot, to_cell[at]).addcmul_(of_h, to_cell_dot[at])
        both = found[2 * (stop - size) : 2 * stop]
        values, dots = both[:size], both[size:]
        k, k_dot = slopes[at], slopes_dot[at]
        for part, of, of_dot in ((slice(0, 3), of_c, of_c_dot), (slice(3, 4), of_h, of_h_dot)):
            of, of_dot = of.unsqueeze(1), of_dot.unsqueeze(1)
            torch.mul(k[:, part], of, out=values[:, part])
            torch.mul(k[:, part], of_dot, out=dots[:, part]).addcmul_(k_dot[:, part], of)
        inputs[at] = dots
        of_c_dot.mul_(f[at]).addcmul_(of_c, f_dot[at])
        of_c.mul_(f[at])
        constant.value[:size] += values.flatten(1)
        constant.dot[:size] += dots.flatten(1)
        before = back(both.flatten(1))
        h[:size], h_dot[:size] = before[:size], before[size:]
        stop -= size
    weight = found.flatten(1).t() @ run.states_before
    return Gradients(inputs.flatten(1), constant, Pair(h, h_dot), Pair(c, c_dot), weight)


def _slopes(run: TangentRun) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a change of cell (of state, for o) does to each gate's input, and its dots.

    Then what a change of state does to the cell, and its dots.
    """
    i, f, g, o = run.gates.value.unbind(1)
    i_dot, f_dot, g_dot, o_dot = run.gates.dot.unbind(1)
    c, c_dot = run.cells_before.value, run.cells_before.dot
    s, s_dot = run.squashed.value, run.squashed.dot
    slopes, dots = torch.empty_like(run.gates.value), torch.empty_like(run.gates.value)
    sigmoids = ((0, i, i_dot, g, g_dot), (1, f, f_dot, c, c_dot), (3, o, o_dot, s, s_dot))
    for place, gate, gate_dot, partner, partner_dot in sigmoids:
        slope = gate * (1 - gate)
        torch.mul(partner, slope, out=slopes[:, place])
        torch.mul(partner_dot, slope, out=dots[:, place])
        dots[:, place].addcmul_(partner * gate_dot, 1 - 2 * gate)
    flat = 1 - g * g
    torch.mul(i, flat, out=slopes[:, 2])
    torch.mul(i_dot, flat, out=dots[:, 2]).addcmul_(i * g, g_dot, value=-2)
    flat = 1 - s * s
    to_cell_dot = (o_dot * flat).addcmul_(o * s, s_dot, value=-2)
    return slopes, dots, o * flat, to_cell_dot
