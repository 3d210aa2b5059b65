r"""The windows of a reference grid with the points of a finer grid in them, whose number is not known before.

`mano_op.layers.window` makes lists of points with numpy, for one size after the other. Here the windows and their keys
are tensors that are made once, and which of the finer points stand in which window follows by operations of torch
from where they are, for whatever traces a model once for all sizes (`mano_op.layers.finer`). The values are the
same: a query between the last key of a window and the first of the next has its share of both.

Along an axis of n points a window of w keys of a reference with R spacings has room for :math:`\lceil w N / R \rceil`
queries of its own, N being the spacings of the finer one, and for :math:`\lfloor N / R \rfloor + 1` before its first key
that it shares with the window before. The position bias is evaluated at quarters of a step, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mano_op.layers.finer import Finer
from mano_op.layers.tiling import Tiling, cut, tilings

Bias = Callable[[Tensor], Tensor]


class Windows(nn.Module):
    """The windows of one grid, whose size is known: attention among its points, and of others to them.

    Parameters
    ----------
    shape : sequence of int
    window, halo : int
    periodic : sequence of bool
        As in `mano_op.layers.window.window_attention`.

    Examples
    --------
    >>> from mano_op.layers.window import window_attention
    >>> q, k, v = torch.randn(3, 1, 7, 8)
    >>> found = Windows((7,), window=3, halo=1, periodic=[False]).attend(q, k, v, None, heads=2)
    >>> q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in (q, k, v))
    >>> expected = window_attention(q, k, v, window=3, halo=1).transpose(1, 2).flatten(2)
    >>> torch.allclose(found, expected, atol=1e-6)
    True
    """

    queries: Tensor
    keys: Tensor
    window: Tensor
    slot: Tensor
    exists: Tensor
    entry: Tensor

    def __init__(self, shape: Sequence[int], *, window: int, halo: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.shape, self.periodic = tuple(shape), tuple(periodic)
        per_axis: list[Tiling] = [
            tilings(n, window, window, halo, wrap)[0] for n, wrap in zip(shape, periodic, strict=True)
        ]
        self.sides = [axis.queries.shape[1] for axis in per_axis]
        self.halos = [(axis.keys.shape[1] - axis.queries.shape[1]) // 2 for axis in per_axis]
        self.counts = [len(axis.queries) for axis in per_axis]
        rows = cut(per_axis, shape, shape)
        window, slot = np.divmod(rows.place, rows.queries.shape[1])
        # Whole numbers, which stay what they are whatever the precision of the parameters becomes. They follow
        # from the shape, so they are in no checkpoint.
        for name, values in (("queries", rows.queries), ("keys", rows.keys), ("window", window), ("slot", slot)):
            self.register_buffer(name, torch.as_tensor(values.astype(np.int64)), persistent=False)
        self.register_buffer("exists", torch.as_tensor(rows.key_exists), persistent=False)
        self.cut = not rows.key_exists.all()
        # The offsets from a query to a key, and which of them each pair of a query and a key has.
        offsets = [axis.offsets[0].astype(np.int64) for axis in per_axis]
        self.lowest = [int(of_axis.min()) for of_axis in offsets]
        self.steps = [int(of_axis.max()) - least + 1 for of_axis, least in zip(offsets, self.lowest, strict=True)]
        entry = np.zeros((1, 1), dtype=np.int64)
        for of_axis, least, count in zip(offsets, self.lowest, self.steps, strict=True):
            entry = entry[:, None, :, None] * count + (of_axis - least)[None, :, None, :]
            entry = entry.reshape(entry.shape[0] * entry.shape[1], -1)
        self.register_buffer("entry", torch.as_tensor(entry), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, heads: int) -> Tensor:
        """Of the points to those of their windows; each tensor is ``(batch, points, heads * head_dim)``."""
        table = None
        if bias is not None:
            lattice = self._lattice(self.lowest, self.steps, q)
            chosen = bias(lattice.flatten(0, -2)).index_select(0, self.entry.flatten())
            table = chosen.view(*self.entry.shape, heads).movedim(-1, 0)
        return self._attended(q, k, v, self.queries, table, heads)[:, self.window, self.slot].flatten(2)

    def attend_from(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, heads: int, slots: Slots
    ) -> Tensor:
        """Of the points of a finer grid, ``(batch, points, heads * head_dim)``, to those of this one."""
        table = None if bias is None else self._table_from(bias, slots, q)
        out = self._attended(q, k, v, slots.queries, table, heads)
        parts = [
            out[:, window, slot].flatten(2) * share[:, None].to(out.dtype)
            for window, slot, share in slots.held
        ]
        return sum(parts[1:], start=parts[0])

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, queries: Tensor, table: Tensor | None, heads: int
    ) -> Tensor:
        """The result in every slot, ``(batch, windows, slots, heads, head_dim)``.

        As `mano_op.layers.whole.attend_whole`, with sizes that may be symbols.
        """
        batch, windows, head_dim = q.shape[0], len(self.keys), q.shape[-1] // heads
        q, k, v = (
            t.index_select(1, index.flatten())
            .view(batch, windows, index.shape[1], heads, head_dim)
            .transpose(2, 3)
            for t, index in ((q, queries), (k, self.keys), (v, self.keys))
        )
        scores = (q * head_dim**-0.5) @ k.mT
        if table is not None:
            scores = scores + table
        if self.cut:  # where a window has no key
            missing = torch.zeros_like(self.exists, dtype=scores.dtype).masked_fill(~self.exists, -torch.inf)
            scores = scores + missing[:, None, None]
        return (scores.softmax(-1) @ v).transpose(2, 3)

    def slots(self, lines: Sequence[Finer]) -> Slots:
        """Which points of a finer grid stand in which window, given its axes."""
        per_axis = [
            _along_axis(line, count, side, halo)
            for line, count, side, halo in zip(lines, self.counts, self.sides, self.halos, strict=True)
        ]
        flat = per_axis[0].queries
        for axis, line in zip(per_axis[1:], lines[1:], strict=True):
            (windows, width), (more, wider) = flat.shape, axis.queries.shape
            flat = flat[:, None, :, None] * line.n + axis.queries[None, :, None, :]
            flat = flat.reshape(windows * more, width * wider)
        held = []
        for tiling in product(*(axis.held for axis in per_axis)):
            window, slot, share = tiling[0]
            for (of_axis, place, part), axis in zip(tiling[1:], per_axis[1:], strict=True):
                count, width = axis.queries.shape
                window = (window[:, None] * count + of_axis).flatten()
                slot = (slot[:, None] * width + place).flatten()
                share = (share[:, None] * part).flatten()
            held.append((window, slot, share))
        return Slots(flat, held, [(axis.quarter, axis.rest) for axis in per_axis])

    def _table_from(self, bias: Bias, slots: Slots, like: Tensor) -> Tensor:
        """The bias of every pair of a slot and a key of a window, ``(windows, heads, slots, keys)``."""
        reach = [4 * (side + halo) for side, halo in zip(self.sides, self.halos, strict=True)]
        table = bias(self._lattice([-r for r in reach], [2 * r + 1 for r in reach], like, 0.25))
        heads, shape = table.shape[-1], []
        for i, (quarter, rest) in enumerate(slots.offsets):  # (o0, o1, heads) -> (m0 k0 s0, o1, heads) -> ...
            weight = rest.flatten().to(table.dtype).view(-1, *[1] * (table.ndim - i - 1))
            lower, upper = (table.index_select(i, (quarter + step).flatten()) for step in (0, 1))
            table = torch.lerp(lower, upper, weight)
            shape += [quarter.shape]
        n_dim = len(shape)
        table = table.reshape(*(n for of_axis in shape for n in of_axis), heads)
        windows, keys, queries = ([3 * i + part for i in range(n_dim)] for part in range(3))
        table = table.permute(*windows, 3 * n_dim, *queries, *keys)
        return table.reshape(len(self.keys), heads, slots.queries.shape[1], self.keys.shape[1])

    @staticmethod
    def _lattice(lowest: Sequence[int], counts: Sequence[int], like: Tensor, step: float = 1.0) -> Tensor:
        """Offsets on a lattice, ``(*counts, n_dim)``, which starts so many steps from 0."""
        axes = [
            (step * (first + torch.arange(count, device=like.device))).to(like.dtype)
            for first, count in zip(lowest, counts, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


class Slots(NamedTuple):
    """The points of a finer grid in the windows of a reference.

    Attributes
    ----------
    queries : int64, ``(windows, slots)``
        The point in each slot, some of which nobody takes.
    held : list of (int64, int64, float64), ``(points,)``
        A window and a slot that each point stands in, and its share of the result there. There are two such along
        each axis; a point that has only one has nothing of the other.
    offsets : list of (int64, float64), ``(windows, keys, slots)``
        For each axis and each pair of a key and a slot of a window along it, the quarter of a step at or below their
        offset, counted from the least one that there can be, and the share of the way to the next.
    """

    queries: Tensor
    held: list[tuple[Tensor, Tensor, Tensor]]
    offsets: list[tuple[Tensor, Tensor]]


class _Axis(NamedTuple):
    queries: Tensor
    held: list[tuple[Tensor, Tensor, Tensor]]
    quarter: Tensor
    rest: Tensor


def _along_axis(line: Finer, count: int, side: int, halo: int) -> _Axis:
    """The windows of one axis: how many, and how many points of the reference each has and sees beyond."""
    n, q, wraps, of_reference = line.n, line.denominator, line.reference.periodic, line.reference.n
    p = line.numerators
    j = torch.arange(n, device=p.device)
    if wraps:  # from the first point at or after the reference's first one on, once around
        ahead = (p < 0).sum()
        p = torch.where(p < 0, p + of_reference * q, p)
        t = torch.where(j < ahead, j - ahead + n, j - ahead)
    else:
        ahead, t = torch.zeros_like(j[:1]), j
    below, way = line.within()
    if wraps:
        below = below % of_reference
    above = below + (way > 0)
    above = above % of_reference if wraps else above
    own, next_one = below // side, above // side
    shared = own != next_one

    # The slots of a window: first the points that it shares with the window before, then its own.
    room, n_shared = _room(line, side, shares=count > 1)
    windows, slot = torch.arange(count, device=p.device), torch.arange(room, device=p.device)
    first = (own[None] < windows[:, None]).sum(1)
    held = [(own, n_shared + t - first.index_select(0, own), torch.where(shared, 1 - way, 1.0))]
    before = first
    if count > 1:  # those shared with the window before are its last ones
        of_window = ((next_one[None] == windows[:, None]) & shared[None]).sum(1)
        before = torch.where(windows == 0, n, first) - of_window
        there = torch.where(shared, t - before.index_select(0, next_one), 0)
        held.append((torch.where(shared, next_one, 0), there, torch.where(shared, way, 0.0)))
    is_shared = slot < n_shared
    at = torch.where(is_shared, before[:, None] + slot, first[:, None] + slot - n_shared).clamp(max=n - 1)
    at = at + ahead  # back from the order once around to that of the points
    at = torch.where(at >= n, at - n, at)
    # The window before the first is the last one, once around.
    begin = torch.where(is_shared & (windows == 0)[:, None], of_reference, side * windows[:, None])
    position = p.index_select(0, at.flatten()).view(at.shape) - begin * q
    position = position.clamp(-1 * q, side * q)  # slots that nobody takes hold points that may be far away
    keys = torch.arange(side + 2 * halo, device=p.device) - halo
    offset = keys[:, None] * q - position[:, None]
    if wraps:  # the nearest image; of two equally near ones the one ahead
        around = of_reference * q
        offset = torch.where(2 * offset > around, offset - around, offset)
        offset = torch.where(2 * offset <= -1 * around, offset + around, offset)
    reach = side + halo
    quarters = 4 * (offset + reach * q)
    quarter = (quarters // q).clamp(0, 8 * reach - 1)
    return _Axis(at, held, quarter, (quarters - quarter * q).double() / q)


def _room(line: Finer, side: int, *, shares: bool) -> tuple[int, int]:
    """How many slots a window needs at most, and how many of them for points it shares with the one before.

    That is :math:`\\lceil w N / R \\rceil` and :math:`\\lfloor N / R \\rfloor + 1`, or one more: their sum is one
    quotient, since what traces with symbols cannot tell that a sum of two is not 1.
    """
    # The first window of an axis that does not wrap also has the half spacing before the first centre of a cell.
    half = 1 if line.reference.registration == "cell" and not line.reference.periodic else 0
    spacings, intervals = line.reference.intervals, line.intervals
    if not shares:
        return ((2 * side + half) * intervals + 2 * spacings) // (2 * spacings), 0
    room = ((2 * side + half + 2) * intervals + 4 * spacings - 1) // (2 * spacings)
    return room, intervals // spacings + 1
