import numpy as np
import pytest
from helpers import grids, rates
from hypothesis import given
from hypothesis import strategies as st

from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.problems.darcy import solve_darcy
from mano_op.problems.poisson import Poisson

DOMAIN = [(0.0, 1.0), (-1.0, 0.5), (2.0, 2.75)]
solve_poisson = Poisson().solve


def boxes(registrations, shape):
    """A grid over the first parts of `DOMAIN`, with those numbers of intervals."""
    return Grid(
        tuple(
            Axis(name, n + (kind == "node_both"), start, stop, kind)
            for name, n, (start, stop), kind in zip("zyx", shape, DOMAIN, registrations, strict=False)
        )
    )


@given(grids(False, 7), st.integers(0, 2**32 - 1))
def test_solution_is_darcy_flow_through_a_uniform_medium(grid, seed):
    f = np.random.default_rng(seed).standard_normal(grid.shape)
    expected = solve_darcy(np.ones(grid.shape), grid, f)
    np.testing.assert_allclose(
        solve_poisson(f, grid), expected, rtol=0, atol=1e-13 * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_products_of_sines_are_eigenvectors(n_dim, registration):
    """The discrete solution for one wave, in closed form, and so the second order of its error."""
    wavenumbers, errors = (2, 1, 3)[:n_dim], []
    for n in (8, 16, 32):
        grid = boxes([registration] * n_dim, [n] * n_dim)
        kappa = [np.pi * k / axis.length for k, axis in zip(wavenumbers, grid, strict=True)]
        wave = np.prod(
            [np.sin(k * (x - axis.start)) for k, x, axis in zip(kappa, grid.mesh, grid, strict=True)], axis=0
        )
        u = solve_poisson(sum(k**2 for k in kappa) * wave, grid)
        discrete = sum((2 - 2 * np.cos(k * h)) / h**2 for k, h in zip(kappa, grid.spacing, strict=True))
        np.testing.assert_allclose(u, sum(k**2 for k in kappa) / discrete * wave, rtol=0, atol=1e-13)
        errors.append(np.linalg.norm(u - wave) / np.linalg.norm(wave))
    np.testing.assert_allclose(rates(errors), 2.0, atol=0.1)
    assert errors[-1] < 0.01


def test_boundary_points_are_zero_on_the_smallest_grids():
    assert np.array_equal(solve_poisson(np.ones((1, 5)), Grid.uniform((1, 5))), np.zeros((1, 5)))
    one_cell = Grid.uniform((1,), registration="cell")  # two faces half a cell away: u = h^2 / 4
    assert solve_poisson(np.ones(1), one_cell) == pytest.approx(0.25, abs=1e-15)
    one_point = Grid.uniform((3,), registration="node_both")
    np.testing.assert_allclose(solve_poisson(np.ones(3), one_point), [0, 1 / 8, 0], rtol=1e-15)
