"""A GRU over sequences of unequal length that wastes nothing on the CPU.

PyTorch's CPU GRU forms every step's weight gradient apart; here the loop goes over the states
alone, and each weight gets its gradient from one product over all steps. On other devices the
library's own (cuDNN) GRU runs on the same parameters. Both obey nn.GRU's equations.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["PackedLayout", "packed_gru"]


@dataclass(frozen=True)
class PackedLayout:
    """Where the elements of sorted sequences stand when packed step by step.

    Attributes:
        batch_sizes: rows that are still running at each step, on the CPU, (T,).
        rows: row of each packed element, (N,).
        steps: step of each packed element, (N,).
    """

    batch_sizes: Tensor
    rows: Tensor
    steps: Tensor

    @classmethod
    def of(cls, lengths: Tensor, device: torch.device) -> PackedLayout:
        """Lay out sequences of the given lengths, longest first, on the CPU, (R,)."""
        counts = torch.arange(int(lengths[0])).unsqueeze(1)  # (T, 1)
        is_token = counts < lengths.unsqueeze(0)  # (T, R)
        steps, rows = is_token.nonzero(as_tuple=True)
        return cls(is_token.sum(1), rows.to(device), steps.to(device))

    def reversed(self, lengths: Tensor) -> Tensor:
        """Return for each element the step that stands there when sequences run backwards."""
        return lengths.to(self.rows.device)[self.rows] - 1 - self.steps


class _PackedGRU(torch.autograd.Function):
    """States and final states from projected inputs; gate order r, z, n as in nn.GRU."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor, sizes: list[int]
    ) -> tuple[Tensor, Tensor]:
        hidden = state.shape[1]
        outputs = inputs.new_empty(len(inputs), hidden)
        before = inputs.new_empty(len(inputs), hidden)
        gates = inputs.new_empty(len(inputs), 4 * hidden)  # r, z, n, W_n h + b_n
        final = state.clone()
        current = state
        start = 0
        for size in sizes:
            at = slice(start, start + size)
            current = current[:size]
            before[at] = current
            from_state = torch.addmm(bias, current, weight.t())  # (n, 3H)
            r_and_z = gates[at, : 2 * hidden]
            torch.add(inputs[at, : 2 * hidden], from_state[:, : 2 * hidden], out=r_and_z)
            r_and_z.sigmoid_()
            r, z = r_and_z.chunk(2, dim=1)
            gates[at, 3 * hidden :] = from_state[:, 2 * hidden :]
            n = torch.addcmul(inputs[at, 2 * hidden :], r, from_state[:, 2 * hidden :]).tanh_()
            gates[at, 2 * hidden : 3 * hidden] = n
            current = torch.lerp(n, current, z)
            outputs[at] = current
            final[:size] = current
            start += size
        ctx.save_for_backward(weight, before, gates)
        ctx.sizes = sizes
        return outputs, final

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, before, gates = ctx.saved_tensors
        grad_outputs, grad_final = grads
        hidden = weight.shape[1]
        grad_inputs = gates.new_empty(len(gates), 3 * hidden)
        grad_from_state = gates.new_empty(len(gates), 3 * hidden)
        r, z, n, candidate = gates.split(hidden, dim=1)
        along = torch.addcmul(torch.ones_like(z), z, torch.full_like(z, -1.0))  # 1 - z
        to_n = along * (1 - n.square())
        to_z = (before - n) * z * along
        to_r = candidate * r * (1 - r)
        grad = grad_final.clone()
        stop = len(gates)
        for size in reversed(ctx.sizes):
            at = slice(stop - size, stop)
            grad[:size] += grad_outputs[at]
            here = grad[:size]
            grad_n = here * to_n[at]
            grad_inputs[at, 2 * hidden :] = grad_n
            torch.mul(grad_n, to_r[at], out=grad_inputs[at, :hidden])
            torch.mul(here, to_z[at], out=grad_inputs[at, hidden : 2 * hidden])
            grad_from_state[at, : 2 * hidden] = grad_inputs[at, : 2 * hidden]
            torch.mul(grad_n, r[at], out=grad_from_state[at, 2 * hidden :])
            here.mul_(z[at]).addmm_(grad_from_state[at], weight)
            stop -= size
        return (
            grad_inputs,
            grad,
            grad_from_state.t() @ before,
            grad_from_state.sum(0),
            None,
        )


def packed_gru(
    gru: nn.GRU,
    table: Tensor,
    index: Tensor,
    layout: PackedLayout,
    state: Tensor | None = None,
    shift: Tensor | None = None,
    reverse: bool = False,
    shift_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one direction of a one-layer GRU over packed sequences.

    Inputs are rows of a table, so that the product with an input that stands at many places (a
    word, an utterance) is formed once.

    Args:
        gru: holds the parameters.
        table: distinct inputs, (M, F).
        index: row of the table at each packed place, (N,).
        layout: of the packed places.
        state: first states, (R, H); zeros by default.
        shift: further inputs at each place, (N, F'), columns F to F+F' of the input weight.
        reverse: take the parameters of the backward direction.
        shift_index: makes `shift` a table too, its row at each packed place, (N,).

    Returns:
        States at each place, (N, H), and each row's final state, (R, H).
    """
    suffix = "_l0_reverse" if reverse else "_l0"
    weight_ih, weight_hh, bias_ih, bias_hh = (
        cast(Tensor, getattr(gru, kind + suffix))
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    rows = int(layout.batch_sizes[0])
    if state is None:
        state = table.new_zeros(rows, gru.hidden_size)
    if table.device.type != "cpu":
        data = nn.functional.embedding(index, table)
        if shift is not None:
            further = shift if shift_index is None else shift[shift_index]
            data = torch.cat([data, further.to(data.dtype)], dim=-1)
        return _library_gru(gru, data, layout, state, reverse)
    width = table.shape[1]
    projected = nn.functional.linear(table, weight_ih[:, :width], bias_ih)  # (M, 3H)
    inputs = nn.functional.embedding(index, projected)  # (N, 3H)
    if shift is not None:
        further = nn.functional.linear(shift.to(inputs.dtype), weight_ih[:, width:])
        if shift_index is not None:
            further = nn.functional.embedding(shift_index, further)  # (N, 3H)
        inputs = inputs + further
    tensors = [tensor.to(inputs.dtype) for tensor in (inputs, state, weight_hh, bias_hh)]
    with torch.autocast("cpu", enabled=False):  # the inputs' type is the type of the recurrence
        outputs, final = _PackedGRU.apply(*tensors, layout.batch_sizes.tolist())  # type: ignore[no-untyped-call]
    return outputs, final


def _library_gru(
    gru: nn.GRU, data: Tensor, layout: PackedLayout, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    names = [name for name, _ in gru.named_parameters() if name.endswith("_reverse") == reverse]
    weights = [cast(Tensor, getattr(gru, name)) for name in names]
    first = state.unsqueeze(0).to(data.dtype).contiguous()
    with warnings.catch_warnings():
        # both directions' weights lie in one chunk, of which cuDNN copies ours at each call
        warnings.filterwarnings("ignore", message="RNN module weights are not part")
        outputs, final = torch.gru(
            data, layout.batch_sizes, first, weights, True, 1, 0.0, torch.is_grad_enabled(), False
        )
    return outputs, final[0]
