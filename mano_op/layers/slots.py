r"""Windows of a reference grid with the points of a finer one in them, whose number may be a symbol.

`mano_op.layers.window` lists points in numpy, for one size at a time. Here the windows of the reference are
tensors that are made once, and the window of each point of a finer grid follows from its position
(`mano_op.layers.finer`) by operations of torch. The values are the same.

The queries of a window stand in slots, as many in every window: along each axis first those that it shares
with the window before, then its own. Some slots are left over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mano_op.layers.finer import Finer
from mano_op.layers.tiling import tilings
from mano_op.layers.whole import Rows

Bias = Callable[[Tensor], Tensor]


class Slots(NamedTuple):
    """The points of a finer grid in the windows of a reference.

    Attributes
    ----------
    queries : int64, ``(windows, slots)``
        The point in each slot; a slot that is left over has any.
    held : list of (int64, int64, float64), ``(points,)``
        A window and a slot of each point, and its share of the result there; two along each axis, the second
        with share 0 for a point in one window.
    offsets : list of (int64, float64), ``(windows, keys, slots)``
        For each axis and each pair of a key and a slot of a window along it, the quarter of a step at or
        below their offset, counted from the least one that there can be, and the share of the way to the
        next.
    """

    queries: Tensor
    held: list[tuple[Tensor, Tensor, Tensor]]
    offsets: list[tuple[Tensor, Tensor]]


class Windows(nn.Module):
    """Windows of one grid of known size: attention of its points, and of the points of a finer grid.

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
    >>> out = Windows((7,), window=3, halo=1, periodic=[False]).attend(q, k, v, None, heads=2)
    >>> q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in (q, k, v))
    >>> expected = window_attention(q, k, v, window=3, halo=1).transpose(1, 2).flatten(2)
    >>> torch.allclose(out, expected, atol=1e-6)
    True
    """

    queries: Tensor
    keys: Tensor
    exists: Tensor
    place: Tensor
    offsets: Tensor

    def __init__(self, shape: Sequence[int], *, window: int, halo: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        axes = [tilings(n, window, window, halo, wrap)[0] for n, wrap in zip(shape, periodic, strict=True)]
        self.counts, self.sides = ([axis.queries.shape[i] for axis in axes] for i in (0, 1))
        self.halos = [(axis.keys.shape[1] - side) // 2 for axis, side in zip(axes, self.sides, strict=True)]
        rows = Rows.of(axes, shape, shape, torch.device("cpu"))
        self.cut = rows.missing is not None
        # Whole numbers, so that a change of precision leaves them alone; no checkpoint has them.
        for name, values in (
            ("queries", rows.queries.long()),
            ("keys", rows.keys.long()),
            ("exists", torch.tensor(True) if rows.missing is None else rows.missing == 0),
            ("place", rows.place.long()),
            ("offsets", torch.as_tensor(_pairs([axis.offsets[0].astype(np.int64) for axis in axes]))),
        ):
            self.register_buffer(name, values, persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, heads: int) -> Tensor:
        """Attend within windows; each tensor is ``(batch, points, heads * head_dim)``."""
        table = None if bias is None else bias(self.offsets.to(q.dtype)).movedim(-1, 0)
        out = self._attended(q, k, v, self.queries, table, heads)
        return out.flatten(1, 2).index_select(1, self.place).flatten(2)

    def attend_from(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, heads: int, slots: Slots
    ) -> Tensor:
        """Attend from the points of a finer grid, ``(batch, points, heads * head_dim)``, to this one's."""
        table = None if bias is None else self._table_from(bias, slots, q)
        out = self._attended(q, k, v, slots.queries, table, heads)
        parts = [
            out[:, window, slot].flatten(2) * share[:, None].to(out.dtype)
            for window, slot, share in slots.held
        ]
        return sum(parts[1:], start=parts[0])

    def slots(self, lines: Sequence[Finer]) -> Slots:
        """Put the points of a finer grid into slots, given its axes."""
        axes = [
            _along_axis(line, count, side, halo)
            for line, count, side, halo in zip(lines, self.counts, self.sides, self.halos, strict=True)
        ]
        queries = axes[0].queries
        for axis, line in zip(axes[1:], lines[1:], strict=True):
            (windows, width), (more, wider) = queries.shape, axis.queries.shape
            queries = queries[:, None, :, None] * line.n + axis.queries[None, :, None, :]
            queries = queries.reshape(windows * more, width * wider)
        held = []
        for chosen in product(*(axis.held for axis in axes)):
            window, slot, share = chosen[0]
            for (of_axis, place, part), axis in zip(chosen[1:], axes[1:], strict=True):
                count, width = axis.queries.shape
                window = (window[:, None] * count + of_axis).flatten()
                slot = (slot[:, None] * width + place).flatten()
                share = (share[:, None] * part).flatten()
            held.append((window, slot, share))
        return Slots(queries, held, [axis.offsets for axis in axes])

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
            scores = scores.masked_fill(~self.exists[:, None, None], -torch.inf)
        return (scores.softmax(-1) @ v).transpose(2, 3)

    def _table_from(self, bias: Bias, slots: Slots, like: Tensor) -> Tensor:
        """The bias of every pair of a slot and a key of a window, ``(windows, heads, slots, keys)``."""
        quarters = [
            torch.arange(-4 * reach, 4 * reach + 1, device=like.device) / 4
            for reach in (side + halo for side, halo in zip(self.sides, self.halos, strict=True))
        ]
        table = bias(torch.stack(torch.meshgrid(*quarters, indexing="ij"), dim=-1).to(like.dtype))
        heads = table.shape[-1]
        shape: list[int] = []
        for i, (quarter, rest) in enumerate(slots.offsets):  # (o0, o1, heads) -> (m0 k0 s0, o1, heads) -> ...
            weight = rest.flatten().to(table.dtype).view(-1, *[1] * (table.ndim - i - 1))
            lower, upper = (table.index_select(i, (quarter + step).flatten()) for step in (0, 1))
            table = torch.lerp(lower, upper, weight)
            shape += quarter.shape
        n_dim = len(slots.offsets)
        windows, keys, queries = ([3 * i + part for i in range(n_dim)] for part in range(3))
        table = table.reshape(*shape, heads).permute(*windows, 3 * n_dim, *queries, *keys)
        return table.reshape(len(self.keys), heads, slots.queries.shape[1], self.keys.shape[1])


