import itertools

import numpy as np
import pytest
from helpers import grids, rates
from hypothesis import given
from hypothesis import strategies as st

from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.problems.darcy import solve_darcy

seeds = st.integers(0, 2**32 - 1)


def random_coefficient(seed, grid):
    return np.exp(np.random.default_rng(seed).standard_normal(grid.shape))


def on_boundary(grid):
    """Mask of the points on the boundary of the box."""
    touches = np.zeros(grid.shape, dtype=bool)
    for x, axis in zip(grid.mesh, grid, strict=True):
        touches |= np.isclose(x, axis.start) | np.isclose(x, axis.stop)
    return touches


def solve_by_loops(a, grid, f):
    """The fluxes of every point, one neighbour at a time, in a dense matrix.

    Resistances in series: from a point half a spacing through its own coefficient, then half a
    spacing through its neighbour's. Towards a boundary without a point of its own the flow passes
    through the outer point's coefficient alone, over the distance that is left.
    """
    outside = on_boundary(grid)
    points = list(np.ndindex(grid.shape))
    number = {point: row for row, point in enumerate(points)}
    matrix, right_side = np.zeros((len(points),) * 2), np.zeros(len(points))
    for point in points:
        row = number[point]
        if outside[point]:
            matrix[row, row] = 1.0
            continue
        right_side[row] = f[point]
        for j, axis in enumerate(grid):
            for step in (-1, 1):
                neighbour = (*point[:j], point[j] + step, *point[j + 1 :])
                if neighbour in number:
                    resistance = axis.spacing / 2 * (1 / a[point] + 1 / a[neighbour])
                    matrix[row, number[neighbour]] -= 1 / (resistance * axis.spacing)
                else:
                    x = axis.points[point[j]]
                    resistance = (x - axis.start if step < 0 else axis.stop - x) / a[point]
                matrix[row, row] += 1 / (resistance * axis.spacing)
    return np.linalg.solve(matrix, right_side).reshape(grid.shape)


@given(grids(False, 5), seeds)
def test_solution_is_that_of_a_dense_matrix_of_fluxes(grid, seed):
    a = random_coefficient(seed, grid)
    f = np.random.default_rng(seed + 1).standard_normal(grid.shape)
    expected = solve_by_loops(a, grid, f)
    np.testing.assert_allclose(
        solve_darcy(a, grid, f), expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max())
    )


@pytest.mark.parametrize(
    "registrations", [*itertools.product(REGISTRATIONS, repeat=2), ("cell", "node", "node_both")]
)
def test_manufactured_solution_converges_with_second_order(registrations):
    """u a product of sines that vanish on the boundary, a the exponential of a linear function."""
    n_dim, wavenumbers, slopes = len(registrations), (1, 2, 1), (0.8, -0.5, 0.3)
    domain = [(0.0, 1.0), (-1.0, 0.5), (2.0, 2.75)][:n_dim]
    sizes = [(12, 16, 10), (24, 32, 20)] if n_dim == 3 else [(12, 20), (24, 40), (48, 80), (96, 160)]
    errors = []
    for shape in sizes:
        grid = Grid(
            tuple(
                Axis(name, n + (kind == "node_both"), start, stop, kind)
                for name, n, (start, stop), kind in zip("zyx", shape, domain, registrations, strict=False)
            )
        )
        kappa = [np.pi * k / axis.length for k, axis in zip(wavenumbers, grid, strict=False)]
        angle = [k * (x - axis.start) for k, x, axis in zip(kappa, grid.mesh, grid, strict=True)]
        sines = [np.sin(theta) for theta in angle]
        u = np.prod(sines, axis=0)
        a = np.exp(sum(slope * x for slope, x in zip(slopes, grid.mesh, strict=False)))
        # -div(a grad u) = -a (sum_j slope_j du/dx_j + laplacian u), as grad a = a slopes.
        gradient = [
            k * np.cos(angle[j]) * np.prod([sines[i] for i in range(n_dim) if i != j], axis=0)
            for j, k in enumerate(kappa)
        ]
        advection = sum(slope * part for slope, part in zip(slopes, gradient, strict=False))
        f = a * (sum(k**2 for k in kappa) * u - advection)
        errors.append(np.abs(solve_darcy(a, grid, f) - u).max())
    assert np.all(rates(errors) > 1.8)
    assert errors[-1] < (2e-2 if n_dim == 3 else 1e-3)


@pytest.mark.parametrize("registration", REGISTRATIONS)
def test_point_source_is_exact_across_a_jump(registration):
    # Between source, jump and boundary the flux is constant and the pressure linear, so that
    # resistances in series, the harmonic mean, give the exact values. An arithmetic mean errs by O(h).
    grid = Grid.uniform((20,), registration=registration)
    x, h = grid.points[0], grid.spacing[0]
    jump, source = x[12] + h / 2, x[5]
    f = np.where(np.arange(20) == 5, 1 / h, 0.0)
    resistance_left = source / 3
    resistance_right = (jump - source) / 3 + (1 - jump) / 12
    top = 1 / (1 / resistance_left + 1 / resistance_right)
    to_the_right = (
        1 - np.where(x < jump, (x - source) / 3, (jump - source) / 3 + (x - jump) / 12) / resistance_right
    )
    exact = top * np.where(x < source, x / source, to_the_right)
    np.testing.assert_allclose(solve_darcy(np.where(x < jump, 3.0, 12.0), grid, f), exact, rtol=0, atol=1e-14)


def test_boundary_points_are_zero_on_the_smallest_grids():
    assert np.array_equal(solve_darcy(np.ones((1, 5)), Grid.uniform((1, 5))), np.zeros((1, 5)))
    both = Grid.uniform((2, 3), registration="node_both")
    assert np.array_equal(solve_darcy(np.ones((2, 3)), both), np.zeros((2, 3)))
    one_cell = Grid.uniform((1,), registration="cell")  # two faces half a cell away: u = h^2 / 4
    assert solve_darcy(np.ones(1), one_cell) == pytest.approx(0.25, abs=1e-15)
