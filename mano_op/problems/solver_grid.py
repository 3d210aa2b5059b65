"""On which grid to solve, so that all levels of a data set are samplings of one solution.

A coarse level that is solved on its own carries its own discretisation error, and a model that is
judged against it is charged with the difference of two solvers. Reading every level off one fine
solution leaves a single, smaller error that is the same at every level.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid

# How many times finer than the finest level a shared solver grid may get before the levels part.
MAX_REFINEMENT = 4


def solver_grids(grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
    """The grid on which to solve for each of `grids`: if possible one and the same for all of them.

    A solver grid has points on both ends of every axis, so that the coefficient is known up to the
    boundary, and holds every point of the grid that it serves, so that the solution is read off
    there and never interpolated.

    Parameters
    ----------
    grids : iterable of Grid
        Over one domain, not periodic.
    resolution : int, optional
        Intervals of the solver grid along each axis. If not given, the fewest that hold all of the
        grids (64 for ``node`` grids of 16, 32 and 64 points, 128 for ``cell`` grids). Where that is
        over 4 times finer than the finest grid needs, as for 60 and 61 points, each grid gets a
        solver grid of its own, at least as fine as the finest grid.

    Raises
    ------
    InputError
        If there are no grids, their domains differ, an axis is periodic, or some grid has points
        between those of the `resolution` asked for.

    Examples
    --------
    >>> levels = [Grid.uniform((n, n), registration="cell") for n in (16, 32)]
    >>> {str(solver) for solver in solver_grids(levels).values()}
    {'y: 65 node_both on [0, 1] x x: 65 node_both on [0, 1]'}
    """
    levels = list(dict.fromkeys(grids))
    if not levels:
        raise InputError("no grids to solve for: pass at least one")
    for grid in levels:
        refuse_periodic(grid)
        if _domain(grid) != _domain(levels[0]):
            raise InputError(
                f"the grids {levels[0]} and {grid} cover different domains; expected one domain for all: "
                "sample each domain on its own"
            )
    needed = [[_intervals(axis) for axis in grid] for grid in levels]
    shared = [math.lcm(*along) for along in zip(*needed, strict=True)]
    finest = [max(along) for along in zip(*needed, strict=True)]
    if resolution is not None:
        if resolution < 1 or any(resolution % intervals for intervals in shared):
            raise InputError(
                f"a solver resolution of {resolution} does not hold all points of the levels; expected a "
                f"multiple of {math.lcm(*shared)}"
            )
        shared = [resolution] * len(shared)
    elif any(n > MAX_REFINEMENT * limit for n, limit in zip(shared, finest, strict=True)):
        own = [[n * -(-limit // n) for n, limit in zip(own, finest, strict=True)] for own in needed]
        return {grid: _closed(grid, n) for grid, n in zip(levels, own, strict=True)}
    return {grid: _closed(grid, shared) for grid in levels}


def injection(grid: Grid, solver: Grid) -> tuple[slice, ...]:
    """Where the points of `grid` are among those of its solver grid."""
    steps = [round(axis.spacing / fine.spacing) for axis, fine in zip(grid, solver, strict=True)]
    return tuple(
        slice(round(axis.offset * step), (axis.n - 1) * step + round(axis.offset * step) + 1, step)
        for axis, step in zip(grid, steps, strict=True)
    )


def refuse_periodic(grid: Grid) -> None:
    """Raise an `InputError` if an axis of the grid wraps, and so has no boundary."""
    for axis in grid:
        if axis.periodic:
            raise InputError(
                f"axis {axis.name!r} is periodic, but the problem has a boundary at both of its ends: "
                "pass a grid with periodic=False"
            )


def _intervals(axis: Axis) -> int:
    """The fewest equal intervals whose ends include all points of the axis."""
    return {"node": axis.n, "node_both": axis.n - 1, "cell": 2 * axis.n}[axis.registration]


def _closed(grid: Grid, intervals: Sequence[int]) -> Grid:
    """The grid over the same domain with points on both ends of `intervals` intervals."""
    return Grid(
        tuple(
            Axis(axis.name, n + 1, axis.start, axis.stop, "node_both")
            for axis, n in zip(grid, intervals, strict=True)
        )
    )


def _domain(grid: Grid) -> list[tuple[str, float, float]]:
    return [(axis.name, axis.start, axis.stop) for axis in grid]
