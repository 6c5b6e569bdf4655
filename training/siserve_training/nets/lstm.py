"""An LSTM over packed sequences whose input is a word and a vector that stays with its row.

As in `nets.gru`: on the CPU the loop goes over the states alone, and each weight gets its gradient
from one product over all steps; elsewhere the library's LSTM runs on the same parameters. The
vector that stays, a sentence's latent, is projected once a row and not once a token.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from siserve_training.nets.gru import PackedLayout

__all__ = ["StepProduct", "packed_lstm", "packed_states"]


#: Steps back from which a float32 weight is worth turning and laying out; a bf16 one never is.
_STEPS_THAT_PAY = 12


class StepProduct:
    """Rows times the transpose of a weight, for a weight that many small sets of rows meet.

    Libraries lay a weight out anew for each product, which for a batch's rows costs as much as the
    product itself; here oneDNN lays it out once, in float32 and in bf16.

    Args:
        weight: (O, I).
        rows: how many usually come at a time.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.transposed = weight.t()
        self.packed = None
        if _packs(weight.dtype):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply, (R, I) to (R, O)."""
        if self.packed is None:
            return torch.mm(rows, self.transposed)
        product = torch.ops.mkldnn._linear_pointwise(rows, self.packed, None, "none", [], "")
        return cast(Tensor, product)


def _packs(dtype: torch.dtype) -> bool:
    """Say whether oneDNN multiplies by weights of a type that it laid out before."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()


class _PackedLSTM(torch.autograd.Function):
    """States of all steps and last states; gate order i, f, g, o as in nn.LSTM."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        index: Tensor,
        constant: Tensor,
        state: Tensor,
        cell: Tensor,
        weight: Tensor,
        sizes: list[int],
        forth: StepProduct,
        back: StepProduct | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden = state.shape[1]
        places = len(index)
        gates = table.new_empty(places, 4 * hidden)  # i, f, g, o
        before = table.new_empty(places, hidden)
        cells_before = table.new_empty(places, hidden)
        squashed = table.new_empty(places, hidden)  # tanh of the cells
        outputs = table.new_empty(places, hidden)
        last_state, last_cell = state.clone(), cell.clone()
        torch.index_select(table, 0, index, out=gates)
        start = 0
        for size in sizes:
            at = slice(start, start + size)
            state, cell = state[:size], cell[:size]
            before[at], cells_before[at] = state, cell
            here = gates[at]
            here += constant[:size]
            if forth.packed is None:
                here.addmm_(state, forth.transposed)
            else:
                here += forth(state)
            here[:, : 2 * hidden].sigmoid_()
            here[:, 2 * hidden : 3 * hidden].tanh_()
            here[:, 3 * hidden :].sigmoid_()
            i, f, g, o = here.chunk(4, dim=1)
            cell = torch.addcmul(f * cell, i, g)
            torch.tanh(cell, out=squashed[at])
            state = torch.mul(o, squashed[at], out=outputs[at])
            last_state[:size], last_cell[:size] = state, cell
            start += size
        ctx.save_for_backward(index, weight, gates, before, cells_before, squashed)
        ctx.sizes, ctx.rows, ctx.back = sizes, len(table), back
        return outputs, last_state, last_cell

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        index, weight, gates, before, cells_before, squashed = ctx.saved_tensors
        grad_outputs, grad_state, grad_cell = (grad.contiguous() for grad in grads)
        hidden = weight.shape[1]
        i, f, g, o = gates.chunk(4, dim=1)
        grad_gates = torch.empty_like(gates)
        # what a change of cell and of state does to each gate's input
        slopes = grad_gates.view(len(gates), 4, hidden)
        torch.mul(g, i * (1 - i), out=slopes[:, 0])
        torch.mul(cells_before, f * (1 - f), out=slopes[:, 1])
        torch.mul(i, 1 - g * g, out=slopes[:, 2])
        torch.mul(squashed, o * (1 - o), out=slopes[:, 3])
        to_cell = o * (1 - squashed * squashed)
        state, cell = grad_state.clone(), grad_cell.clone()
        back = ctx.back
        if back is None and weight.dtype == torch.float32 and len(ctx.sizes) >= _STEPS_THAT_PAY:
            back = StepProduct(weight.t().contiguous(), ctx.sizes[0])
        stop = len(gates)
        for size in reversed(ctx.sizes):
            at = slice(stop - size, stop)
            state[:size] += grad_outputs[at]
            of_state, of_cell = state[:size], cell[:size]
            of_cell.addcmul_(of_state, to_cell[at])
            slopes[at, :3] *= of_cell.unsqueeze(1)
            slopes[at, 3] *= of_state
            of_cell *= f[at]
            if back is None:
                torch.mm(grad_gates[at], weight, out=of_state)
            else:
                of_state.copy_(back(grad_gates[at]))
            stop -= size
        wants = ctx.needs_input_grad
        grad_table = grad_constant = None
        if wants[0]:
            grad_table = gates.new_zeros(ctx.rows, 4 * hidden).index_add_(0, index, grad_gates)
        if wants[2]:
            grad_constant = gates.new_zeros(len(state), 4 * hidden)
            start = 0
            for size in ctx.sizes:
                grad_constant[:size] += grad_gates[start : start + size]
                start += size
        grad_weight = grad_gates.t() @ before if wants[5] else None
        return grad_table, None, grad_constant, state, cell, grad_weight, None, None, None


def packed_states(
    table: Tensor,
    index: Tensor,
    constant: Tensor,
    state: tuple[Tensor, Tensor],
    weight: Tensor,
    sizes: list[int],
    products: tuple[StepProduct, StepProduct | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence alone on the CPU, on inputs that are projected already.

    Args:
        table: what distinct inputs add to the gates, (M, 4H).
        index: row of the table at each packed place, (N,).
        constant: what each row adds to the gates at all of its steps, (R, 4H).
        state: first states and cells, (R, H) each.
        weight: recurrent weight, (4H, H).
        sizes: rows of each step.
        products: with the weight and with its transpose, for a weight that more runs share.

    Returns:
        States at each place, (N, H), and each row's last state, (R, H).
    """
    forth, back = products or (StepProduct(weight.detach(), sizes[0]), None)
    outputs, last, _ = _PackedLSTM.apply(  # type: ignore[no-untyped-call]
        table, index, constant, *state, weight, sizes, forth, back
    )
    return outputs, last