def _pairs(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The offsets of every query and key of a window, ``(queries, keys, n_dim)``, from those of each axis."""
    n_dim, sizes = len(offsets), [n for of_axis in offsets for n in of_axis.shape]
    pairs = np.stack(np.meshgrid(*(of_axis.ravel() for of_axis in offsets), indexing="ij"), axis=-1)
    queries_first = [*range(0, 2 * n_dim, 2), *range(1, 2 * n_dim, 2), 2 * n_dim]
    return pairs.reshape(*sizes, n_dim).transpose(queries_first).reshape(math.prod(sizes[::2]), -1, n_dim)


class _Axis(NamedTuple):
    """`Slots` of one axis, which has one pair of offsets."""

    queries: Tensor
    held: list[tuple[Tensor, Tensor, Tensor]]
    offsets: tuple[Tensor, Tensor]


def _along_axis(line: Finer, count: int, side: int, halo: int) -> _Axis:
    """The slots of an axis with `count` windows of `side` keys and a halo."""
    n, p, q, wraps = line.n, line.numerators, line.denominator, line.reference.periodic
    j, keys = torch.arange(n, device=p.device), line.reference.n
    # The points in the order t in which windows have them: once around, from the first one at or after key 0.
    ahead = (p < 0).sum() if wraps else torch.zeros_like(j[0])
    t = torch.where(j < ahead, j - ahead + n, j - ahead)
    p = torch.where(p < 0, p + keys * q, p) if wraps else p
    below, way = line.within()
    above = below + (way > 0)
    own, next_one = ((key % keys if wraps else key) // side for key in (below, above))
    shared = own != next_one

    room, room_shared = _room(line, side, shares=count > 1)
    windows, slot = torch.arange(count, device=p.device), torch.arange(room, device=p.device)
    first = (own < windows[:, None]).sum(1)  # the t of a window's first point of its own
    held = [(own, room_shared + t - first.index_select(0, own), torch.where(shared, 1 - way, 1.0))]
    before = first  # the t of the first one that it shares with the window before, whose last ones these are
    if count > 1:
        before = torch.where(windows == 0, n, first) - ((next_one == windows[:, None]) & shared).sum(1)
        place = torch.where(shared, t - before.index_select(0, next_one), 0)
        held.append((torch.where(shared, next_one, 0), place, torch.where(shared, way, 0.0)))

    from_before = slot < room_shared
    at = torch.where(from_before, before[:, None] + slot, first[:, None] + slot - room_shared)
    at = at.clamp(max=n - 1) + ahead  # slots that are left over have any point; and t is j again
    at = torch.where(at >= n, at - n, at)
    # Before the first window comes the last one, once around.
    start = torch.where(from_before & (windows == 0)[:, None], keys, side * windows[:, None])
    position = p.index_select(0, at.flatten()).view(at.shape) - start * q
    position = position.clamp(-1 * q, side * q)  # of slots that are left over
    return _Axis(at, held, _quarters(position, line, side, halo))


def _quarters(position: Tensor, line: Finer, side: int, halo: int) -> tuple[Tensor, Tensor]:
    """The offsets of `Slots`, given the position of each slot in its window, in q-ths of a step."""
    q, around, reach = line.denominator, line.reference.n * line.denominator, side + halo
    offset = (torch.arange(side + 2 * halo, device=position.device) - halo)[:, None] * q - position[:, None]
    if line.reference.periodic:  # the nearest image; the one ahead if two are equally near
        offset = torch.where(2 * offset > around, offset - around, offset)
        offset = torch.where(2 * offset <= -1 * around, offset + around, offset)
    quarters = 4 * (offset + reach * q)
    quarter = (quarters // q).clamp(0, 8 * reach - 1)
    return quarter, (quarters - quarter * q).double() / q


def _room(line: Finer, side: int, *, shares: bool) -> tuple[int, int]:
    r"""The most slots of a window, and how many of them are for points shared with the window before.

    For w keys of an axis with R spacings, in which the finer one has N, that is
    :math:`\lceil w N / R \rceil + \lfloor N / R \rfloor + 1`, or one more, of which the latter are shared.
    The sum is one quotient, since what traces with symbols cannot tell that a sum of two is not 1.
    """
    # The first window of an axis that does not wrap also has the half spacing before the first cell's centre.
    half = 1 if line.reference.registration == "cell" and not line.reference.periodic else 0
    spacings, intervals = line.reference.intervals, line.intervals
    if not shares:
        return ((2 * side + half) * intervals + 2 * spacings) // (2 * spacings), 0
    room = ((2 * side + half + 2) * intervals + 4 * spacings - 1) // (2 * spacings)
    return room, intervals // spacings + 1
