"""The packed LSTM obeys nn.LSTM, and tells a latent to every step as a wider input would."""

from __future__ import annotations

import pytest
import torch
from siserve_training.nets.gru import PackedLayout
from siserve_training.nets.lstm import packed_lstm, packed_states
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence


@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [5, 5, 5]], ids=["ragged", "one length"])
@pytest.mark.parametrize("told", [0, 3], ids=["words", "words and a latent"])
def test_states_and_gradients_equal_the_librarys(lengths, told):
    torch.manual_seed(3)
    rows, steps = len(lengths), lengths[0]
    lstm = nn.LSTM(5 + told, 7, batch_first=True).double()
    table = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    places = torch.randint(0, 9, (rows, steps))
    z = torch.randn(rows, told, dtype=torch.float64, requires_grad=True)
    state, cell = (torch.randn(rows, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = torch.cat([table[places], z.unsqueeze(1).expand(-1, steps, -1)], dim=-1)
    packed = pack_padded_sequence(inputs, torch.tensor(lengths), batch_first=True)
    outputs, (last, _) = lstm(packed, (state.unsqueeze(0), cell.unsqueeze(0)))
    layout = PackedLayout.of(torch.tensor(lengths), torch.device("cpu"))
    index = places[layout.rows, layout.steps]
    ours, our_last = packed_lstm(lstm, table, index, layout, z if told else None, (state, cell))
    torch.testing.assert_close(ours, outputs.data)
    torch.testing.assert_close(our_last, last[0])
    sources = [*lstm.parameters(), table, state, cell, *([z] if told else [])]
    expected = torch.autograd.grad(outputs.data.sin().sum() + last.cos().sum(), sources)
    found = torch.autograd.grad(ours.sin().sum() + our_last.cos().sum(), sources)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("steps", [3, 20], ids=["few steps", "many steps"])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)], ids=str
)
def test_weights_that_are_laid_out_once_multiply_as_they_are(dtype, error, steps):
    """Against float64; rows end one after another, so that sets of rows of every size meet them."""
    torch.manual_seed(5)
    hidden, lengths = 24, torch.arange(steps, 0, -1)
    layout = PackedLayout.of(lengths, torch.device("cpu"))
    shapes = ((9, 4 * hidden), (steps, 4 * hidden), (steps, hidden), (steps, hidden))
    drawn = [0.5 * torch.randn(shape) for shape in (*shapes, (4 * hidden, hidden))]
    index = torch.randint(0, 9, (len(layout.rows),))
    results = []
    for kind in (dtype, torch.float64):
        leaves = [leaf.to(dtype).to(kind).requires_grad_() for leaf in drawn]
        table, constant, state, cell, weight = leaves
        sizes = layout.batch_sizes.tolist()
        outputs, last = packed_states(table, index, constant, (state, cell), weight, sizes)
        total = outputs.double().sin().sum() + last.double().cos().sum()
        results.append([outputs, *torch.autograd.grad(total, leaves)])
    for one, other in zip(*results, strict=True):
        assert (one.double() - other).norm() <= error * other.norm()
