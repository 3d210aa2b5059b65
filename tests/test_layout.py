"""Which sample lies in which row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.layout import Layout, Variable, chunk_for
from mano_op.errors import InputError
from mano_op.grid import Grid

COARSE, FINE = Grid.uniform((4,)), Grid.uniform((8,))


@st.composite
def layouts(draw):
    splits = draw(
        st.dictionaries(st.sampled_from(["train", "test", "hard", "far"]), st.integers(1, 12), min_size=1)
    )
    held = draw(st.lists(st.sampled_from(list(splits)), min_size=1, unique=True))
    chunk = chunk_for(8, splits, [held], target_bytes=draw(st.integers(1, 400)))
    return Layout.plan(
        [FINE, COARSE],
        [Variable("a", "input"), Variable("u", "output")],
        splits,
        boundary_conditions={"x": "open"},
        levels="unknown",
        chunk=chunk,
        held={FINE: held},
    )


@given(layouts())
def test_rows_of_splits_and_of_chunks_lead_to_the_same_samples(layout):
    assert list(layout.grids) == ["r4", "r8"]
    everything = np.arange(layout.n_samples)
    np.testing.assert_array_equal(np.concatenate([everything[chunk] for chunk in layout.chunks]), everything)
    ends = np.cumsum([0, *layout.splits.values()])
    for key, held in layout.held.items():
        samples = layout.samples(key)
        for split, first, last in zip(layout.splits, ends[:-1], ends[1:], strict=True):
            if split in held:
                np.testing.assert_array_equal(samples[layout.rows(key, split)], np.arange(first, last))
        pieces = [samples[layout.rows_of(key, chunk)] for chunk in layout.chunks]
        np.testing.assert_array_equal(np.concatenate(pieces), samples)
        for chunk, piece in zip(layout.chunks, pieces, strict=True):
            np.testing.assert_array_equal(piece, np.intersect1d(everything[chunk], samples))


@given(layouts())
def test_no_two_chunks_of_samples_share_a_chunk_of_an_array(layout):
    for key in layout.grids:
        touched = [
            {row // layout.chunk for row in range(rows.start, rows.stop)}
            for rows in (layout.rows_of(key, chunk) for chunk in layout.chunks)
        ]
        assert sum(map(len, touched)) == len(set().union(*touched))


@given(points=st.integers(1, 300**3), target=st.integers(1, 2**22))
def test_a_chunk_is_as_large_as_asked_for(points, target):
    chunk = chunk_for(points, {"train": 5000}, target_bytes=target)
    assert 1 <= chunk <= 5000
    assert chunk * 4 * points <= max(target, 4 * points)
    assert chunk == 5000 or (chunk + 1) * 4 * points > target


def planned(cell_methods):
    return Layout.plan(
        [FINE, COARSE],
        [Variable("u", "output", cell_methods=cell_methods, time=True)],
        {"train": 2},
        boundary_conditions={"x": "open"},
        levels="unknown",
        chunk=1,
        times=(0.0, 1.0),
    )


def test_cell_methods_of_each_level():
    (variable,) = planned({"r8": "area: point", "r4": "area: mean"}).variables
    assert [variable.cell_methods_at(key) for key in ("r4", "r8")] == ["area: mean", "area: point"]
    assert planned({"r4": "area: mean", "r8": "area: mean"}) == planned("area: mean")
    for wrong in ({"r4": "area: mean"}, {}, {"r4": "area: mean", "r8": "area: mean", "r16": "area: mean"}):
        with pytest.raises(InputError, match=r"variable 'u': cell_methods=.*for each of r4, r8"):
            planned(wrong)


def test_reference_of_numpy_is_a_number_of_python():
    variable = Variable("p", "output", reference=np.float32(101325))
    assert (type(variable.reference), variable.reference) == (float, 101325.0)
