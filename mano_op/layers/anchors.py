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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mano_op.grid import Axis, Grid, Registration


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
        return Grid(
            tuple(
                here if here.n > there.n else there
                for here, there in zip(self.source, self.reference, strict=True)
            )
        )

    @property
    def refines(self) -> bool:
        """Whether there are points between those of the reference."""
        return self.working != self.reference

    @cached_property
    def queries_at(self) -> tuple[tuple[float, ...], ...]:
        """For each axis where the points of the working grid are, counted in those of the reference."""
        pairs = zip(self.reference, self.working, strict=True)
        return tuple(tuple(here.positions(there).tolist()) for here, there in pairs)

    @cached_property
    def _lift(self) -> list[NDArray[np.float64] | None]:
        return [_linear(here, there) for here, there in zip(self.source, self.working, strict=True)]

    @cached_property
    def _anchors(self) -> list[NDArray[np.float64] | None]:
        pairs = zip(self.working, self.reference, strict=True)
        return [_averages(here, there, there.points) for here, there in pairs]

    @cached_property
    def _smooth(self) -> list[NDArray[np.float64] | None]:
        pairs = zip(self.working, self.reference, strict=True)
        return [_averages(here, there, here.points) for here, there in pairs]

    @cached_property
    def _interpolate(self) -> list[NDArray[np.float64] | None]:
        return [_cubic(here, there) for here, there in zip(self.reference, self.working, strict=True)]

    @cached_property
    def _settle(self) -> list[NDArray[np.float64] | None]:
        return [_cubic(here, there) for here, there in zip(self.working, self.source, strict=True)]

    def lift(self, x: Tensor) -> Tensor:
        """From the source to the working grid."""
        return _apply(self._lift, x)

    def smooth(self, x: Tensor) -> Tensor:
        """The averages at the points of the working grid, on which `x` is."""
        return _apply(self._smooth, x)

    def anchors(self, x: Tensor) -> Tensor:
        """The averages at the points of the reference."""
        return _apply(self._anchors, x)

    def interpolate(self, x: Tensor) -> Tensor:
        """From the reference to the working grid."""
        return _apply(self._interpolate, x)

    def settle(self, x: Tensor) -> Tensor:
        """From the working grid to the source."""
        return _apply(self._settle, x)


@lru_cache(maxsize=64)
def anchoring(
    shape: tuple[int, ...],
    reference_shape: tuple[int, ...],
    registration: Registration,
    periodic: tuple[bool, ...],
) -> Anchoring:
    """The `Anchoring` of two grids over one domain, kept for the next call."""
    source, reference = (
        Grid.uniform(n, registration=registration, periodic=periodic) for n in (shape, reference_shape)
    )
    return Anchoring(source, reference)


def _apply(weights: Sequence[NDArray[np.float64] | None], x: Tensor) -> Tensor:
    """Matrices, one for each axis, on a field; None leaves an axis alone."""
    for dim, matrix in enumerate(weights, start=2):
        if matrix is not None:
            along = torch.as_tensor(matrix, dtype=x.dtype, device=x.device)
            x = torch.movedim(torch.movedim(x, dim, -1) @ along.T, -1, dim)
    return x


def _averages(source: Axis, reference: Axis, at: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The averages of the module's table, over the reference's intervals, at some places."""
    if source.n == reference.n:
        return None
    if source.periodic:
        ends = [at + half for half in (-reference.spacing / 2, reference.spacing / 2)]
    else:
        ends = [np.interp(at, reference.points, bound) for bound in reference.bounds.T]
    return source.averages(*ends)


def _linear(source: Axis, target: Axis) -> NDArray[np.float64] | None:
    """Linear interpolation; beyond the outermost points of an axis that does not wrap their values."""
    return None if source.n == target.n else _lagrange(source, target, points=2)


def _cubic(source: Axis, target: Axis) -> NDArray[np.float64] | None:
    """Cubic interpolation through the four nearest points, of lower degree where there are fewer."""
    return None if source.n == target.n else _lagrange(source, target, points=4)


def _lagrange(source: Axis, target: Axis, *, points: int) -> NDArray[np.float64]:
    r"""The matrix :math:`M_{ji} = \prod_{l \ne i} (y_j - x_l) / (x_i - x_l)` over the points near y_j."""
    at = source.positions(target)
    n, half = source.n, points // 2
    if not source.periodic:
        at = at.clip(0, n - 1)
    matrix = np.zeros((target.n, n))
    for j, y in enumerate(at):
        near = np.arange(int(np.floor(y)) - half + 1, int(np.floor(y)) + half + 1)
        if not source.periodic:
            near = near[(near >= 0) & (near < n)]
        elif n < points:
            near = near[:n]
        for i in near:
            others = near[near != i]
            matrix[j, i % n] += np.prod((y - others) / (i - others))
    return matrix
