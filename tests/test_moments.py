"""Streamed statistics are those of the whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.moments import Moments


@given(
    cuts=st.lists(st.integers(1, 39), max_size=5, unique=True),
    offset=st.floats(-1e4, 1e4),
    seed=st.integers(0, 99),
)
def test_pieces_of_any_size_give_the_weighted_moments_of_the_whole(cuts, offset, seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(offset, 1.0, (40, 3, 5)), rng.uniform(0.1, 2.0, (3, 5))
    moments = sum((Moments.of(piece, weights) for piece in np.split(values, sorted(cuts))), Moments())
    every = np.broadcast_to(weights, values.shape)
    mean = np.average(values, weights=every)
    assert moments.mean == pytest.approx(mean, rel=1e-13, abs=1e-13)
    assert moments.std == pytest.approx(np.average((values - mean) ** 2, weights=every) ** 0.5, rel=1e-11)


@given(value=st.floats(-1e6, 1e6, width=32), n=st.integers(1, 7))
def test_a_constant_field_has_no_deviation_at_all(value, n):
    weights = np.linspace(0.1, 0.9, 5)
    moments = sum((Moments.of(np.full((3, 5), value, np.float32), weights) for _ in range(n)), Moments())
    assert moments.std == 0.0
    assert moments.mean == pytest.approx(value, rel=1e-14)
