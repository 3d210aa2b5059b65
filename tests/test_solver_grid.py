import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems.solver_grid import MAX_REFINEMENT, injection, refuse_periodic, solver_grids

DOMAIN = [(-1.0, 2.0), (0.0, 0.7)]
grids = st.builds(
    lambda shape, registration: Grid.uniform(shape, registration=registration, domain=DOMAIN),
    st.tuples(st.integers(2, 30), st.integers(2, 30)),
    st.sampled_from(["node", "node_both", "cell"]),
)


def intervals(grid):
    return [n - 1 for n in grid.shape]


@given(st.lists(grids, min_size=1, max_size=4))
def test_every_point_of_a_level_is_a_point_of_its_solver_grid(levels):
    solvers = solver_grids(levels)
    assert set(solvers) == set(levels)
    finest = [min(spacing) for spacing in zip(*(grid.spacing for grid in levels), strict=True)]
    for grid, solver in solvers.items():
        assert {axis.registration for axis in solver} == {"node_both"}
        for there, fine, axis in zip(injection(grid, solver), solver, grid, strict=True):
            np.testing.assert_allclose(fine.points[there], axis.points, rtol=0, atol=1e-12)
        assert all(h <= limit * (1 + 1e-12) for h, limit in zip(solver.spacing, finest, strict=True))
        # A cell grid's own solver grid has half its spacing, and sharing costs MAX_REFINEMENT at most.
        assert all(2 * MAX_REFINEMENT * h >= limit for h, limit in zip(solver.spacing, finest, strict=True))


@pytest.mark.parametrize(
    ("registration", "sizes", "resolution", "expected"),
    [
        ("node", (16, 32, 64), None, {64}),
        ("node_both", (17, 33, 65), None, {64}),
        ("cell", (16, 32, 64), None, {128}),
        ("node", (48, 64), None, {192}),
        ("node", (60, 61), None, {61, 120}),
        ("node", (16, 32, 61), None, {61, 64}),
        ("node", (60, 61), 3660, {3660}),
        ("node", (16, 32), 96, {96}),
        ("cell", (16,), 64, {64}),
    ],
)
def test_solver_resolution(registration, sizes, resolution, expected):
    levels = [Grid.uniform((n, n), registration=registration) for n in sizes]
    solvers = solver_grids(levels, resolution)
    assert {n for solver in solvers.values() for n in intervals(solver)} == expected


def test_refuses_what_no_solver_grid_can_hold():
    grid = Grid.uniform((16, 16))
    with pytest.raises(InputError, match="no grids"):
        solver_grids([])
    with pytest.raises(InputError, match="different domains"):
        solver_grids([grid, Grid.uniform((16, 16), domain=DOMAIN)])
    with pytest.raises(InputError, match="different domains"):
        solver_grids([grid, Grid.uniform((16,))])
    with pytest.raises(InputError, match=r"resolution of 40 does not hold.*multiple of 48"):
        solver_grids([grid, Grid.uniform((24, 24))], 40)
    with pytest.raises(InputError, match="axis 'x' is periodic"):
        refuse_periodic(Grid.uniform((8, 8), periodic=[False, True]))
