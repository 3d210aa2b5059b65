"""Interpolation along axes of a grid as banded matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.grid import Axis

# Rows, or columns if there are more of them, that one dense block of a banded matrix stands for.
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class Banded:
    """A matrix whose rows have a few neighbouring columns each, as dense blocks of consecutive rows.

    Memory and time are linear in its sides.

    Attributes
    ----------
    blocks : list of (int array or None, float array)
        Columns of a block, None for all of them, and its entries.

    Examples
    --------
    >>> matrix = np.eye(300)
    >>> banded = Banded.of((300, 300), lambda rows: (np.arange(300)[rows], matrix[rows, rows]))
    >>> [block.shape for _, block in banded.blocks]
    [(128, 128), (128, 128), (44, 44)]
    >>> banded.apply(torch.arange(300.0)[None, None], 2)[..., 127:130]
    tensor([[[127., 128., 129.]]])
    """

    blocks: list[tuple[NDArray[np.int64] | None, NDArray[np.float64]]]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        block_of: Callable[[slice], tuple[NDArray[np.int64], NDArray[np.float64]]],
    ) -> Banded:
        """Build the matrix from a function that returns the columns and the entries of some rows."""
        n_rows, n_columns = shape
        step = max(1, _BLOCK * n_rows // max(n_rows, n_columns))
        made = [block_of(slice(first, min(first + step, n_rows))) for first in range(0, n_rows, step)]
        return cls([(None if len(columns) == n_columns else columns, dense) for columns, dense in made])

    def apply(self, x: Tensor, dim: int) -> Tensor:
        """Multiply a dimension of a field by the matrix."""
        parts = []
        for columns, dense in self.blocks:
            part = x
            if columns is not None:
                part = x.index_select(dim, torch.as_tensor(columns, device=x.device))
            weights = torch.from_numpy(dense).to(x)
            parts.append(torch.movedim(torch.movedim(part, dim, -1) @ weights.T, -1, dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _columns(axis: Axis, first: int, last: int) -> NDArray[np.int64]:
    """The points of an axis between two positions, which may be past its ends."""
    if axis.periodic:
        return np.unique(np.arange(first, min(last, first + axis.n - 1) + 1) % axis.n)
    return np.arange(max(first, 0), min(last, axis.n - 1) + 1)


def lagrange(source: Axis, target: Axis, points: int, *, beyond: bool = False) -> Banded | None:
    r"""Return the matrix of Lagrange interpolation through `points` points near y_j, fewer at the ends.

    It is :math:`M_{ji} = \prod_{l \ne i} (y_j - x_l) / (x_i - x_l)`. Beyond the outermost points of
    an axis that does not wrap it has their values or, with `beyond`, extrapolates. None stands for the
    identity, of an axis with as many points.
    """
    if source.n == target.n:
        return None
    n, half = source.n, points // 2
    at = source.positions(target)
    if not (source.periodic or beyond):
        at = at.clip(0, n - 1)

    def block_of(rows: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        y = at[rows, None]
        near = np.floor(y).astype(np.int64) + np.arange(1 - half, half + 1)
        if source.periodic:
            used = np.broadcast_to(np.arange(points) < n, near.shape)
        else:
            used = (near >= 0) & (near < n)
        steps = near[:, :, None] - near[:, None, :]  # from each other point to each
        skip = (steps == 0) | ~used[:, None, :]
        weights = np.where(skip, 1.0, (y - near)[:, None, :] / np.where(skip, 1, steps)).prod(axis=2)
        columns = _columns(source, int(near.min()), int(near.max()))
        dense = np.zeros((len(y), len(columns)))
        row = np.nonzero(used)[0]
        np.add.at(dense, (row, np.searchsorted(columns, near[used] % n)), weights[used])
        return columns, dense

    return Banded.of((target.n, n), block_of)
