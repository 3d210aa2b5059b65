"""Restriction of inputs to the training grid, and interpolation of predictions from there."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.grid import Grid
from mano_op.resample import nests, resample


def restrict(field: Tensor, source: Grid, target: Grid, method: Literal["injection", "mean"]) -> Tensor:
    """Restrict an input to the training grid.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., *source.shape)``.
    source, target : Grid
    method : {"injection", "mean"}
        The values at the shared points, or the means over the target's control volumes. Where a target
        point is no source point, "injection" takes the nearest one.

    Examples
    --------
    >>> import torch
    >>> fine = Grid.uniform((8,))
    >>> field = torch.tensor([0., 1., 0., 1., 0., 1., 0., 1.])
    >>> restrict(field, fine, fine.coarsen(2), "injection")
    tensor([0., 0., 0., 0.])
    >>> restrict(field, fine, fine.coarsen(2), "mean")[1:-1]
    tensor([0.5000, 0.5000])
    """
    if method == "injection" and not nests(source, target):
        return resample(field, source, target, "nearest")
    return resample(field, source, target, method)


def interpolate(field: Tensor, source: Grid, target: Grid, boundary: Boundary | None = None) -> Tensor:
    """Interpolate a smooth field to another grid.

    Along each axis: copied where the target's points are among the source's, by the trigonometric
    interpolant where the axis is periodic, and otherwise by the cubic spline through the values and those
    of `boundary`.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., *source.shape)``.
    source, target : Grid
    boundary : float or mapping, optional
        Known values at the ends of axes that do not wrap, as `mano_op.resample.resample` takes them.

    Examples
    --------
    >>> import torch
    >>> coarse, fine = Grid.uniform((4,)), Grid.uniform((8,))
    >>> parabola = [torch.tensor(grid.points[0] * (1 - grid.points[0])) for grid in (coarse, fine)]
    >>> torch.allclose(interpolate(parabola[0], coarse, fine, 0.0), parabola[1])
    True
    """
    ends = ends_by_axis(source, boundary)
    for i, (axis, goal) in enumerate(zip(source.axes, target.axes, strict=True)):
        step = Grid((*target.axes[: i + 1], *source.axes[i + 1 :]))
        nested = nests(Grid((axis,)), Grid((goal,)))
        method = "injection" if nested else "spectral" if axis.periodic else "cubic"
        known = {axis.name: ends[axis.name]} if method == "cubic" and axis.name in ends else None
        field = resample(field, source, step, method, boundary=known)
        source = step
    return field
