r"""Evaluation of a spectral solution at the points of any grid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mano_op.grid import Axis, Grid


def evaluate_series(values: ArrayLike, source: Grid, grid: Grid) -> NDArray[np.float64]:
    r"""Evaluate the series through values on a solver grid, at the points of another grid.

    Along a periodic axis with n points :math:`x_i = a + iL/n` it is the trigonometric polynomial

    .. math:: u(x) = \sum_{i=0}^{n-1} u_i\, D\Big(\frac{x - x_i}{L}\Big), \qquad D(t) =
              \frac1n \Big(1 + 2 \sum_{1 \le k < n/2} \cos 2\pi k t + [n \text{ even}] \cos \pi n t\Big),

    exact for wavenumbers below n/2; of wavenumber n/2 it has the cosine, as the sine is 0 at the points.
    Along an axis with n cells, :math:`x_i = a + (i + 1/2) L/n`, it is the cosine series

    .. math:: u(x) = \sum_{i=0}^{n-1} u_i\, \frac1n \Big(1 + 2 \sum_{k=1}^{n-1}
              \cos\frac{\pi k (x_i - a)}{L} \cos\frac{\pi k (x - a)}{L}\Big).

    `values` has the shape ``(..., *source.shape)``, the result ``(..., *grid.shape)``, in float64. The source
    has periodic ``node`` axes, or ``cell`` axes that are not periodic, as `spectral_grids` makes them; `grid`
    has any shape and registration, over the same domain.

    Examples
    --------
    >>> source = Grid.uniform((5,), registration="cell")
    >>> grid = Grid.uniform((9,), registration="node_both")
    >>> wave = evaluate_series(np.cos(4 * np.pi * source.points[0]), source, grid)
    >>> bool(np.allclose(wave, np.cos(4 * np.pi * grid.points[0])))
    True
    """
    field = np.asarray(values, dtype=np.float64)
    leading = field.shape[: field.ndim - source.n_dim]
    field = field.reshape(-1, *source.shape)
    for n, axis in zip(source.shape, grid, strict=True):  # sums over the second index
        kernel = _fourier_kernel(n, axis) if axis.periodic else _cosine_kernel(n, axis)
        field = np.einsum("ti...,ij->t...j", field, kernel)
    return np.ascontiguousarray(field).reshape(*leading, *grid.shape)


@lru_cache(maxsize=32)
def _fourier_kernel(n: int, axis: Axis) -> NDArray[np.float64]:
    """D((x_j - x_i) / L) of n nodes i and the points j of the axis, shape ``(n, axis.n)``."""
    k = np.arange(n // 2 + 1)[:, np.newaxis]
    weight = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / n
    # Without whole turns, which would cost the angle digits.
    points = 2 * np.pi * np.mod(k * ((axis.points - axis.start) / axis.length), 1.0)
    nodes = 2 * np.pi * (k * np.arange(n) % n) / n
    return np.einsum("ki,kj->ij", np.cos(nodes), weight * np.cos(points)) + np.einsum(
        "ki,kj->ij", np.sin(nodes), weight * np.sin(points)
    )


@lru_cache(maxsize=32)
def _cosine_kernel(n: int, axis: Axis) -> NDArray[np.float64]:
    """Weight of each of n cells at each point of the axis, shape ``(n, axis.n)``."""
    k = np.arange(n)[:, np.newaxis]
    weight = np.where(k == 0, 1.0, 2.0) / n
    points = np.pi * np.mod(k * ((axis.points - axis.start) / axis.length), 2.0)  # whole turns off, as above
    cells = np.pi * (k * (2 * np.arange(n) + 1) % (4 * n)) / (2 * n)
    return np.einsum("ki,kj->ij", np.cos(cells), weight * np.cos(points))
