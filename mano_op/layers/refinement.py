r"""The reference grid of a layer, and the points of any other grid beside it.

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
`sample`            or it is sampled at the points of the reference, by the cubic of `interpolate`
`interpolate`       a field on the reference at the points of the finer grid: the cubic through the four
                    nearest points, the parabola or line through those there are at the ends, and beyond
                    the outermost reference point its value
`settle`            back to the points of the input, where that was lifted
==================  =========================================================================================

On the reference grid itself all of them are the identity. On a finer one the average tends to an integral, at
second order, so what a layer makes of an input has a limit as the grid is refined.

Points between those of the reference are targets and not sources: each is in the window of the reference's
points around it, or has a share in two. So they may be mapped a `Part` of the grid at a time.

All steps but `lift` and `settle` are operations of torch on ``torch.arange``, whose sizes may be symbols: a
model is compiled or exported once for all finer grids. Positions are counted in whole numbers, so no rounding
decides which of two points is the lower one. A mean is a difference of prefix sums,

.. math::

    F(v) = C_i - x_i\,(i + \tfrac12 - v), \quad C_i = x_0 + \dots + x_i, \quad
    i = \lfloor v + \tfrac12 \rfloor, \qquad \bar x = \frac{F(v_{right}) - F(v_{left})}{v_{right} - v_{left}},

in double precision, so that nothing is lost in the difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise, product
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mano_op.grid import Axis, Grid
from mano_op.layers.interpolation import Banded, lagrange
from mano_op.layers.operator import Lists, window_attention
from mano_op.layers.tokens import along, on_grid, points_of
from mano_op.layers.windows import AxisSizes, Bias, Windows, combined, flat_indices

# Points of the finer grid whose average is computed at a time.
_SLAB = 2**14
# Points of an axis that are interpolated by one product with a matrix.
_BLOCK = 128


class FineAxis(NamedTuple):
    r"""Consecutive points of an axis with at least as many points as a reference over the same interval.

    Points are counted once around: on a periodic axis of cells from the first one at or after that of the
    reference. Point t is at :math:`(a\, t + b) / q`, counted in points of the reference.

    Attributes
    ----------
    reference : Axis
    n : int
        Points of the finer axis, which may be a symbol.
    start, stop : int
        Of the points. All of them, if `stop` is None.

    Examples
    --------
    >>> line = FineAxis(Axis("x", 4), 8)
    >>> line.numerators() / line.rate[2]
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 2.5000, 3.0000, 3.5000])
    >>> line.points()
    tensor([0.0000, 0.1250, 0.2500, 0.3750, 0.5000, 0.6250, 0.7500, 0.8750], dtype=torch.float64)
    >>> line.anchors(torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]), 1)
    tensor([[0.5000, 0.5000, 0.5000, 0.6667]])
    """

    reference: Axis
    n: int
    start: int = 0
    stop: int | None = None

    @property
    def rate(self) -> tuple[int, int, int]:
        """The whole numbers a, b and q."""
        n, keys = self.n, self.reference.n
        if self.reference.registration == "node_both":
            return keys - 1, 0, n - 1
        if self.reference.registration == "cell":
            return 2 * keys, (2 * self.ahead + 1) * keys - n, 2 * n
        return keys, 0, n

    @property
    def refines(self) -> bool:
        """Whether there may be points between those of the reference; in a program for all sizes always."""
        return torch.compiler.is_exporting() or self.n != self.reference.n

    @property
    def turns(self) -> bool:
        """Whether the first point may be another one than that of the reference."""
        return self.reference.registration == "cell" and self.reference.periodic

    @property
    def ahead(self) -> int:
        """Points of the finer axis before the first point of the reference, where the axis wraps."""
        return (self.n + self.reference.n - 1) // (2 * self.reference.n) if self.turns else 0

    @property
    def end(self) -> int:
        """One after the last point."""
        return self.n if self.stop is None else self.stop

    @property
    def intervals(self) -> int:
        """Spacings of the finer axis in the domain."""
        return self.n - 1 if self.reference.registration == "node_both" else self.n

    @property
    def places(self) -> slice | Tensor:
        """The place of each point in a field on the finer axis."""
        if not (self.turns and self.refines):
            return slice(self.start, self.end)
        return (torch.arange(self.start, self.end, device="cpu") + self.ahead) % self.n

    def numerators(self, device: torch.device | None = None) -> Tensor:
        """Return the positions of the points times q, ``(points,)``."""
        a, b, _ = self.rate
        t = torch.arange(self.start, self.end, device=device)
        if torch.compiler.is_exporting():
            # Nothing in a program checks that n is at least the reference's: this index is then out of range,
            # so that the program fails instead of returning nonsense.
            last = torch.full((1,), self.reference.n - 1, device=device)
            t = t + (t.index_select(0, last) - last)
        return a * t + b

    def points(self, device: torch.device | None = None) -> Tensor:
        """Return the coordinates in [0, 1], in double precision, ``(points,)``."""
        t = torch.arange(self.start, self.end, device=device)
        t = _around(t + self.ahead, self.n) if self.turns else t
        return (t.double() + self.reference.offset) / self.intervals

    def smooth(self, x: Tensor, dim: int) -> Tensor:
        """Average a field on all of the finer axis at the points, along a dimension."""
        reference = self.reference
        if reference.periodic:
            at = torch.arange(self.start, self.end, device=x.device).double() + self.ahead
            half = self.intervals / (2 * reference.intervals)
            left, right = at - half, at + half
        else:
            below, share = self._within(x.device)
            above = (below + 1).clamp(max=reference.n - 1)
            left, right = (
                self._placed(torch.lerp(*ends, share))
                for ends in zip(self._ends(below), self._ends(above), strict=True)
            )
        # At an end, of the last control volume.
        reach = (1 if reference.periodic else 3) * self.intervals // (2 * reference.intervals) + 2
        return self._mean(x, dim, left, right, self.start + self.ahead - reach, self.end + self.ahead + reach)

    def anchors(self, x: Tensor, dim: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Average a field on all of the finer axis at points of the reference, from `start` to `stop`."""
        reference = self.reference
        stop = reference.n if stop is None else stop
        left, right = map(self._placed, self._ends(torch.arange(start, stop, device=x.device)))
        # Control volumes begin half a spacing before a point, and end before the next one or with the domain.
        before = int(2 * reference.offset) - 1
        first = (2 * start + before) * self.intervals // (2 * reference.intervals)
        last = stop * self.intervals // reference.intervals
        return self._mean(x, dim, left, right, first - 1, last + 2)

    def sample(self, x: Tensor, dim: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Interpolate a field on all of the finer axis at points of the reference, from `start` to `stop`."""
        reference = self.reference
        k = torch.arange(start, reference.n if stop is None else stop, device=x.device)
        both_ends, cell = (reference.registration == kind for kind in ("node_both", "cell"))
        p, q = k * (self.n - both_ends), reference.n - both_ends
        if cell:
            p, q = (2 * k + 1) * self.n - reference.n, 2 * reference.n
        near, weights = _cubic(p // q, (p % q).double() / q, self.n, wraps=reference.periodic)
        rows = [x.index_select(dim, of_row) for of_row in near]
        return sum(row * along(w.to(x.dtype), dim, x.ndim) for row, w in zip(rows, weights, strict=True))

    def interpolate(self, x: Tensor, dim: int, ghosts: tuple[int, int] = (0, 0)) -> Tensor:
        """Interpolate a field on the reference at the points, along a dimension.

        The field may have `ghosts`, points before and after those of the reference, at its spacing.
        """
        if not torch.compiler.is_compiling() and self.end - self.start > _BLOCK:
            edges = range(self.start, self.end, _BLOCK)
            blocks = (self._replace(start=start, stop=min(start + _BLOCK, self.end)) for start in edges)
            return torch.cat([block.interpolate(x, dim, ghosts) for block in blocks], dim)
        below, share = self._within(x.device, ghosts)
        n = self.reference.n + sum(ghosts)
        near, weights = _cubic(below + ghosts[0], share, n, wraps=self.reference.periodic)
        low, high = (0, n) if torch.compiler.is_compiling() else (int(near.min()), int(near.max()) + 1)
        columns = torch.arange(low, high, device=x.device)
        matrix = ((near[..., None] == columns) * weights[..., None]).sum(0).to(x.dtype)
        rows = x.movedim(1, -1).narrow(dim - 1, low, high - low)
        return (matrix @ rows.flatten(dim)).unflatten(dim, rows.shape[dim:]).movedim(-1, 1)

    def _within(self, device: torch.device, ghosts: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
        """The point of the reference at or below each point, and the share of the way to the next.

        Beyond an outermost point of an axis that does not wrap they are that point and 0.
        """
        p, q = self.numerators(device), self.rate[2]
        if not self.reference.periodic:
            p = p.clamp(-ghosts[0] * q, q * (self.reference.n - 1 + ghosts[1]))
        below = p // q
        return below, (p - below * q).double() / q

    def _ends(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """The control volume of each point k of the reference, in its spacings."""
        left, right = (k.double() + self.reference.offset + half for half in (-0.5, 0.5))
        if self.reference.periodic:
            return left, right
        last = k == self.reference.n - 1
        return left.clamp(min=0), torch.where(last, float(self.reference.intervals), right)

    def volumes(self, device: torch.device | None = None) -> Tensor:
        """Return the share of the domain that each point of the reference stands for, ``(reference.n,)``."""
        left, right = self._ends(torch.arange(self.reference.n, device=device))
        return (right - left) / self.reference.intervals

    def _placed(self, at: Tensor) -> Tensor:
        """A position in spacings of the reference, counted in points of the finer axis."""
        return at * self.intervals / self.reference.intervals - self.reference.offset

    def _mean(self, x: Tensor, dim: int, left: Tensor, right: Tensor, start: int, stop: int) -> Tensor:
        """The means of a field between positions counted in its points, which lie from `start` to `stop`."""
        if self.reference.periodic:
            rows = x.index_select(dim, _around(torch.arange(start, stop, device=x.device), self.n))
        elif torch.compiler.is_compiling():  # of sizes that may be symbols
            start, stop, rows = 0, self.n, x
        else:
            start, stop = max(start, 0), min(stop, self.n)
            rows = x.narrow(dim, start, stop - start)
        rows = rows.double()
        sums = rows.cumsum(dim)

        def integral(v: Tensor) -> Tensor:
            i = ((v + 0.5).floor() - start).clamp(0, stop - start - 1)
            rest = rows.index_select(dim, i.long()) * along(i + start + 0.5 - v, dim, x.ndim)
            return sums.index_select(dim, i.long()) - rest

        return ((integral(right) - integral(left)) / along(right - left, dim, x.ndim)).to(x.dtype)

    def targets(self, windows: AxisSizes, device: torch.device) -> AxisTargets:
        """Put the points into windows of the reference: in each those between its keys, and just before."""
        a, b, q = self.rate
        n, keys, wraps = self.n, self.reference.n, self.reference.periodic
        count, side, _, start = windows
        m = torch.arange(count, device=device)
        base = start + m * side
        first, before = self._first(base), self._first(base - 1, beyond=True)
        shifted = wraps and start > 0  # then the last window goes on at the first points
        last = torch.cat([first[1:], torch.full((1,), 1, device=device) * n + (first[:1] if shifted else 0)])
        alone = wraps and count == 1  # then no point is before the window
        groups = [_Group(first if not alone else first.clamp(min=0), last, shared=False)]
        if not alone:
            groups.insert(0, _Group(before, first, shared=True))
        if self.stop is not None:
            turn = n * ((m == 0) & wraps & (not shifted))  # just before the first window are the last points
            groups = [
                group.within(self.start - turn * group.shared, self.stop - turn * group.shared)
                for group in groups
            ]
            if shifted:
                rest = _Group(first, last, shared=False)
                groups.append(rest.within(self.start + n, self.stop + n))
            occupied = torch.stack([group.stop > group.start for group in groups]).any(0)
            m, groups = m[occupied], [_Group(g.start[occupied], g.stop[occupied], g.shared) for g in groups]
            base = start + m * side
        # A program for all sizes has one more than there can be: what traces with symbols cannot tell that a
        # size is not 1.
        most = {True: (q - 1) // a + 2, False: (side * q + a - 1) // a + 1}
        slots = [group.slots(most[group.shared]) for group in groups]
        t, valid, shared = (torch.cat(parts, dim=1) for parts in zip(*slots, strict=True))
        p = a * t + b
        inside = p if wraps else p.clamp(0, q * (keys - 1))
        valid = valid if wraps else valid & (t >= 0)
        below = (inside + q) // q - 1
        way = (inside - below * q).double() / q
        # Between the last key of a window and the first of the next a point is in both.
        border = below == (base + side - 1).clamp(max=keys - 1 + shifted * start)[:, None]
        share = torch.where(border & ~shared & (not alone), 1 - way, 1.0)
        share = torch.where(shared & ((m > 0)[:, None] | wraps), way, share)
        index = torch.where(valid, _around(t, n) if wraps else t, self.start)
        position = (p - q * base[:, None]).clamp(-q, side * q)
        offsets = self._quarters(position, windows, valid)
        return AxisTargets(m, index - self.start, torch.where(valid, share, 0.0), *offsets)

    def _first(self, position: Tensor, *, beyond: bool = False) -> Tensor:
        """The first point at or beyond a position; those before the axis are negative."""
        a, b, q = self.rate
        turns = 2 * self.n  # whole numbers of at least 0 are divided alike everywhere
        return (position * q - b + (a if beyond else a - 1) + turns * a) // a - turns

    def _quarters(self, position: Tensor, windows: AxisSizes, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The offsets of `AxisTargets`, given the position of each slot in its window times q."""
        _, side, halo, _ = windows
        q, around, reach = self.rate[2], self.reference.n * self.rate[2], side + halo
        key = torch.arange(side + 2 * halo, device=position.device) - halo
        offset = key[:, None] * q - position[:, None]
        if self.reference.periodic:  # the nearest image; the one ahead if two are equally near
            offset = torch.where(2 * offset > around, offset - around, offset)
            offset = torch.where(2 * offset <= -1 * around, offset + around, offset)
        scaled = 4 * (offset + reach * q)
        quarter = (scaled // q).clamp(0, 8 * reach - 1)
        rest = (scaled - quarter * q).double() / q
        if not torch.compiler.is_compiling():  # where windows are alike, one stands for all
            first = valid.int().argmax(0)  # the first window that has a point in a slot
            slot = torch.arange(len(first), device=first.device)
            line, of_line = (t.movedim(1, 2)[first, slot].T for t in (quarter, rest))
            if bool(((quarter == line) & (rest == of_line) | ~valid[:, None]).all()):
                return line[None], of_line[None]
        return quarter, rest


class _Group(NamedTuple):
    """Consecutive points in each window of an axis, shared with the window before or not."""

    start: Tensor
    stop: Tensor
    shared: bool

    def within(self, start: Any, stop: Any) -> _Group:
        """Cut the group to some points."""
        return _Group(self.start.clamp(start, stop), self.stop.clamp(start, stop), self.shared)

    def slots(self, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points of as many slots as the fullest window has, whether they exist, and are shared.

        A program for all sizes has `most` slots.
        """
        count = most if torch.compiler.is_compiling() else max(0, int((self.stop - self.start).max()))
        t = torch.arange(count, device=self.start.device) + self.start[:, None]
        return t, t < self.stop[:, None], torch.full_like(t, self.shared, dtype=torch.bool)


class AxisTargets(NamedTuple):
    """Points of a finer axis in windows of a reference, as many slots in every window.

    Attributes
    ----------
    windows : int64, ``(windows,)``
        Those of the reference that have a point.
    queries : int64, ``(windows, slots)``
        The point in each slot; a slot that is left over has any.
    share : float64, ``(windows, slots)``
        The share of the point in the window; 0 for a slot that is left over.
    quarter, rest : int64, float64, ``(windows or 1, keys, slots)``
        The quarter of a step at or below the offset from slot to key, counted from the least one that there
        can be, and the share of the way to the next.
    """

    windows: Tensor
    queries: Tensor
    share: Tensor
    quarter: Tensor
    rest: Tensor


class Targets:
    """The points of a part of a finer grid in the windows of a reference.

    Parameters
    ----------
    axes : sequence of FineAxis
    windows : Windows
        Of the reference.
    device : torch.device
    """

    def __init__(self, axes: Sequence[FineAxis], windows: Windows, device: torch.device) -> None:
        self.axes = [axis.targets(of_axis, device) for axis, of_axis in zip(axes, windows.axes, strict=True)]
        self.reach = [of_axis.side + of_axis.halo for of_axis in windows.axes]
        points = [axis.end - axis.start for axis in axes]
        self.queries = flat_indices([axis.queries for axis in self.axes], points)
        self.share = reduce(combined, [axis.share for axis in self.axes])
        occupied = [axis.windows[:, None] for axis in self.axes]
        self.windows = flat_indices(occupied, [axis.windows for axis in windows.axes]).flatten()

    def table(self, bias: Bias, dtype: torch.dtype) -> Tensor:
        """Compute the bias of every key and slot, ``(windows or 1, heads, keys, slots)``.

        It is tabulated at quarters of a step and interpolated linearly.
        """
        device, n_dim = self.queries.device, len(self.axes)
        quarters = [torch.arange(-4 * reach, 4 * reach + 1, device=device) / 4 for reach in self.reach]
        table = bias(torch.stack(torch.meshgrid(*quarters, indexing="ij"), dim=-1).to(dtype))
        alike = all(len(axis.quarter) == 1 for axis in self.axes)
        shape: list[int] = []
        for i, axis in enumerate(self.axes):  # (o0, o1, heads) -> (m0 k0 s0, o1, heads) -> ...
            quarter, rest = axis.quarter, axis.rest
            if not alike:
                quarter, rest = (t.expand(len(axis.windows), -1, -1) for t in (quarter, rest))
            weight = rest.flatten().to(table.dtype).view(-1, *[1] * (table.ndim - i - 1))
            lower, upper = (table.index_select(i, (quarter + step).flatten()) for step in (0, 1))
            table = torch.lerp(lower, upper, weight)
            shape += quarter.shape
        windows, keys, slots = ([3 * i + part for i in range(n_dim)] for part in range(3))
        table = table.reshape(*shape, table.shape[-1]).permute(*windows, 3 * n_dim, *keys, *slots)
        return table.flatten(2 * n_dim + 1).flatten(n_dim + 1, 2 * n_dim).flatten(0, n_dim - 1)


class Part:
    """A box of the points of a finer grid.

    Parameters
    ----------
    axes : sequence of FineAxis
    sampled : bool
        Whether the points have a field's own values, not averages.

    Examples
    --------
    >>> place = Refinement(Grid.uniform((4,), periodic=True), (8,))
    >>> x = torch.arange(8.0)[None, None]
    >>> first, second = place.parts(most=4)
    >>> torch.equal(torch.cat([first.smooth(x), second.smooth(x)], dim=2), place.whole.smooth(x))
    True
    """

    def __init__(self, axes: Sequence[FineAxis], *, sampled: bool = False) -> None:
        self.axes, self.sampled = tuple(axes), sampled
        self._targets: dict[tuple[AxisSizes, ...], Targets] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis."""
        return tuple(axis.end - axis.start for axis in self.axes)

    def points(self, device: torch.device | None = None) -> list[Tensor]:
        """Return the coordinates of each axis, in double precision."""
        return [axis.points(device) for axis in self.axes]

    def smooth(self, x: Tensor) -> Tensor:
        """Average a field on all of the finer grid at the points, or select its values."""
        if self.sampled:
            return self.take(x)
        for dim, axis in enumerate(self.axes, start=2):
            if axis.refines:
                x = axis.smooth(x, dim)
        return x

    def take(self, x: Tensor) -> Tensor:
        """Select the points from a field on all of the finer grid."""
        for dim, axis in enumerate(self.axes, start=2):
            places = axis.places
            if isinstance(places, Tensor):
                x = x.index_select(dim, places.to(x.device))
            else:
                x = x.narrow(dim, axis.start, axis.end - axis.start)
        return x

    def interpolate(self, x: Tensor) -> Tensor:
        """Interpolate a field on the reference at the points."""
        for dim, axis in enumerate(self.axes, start=2):
            if axis.refines:
                x = axis.interpolate(x, dim)
        return x

    def targets(self, windows: Windows, device: torch.device) -> Targets:
        """Put the points into windows of the reference, which layers of one kind share."""
        key = tuple(windows.axes)
        if key not in self._targets:
            self._targets[key] = Targets(self.axes, windows, device)
        return self._targets[key]


class Refinement:
    """A grid beside the reference grid of a layer; see the module for the steps between them.

    Fields are ``(batch, channels, *grid)``.

    Parameters
    ----------
    reference : Grid
    shape : sequence of int
        Points along each axis of the input's grid, over the same domain.
    sampled : bool
        Whether a finer field is sampled, not averaged.

    Examples
    --------
    >>> fine = Refinement(Grid.uniform((4,), periodic=True), (8,))
    >>> fine.anchors(torch.tensor([[[0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]]))
    tensor([[[0.5000, 0.5000, 0.5000, 0.5000]]])
    >>> coarse = Refinement(Grid.uniform((4,)), (2,))
    >>> coarse.lift(torch.tensor([[[0.0, 1.0]]]))
    tensor([[[0.0000, 0.5000, 1.0000, 1.0000]]])
    """

    def __init__(self, reference: Grid, shape: Sequence[int], *, sampled: bool = False) -> None:
        self.reference, self.shape, self.sampled = reference, tuple(shape), sampled
        # The working grid: the finer of the two along each axis.
        self.working = tuple(
            keys if n < keys else n for n, keys in zip(self.shape, reference.shape, strict=True)
        )
        self.axes = [FineAxis(axis, n) for axis, n in zip(reference, self.working, strict=True)]
        self.refines = any(axis.refines for axis in self.axes)

    @property
    def whole(self) -> Part:
        """All points of the working grid."""
        return Part(self.axes, sampled=self.sampled)

    def parts(self, most: int) -> Iterator[Part]:
        """Cut the working grid into boxes of at most `most` points, or as small as they can be.

        They are slabs along the first axis, if one position of it has no more points. Axes without a point
        between two of the reference are not cut, so `settle` has all it needs in each box.
        """
        points, axes = math.prod(self.working), []
        for axis, n in zip(self.reference, self.working, strict=True):
            points //= n
            if n == axis.n:
                axes.append([FineAxis(axis, n)])
                most //= n
                continue
            width = min(n, max(1, most // points))
            count = -(-n // width)
            edges = [n * i // count for i in range(count + 1)]
            axes.append([FineAxis(axis, n, *pair) for pair in pairwise(edges)])
            most //= width
        boxes = product(*axes)
        return (Part(box, sampled=self.sampled) for box in boxes)  # one at a time, with what it keeps

    def lift(self, x: Tensor) -> Tensor:
        """Interpolate from the input's grid to the working grid."""
        return self._interpolated(x, 2, up=True)

    def settle(self, x: Tensor) -> Tensor:
        """Interpolate from the working grid to the input's."""
        return self._interpolated(x, 4, up=False)

    def anchors(self, x: Tensor) -> Tensor:
        """Average, or sample, a field on the working grid at the points of the reference."""
        for dim, axis in enumerate(self.axes, start=2):
            n = step = axis.reference.n
            if not axis.refines:
                continue
            if not torch.compiler.is_compiling():  # some at a time: sums are in double precision
                step = max(1, _SLAB * n * x.shape[dim] // max(1, x[0, 0].numel() * axis.n))
            restrict = axis.sample if self.sampled else axis.anchors
            slabs = [restrict(x, dim, first, min(first + step, n)) for first in range(0, n, step)]
            x = slabs[0] if len(slabs) == 1 else torch.cat(slabs, dim)
        return x

    def in_order(self, x: Tensor) -> Tensor:
        """Bring the points of the working grid from the order of `FineAxis` to their own."""
        for dim, axis in enumerate(self.axes, start=2):
            if axis.refines and axis.turns:
                # Not two parts, whose sizes a program would have to know.
                places = torch.arange(axis.n, device=x.device) - axis.ahead
                x = x.index_select(dim, _around(places, axis.n))
        return x

    def _interpolated(self, x: Tensor, points: int, *, up: bool) -> Tensor:
        """Interpolate along the axes that have more points in the working grid, through `points` of them."""
        for dim, (axis, n) in enumerate(zip(self.reference, self.shape, strict=True), start=2):
            if n < axis.n:
                coarse = replace(axis, n=n)
                matrix = lagrange(coarse, axis, points) if up else lagrange(axis, coarse, points)
                x = cast(Banded, matrix).apply(x, dim)
        return x


@dataclass(frozen=True)
class Points:
    """The points that a block maps: those of the reference, and targets beside them.

    Features are ``(batch, channels, points)``, the reference's first.

    Attributes
    ----------
    reference : tuple of int
        Shape of the reference grid.
    part : Part, optional
        The targets.
    sources : dict, optional
        What layers make of the reference's points, by layer. With it a call has one kind of points alone: the
        reference's, which fill it, or the targets of a part, which attend to what is there.
    """

    reference: tuple[int, ...]
    part: Part | None = None
    sources: dict[nn.Module, Any] | None = None

    def attention(self, layer: nn.Module, windows: Windows) -> Callable[..., Tensor]:
        """Return the attention of a layer from all points to those of the reference, as `Windows` has it."""
        part, sources = self.part, self.sources
        if part is None and sources is None:
            return windows

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None = None, *, heads: int) -> Tensor:
            if part is None:
                cast(dict[nn.Module, Any], sources)[layer] = k, v
                return windows(q, k, v, bias, heads=heads)
            targets, lists = part.targets(windows, q.device), windows.lists(heads)
            table = None if bias is None else targets.table(bias, q.dtype)
            queries, share = targets.queries, targets.share
            if sources is not None:
                k, v = sources[layer]
                missing = None if lists.missing is None else lists.missing[targets.windows]
                own = Lists(queries, lists.keys[targets.windows], share, missing, heads)
                return window_attention(q, k, v, table, own)
            n = math.prod(self.reference)
            of_reference = share.new_ones(lists.queries.shape) if lists.share is None else lists.share
            both = lists._replace(
                queries=torch.cat([lists.queries, n + queries], dim=1),
                share=torch.cat([of_reference, share], dim=1),
            )
            if table is not None and bias is not None:
                of_windows = windows.table(bias, q.dtype).expand(len(table), -1, -1, -1)
                table = torch.cat([of_windows, table], dim=-1)
            return window_attention(q, k[:, :n], v[:, :n], table, both)

        return attend

    def far_field(
        self,
        layer: nn.Module,
        x: Tensor,
        expand: Callable[[Tensor], Any],
        evaluate: Callable[[Any, Part | None], Tensor],
    ) -> Tensor:
        """Return the far field of a layer at all points.

        `expand` maps the features on the reference to what the far field is given by, `evaluate` maps this to
        its values on the reference, or at the targets of a part.
        """
        part, sources = self.part, self.sources
        if part is not None and sources is not None:
            return points_of(evaluate(sources[layer], part))
        expansion = expand(on_grid(x[..., : math.prod(self.reference)], self.reference))
        if sources is not None:
            sources[layer] = expansion
        far = evaluate(expansion, None)
        return points_of(far) if part is None else joined(far, evaluate(expansion, part))


class Stages(NamedTuple):
    """A network that runs at the points of a reference and at others beside them.

    Attributes
    ----------
    blocks : sequence of callable
        Maps of features ``(batch, channels, *reference)``, or of those of `Points`, which are given too.
    lift, head : callable
        Maps of a field and the coordinates of its axes, before and after the blocks; the field itself if not
        given.
    finish : callable, optional
        Map of the results at the points of a part, given those on the reference and the part.
    """

    blocks: Sequence[Callable[..., Tensor]]
    lift: Callable[[Tensor, Sequence[Tensor]], Tensor] = lambda field, points: field
    head: Callable[[Tensor, Sequence[Tensor]], Tensor] = lambda field, points: field
    finish: Callable[[Tensor, Tensor, Part], Tensor] | None = None


def run(
    x: Tensor, place: Refinement, stages: Stages, *, settled: bool = True, averaged: bool = True
) -> Tensor:
    """Map a field on any grid: the points of the reference and those of the finer grid together.

    Parameters
    ----------
    x : Tensor, ``(batch, in_channels, *place.shape)``
    place : Refinement
    stages : Stages
    settled : bool
        Whether the result is brought to the points of the input, where that is coarser; else it stays on the
        working grid.
    averaged : bool
        Whether points of the finer grid have averages of the field, or its own values.

    Returns
    -------
    Tensor, ``(batch, out_channels, *place.shape)``
    """
    x, anchors, points = _on_reference(x, place, stages)
    if not place.refines:
        for block in stages.blocks:
            anchors = block(anchors)
        out = stages.head(anchors, points)
    else:
        part, n = place.whole, anchors[0, 0].numel()
        of_part = part.points(x.device)
        features = joined(anchors, stages.lift(part.smooth(x) if averaged else part.take(x), of_part))
        for block in stages.blocks:
            features = block(features, Points(place.reference.shape, part))
        out = stages.head(on_grid(features[..., n:], part.shape), of_part)
        if stages.finish is not None:
            on_reference = stages.head(on_grid(features[..., :n], place.reference.shape), points)
            out = stages.finish(out, on_reference, part)
        out = place.in_order(out)
    return place.settle(out) if settled else out


def run_by_parts(
    x: Tensor, place: Refinement, stages: Stages, most: int, *, settled: bool = True
) -> Iterator[tuple[tuple[slice | Tensor, ...], Tensor]]:
    """Map a field on a finer grid as `run` does, at most `most` points at a time, without gradients.

    Yields
    ------
    index, values : tuple of slice or Tensor, Tensor
        The place of a part of the points along each axis, and the result there.
    """
    x, anchors, points = _on_reference(x, place, stages)
    sources: dict[nn.Module, Any] = {}
    features = points_of(anchors)
    for block in stages.blocks:
        features = block(features, Points(place.reference.shape, None, sources))
    finish = stages.finish
    on_reference = None if finish is None else stages.head(on_grid(features, place.reference.shape), points)
    for part in place.parts(most):
        of_part = part.points(x.device)
        features = points_of(stages.lift(part.smooth(x), of_part))
        for block in stages.blocks:
            features = block(features, Points(place.reference.shape, part, sources))
        out = stages.head(on_grid(features, part.shape), of_part)
        if finish is not None:
            out = finish(out, cast(Tensor, on_reference), part)
        yield tuple(axis.places for axis in part.axes), place.settle(out) if settled else out


def joined(reference: Tensor, targets: Tensor) -> Tensor:
    """Concatenate features of the reference's points and of targets, ``(batch, channels, points)``."""
    return torch.cat([points_of(reference).mT, points_of(targets).mT], dim=1).mT


def _on_reference(x: Tensor, place: Refinement, stages: Stages) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The field on the working grid, its features at the points of the reference, and their coordinates."""
    x = place.lift(x)
    points = Part([FineAxis(axis, axis.n) for axis in place.reference]).points(x.device)
    return x, stages.lift(place.anchors(x), points), points


def _cubic(below: Tensor, share: Tensor, n: int, *, wraps: bool) -> tuple[Tensor, Tensor]:
    """The points around positions on an axis of n, and their weights in a cubic, ``(4, positions)``.

    A position is the point at or below it, and the share of the way to the next.
    """
    i = torch.arange(4, device=below.device)
    near = below + (i - 1)[:, None]
    if wraps:
        near, used = near % n, (i < n)[:, None].expand_as(near)
    else:
        used = (near >= 0) & (near < n)
        near = near.clamp(0, n - 1)
    steps = i[:, None] - i  # from each other point to each
    counts = (steps != 0)[:, :, None] & used
    factors = (share - (i - 1)[:, None]) / torch.where(steps == 0, 1, steps)[:, :, None]
    f0, f1, f2, f3 = torch.where(counts, factors, 1.0).unbind(1)
    return near, used * f0 * f1 * f2 * f3


def _around(index: Tensor, n: int) -> Tensor:
    """The points of an axis that wraps; a program goes twice around, as ONNX has no remainder of a symbol."""
    if not torch.compiler.is_exporting():
        return index % n
    for _ in range(2):
        index = torch.where(index < 0, index + n, torch.where(index >= n, index - n, index))
    return index
