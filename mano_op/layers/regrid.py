r"""Resampling of features from the grid of a layer's input to that of its output, over one domain.

Along each axis, with points where the registration of `mano_op.grid` has them:

===========  ======  ====================================================================================
axis         target  values
===========  ======  ====================================================================================
wraps        any     the trigonometric interpolant, without the modes that the target cannot carry:
                     "spectral" of `mano_op.resample`, exact for :math:`|k| < m/2`, with m the smaller of the
                     two numbers of points
has ends     finer   the cubic through the four nearest points, the parabola or line through those there
                     are at the ends, and the line on beyond them
has ends     coarse  the mean over the control volume of the target's point, weighted so that it is the value
                     of a line: with the overlap :math:`o_i` of the volumes and :math:`d_i = x_i - y`,
                     :math:`w_i = o_i (a + b\, d_i)`, where a and b make :math:`\sum_i w_i = 1` and
                     :math:`\sum_i w_i d_i = 0`
===========  ======  ====================================================================================

All of them are exact for constants, and along an axis with ends for linear functions, up to the ends, where
a plain mean is not.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mano_op.grid import Axis, Grid
from mano_op.layers.interpolation import Banded, lagrange
from mano_op.resample import resample


def regrid(x: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample a field from one grid to another.

    Parameters
    ----------
    x : Tensor, ``(batch, channels, *source.shape)``
    source, target : Grid
        With one registration, over one domain, periodic along the same axes.

    Returns
    -------
    Tensor
        ``(batch, channels, *target.shape)``; differentiable. If the grids are equal, `x` itself.

    Examples
    --------
    A line, from sixteen cells to eight and to twelve:

    >>> cells = Grid.uniform((16,), registration="cell")
    >>> import torch
    >>> line = torch.tensor(cells.points[0])[None, None]
    >>> for n in (8, 12):
    ...     other = Grid.uniform((n,), registration="cell")
    ...     print(torch.allclose(regrid(line, cells, other), torch.tensor(other.points[0])))
    True
    True
    """
    pairs = list(zip(source, target, strict=True))
    wrapped = Grid(tuple(axis if axis.periodic else before for before, axis in pairs))
    x = resample(x, source, wrapped, "spectral")
    for dim, (before, axis) in enumerate(pairs, start=2):
        if not axis.periodic and (matrix := _matrix(before, axis)) is not None:
            x = matrix.apply(x, dim)
    return x


@lru_cache(maxsize=64)
def _matrix(source: Axis, target: Axis) -> Banded | None:
    """The matrix of an axis with ends; None for the identity."""
    return _means(source, target) if target.n < source.n else lagrange(source, target, 4, beyond=True)


def _means(source: Axis, target: Axis) -> Banded:
    """The means of the module's table."""

    def block_of(rows: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        left, right = target.bounds[rows].T
        first, last = ((end - source.points[0]) / source.spacing for end in (left.min(), right.max()))
        columns = np.arange(max(int(np.floor(first)) - 1, 0), min(int(np.ceil(last)) + 2, source.n))
        mean = source.averages(left, right, columns)
        # A volume of the coarser axis overlaps two of the finer one at least, so `spread` is not 0.
        from_target = source.points[columns] - target.points[rows, None]
        centre = (mean * from_target).sum(axis=1, keepdims=True)
        square = (mean * from_target**2).sum(axis=1, keepdims=True)
        spread = square - centre**2
        return columns, mean * (square - centre * from_target) / spread

    return Banded.of((target.n, source.n), block_of)
