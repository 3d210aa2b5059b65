"""Grids to solve on, chosen so that all levels of a data set sample one solution.

A coarse level solved on its own has its own discretisation error, and a model judged against it is charged
with the difference of two solvers. Levels sampled from one fine solution share a smaller error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.errors import InputError, check_whole
from mano_op.grid import Axis, Grid, Registration

# A solver grid that all levels share may be this many times finer than the finest level needs.
MAX_REFINEMENT = 4


def solver_grids(grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
    """Choose for each of `grids` a grid to solve on that contains its points; one for all, if possible.

    A solver grid has points on both ends of every axis: the coefficient is known up to the boundary. The
    solution is read off at the points of a level and never interpolated.

    Parameters
    ----------
    grids : iterable of Grid
        Over one domain, not periodic.
    resolution : int, optional
        Intervals of the solver grid along each axis. If not given, the fewest that hold all grids (64 for
        ``node`` grids of 16, 32 and 64 points, 128 for ``cell`` grids). Where they are over 4 times finer
        than the finest grid needs, as for 60 and 61 points, each grid gets its own solver grid, at least as
        fine as the finest grid.

    Returns
    -------
    dict of Grid to Grid

    Raises
    ------
    InputError
        If there are no grids, their domains differ, an axis is periodic, or a grid has points
        between those of the `resolution`.

    Examples
    --------
    >>> levels = [Grid.uniform((n, n), registration="cell") for n in (16, 32)]
    >>> {str(solver) for solver in solver_grids(levels).values()}
    {'y: 65 node_both on [0, 1] x x: 65 node_both on [0, 1]'}
    """
    levels = _levels(grids, periodic=False)
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
        separate = [[n * -(-limit // n) for n, limit in zip(own, finest, strict=True)] for own in needed]
        return {grid: _closed(grid, n) for grid, n in zip(levels, separate, strict=True)}
    return {grid: _closed(grid, shared) for grid in levels}


def spectral_grids(
    grids: Iterable[Grid], resolution: int | None, *, at_least: int, periodic: bool
) -> dict[Grid, Grid]:
    """Choose the one grid on which a spectral method solves for all of `grids`.

    A spectral solution has a value everywhere: the solver grid need not contain the points of the levels.

    Parameters
    ----------
    grids : iterable of Grid
        Over one domain.
    resolution : int, optional
        Points along each axis, an even number; if not given, the fewest that the others and `at_least` allow.
    at_least : int
        The fewest that hold the initial fields.
    periodic : bool
        Solve with sines and cosines on a periodic ``node`` grid, or with cosines alone on a ``cell`` grid.

    Returns
    -------
    dict of Grid to Grid
        The same solver grid for each.

    Raises
    ------
    InputError
        If there are no grids, their domains differ, an axis is not as `periodic`, or the resolution is
        odd or too small.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n,), periodic=True, registration="cell") for n in (20, 75))
    >>> str(spectral_grids([coarse, fine], None, at_least=64, periodic=True)[coarse])
    'x: 76 node periodic on [0, 1]'
    """
    levels = _levels(grids, periodic)
    if resolution is None:
        resolution = max(at_least, *(n for grid in levels for n in grid.shape))
        resolution += resolution % 2
    check_whole(solver_resolution=resolution)
    if resolution < at_least or resolution % 2:
        raise InputError(
            f"a solver resolution of {resolution}; expected an even number of at least {at_least}, which "
            "the initial fields have modes for: ask for more points, or for fewer n_modes"
        )
    kind: Registration = "node" if periodic else "cell"
    axes = (replace(axis, n=resolution, registration=kind) for axis in levels[0])
    return dict.fromkeys(levels, Grid(tuple(axes)))


def injection(grid: Grid, solver: Grid) -> tuple[slice, ...]:
    """Slices of the points of `grid` among those of its solver grid."""
    steps = [round(axis.spacing / fine.spacing) for axis, fine in zip(grid, solver, strict=True)]
    return tuple(
        slice(round(axis.offset * step), (axis.n - 1) * step + round(axis.offset * step) + 1, step)
        for axis, step in zip(grid, steps, strict=True)
    )


def interior(grid: Grid) -> tuple[slice, ...]:
    """Slices of the points that are not on the boundary."""
    inner = {"node": slice(1, None), "node_both": slice(1, -1), "cell": slice(None)}
    return tuple(inner[axis.registration] for axis in grid)


def check_periodic(periodic: bool, grid: Grid) -> None:
    """Raise `InputError` if an axis of the grid is not as `periodic`."""
    for axis in grid:
        if axis.periodic != periodic:
            reason = "the fields wrap" if periodic else "the problem has a boundary at both of its ends"
            raise InputError(
                f"axis {axis.name!r} is {'' if axis.periodic else 'not '}periodic, but {reason}: "
                f"pass a grid with periodic={periodic}"
            )


def field_values(
    name: str, values: ArrayLike, shape: tuple[int, ...], *, positive: bool = False
) -> NDArray[np.float64]:
    """Convert a field to float64; `InputError` if its shape differs or a value is not finite and positive."""
    field = np.asarray(values, dtype=np.float64)
    if field.shape != shape:
        raise InputError(
            f"{name} of shape {field.shape}, expected {shape}: pass values at the points of the grid"
        )
    usable = np.isfinite(field) & (field > 0) if positive else np.isfinite(field)
    if not usable.all():
        index = tuple(int(i) for i in np.argwhere(~usable)[0])
        wanted = "positive and finite" if positive else "finite"
        raise InputError(f"{name}{list(index)} = {field[index]}; expected {wanted} values everywhere")
    return field


def _levels(grids: Iterable[Grid], periodic: bool) -> list[Grid]:
    levels = list(dict.fromkeys(grids))
    if not levels:
        raise InputError("no grids to solve for: pass at least one")
    domains = [[(axis.name, axis.start, axis.stop) for axis in grid] for grid in levels]
    for grid, domain in zip(levels, domains, strict=True):
        check_periodic(periodic, grid)
        if domain != domains[0]:
            raise InputError(
                f"the grids {levels[0]} and {grid} cover different domains; expected one domain for all: "
                "sample each domain on its own"
            )
    return levels


def _intervals(axis: Axis) -> int:
    """The fewest equal intervals whose ends include all points of the axis."""
    return {"node": axis.n, "node_both": axis.n - 1, "cell": 2 * axis.n}[axis.registration]


def _closed(grid: Grid, intervals: list[int]) -> Grid:
    """The grid over the same domain with points on both ends of the intervals."""
    axes = zip(grid, intervals, strict=True)
    return Grid(tuple(replace(axis, n=n + 1, registration="node_both") for axis, n in axes))
