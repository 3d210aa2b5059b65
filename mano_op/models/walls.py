r"""A model's output beside the walls of a domain, the ends of axes that do not wrap.

An output with a known value g goes to it over two spacings h of the reference, with the distances
:math:`d_i` to the nearer wall of each axis:

.. math:: u = g + \phi\, Q(z), \qquad \phi = \prod_i t_i (2 - t_i), \quad t_i = \min(1, d_i / 2h) .

A network is trained at the points of the reference alone. Between a wall and the first points inside nothing
tells it how its output goes to what it is at the wall. A network whose far field is flat there
(`mano_op.layers.modes`) makes up for the slope at the points it is asked for, and at no others. So on a finer
grid the output in strips along the walls, :math:`d_i < 3h`, is that of the reference's points, interpolated
(`mano_op.layers.refinement`). Where the reference has no point at a wall, the cubic goes through a ghost
point beyond its last one. With the outputs :math:`u_0, u_1, u_2`, from the wall inwards, it is on a parabola:

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

from mano_op.grid import Axis, Grid
from mano_op.layers.refinement import FineAxis, Part
from mano_op.layers.tokens import along

# Widths in spacings of the reference: of a strip, and of the way to a known value.
_STRIP, _RAMP = 3, 2


class Walls:
    """Known values of an output at walls, and its interpolation beside them.

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
    >>> grid = Grid.uniform((8,))
    >>> walls.bound(torch.ones(1, 1, 8), [torch.from_numpy(axis.points) for axis in grid], grid)
    tensor([[[0.5000, 1.2500, 1.5000, 1.5000, 1.5000, 1.5000, 1.5000, 1.2500]]])
    """

    def __init__(self, values: Sequence[float | None], *, strips: bool) -> None:
        self.values, self._strips = tuple(values), strips
        self._known = [value is not None for value in values]

    def bound(self, out: Tensor, points: Sequence[Tensor], reference: Grid) -> Tensor:
        """Bring an output to the known values, given the coordinates of each axis, scaled to [0, 1]."""
        if not any(self._known):
            return out
        inside = torch.ones((), dtype=torch.float64, device=out.device)
        for at, axis in zip(points, reference, strict=True):
            near = torch.minimum(at, 1 - at) * axis.intervals / _RAMP
            ramp = torch.where(near < 1, near * (2 - near), 1.0)
            inside = inside[..., None] * (torch.ones_like(at) if axis.periodic else ramp)
        channels = [
            out[:, i] if value is None else value + inside.to(out) * out[:, i]
            for i, value in enumerate(self.values)
        ]
        return torch.stack(channels, dim=1)

    def interpolate(self, out: Tensor, on_reference: Tensor, part: Part) -> Tensor:
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
        used = along(torch.tensor(channels, device=out.device), 1, out.ndim)
        return self._exact(torch.where(inside | ~used, out, x), part)

    def _exact(self, out: Tensor, part: Part) -> Tensor:
        """Put known values at the walls, where interpolation rounds."""
        inside = torch.ones((), dtype=torch.bool, device=out.device)
        for axis in part.axes:
            at = axis.points(out.device)
            inside = inside[..., None] & ((at > 0) & (at < 1) | axis.reference.periodic)
        known, g = self._known_values(out)
        return torch.where(inside | ~known, out, g)

    def _known_values(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a channel has a known value, and which."""
        known = torch.tensor(self._known, device=like.device)
        values = [0.0 if value is None else value for value in self.values]
        g = torch.tensor(values, dtype=like.dtype, device=like.device)
        return along(known, 1, like.ndim), along(g, 1, like.ndim)

    def _with_ghosts(self, x: Tensor, dim: int, axis: Axis) -> tuple[Tensor, tuple[int, int]]:
        """Add the ghost points of an axis, and count them before and after its own."""
        if axis.periodic or axis.registration == "node_both":
            return x, (0, 0)
        known, g = self._known_values(x)

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