def packed_lstm(
    lstm: nn.LSTM,
    table: Tensor,
    index: Tensor,
    layout: PackedLayout,
    constant: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a one-layer LSTM over packed sequences.

    Args:
        lstm: holds the parameters.
        table: distinct inputs, (M, F).
        index: row of the table at each packed place, (N,).
        layout: of the packed places, R rows.
        constant: further inputs of each row at all of its steps, (R, F'), columns F to F+F' of the
            input weight.
        state: first states and cells, (R, H) each; zeros by default.

    Returns:
        States at each place, (N, H), and each row's last state, (R, H).
    """
    weight_ih, weight_hh, bias_ih, bias_hh = (
        cast(Tensor, getattr(lstm, f"{kind}_l0"))
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    rows = int(layout.batch_sizes[0])
    if state is None:
        nothing = table.new_zeros(rows, lstm.hidden_size)
        state = (nothing, nothing)
    if table.device.type != "cpu":
        data = nn.functional.embedding(index, table)
        if constant is not None:
            data = torch.cat([data, constant[layout.rows].to(data.dtype)], dim=-1)
        return _library_lstm(lstm, data, layout, state)
    width = table.shape[1]
    projected = nn.functional.linear(table, weight_ih[:, :width])  # (M, 4H)
    biases = (bias_ih + bias_hh).to(projected.dtype)
    if constant is None:
        shift = biases.expand(rows, -1)
    else:
        shift = nn.functional.linear(constant.to(projected.dtype), weight_ih[:, width:]) + biases
    shift, h, c, weight = (t.to(projected.dtype) for t in (shift, *state, weight_hh))
    with torch.autocast("cpu", enabled=False):  # the inputs' type is the type of the recurrence
        return packed_states(projected, index, shift, (h, c), weight, layout.batch_sizes.tolist())


def _library_lstm(
    lstm: nn.LSTM, data: Tensor, layout: PackedLayout, state: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    weights = [cast(Tensor, parameter) for parameter in lstm.parameters()]
    first = [part.unsqueeze(0).to(data.dtype).contiguous() for part in state]
    outputs, last, _ = torch.lstm(
        data, layout.batch_sizes, first, weights, True, 1, 0.0, torch.is_grad_enabled(), False
    )
    return outputs, last[0]
