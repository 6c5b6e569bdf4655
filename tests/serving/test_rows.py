"""The table of rows in flight: a row is what its own request and the decoder made of it."""

from dataclasses import replace

import numpy as np
import pytest
from siserve.bundle import open_bundle
from siserve.serving.fused.cpu import CpuDecoder
from siserve.serving.rows import NewRows, Row, RowTable
from siserve.serving.sessions import load_sessions

from .test_cpu_kernels import REASON

STEPS = 4


@pytest.fixture
def table(manifest):
    return RowTable(manifest)


def new_rows(manifest, owner, count, limit=12, mark=0.0):
    sizes = manifest.sizes
    return NewRows(
        owner=np.full(count, owner),
        index=np.arange(count),
        limit=np.full(count, limit),
        c=np.full((count, sizes.context), mark, np.float32),
        z=np.full((count, sizes.latent), mark, np.float32),
        uniform=np.full((count, limit), mark, np.float32),
        temperature=np.full(count, mark, np.float32),
        top_k=np.full(count, owner),
        top_p=np.ones(count, np.float32),
    )


def say(table, manifest, ends=()):
    """Advance by a chunk: row r says 100 + r at each step, or the end mark from the third on."""
    count = len(table)
    tokens = np.tile(100 + np.arange(count), (STEPS, 1))
    log_probs = np.full((STEPS, count), -1.0, np.float32)
    tokens[2:, list(ends)], log_probs[3:, list(ends)] = manifest.tokens.end, 0.0
    state = np.tile(np.arange(count, dtype=np.float32)[:, None], (1, manifest.sizes.state))
    return table.advance(tokens, log_probs, state)


def test_rows_that_end_leave_and_the_others_keep_all_that_is_theirs(table, manifest):
    for owner in range(3):
        table.add(new_rows(manifest, owner, 2, mark=owner / 10))
    table.inputs(STEPS)
    ended = say(table, manifest, ends=(0, 3))
    assert [(each.owner, each.place) for each in ended] == [(0, 0), (1, 1)]
    assert ended[1].row == Row((103, 103), -3.0, True)
    given = table.inputs(STEPS)
    assert sorted(given["token"].tolist()) == [101, 102, 104, 105]
    owners = (given["token"] - 100) // 2
    assert np.array_equal(given["state"][:, 0], given["token"] - 100)
    assert np.array_equal(given["top_k"], owners)
    assert np.allclose(given["temperature"], owners / 10)
    assert np.allclose(given["uniform"], owners / 10)


def test_a_row_at_its_limit_is_cut_there_whatever_the_chunk_said_after_it(table, manifest):
    table.add(new_rows(manifest, 7, 1, limit=6))
    for _ in range(2):
        table.inputs(STEPS)
        ended = say(table, manifest)
    assert [each.row for each in ended] == [Row((100,) * 6, -6.0, False)]
    assert len(table) == 0


def all_ended(table, manifest, decoder, turns=60, most=8, num_steps=None, top_k=20):
    """Let rows come, be given up and end; tell of each chunk which ended."""
    dice = np.random.default_rng(5)
    for turn in range(turns):
        if turn < turns * 5 // 12:
            count = int(dice.integers(1, most + 1))
            new = new_rows(manifest, turn, count, limit=int(dice.integers(1, 30)))
            drawn = {
                name: dice.random(getattr(new, name).shape, np.float32)
                for name in ("c", "z", "uniform", "temperature")
            }
            table.add(replace(new, **drawn, top_k=dice.integers(0, top_k, count)))
        if turn % 7 == 3:
            table.remove([turn - 2])
        steps = num_steps or int(dice.integers(1, 17))
        if len(table):
            yield table.take_steps(decoder, steps)


@pytest.mark.skipif(bool(REASON), reason=f"no kernels for CPUs here: {REASON}")
def test_kernels_do_to_rows_where_they_lie_what_the_table_does(bundle, manifest):
    decoders = load_sessions(open_bundle(bundle), "cpu", 1, precision="int8")
    assert isinstance(decoders.decoder, CpuDecoder)

    class Told:
        """The same decoder, of which the table takes what it gives."""

        def run(self, inputs):
            return decoders.decoder.run(inputs)

    in_place, apart = (
        list(all_ended(RowTable(manifest), manifest, decoder))
        for decoder in (decoders.decoder, Told())
    )
    assert sum(map(len, in_place)) > 80
    assert any(each.row.ended for ended in in_place for each in ended)
    assert any(not each.row.ended for ended in in_place for each in ended)
    for some, others in zip(in_place, apart, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one[:2] == other[:2] and one.row.tokens == other.row.tokens
            assert one.row.ended is other.row.ended
            assert one.row.log_prob == pytest.approx(other.row.log_prob, rel=1e-12)


def test_rows_that_start_have_their_own_context_though_others_leave_before(table, manifest):
    table.add(new_rows(manifest, 0, 3, mark=0.1))
    table.add(new_rows(manifest, 1, 1, mark=0.2))
    table.inputs(STEPS)
    say(table, manifest)
    table.add(new_rows(manifest, 2, 2, mark=0.3))
    table.remove([0])
    given = table.inputs(STEPS)
    starts = given["token"] == manifest.tokens.start
    assert starts.sum() == 2
    assert np.allclose(given["c"][starts], 0.3) and np.allclose(given["z"][starts], 0.3)


def test_more_rows_and_longer_ones_than_there_was_room_for_lose_nothing(table, manifest):
    table.add(new_rows(manifest, 0, 5, limit=9, mark=0.1))
    table.inputs(STEPS)
    say(table, manifest)
    table.add(new_rows(manifest, 1, 300, limit=200, mark=0.2))
    given = table.inputs(STEPS)
    assert np.allclose(given["uniform"][:, :5], 0.1) and np.allclose(given["uniform"][:, 5:], 0.2)
    for _ in range(2):
        ended = say(table, manifest)
        table.inputs(STEPS)
    first = next(each for each in ended if each.owner == 0)
    assert len(first.row.tokens) == 9 and not first.row.ended
