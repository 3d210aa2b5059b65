"""On which grid a spectral method solves, so that all levels of a data set are samplings of one solution.

A spectral solution is a series, which has a value everywhere: unlike the solver grids of `solver_grid`,
this one need not hold the points of the levels, and levels of any sizes have it in common.
"""

from __future__ import annotations

from collections.abc import Iterable

from mano_op.errors import InputError, check_whole
from mano_op.grid import Axis, Grid, Registration


def spectral_grids(
    grids: Iterable[Grid], resolution: int | None, *, at_least: int, periodic: bool
) -> dict[Grid, Grid]:
    """The one grid on which a spectral method solves for all of `grids`.

    Parameters
    ----------
    grids : iterable of Grid
        Over one domain, all of their axes periodic, or none.
    resolution : int, optional
        Points along each axis, an even number. If not given, the smallest that is not below `at_least`
        nor below any level's.
    at_least : int
        The fewest that hold the initial fields.
    periodic : bool
        Whether to solve with sines and cosines on a periodic ``node`` grid, or with cosines alone on
        a ``cell`` grid.

    Returns
    -------
    dict
        The grid to solve on, the same for each.

    Raises
    ------
    InputError
        If there are no grids, their domains differ, an axis wraps where it should not or does not where
        it should, or the resolution is odd or too small.

    Examples
    --------
    >>> coarse, fine = (Grid.uniform((n,), periodic=True, registration="cell") for n in (20, 75))
    >>> str(spectral_grids([coarse, fine], None, at_least=64, periodic=True)[coarse])
    'x: 76 node periodic on [0, 1]'
    """
    levels = list(dict.fromkeys(grids))
    if not levels:
        raise InputError("no grids to solve for: pass at least one")
    expect_periodic(periodic, *levels)
    for grid in levels:
        expect_one_domain(levels[0], grid)
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
    axes = (Axis(axis.name, resolution, axis.start, axis.stop, kind, periodic) for axis in levels[0])
    return dict.fromkeys(levels, Grid(tuple(axes)))


def expect_periodic(periodic: bool, *grids: Grid) -> None:
    """Raise an `InputError` if an axis of a grid does not wrap, or none should and it does."""
    for grid in grids:
        for axis in grid:
            if axis.periodic != periodic:
                reason = "the fields wrap" if periodic else "the problem has a boundary at both of its ends"
                raise InputError(
                    f"axis {axis.name!r} is {'' if axis.periodic else 'not '}periodic, but {reason}: "
                    f"pass a grid with periodic={periodic}"
                )


def expect_one_domain(first: Grid, second: Grid) -> None:
    """Raise an `InputError` if two grids do not have the same axes over the same box."""
    domains = [[(axis.name, axis.start, axis.stop) for axis in grid] for grid in (first, second)]
    if domains[0] != domains[1]:
        raise InputError(
            f"the grids {first} and {second} cover different domains; expected one domain for all: "
            "sample each domain on its own"
        )
