r"""The steps of `mano_op.layers.anchors` for a finer axis whose number of points may be a symbol.

They are operations of torch on ``torch.arange(n)``, for whatever traces a model once for all sizes. Positions
are counted in whole numbers, so no rounding decides which of two points is the lower one. The finer axis has
at least as many points as the reference.

A mean over an interval is a difference of prefix sums. With the points of the finer axis at 0, 1, ... and
:math:`C_i = x_0 + \dots + x_i` the integral up to v is, but for a constant,

.. math::

    F(v) = C_i - x_i\,(i + \tfrac12 - v), \quad i = \lfloor v + \tfrac12 \rfloor, \qquad
    \bar x = \frac{F(v_{right}) - F(v_{left})}{v_{right} - v_{left}},

in double precision, so that nothing is lost in the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mano_op.grid import Axis


class Finer(NamedTuple):
    r"""The points of an axis of n points beside those of a reference; `finer` makes one.

    Point j is at :math:`p_j / q`, counted in points of the reference.

    Attributes
    ----------
    reference : Axis
    n : int
        Points of the finer axis, which may be a symbol.
    numerators : int64 Tensor, ``(n,)``
        p.
    denominator : int
        q, which may be a symbol.

    Examples
    --------
    >>> line = finer(Axis("x", 4), 8, torch.device("cpu"))
    >>> line.numerators / line.denominator
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 2.5000, 3.0000, 3.5000])
    >>> line.points()
    tensor([0.0000, 0.1250, 0.2500, 0.3750, 0.5000, 0.6250, 0.7500, 0.8750], dtype=torch.float64)
    >>> line.anchors(torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]), 1)
    tensor([[0.5000, 0.5000, 0.5000, 0.6667]])
    """

    reference: Axis
    n: int
    numerators: Tensor
    denominator: int

    @property
    def intervals(self) -> int:
        """Spacings of the finer axis in the domain."""
        return self.n - 1 if self.reference.registration == "node_both" else self.n

    @property
    def _first(self) -> float:
        """Position of the first point of either axis, in its spacings."""
        return 0.5 if self.reference.registration == "cell" else 0.0

    def points(self) -> Tensor:
        """The coordinates in [0, 1], double precision, ``(n,)``."""
        return (torch.arange(self.n, device=self.numerators.device).double() + self._first) / self.intervals

    def within(self) -> tuple[Tensor, Tensor]:
        """The point of the reference at or below each point, and the share of the way to the next, ``(n,)``.

        Beyond an outermost point of an axis that does not wrap they are that point and 0.
        """
        p, q = self.numerators, self.denominator
        if not self.reference.periodic:
            p = p.clamp(0, q * (self.reference.n - 1))
        below = (p + q) // q - 1  # of whole numbers of at least 0, which everybody divides alike
        return below, (p - below * q).double() / q

    def smooth(self, x: Tensor, dim: int) -> Tensor:
        """The averages at the points of the finer axis, along a dimension of a field on it."""
        if self.reference.periodic:
            at, twice = torch.arange(self.n, device=x.device).double(), 2 * self.reference.intervals
            left, right = ((twice * at + sign * self.intervals) / twice for sign in (-1, 1))
            return self._mean(x, dim, left, right)
        below, share = self.within()
        above = (below + 1).clamp(max=self.reference.n - 1)
        left, right = (
            self._placed(torch.lerp(*ends, share))
            for ends in zip(self._ends(below), self._ends(above), strict=True)
        )
        return self._mean(x, dim, left, right)

    def anchors(self, x: Tensor, dim: int) -> Tensor:
        """The averages at the points of the reference."""
        left, right = self._ends(torch.arange(self.reference.n, device=x.device))
        return self._mean(x, dim, self._placed(left), self._placed(right))

    def taps(self) -> list[tuple[Tensor, Tensor]]:
        """Four points of the reference for each point of the finer axis, and their weights, each ``(n,)``.

        The weights are those of the cubic through them; at an end of the parabola or line.
        """
        n, (below, share) = self.reference.n, self.within()
        i = torch.arange(4, device=below.device)
        near = below + (i - 1)[:, None]
        if self.reference.periodic:
            near, used = near % n, (i < n)[:, None].expand_as(near)
        else:
            used = (near >= 0) & (near < n)
            near = near.clamp(0, n - 1)
        steps = i[:, None] - i  # from each other point to each
        counts = (steps != 0)[:, :, None] & used
        factors = (share - (i - 1)[:, None]) / torch.where(steps == 0, 1, steps)[:, :, None]
        f0, f1, f2, f3 = torch.where(counts, factors, 1.0).unbind(1)
        weights = used * f0 * f1 * f2 * f3
        return list(zip(near.unbind(0), weights.unbind(0), strict=True))

    def _ends(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """The control volume of each point k of the reference, in its spacings."""
        left, right = (k.double() + self._first + half for half in (-0.5, 0.5))
        if self.reference.periodic:
            return left, right
        last = k == self.reference.n - 1
        return left.clamp(min=0), torch.where(last, float(self.reference.intervals), right)

    def _placed(self, at: Tensor) -> Tensor:
        """A position in spacings of the reference, counted in points of the finer axis."""
        return at * self.intervals / self.reference.intervals - self._first

    def _mean(self, x: Tensor, dim: int, left: Tensor, right: Tensor) -> Tensor:
        """The means of a field between positions counted in its points."""
        wide = x.double()
        sums = wide.cumsum(dim)
        total = sums.narrow(dim, self.n - 1, 1)

        def integral(v: Tensor) -> Tensor:
            i, turns = (v + 0.5).floor(), None
            if self.reference.periodic:
                turns = (i / self.n).floor()
            else:
                i = i.clamp(0, self.n - 1)
            index = (i if turns is None else i - turns * self.n).long()
            rest = wide.index_select(dim, index) * _along(i + 0.5 - v, x, dim)
            up_to = sums.index_select(dim, index) - rest
            return up_to if turns is None else up_to + total * _along(turns, x, dim)

        return ((integral(right) - integral(left)) / _along(right - left, x, dim)).to(x.dtype)


def finer(reference: Axis, n: int, device: torch.device) -> Finer:
    """Place the points of an axis of n points, at least those of the reference; n may be a symbol."""
    j = torch.arange(n, device=device)
    # In an exported program nothing checks that n is at least the reference's. This index is out of range
    # otherwise, so the program fails instead of returning nonsense.
    last = torch.full((1,), reference.n - 1, device=device)
    j = j + (j.index_select(0, last) - last)
    if reference.registration == "node_both":
        return Finer(reference, n, j * (reference.n - 1), n - 1)
    if reference.registration == "cell":
        return Finer(reference, n, (2 * j + 1) * reference.n - n, 2 * n)
    return Finer(reference, n, j * reference.n, n)


def interpolate(x: Tensor, dim: int, taps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Interpolate a dimension of a field from the reference, given the `Finer.taps` of the finer axis."""
    parts = [x.index_select(dim, point) * _along(weight, x, dim).to(x.dtype) for point, weight in taps]
    return sum(parts[1:], start=parts[0])


def _along(values: Tensor, x: Tensor, dim: int) -> Tensor:
    """Shape a value for each position of a dimension to be multiplied."""
    return values.view(-1, *[1] * (x.ndim - dim - 1))
