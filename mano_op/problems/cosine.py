r"""Fields with zero slope at both ends, from a spectral solver, at the points of any grid.

What a method with cosines finds on n cells is a cosine series. Evaluated at the points of any grid, of
any size and registration, it is the same function on each, and nothing is interpolated.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.spectral_grid import expect_one_domain, expect_periodic


def evaluate_cosines(values: ArrayLike, source: Grid, grid: Grid) -> NDArray[np.float64]:
    r"""The cosine series through values at the centres of cells, at the points of another grid.

    Along an axis with n cells, whose centres are :math:`x_i = a + (i + 1/2) L/n`, it is

    .. math:: u(x) = \sum_{i=0}^{n-1} u_i\, \frac1n \Big(1 + 2 \sum_{k=1}^{n-1}
              \cos\frac{\pi k (x_i - a)}{L} \cos\frac{\pi k (x - a)}{L}\Big).

    Parameters
    ----------
    values : array_like
        Shape ``(..., *source.shape)``; leading dimensions, time say, are kept.
    source : Grid
        ``cell``, not periodic.
    grid : Grid
        Any shape, any registration, over the same domain, not periodic.

    Returns
    -------
    numpy.ndarray
        Shape ``(..., *grid.shape)``, float64.

    Raises
    ------
    InputError
        If the shape does not fit, the domains differ, an axis is periodic, or the source is not ``cell``.

    Examples
    --------
    >>> source = Grid.uniform((5,), registration="cell")
    >>> grid = Grid.uniform((9,), registration="node_both")
    >>> wave = evaluate_cosines(np.cos(4 * np.pi * source.points[0]), source, grid)
    >>> bool(np.allclose(wave, np.cos(4 * np.pi * grid.points[0])))
    True
    """
    field = np.asarray(values, dtype=np.float64)
    expect_periodic(False, source, grid)
    expect_one_domain(source, grid)
    if any(axis.registration != "cell" for axis in source):
        raise InputError(f"the source is {source}; expected registration='cell', as a transform takes it")
    if field.shape[-source.n_dim :] != source.shape:
        raise InputError(
            f"values of shape {field.shape}, expected (..., {', '.join(map(str, source.shape))})"
        )
    leading = field.shape[: field.ndim - source.n_dim]
    field = field.reshape(-1, *source.shape)
    for n, axis in zip(source.shape, grid, strict=True):  # sums over the second index, appends the points
        field = np.einsum("ti...,ij->t...j", field, _series(n, axis))
    return np.ascontiguousarray(field).reshape(*leading, *grid.shape)


@lru_cache(maxsize=32)
def _series(n: int, axis: Axis) -> NDArray[np.float64]:
    """What each of n cells contributes at each point of the axis, shape ``(n, axis.n)``."""
    k = np.arange(n)[:, np.newaxis]
    weight = np.where(k == 0, 1.0, 2.0) / n
    # Whole turns are taken off first: an angle of many turns has lost as many of its digits.
    here = np.pi * np.mod(k * ((axis.points - axis.start) / axis.length), 2.0)
    cells = np.pi * (k * (2 * np.arange(n) + 1) % (4 * n)) / (2 * n)
    return np.einsum("ki,kj->ij", np.cos(cells), weight * np.cos(here))
