"""Series of solver grids, evaluated elsewhere: trigonometric polynomials and cosine series."""

import numpy as np
import pytest
from helpers import grids
from hypothesis import given
from hypothesis import strategies as st
from scipy import fft

from mano_op.grid import Axis, Grid
from mano_op.problems.random_field import GaussianRandomField, PeriodicRandomField
from mano_op.problems.series import evaluate_series


def solver_grid(grid, shape):
    kind = "node" if grid.axes[0].periodic else "cell"
    sizes = zip(grid, shape, strict=False)
    return Grid(tuple(Axis(axis.name, n, axis.start, axis.stop, kind, axis.periodic) for axis, n in sizes))


both = pytest.mark.parametrize("periodic", [False, True])


@both
@given(st.data(), st.lists(st.integers(5, 13), min_size=3, max_size=3), st.integers(0, 2**40))
def test_waves_that_the_solver_grid_resolves_are_exact(periodic, data, shape, seed):
    grid = data.draw(grids(periodic, 9))
    source = solver_grid(grid, shape)
    fewest = min(source.shape)
    field = (
        PeriodicRandomField(n_modes=(fewest - 1) // 2)
        if periodic
        else GaussianRandomField(alpha=2.5, n_modes=fewest)
    )
    values = evaluate_series(field.sample(seed, 0, source), source, grid)
    np.testing.assert_allclose(values, field.sample(seed, 0, grid), rtol=0, atol=1e-13)


@both
@given(st.data(), st.integers(0, 2**32 - 1))
def test_series_is_that_of_the_discrete_transform(periodic, data, seed):
    """Of any values; the periodic waves of wavenumbers n/2 and -n/2 each take half the weight."""
    grid = data.draw(grids(periodic, 9))
    source = solver_grid(grid, (6, 6, 6) if periodic else (6, 4, 5))
    values = np.random.default_rng(seed).standard_normal((2, *source.shape))
    expected = (fft.fftn if periodic else fft.dctn)(values, axes=range(1, values.ndim))
    for n, axis in zip(source.shape, grid, strict=True):
        turns = (axis.points - axis.start) / axis.length
        if periodic:
            waves = np.stack([np.exp(2j * np.pi * k * turns) for k in (0, 1, 2, 3, -2, -1)]) / 6
            waves[3] = (waves[3] + np.exp(-6j * np.pi * turns) / 6) / 2
        else:
            k = np.arange(n)[:, np.newaxis]
            waves = np.where(k == 0, 0.5, 1.0) / n * np.cos(np.pi * k * turns)
        expected = np.tensordot(expected, waves, axes=(1, 0))
    np.testing.assert_allclose(evaluate_series(values, source, grid), expected, rtol=0, atol=1e-13)


@both
def test_many_points_keep_their_accuracy(periodic):
    kind = "node" if periodic else "cell"
    source, grid = (
        Grid.uniform((n,), registration=kind, periodic=periodic) for n, kind in ((1024, kind), (30, "cell"))
    )
    angle = np.pi * (1002 if periodic else 1001)
    values = evaluate_series(np.cos(angle * source.points[0] + periodic), source, grid)
    np.testing.assert_allclose(values, np.cos(angle * grid.points[0] + periodic), rtol=0, atol=1e-12)
