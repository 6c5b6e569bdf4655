"""The packed GRU obeys nn.GRU."""

from __future__ import annotations

import pytest
import torch
from siserve_training.nets.gru import PackedLayout, packed_gru
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

LENGTHS = torch.tensor([6, 4, 4, 1])


@pytest.fixture
def gru():
    torch.manual_seed(3)
    return nn.GRU(5, 7, batch_first=True, bidirectional=True).double()


def inputs(requires_grad=True):
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    places = torch.randint(0, 9, (4, 6), generator=generator)
    return table.requires_grad_(requires_grad), places


def test_both_directions_equal_the_library_in_states_and_gradients(gru):
    table, places = inputs()
    layout = PackedLayout.of(LENGTHS, torch.device("cpu"))
    packed, final = gru(pack_padded_sequence(table[places], LENGTHS, batch_first=True))
    packed.data[:, :7].sin().sum().add(final.cos().sum()).backward()
    parameters = [*gru.parameters(), table]
    expected = [parameter.grad.clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None

    ahead, forward = packed_gru(gru, table, places[layout.rows, layout.steps], layout)
    back = places[layout.rows, layout.reversed(LENGTHS)]
    _, backward = packed_gru(gru, table, back, layout, reverse=True)
    torch.testing.assert_close(ahead, packed.data[:, :7])
    torch.testing.assert_close(torch.stack([forward, backward]), final)
    ahead.sin().sum().add(forward.cos().sum() + backward.cos().sum()).backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_first_state_gets_its_gradient(gru):
    table, places = inputs()
    layout = PackedLayout.of(LENGTHS, torch.device("cpu"))
    index = places[layout.rows, layout.steps]
    state = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)

    def run(first):
        return packed_gru(gru, table, index, layout, first)[1]

    assert torch.autograd.gradcheck(run, (state,))


def test_shift_columns_equal_a_wider_input():
    torch.manual_seed(0)
    wide = nn.GRU(7, 6, batch_first=True).double()
    table, places = inputs()
    layout = PackedLayout.of(LENGTHS, torch.device("cpu"))
    index = places[layout.rows, layout.steps]
    shift = torch.randn(len(index), 2, dtype=torch.float64)
    joined = torch.cat([table[index], shift], dim=1)
    whole = packed_gru(wide, joined, torch.arange(len(index)), layout)[0]
    torch.testing.assert_close(packed_gru(wide, table, index, layout, shift=shift)[0], whole)


def test_a_table_of_shifts_equals_a_shift_at_each_place():
    torch.manual_seed(0)
    wide = nn.GRU(7, 6, batch_first=True).double()
    table, places = inputs()
    layout = PackedLayout.of(LENGTHS, torch.device("cpu"))
    index = places[layout.rows, layout.steps]
    shifts = torch.randn(3, 2, dtype=torch.float64)
    which = torch.arange(len(index)) % 3
    each = packed_gru(wide, table, index, layout, shift=shifts[which])[0]
    by_table = packed_gru(wide, table, index, layout, shift=shifts, shift_index=which)[0]
    torch.testing.assert_close(by_table, each)


def test_a_sequence_does_not_depend_on_its_neighbours(gru):
    table, places = inputs(requires_grad=False)
    layout = PackedLayout.of(LENGTHS, torch.device("cpu"))
    _, together = packed_gru(gru, table, places[layout.rows, layout.steps], layout)
    for row, length in enumerate(LENGTHS):
        alone = PackedLayout.of(length.reshape(1), torch.device("cpu"))
        _, state = packed_gru(gru, table, places[row, alone.steps], alone)
        torch.testing.assert_close(state[0], together[row])
