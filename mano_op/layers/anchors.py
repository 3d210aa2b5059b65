r"""The reference grid of a layer, and the ways to it and back from any other grid.

What a layer has learned belongs to a length: the spacing :math:`h` of the grid it was trained on. So its
levels live on that grid, the reference, whatever grid :math:`x_i` a field comes on. Along each axis:

==================  =========================================================================================
step                what it does
==================  =========================================================================================
`lift`              an input that is coarser than the reference is put onto it, by linear interpolation
`smooth`            an input that is finer is averaged over the interval that one reference point stood for,
                    :math:`\bar x(y) = \sum_i |\omega_i \cap \Omega(y)| x_i / |\Omega(y)|`, with the control
                    volumes :math:`\omega_i` of its points (`Axis.bounds`): at y each of its own points,
`anchors`           or at y the points of the reference, whose control volumes are :math:`\Omega`; between
                    them the ends of :math:`\Omega(y)` are interpolated linearly
`interpolate`       a field on the reference at the points of the finer grid: the cubic through the four
                    nearest points, the parabola or line through those there are at the ends, and beyond
                    the outermost reference point its value
`settle`            back to the points of the input, where that was lifted
==================  =========================================================================================

On the reference grid itself all of them are the identity. On a finer one the average tends to an integral, at
second order, so what a layer makes of an input has a limit as the grid is refined.

Points between those of the reference are targets and not sources, so they may be mapped a box at a time, a
`Tile`. Every step is a banded matrix for each axis (`Banded`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.grid import Axis, Grid, Registration

# Rows, or columns if there are more of them, that one dense block of a banded matrix stands for.
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class Banded:
    """A matrix whose rows have a few neighbouring columns each, as dense blocks of consecutive rows.

    Memory and time are linear in its sides.

    Attributes
    ----------
    blocks : list of (slice, int array or None, float array)
        Rows of a block, its columns, None for all of them, and its entries.

    Examples
    --------
    >>> matrix = np.eye(300)
    >>> banded = Banded.of((300, 300), lambda rows: (np.arange(300)[rows], matrix[rows, rows]))
    >>> [block.shape for _, _, block in banded.blocks]
    [(128, 128), (128, 128), (44, 44)]
    >>> banded.apply(torch.arange(300.0)[None, None], 2, slice(127, 130))
    tensor([[[127., 128., 129.]]])
    """

    blocks: list[tuple[slice, NDArray[np.int64] | None, NDArray[np.float64]]]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        block_of: Callable[[slice], tuple[NDArray[np.int64], NDArray[np.float64]]],
    ) -> Banded:
        """Build the matrix from a function that returns the columns and the entries of some rows."""
        n_rows, n_columns = shape
        step = max(1, _BLOCK * n_rows // max(n_rows, n_columns))
        blocks: list[tuple[slice, NDArray[np.int64] | None, NDArray[np.float64]]] = []
        for first in range(0, n_rows, step):
            rows = slice(first, min(first + step, n_rows))
            columns, dense = block_of(rows)
            blocks.append((rows, None if len(columns) == n_columns else columns, dense))
        return cls(blocks)

    def apply(self, x: Tensor, dim: int, rows: slice = slice(None)) -> Tensor:
        """Multiply a dimension of a field by the matrix, or by consecutive rows of it."""
        first, last, _ = rows.indices(self.blocks[-1][0].stop)
        parts = []
        for block, columns, dense in self.blocks:
            start, stop = max(first, block.start), min(last, block.stop)
            if start >= stop:
                continue
            if stop - start < block.stop - block.start:  # which have fewer neighbours
                dense = dense[start - block.start : stop - block.start]
                used = np.flatnonzero(dense.any(axis=0))
                columns, dense = used if columns is None else columns[used], dense[:, used]
            part = x
            if columns is not None:
                part = x.index_select(dim, torch.as_tensor(columns, device=x.device))
            weights = torch.as_tensor(dense).to(x)
            parts.append(torch.movedim(torch.movedim(part, dim, -1) @ weights.T, -1, dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


@dataclass(frozen=True)
class Anchoring:
    """A grid beside the reference grid of a layer; see the module for the steps between them.

    Fields are ``(batch, channels, *grid)``.

    Parameters
    ----------
    source : Grid
        Of the input.
    reference : Grid
        Over the same domain.

    Examples
    --------
    >>> fine = anchoring((8,), (4,), "node", (True,))
    >>> x = torch.tensor([[[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]])
    >>> fine.anchors(x)
    tensor([[[0.5000, 0.5000, 0.5000, 0.5000]]])
    >>> coarse = anchoring((2,), (4,), "node", (False,))
    >>> coarse.lift(torch.tensor([[[0.0, 1.0]]]))
    tensor([[[0.0000, 0.5000, 1.0000, 1.0000]]])
    """

    source: Grid
    reference: Grid

    @cached_property
    def working(self) -> Grid:
        """The finer of the two along each axis."""
        pairs = zip(self.source, self.reference, strict=True)
        return Grid(tuple(source if source.n > reference.n else reference for source, reference in pairs))

    @property
    def refines(self) -> bool:
        """Whether there are points between those of the reference."""
        return self.working != self.reference

    @cached_property
    def queries_at(self) -> tuple[tuple[float, ...], ...]:
        """Positions of the points of the working grid along each axis, counted in those of the reference."""
        pairs = zip(self.reference, self.working, strict=True)
        return tuple(tuple(reference.positions(axis).tolist()) for reference, axis in pairs)

    @cached_property
    def whole(self) -> Tile:
        """The working grid as one tile."""
        return Tile(self, (slice(None),) * self.working.n_dim)

    def tiles(self, most: int) -> list[Tile]:
        """Cut the working grid into boxes of at most `most` points, or as small as they can be.

        They are slabs along the first axis, if one position of it has no more points. Axes without a point
        between two of the reference are not cut, so `settle` has all it needs in each box.
        """
        points, cuts = math.prod(self.working.shape), []
        for axis, here in zip(self.working, self.reference, strict=True):
            points //= axis.n
            if axis.n == here.n:
                cuts.append([slice(None)])
                most //= axis.n
                continue
            width = min(axis.n, max(1, most // points))
            count = -(-axis.n // width)
            edges = [axis.n * i // count for i in range(count + 1)]
            cuts.append([slice(*pair) for pair in pairwise(edges)])
            most //= width
        return [Tile(self, cut) for cut in product(*cuts)]

    @cached_property
    def _lift(self) -> list[Banded | None]:
        return [lagrange(axis, working, 2) for axis, working in zip(self.source, self.working, strict=True)]

    @cached_property
    def _anchors(self) -> list[Banded | None]:
        pairs = zip(self.working, self.reference, strict=True)
        return [_averages(axis, reference, reference.points) for axis, reference in pairs]

    @cached_property
    def _smooth(self) -> list[Banded | None]:
        pairs = zip(self.working, self.reference, strict=True)
        return [_averages(axis, reference, axis.points) for axis, reference in pairs]

    @cached_property
    def _interpolate(self) -> list[Banded | None]:
        pairs = zip(self.reference, self.working, strict=True)
        return [lagrange(reference, axis, 4) for reference, axis in pairs]

    @cached_property
    def _settle(self) -> list[Banded | None]:
        return [lagrange(axis, source, 4) for axis, source in zip(self.working, self.source, strict=True)]

    def lift(self, x: Tensor) -> Tensor:
        """Interpolate from the source to the working grid."""
        return _apply(self._lift, x)

    def smooth(self, x: Tensor) -> Tensor:
        """Average a field on the working grid at its points."""
        return _apply(self._smooth, x)

    def anchors(self, x: Tensor) -> Tensor:
        """Average a field on the working grid at the points of the reference."""
        return _apply(self._anchors, x)

    def interpolate(self, x: Tensor) -> Tensor:
        """Interpolate from the reference to the working grid."""
        return _apply(self._interpolate, x)

    def settle(self, x: Tensor) -> Tensor:
        """Interpolate from the working grid to the source."""
        return _apply(self._settle, x)


@dataclass(frozen=True)
class Tile:
    """A box of the points of the working grid, with those steps of an `Anchoring` that end at them.

    Parameters
    ----------
    place : Anchoring
    cut : tuple of slice
        Of each axis of the working grid; all of an axis along which that is no finer than the reference.

    Examples
    --------
    >>> place = anchoring((8,), (4,), "node", (True,))
    >>> x = torch.arange(8.0)[None, None]
    >>> first, second = place.tiles(most=4)
    >>> first.queries_at
    ((0.0, 0.5, 1.0, 1.5),)
    >>> torch.equal(torch.cat([first.smooth(x), second.smooth(x)], dim=2), place.smooth(x))
    True
    """

    place: Anchoring
    cut: tuple[slice, ...]

    @property
    def queries_at(self) -> tuple[tuple[float, ...], ...]:
        """Positions of the points along each axis, counted in those of the reference."""
        return tuple(at[part] for at, part in zip(self.place.queries_at, self.cut, strict=True))

    @property
    def points(self) -> list[Tensor]:
        """The coordinates of each axis, in double precision."""
        axes = zip(self.place.working, self.cut, strict=True)
        return [torch.as_tensor(axis.points[part]) for axis, part in axes]

    def smooth(self, x: Tensor) -> Tensor:
        """Average a field on all of the working grid at the points."""
        return _apply(self.place._smooth, x, self.cut)

    def interpolate(self, x: Tensor) -> Tensor:
        """Interpolate from all of the reference to the points."""
        return _apply(self.place._interpolate, x, self.cut)

    def settle(self, x: Tensor) -> Tensor:
        """Interpolate from the points to the same box of the source."""
        return _apply(self.place._settle, x)


@lru_cache(maxsize=64)
def anchoring(
    shape: tuple[int, ...],
    reference_shape: tuple[int, ...],
    registration: Registration,
    periodic: tuple[bool, ...],
) -> Anchoring:
    """Return the `Anchoring` of two grids over one domain, kept for the next call."""
    source, reference = (
        Grid.uniform(n, registration=registration, periodic=periodic) for n in (shape, reference_shape)
    )
    return Anchoring(source, reference)


def _apply(matrices: Sequence[Banded | None], x: Tensor, cut: Sequence[slice] | None = None) -> Tensor:
    """Multiply each axis of a field by its matrix, or the rows of `cut`; None leaves an axis alone."""
    for i, matrix in enumerate(matrices):
        if matrix is not None:
            x = matrix.apply(x, i + 2, slice(None) if cut is None else cut[i])
    return x


def _averages(source: Axis, reference: Axis, at: NDArray[np.float64]) -> Banded | None:
    """The averages of the module's table over the intervals of the reference, at some points."""
    if source.n == reference.n:
        return None
    if source.periodic:
        ends = [at + half for half in (-reference.spacing / 2, reference.spacing / 2)]
    else:
        ends = [np.interp(at, reference.points, bound) for bound in reference.bounds.T]

    def block_of(rows: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        left, right = (end[rows] for end in ends)
        first, last = ((end - source.points[0]) / source.spacing for end in (left.min(), right.max()))
        columns = _columns(source, int(np.floor(first)) - 1, int(np.ceil(last)) + 1)
        return columns, source.averages(left, right, columns)

    return Banded.of((len(at), source.n), block_of)


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
