"""Grids to solve on, chosen so that all resolutions of a data set sample one solution.

A coarse field that is solved on its own has its own discretisation error, which a model evaluated on it is
charged with. Resolutions that sample one fine solution share a smaller error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.errors import InputError, check_whole
from mano_op.grid import Grid, Registration

# Refinement of a shared solver grid over the grid that the finest resolution needs, at most.
MAX_REFINEMENT = 4


def solver_grids(grids: Iterable[Grid], resolution: int | None = None) -> dict[Grid, Grid]:
    """Choose for each of `grids` a grid to solve on that contains its points; one for all, if possible.

    A solver grid has points at both ends of every axis, so the coefficient is known up to the boundary. The
    solution is read off at the points of a grid, never interpolated.

    Parameters
    ----------
    grids : iterable of Grid
        At least one, all over one domain, not periodic.
    resolution : int, optional
        Intervals of the solver grid along each axis. If not given, the fewest that hold all grids (64 for
        ``node`` grids of 16, 32 and 64 points, 128 for ``cell`` grids). Where that is over 4 times finer than
        the finest grid needs, as for 60 and 61 points, each grid gets its own solver grid, at least as fine
        as the finest grid.

    Raises
    ------
    InputError
        If there are no grids, their domains differ, an axis is periodic, or the solver grid would not hold
        all points.

    Examples
    --------
    >>> cells = [Grid.uniform((n, n), registration="cell") for n in (16, 32)]
    >>> {str(solver) for solver in solver_grids(cells).values()}
    {'y: 65 node_both on [0, 1] x x: 65 node_both on [0, 1]'}
    """
    distinct = _distinct(grids, periodic=False)
    # The fewest equal intervals whose ends include all points of an axis.
    needed = [[axis.intervals * (1 + (axis.registration == "cell")) for axis in grid] for grid in distinct]
    shared = [math.lcm(*along) for along in zip(*needed, strict=True)]
    finest = [max(along) for along in zip(*needed, strict=True)]
    if resolution is not None:
        _check_resolution(resolution, math.lcm(*shared), 1, "so that the grid holds all points")
        shared = [resolution] * len(shared)
    elif any(n > MAX_REFINEMENT * limit for n, limit in zip(shared, finest, strict=True)):
        separate = [[n * -(-limit // n) for n, limit in zip(own, finest, strict=True)] for own in needed]
        return {grid: _closed(grid, n) for grid, n in zip(distinct, separate, strict=True)}
    return {grid: _closed(grid, shared) for grid in distinct}


def spectral_grids(
    grids: Iterable[Grid], resolution: int | None, *, at_least: int, periodic: bool
) -> dict[Grid, Grid]:
    """Choose one grid on which a spectral method solves for all of `grids`.

    A spectral solution has a value everywhere, so the solver grid need not contain the points of `grids`.
    It has `resolution` points along each axis, an even number that is `at_least` so large. By default it has
    as many as the finest grid. Its axes are periodic ``node`` axes, for sines and cosines, or ``cell`` axes,
    for cosines alone. Errors are those of `solver_grids`.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n,), periodic=True, registration="cell") for n in (20, 75))
    >>> str(spectral_grids([coarse, fine], None, at_least=64, periodic=True)[coarse])
    'x: 76 node periodic on [0, 1]'
    """
    distinct = _distinct(grids, periodic)
    if resolution is None:
        resolution = max(at_least, *(n for grid in distinct for n in grid.shape))
        resolution += resolution % 2
    _check_resolution(resolution, 2, at_least, "or fewer n_modes")
    kind: Registration = "node" if periodic else "cell"
    axes = (replace(axis, n=resolution, registration=kind) for axis in distinct[0])
    return dict.fromkeys(distinct, Grid(tuple(axes)))


def injection(grid: Grid, solver: Grid) -> tuple[slice, ...]:
    """Slices of the points of `grid` among those of its solver grid."""
    slices = []
    for axis, fine in zip(grid, solver, strict=True):
        step = round(axis.spacing / fine.spacing)
        first = round(axis.offset * step)
        slices.append(slice(first, first + (axis.n - 1) * step + 1, step))
    return tuple(slices)


def interior(grid: Grid) -> tuple[slice, ...]:
    """Slices of the points that are not on the boundary."""
    inner = {"node": slice(1, None), "node_both": slice(1, -1), "cell": slice(None)}
    return tuple(inner[axis.registration] for axis in grid)


def check_periodic(periodic: bool, grid: Grid, n_dim: int | None = None) -> None:
    """Raise `InputError` unless all axes of the grid, `n_dim` if given, are as `periodic`."""
    if any(axis.periodic != periodic for axis in grid) or n_dim not in (None, grid.n_dim):
        reason = "the fields wrap" if periodic else "the problem has a boundary at both ends of an axis"
        raise InputError(
            f"a grid of {grid}; expected {n_dim or 'all'} axes with periodic={periodic}, as {reason}"
        )


def field_values(
    name: str, values: ArrayLike, shape: tuple[int, ...], *, positive: bool = False
) -> NDArray[np.float64]:
    """Convert a field to float64; `InputError` if its shape differs or a value is not finite and positive."""
    field = np.asarray(values, dtype=np.float64)
    if field.shape != shape:
        raise InputError(f"{name} of shape {field.shape}, expected {shape}: values at the points of the grid")
    usable = np.isfinite(field) & (field > 0) if positive else np.isfinite(field)
    if not usable.all():
        index = tuple(int(i) for i in np.argwhere(~usable)[0])
        wanted = "positive and finite" if positive else "finite"
        raise InputError(f"{name}{list(index)} = {field[index]}; expected {wanted} values everywhere")
    return field


def _distinct(grids: Iterable[Grid], periodic: bool) -> list[Grid]:
    distinct = list(dict.fromkeys(grids))
    if len({tuple((axis.name, axis.start, axis.stop) for axis in grid) for grid in distinct}) != 1:
        raise InputError(
            f"no grids, or over different domains: {'; '.join(map(str, distinct)) or 'none'}. Expected at "
            "least one, all over one domain: sample each domain on its own"
        )
    for grid in distinct:
        check_periodic(periodic, grid)
    return distinct


def _check_resolution(resolution: int, multiple: int, at_least: int, reason: str) -> None:
    check_whole(solver_resolution=resolution)
    if resolution % multiple or resolution < at_least:
        least = f", at least {at_least}" if at_least > 1 else ""
        raise InputError(
            f"solver_resolution={resolution}; expected a multiple of {multiple}{least}, {reason}"
        )


def _closed(grid: Grid, intervals: list[int]) -> Grid:
    """The grid over the same domain with points on both ends of the intervals."""
    axes = zip(grid, intervals, strict=True)
    return Grid(tuple(replace(axis, n=n + 1, registration="node_both") for axis, n in axes))
