import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft

from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.problems.cosine import evaluate_cosines
from mano_op.problems.random_field import GaussianRandomField

axes = st.builds(
    Axis,
    name=st.uuids().map(str),
    n=st.integers(2, 9),
    start=st.sampled_from([0.0, -1.5]),
    stop=st.sampled_from([1.0, 3.25]),
    registration=st.sampled_from(REGISTRATIONS),
)
grids = st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name).map(
    lambda grid_axes: Grid(tuple(grid_axes))
)


def cells(grid, *shape):
    axes = zip(grid, shape, strict=False)
    return Grid(tuple(Axis(axis.name, n, axis.start, axis.stop, "cell") for axis, n in axes))


@given(grids, st.integers(0, 2**40))
def test_evaluates_series_of_as_many_cosines_exactly(grid, seed):
    source = cells(grid, 5, 7, 6)
    random_field = GaussianRandomField(alpha=2.5, n_modes=5)
    found = evaluate_cosines(random_field.sample(seed, 0, source), source, grid)
    np.testing.assert_allclose(found, random_field.sample(seed, 0, grid), rtol=0, atol=1e-13)


@given(grids, st.integers(0, 2**32 - 1))
def test_is_the_series_of_the_cosine_transform(grid, seed):
    source = cells(grid, 6, 4, 5)
    values = np.random.default_rng(seed).standard_normal((2, *source.shape))
    expected = fft.dctn(values, axes=range(1, values.ndim))
    for n, axis in zip(source.shape, grid, strict=True):
        k = np.arange(n)[:, np.newaxis]
        waves = np.cos(np.pi * k * (axis.points - axis.start) / axis.length)
        expected = np.tensordot(expected, np.where(k == 0, 0.5, 1.0) / n * waves, axes=(1, 0))
    np.testing.assert_allclose(evaluate_cosines(values, source, grid), expected, rtol=0, atol=1e-13)


def test_stays_accurate_for_many_cells():
    source, grid = (Grid.uniform((n,), registration="cell") for n in (1024, 30))
    (x,), (points,) = source.points, grid.points
    found = evaluate_cosines(np.cos(np.pi * 1001 * x), source, grid)
    np.testing.assert_allclose(found, np.cos(np.pi * 1001 * points), rtol=0, atol=1e-12)


def test_refuses_what_it_cannot_evaluate():
    source, values = Grid.uniform((4, 6), registration="cell"), np.ones((4, 6))
    with pytest.raises(InputError, match=r"values of shape \(6, 4\), expected \(..., 4, 6\)"):
        evaluate_cosines(values.T, source, source)
    with pytest.raises(InputError, match="expected registration='cell'"):
        evaluate_cosines(values, Grid.uniform((4, 6)), source)
    with pytest.raises(InputError, match="axis 'y' is periodic"):
        evaluate_cosines(values, source, Grid.uniform((4, 6), periodic=True))
    with pytest.raises(InputError, match="different domains"):
        evaluate_cosines(values, source, Grid.uniform((4, 6), domain=[(0, 1), (0, 2)]))
