"""Grids to solve on: those that contain the points of the levels, and those of spectral methods."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.solver_grid import MAX_REFINEMENT, injection, solver_grids, spectral_grids

DOMAIN = [(-1.0, 2.0), (0.0, 0.7)]
grids = st.builds(
    lambda shape, registration: Grid.uniform(shape, registration=registration, domain=DOMAIN),
    st.tuples(st.integers(2, 30), st.integers(2, 30)),
    st.sampled_from(["node", "node_both", "cell"]),
)
shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(st.lists(grids, min_size=1, max_size=4))
def test_solver_grid_contains_every_point_of_its_level(levels):
    solvers = solver_grids(levels)
    assert set(solvers) == set(levels)
    finest = [min(spacing) for spacing in zip(*(grid.spacing for grid in levels), strict=True)]
    for grid, solver in solvers.items():
        assert {axis.registration for axis in solver} == {"node_both"}
        for points, fine, axis in zip(injection(grid, solver), solver, grid, strict=True):
            np.testing.assert_allclose(fine.points[points], axis.points, rtol=0, atol=1e-12)
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
def test_intervals_of_solver_grids_are_the_fewest_or_those_asked_for(
    registration, sizes, resolution, expected
):
    solvers = solver_grids([Grid.uniform((n, n), registration=registration) for n in sizes], resolution)
    assert {n - 1 for solver in solvers.values() for n in solver.shape} == expected


@given(st.lists(shapes, min_size=1, max_size=4), st.integers(1, 64), st.booleans())
def test_spectral_grid_is_shared_and_no_coarser_than_the_levels(shapes, at_least, periodic):
    levels = [Grid.uniform(shape, domain=DOMAIN, periodic=periodic) for shape in shapes]
    solvers = spectral_grids(levels, None, at_least=at_least, periodic=periodic)
    assert set(solvers) == set(levels)
    (solver,) = set(solvers.values())
    finest = max(at_least, *(n for shape in shapes for n in shape))
    n, kind = finest + finest % 2, "node" if periodic else "cell"
    axes = [Axis(name, n, *ends, kind, periodic) for name, ends in zip("yx", DOMAIN, strict=True)]
    assert solver == Grid(tuple(axes))


def test_spectral_grid_may_be_coarser_than_a_level():
    grid = Grid.uniform((80,), periodic=True)
    assert spectral_grids([grid], 32, at_least=32, periodic=True)[grid] == Grid.uniform((32,), periodic=True)


ENDS, WRAPS = Grid.uniform((16, 16)), Grid.uniform((16, 16), periodic=True)
MIXED = Grid.uniform((16, 16), periodic=[False, True])


@pytest.mark.parametrize(
    ("grids", "resolution", "periodic", "message"),
    [
        ([], None, None, "no grids"),
        ([ENDS, Grid.uniform((16, 16), domain=DOMAIN)], None, None, "different domains: y: 16 node on"),
        ([ENDS, Grid.uniform((16,))], None, None, "different domains"),
        (
            [ENDS, Grid.uniform((24, 24))],
            40,
            None,
            "solver_resolution=40; expected a multiple of 48, so that",
        ),
        ([ENDS, MIXED], None, None, "expected all axes with periodic=False, as the problem has a boundary"),
        ([WRAPS, ENDS], None, True, "expected all axes with periodic=True, as the fields wrap"),
        ([WRAPS], 6, True, "solver_resolution=6; expected a multiple of 2, at least 8"),
        ([WRAPS], 31, True, "solver_resolution=31; expected a multiple of 2"),
        ([WRAPS], 8.0, True, r"solver_resolution=8\.0"),
    ],
)
def test_levels_and_resolutions_that_do_not_fit_are_refused(grids, resolution, periodic, message):
    with pytest.raises(InputError, match=message):
        if periodic is None:
            solver_grids(grids, resolution)
        else:
            spectral_grids(grids, resolution, at_least=8, periodic=periodic)
