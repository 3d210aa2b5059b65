import itertools

import numpy as np
import pytest
from helpers import rates
from hypothesis import given
from hypothesis import strategies as st

from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.problems.darcy import solve_darcy
from mano_op.problems.poisson import solve_poisson

DOMAIN = [(0.0, 1.0), (-1.0, 0.5), (2.0, 2.75)]
axes = st.builds(
    Axis,
    name=st.uuids().map(str),
    n=st.integers(2, 7),
    start=st.just(-1.0),
    stop=st.sampled_from([0.0, 1.5]),
    registration=st.sampled_from(REGISTRATIONS),
)
grids = st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name).map(
    lambda grid_axes: Grid(tuple(grid_axes))
)


def boxes(registrations, shape):
    """A grid over the first parts of `DOMAIN`, with those numbers of intervals."""
    return Grid(
        tuple(
            Axis(name, n + (kind == "node_both"), start, stop, kind)
            for name, n, (start, stop), kind in zip("zyx", shape, DOMAIN, registrations, strict=False)
        )
    )


@given(grids, st.integers(0, 2**32 - 1))
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


@pytest.mark.parametrize(
    "registrations",
    [
        ("node_both",),
        *itertools.combinations_with_replacement(REGISTRATIONS, 2),
        ("cell", "node", "node_both"),
    ],
)
def test_manufactured_solution_converges_with_second_order(registrations):
    """u = b exp(g), b a product of parabolas that vanish at the ends, g a product of the coordinates."""
    n_dim, errors = len(registrations), []
    for n in (16, 32, 64):
        grid = boxes(registrations, (n, n * 3 // 2, n * 5 // 4))
        mesh = grid.mesh
        parabolas = [(x - axis.start) * (axis.stop - x) for x, axis in zip(mesh, grid, strict=True)]
        slopes = [axis.stop + axis.start - 2 * x for x, axis in zip(mesh, grid, strict=True)]
        growth = np.exp(np.prod(mesh, axis=0))
        u = np.prod(parabolas, axis=0) * growth
        laplacian = 0.0
        for j in range(n_dim):
            others = np.prod([parabolas[i] for i in range(n_dim) if i != j], axis=0)
            g = np.prod([mesh[i] for i in range(n_dim) if i != j], axis=0)  # the slope of the exponent
            laplacian += others * growth * (-2 + 2 * slopes[j] * g + parabolas[j] * g**2)
        errors.append(np.abs(solve_poisson(-laplacian, grid) - u).max() / np.abs(u).max())
    assert np.all(rates(errors) > 1.8)
    assert errors[-1] < 5e-3


def test_solution_in_the_middle_of_a_cube_is_the_series():
    # The triple sine series of -laplace u = 1 on the unit cube, at its centre.
    n = np.arange(1, 200, 2)
    sign = (-1.0) ** ((n - 1) // 2) / n
    product = sign[:, None, None] * sign[:, None] * sign
    series = np.sum(64 / np.pi**5 * product / (n[:, None, None] ** 2 + n[:, None] ** 2 + n**2))
    cubes = [Grid.uniform((size,) * 3) for size in (8, 16, 32)]
    errors = [abs(solve_poisson(np.ones(g.shape), g)[(g.shape[0] // 2,) * 3] - series) for g in cubes]
    assert np.all(rates(errors) > 1.9)
    assert errors[-1] < 2e-3 * series


def test_boundary_points_are_zero_on_the_smallest_grids():
    assert np.array_equal(solve_poisson(np.ones((1, 5)), Grid.uniform((1, 5))), np.zeros((1, 5)))
    one_cell = Grid.uniform((1,), registration="cell")  # two faces half a cell away: u = h^2 / 4
    assert solve_poisson(np.ones(1), one_cell) == pytest.approx(0.25, abs=1e-15)
    one_point = Grid.uniform((3,), registration="node_both")
    np.testing.assert_allclose(solve_poisson(np.ones(3), one_point), [0, 1 / 8, 0], rtol=1e-15)
