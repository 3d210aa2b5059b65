r"""A model's output at the walls of a domain, the ends of axes that do not wrap, and beside them.

A network is trained at the points of a reference grid. Between a wall and the first points inside, nothing
tells it how its output goes to what it is at the wall. A network whose far field is flat there
(`mano_op.layers.modes`) makes up for the slope at the points it is asked for, and at no others. So on a finer
grid the output in the strips along the walls, :math:`d < 2h`, is that of the reference's points, interpolated
(`mano_op.layers.refinement`), with the spacing h of the reference and the distance d to the wall. Where the
reference has no point at a wall, the cubic goes through a ghost point beyond its last one. With the known
value :math:`g` and the outputs :math:`u_0, u_1, u_2`, from the wall inwards, it is on a parabola:

============  =========================  ======================================================
registration  ghost, a spacing beyond    value
============  =========================  ======================================================
``node``      on the wall, at the right  :math:`g`; not known, :math:`3 u_0 - 3 u_1 + u_2`
``cell``      half a spacing outside     :math:`(8 g - 6 u_0 + u_1) / 3`
============  =========================  ======================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mano_op.grid import Axis
from mano_op.layers.refinement import FineAxis, Part
from mano_op.layers.tokens import along

# Width of a strip, in spacings of the reference.
_STRIP = 2


class Walls:
    """What is done at the walls and beside them.

    Parameters
    ----------
    values : sequence of float or None
        For each channel the value that is known at all walls.
    strips : bool
        Whether also channels without a known value are interpolated beside walls; on a grid of cells, which
        has no point on a wall, they never are.

    Examples
    --------
    >>> walls = Walls([0.5], strips=False)
    >>> walls.at(torch.ones(1, 1, 3), [torch.tensor([0.0, 0.5, 1.0])], [False])
    tensor([[[0.5000, 1.0000, 0.5000]]])
    """

    def __init__(self, values: Sequence[float | None], *, strips: bool) -> None:
        self.values, self._strips = tuple(values), strips
        self._known = [value is not None for value in values]

    def at(self, out: Tensor, points: Sequence[Tensor], periodic: Sequence[bool]) -> Tensor:
        """Put known values at the walls, given the coordinates of each axis, scaled to [0, 1]."""
        if not any(self._known):
            return out
        inside = torch.ones((), dtype=torch.bool, device=out.device)
        for at, wraps in zip(points, periodic, strict=True):
            free = torch.ones_like(at, dtype=torch.bool) if wraps else (at > 0) & (at < 1)
            inside = inside[..., None] & free
        channels = [
            out[:, i] if value is None else torch.where(inside, out[:, i], value)
            for i, value in enumerate(self.values)
        ]
        return torch.stack(channels, dim=1)

    def beside(self, out: Tensor, on_reference: Tensor, part: Part) -> Tensor:
        """Interpolate between the points of a reference beside walls.

        Parameters
        ----------
        out : Tensor, ``(batch, channels, *part.shape)``
        on_reference : Tensor, ``(batch, channels, *reference)``
        part : Part

        Returns
        -------
        Tensor, ``(batch, channels, *part.shape)``
        """
        cells = part.axes[0].reference.registration == "cell"
        channels = [known or (self._strips and not cells) for known in self._known]
        walls = [axis.refines and not axis.reference.periodic for axis in part.axes]
        if not any(channels) or not any(walls):
            return out
        inside = torch.ones((), dtype=torch.bool, device=out.device)
        for axis, has_walls in zip(part.axes, walls, strict=True):
            far = _from_walls(axis, out.device) >= _STRIP
            inside = inside[..., None] & (far if has_walls else torch.ones_like(far))
        if not torch.compiler.is_compiling() and bool(inside.all()):
            return out
        x = on_reference
        for dim, axis in enumerate(part.axes, start=2):
            if axis.refines:
                x, ghosts = self._with_ghosts(x, dim, axis.reference)
                x = axis.interpolate(x, dim, ghosts)
        kept = inside | ~along(torch.tensor(channels, device=out.device), 1, out.ndim)
        return torch.where(kept, out, x)

    def _with_ghosts(self, x: Tensor, dim: int, axis: Axis) -> tuple[Tensor, tuple[int, int]]:
        """Add the ghost points of an axis, and count them before and after its own."""
        if axis.periodic or axis.registration == "node_both":
            return x, (0, 0)
        known = along(torch.tensor(self._known, device=x.device), 1, x.ndim)
        values = [0.0 if value is None else value for value in self.values]
        g = along(torch.tensor(values, dtype=x.dtype, device=x.device), 1, x.ndim)

        def ghost(first: int, step: int) -> Tensor:
            u = [x.narrow(dim, first + i * step, 1) for i in range(min(3, axis.n))]
            weights = {1: (1,), 2: (2, -1), 3: (3, -3, 1)}[len(u)]
            free = sum(weight * of_point for weight, of_point in zip(weights, u, strict=True))
            if axis.registration == "node":
                return torch.where(known, g, free)
            return torch.where(known, (8 * g - 6 * u[0] + u[1]) / 3 if len(u) > 1 else 2 * g - u[0], free)

        after = ghost(axis.n - 1, -1)
        if axis.registration == "node":
            return torch.cat([x, after], dim), (0, 1)
        return torch.cat([ghost(0, 1), x, after], dim), (1, 1)


def _from_walls(axis: FineAxis, device: torch.device) -> Tensor:
    """The distance of the points to the nearer end of the domain, in spacings of the reference."""
    at = axis.points(device) * axis.reference.intervals
    return torch.minimum(at, axis.reference.intervals - at)
