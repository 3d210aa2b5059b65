r"""Softmax attention inside windows of a uniform grid, in any number of dimensions.

The grid is cut into windows of :math:`w^d` queries that start every :math:`s` points. A window's queries
attend to the keys of the window itself and of a halo of :math:`h` points on each side:

.. math::

    o_i = \sum_{j \in W(i)} \frac{e^{q_i \cdot k_j / \sqrt{d_h} + b(j - i)}}
          {\sum_{l \in W(i)} e^{q_i \cdot k_l / \sqrt{d_h} + b(l - i)}} \, v_j ,
    \qquad W(i) = [\text{start} - h, \text{start} + w + h)^d .

Where windows overlap (:math:`s < w`) a point gets the average of its windows' results. Keys outside the
domain are masked, or wrapped around where the axis is periodic, so that no padding ever enters a softmax
and every size works.

Queries, keys and values come in already projected: the projections act point by point, so they are
applied once per point, not once per window. Overlapping windows are seen as a few shifted tilings of
the grid, each of which is cut by reshaping, instead of as unfolded copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tiling:
    """Windows along one axis, one period apart, as indices into the axis.

    Attributes
    ----------
    queries, keys : int arrays, ``(windows, w)`` and ``(windows, w + 2 h)``
        The points of each window. Points that do not exist are clamped to one that does, and masked.
    key_exists : bool array, ``(windows, w + 2 h)``
    offsets : float array, ``(1 or windows, w, w + 2 h)``
        Steps from each query of a window to each of its keys; the first axis is 1 where windows are alike.
    place : int array, ``(n,)``
        Where each point of the axis stands among the flattened `queries`.
    share : float array, ``(n,)``
        The weight of this tiling in the average over all windows that hold the point; 0 if none here does.
    """

    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    key_exists: NDArray[np.bool_]
    offsets: NDArray[np.float64]
    place: NDArray[np.int64]
    share: NDArray[np.float64]


@lru_cache(maxsize=256)
def tilings(n: int, window: int, stride: int, halo: int, periodic: bool) -> tuple[Tiling, ...]:
    """The shifted tilings that together hold the windows of an axis of `n` points.

    Windows start at 0, `stride`, 2 `stride`, ... until one reaches the end of the axis. The windows of
    one tiling do not overlap. A window wider than the axis is cut down to it.
    """
    window = min(window, n)
    stride = min(stride, window)
    if periodic:
        halo = min(halo, (n - window) // 2 + (n - window) % 2)
    per_period = -(-window // stride)
    n_windows = -(-(n - window) // stride) + 1
    starts = np.arange(n_windows) * stride
    held_by = np.zeros(n)
    for start in starts:
        held_by[start : start + window] += 1

    result = []
    for shift in range(min(per_period, n_windows)):
        own = starts[shift::per_period, None]
        queries, keys = own + np.arange(window), own + np.arange(-halo, window + halo)
        if periodic:
            # On a short axis a window with its halo would meet the same point twice.
            key_exists = np.broadcast_to(np.arange(keys.shape[1]) < n, keys.shape)
            keys = keys % n
        else:
            key_exists = (keys >= 0) & (keys < n)
        place, share = np.zeros(n, dtype=np.int64), np.zeros(n)
        inside = queries < n
        place[queries[inside]] = np.flatnonzero(inside)
        share[queries[inside]] = 1 / held_by[queries[inside]]
        offsets = _offsets(np.arange(window)[None], np.arange(-halo, window + halo)[None], n, periodic)
        result.append(
            Tiling(queries.clip(max=n - 1), keys.clip(0, n - 1), key_exists.copy(), offsets, place, share)
        )
    return tuple(result)


@lru_cache(maxsize=256)
def placed_tilings(
    at: tuple[float, ...], n: int, window: int, halo: int, periodic: bool
) -> tuple[Tiling, ...]:
    r"""The windows of an axis of `n` keys, side by side, with the queries that lie in each of them.

    A query between two keys of one window is that window's. One between the last key of a window and the
    first of the next, a share t of the way, belongs to both: its result is :math:`1 - t` times that in the
    one and t times that in the other, so that results change continuously from window to window. The second
    tiling, if there is one, has such queries only.

    Parameters
    ----------
    at : tuple of float
        Where the queries are, increasing, counted in keys. Before the first and beyond the last key of an
        axis that does not wrap they are that key's window's.
    n, window, halo, periodic
        As in `tilings`, whose keys these are.
    """
    positions = np.asarray(at)
    side = min(window, n)
    below, above = (
        (i.astype(int) % n if periodic else i.astype(int).clip(0, n - 1)) // side
        for i in (np.floor(positions), np.ceil(positions))
    )
    way, shared = positions - np.floor(positions), below != above
    keys = tilings(n, window, window, halo, periodic)[0]
    first = _placed(positions, np.ones_like(shared), below, np.where(shared, 1 - way, 1.0), keys, n, periodic)
    if not shared.any():
        return (first,)
    return first, _placed(positions, shared, above, np.where(shared, way, 0.0), keys, n, periodic)


def _placed(
    positions: NDArray[np.float64],
    held: NDArray[np.bool_],
    of_window: NDArray[np.int64],
    share: NDArray[np.float64],
    keys: Tiling,
    n: int,
    periodic: bool,
) -> Tiling:
    """The tiling with those of some queries that it holds, each in its window."""
    n_windows, width = keys.keys.shape
    side = keys.queries.shape[1]
    mine = np.flatnonzero(held)
    mine = mine[np.argsort(of_window[mine], kind="stable")]
    counts = np.bincount(of_window[mine], minlength=n_windows)
    firsts = np.cumsum(counts) - counts
    slot = np.arange(len(mine)) - firsts[of_window[mine]]
    # A window with fewer queries is filled up with any, whose results nobody takes.
    queries = np.full((n_windows, counts.max()), mine[0])
    queries[of_window[mine], slot] = mine
    place = np.zeros(len(positions), dtype=np.int64)
    place[mine] = of_window[mine] * queries.shape[1] + slot
    inside = np.zeros(queries.shape)
    inside[of_window[mine], slot] = positions[mine] - side * of_window[mine]
    if periodic:  # of a window's images the one that is near
        inside -= n * np.rint((inside - side / 2) / n)
    alike = inside[counts.argmax()]  # as where one spacing is a multiple of the other
    if (np.abs(inside - alike)[of_window[mine], slot] < 1e-9).all():
        inside = alike[None]
    reach = np.arange(width)[None] - (width - side) // 2
    return Tiling(queries, keys.keys, keys.key_exists, _offsets(inside, reach, n, periodic), place, share)


def _offsets(
    queries: NDArray[np.generic], keys: NDArray[np.generic], n: int, periodic: bool
) -> NDArray[np.float64]:
    """From each query, ``(m, w)``, to each key, ``(1, k)``, or the nearest of its images."""
    offsets: NDArray[np.float64] = np.subtract(keys[:, None, :], queries[:, :, None], dtype=np.float64)
    if periodic:  # of two equally near ones the one ahead
        offsets = offsets - n * np.ceil(offsets / n - 0.5)
    return offsets


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    stride: int | None = None,
    halo: int = 0,
    periodic: Sequence[bool] | None = None,
    bias: Callable[[Tensor], Tensor] | None = None,
    queries_at: Sequence[tuple[float, ...]] | None = None,
) -> Tensor:
    """Attend within windows, and average where windows overlap.

    Parameters
    ----------
    q, k, v : Tensor, ``(batch, heads, *grid, head_dim)``
    window : int
        Points along each side of a window, w. A window wider than the grid is cut down to it.
    stride : int, optional
        Points from one window to the next, s, at most `window`, which it is if not given.
    halo : int
        Points on each side of a window whose keys its queries also see, h.
    periodic : sequence of bool, optional
        For each axis, whether windows see across its ends. Queries do not: windows start at point 0.
    bias : callable, optional
        Maps offsets, float ``(..., n_dim)`` in steps of the grid, to what is added to the scores,
        ``(..., heads)``. Between whole offsets it is tabulated at quarters of a step and interpolated.
    queries_at : sequence of tuple of float, optional
        Where the queries are, if they are not at the keys: for each axis their positions, increasing and
        counted in keys. The grid of `q` is then that of these positions, windows do not overlap, and queries
        between two windows get a share of both; see `placed_tilings`.

    Returns
    -------
    Tensor, ``(batch, heads, *grid of q, head_dim)``

    Examples
    --------
    A window as large as the grid is plain attention:

    >>> _ = torch.manual_seed(0)
    >>> q, k, v = torch.randn(3, 1, 2, 4, 6, 8, dtype=torch.float64)
    >>> local = window_attention(q, k, v, window=6)
    >>> dense = F.scaled_dot_product_attention(*(rearrange(t, "b h y x d -> b h (y x) d") for t in (q, k, v)))
    >>> torch.allclose(rearrange(local, "b h y x d -> b h (y x) d"), dense)
    True
    """
    shape = k.shape[2:-1]
    wraps = [False] * len(shape) if periodic is None else periodic
    if queries_at is not None:
        per_axis = [
            placed_tilings(at, n, window, halo, wrap)
            for at, n, wrap in zip(queries_at, shape, wraps, strict=True)
        ]
    else:
        per_axis = [
            tilings(n, window, window if stride is None else stride, halo, wrap)
            for n, wrap in zip(shape, wraps, strict=True)
        ]
    out: Tensor | None = None
    for tiling in product(*per_axis):
        part = _attend_in_tiling(q, k, v, tiling, bias)
        if all((axis.share == 1).all() for axis in tiling):
            return part
        for dim, axis in enumerate(tiling, start=2):
            share = torch.as_tensor(axis.share, dtype=part.dtype, device=part.device)
            part = part * share.view(-1, *[1] * (part.ndim - dim - 1))
        out = part if out is None else out + part
    assert out is not None  # an axis has at least one tiling
    return out


def _attend_in_tiling(
    q: Tensor, k: Tensor, v: Tensor, tiling: tuple[Tiling, ...], bias: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """The attention of the windows of one tiling, put back in its place on the grid."""
    axes = range(len(tiling))
    inside, outside = " ".join(f"w{i}" for i in axes), " ".join(f"m{i}" for i in axes)
    grid = " ".join(f"(m{i} w{i})" for i in axes)
    cut = f"b h {grid} d -> b ({outside} h) ({inside}) d"
    counts = {f"m{i}": len(axis.queries) for i, axis in enumerate(tiling)}

    heads = q.shape[1]
    q = rearrange(_select(q, [axis.queries for axis in tiling]), cut, **counts)
    k, v = (rearrange(_select(t, [axis.keys for axis in tiling]), cut, **counts) for t in (k, v))
    scores = _added_scores(tiling, heads=heads, like=q, bias=bias)
    out = _softmax_attention(q, k, v, scores)
    widths = {f"w{i}": axis.queries.shape[1] for i, axis in enumerate(tiling)}
    out = rearrange(out, f"b ({outside} h) ({inside}) d -> b h {grid} d", **counts, **widths)
    return _select(out, [axis.place for axis in tiling])


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    """The attention of each window; on a CPU written out, since no query here is without a key.

    torch's own kernel looks for such queries there, which doubles its time; it also has no gradient for
    an added score on a CPU, and falls back on this same arithmetic.
    """
    if q.device.type != "cpu":
        return _kernel_attention(q, k, v, added)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores if added is None else scores + added).softmax(-1) @ v


def _kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, most_heads: int = 2**16 - 1
) -> Tensor:
    """The kernel of torch, on at most so many windows and heads at once.

    On CUDA some of its kernels can start no more, and may not say so (pytorch/pytorch#142228). A grid of
    256 x 256 with windows of 2 x 2 and 4 heads has one more.
    """
    out = []
    for first in range(0, q.shape[1], most_heads):
        part = slice(first, first + most_heads)
        mask = None if added is None else added[part]
        out.append(F.scaled_dot_product_attention(q[:, part], k[:, part], v[:, part], attn_mask=mask))
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)


def _select(t: Tensor, indices: Sequence[NDArray[np.int64]]) -> Tensor:
    """Pick points of a ``(batch, heads, *grid, channels)`` tensor, axis by axis."""
    for dim, index in enumerate(indices, start=2):
        flat = index.reshape(-1)
        if len(flat) != t.shape[dim] or (flat != np.arange(len(flat))).any():
            t = t.index_select(dim, torch.as_tensor(flat, device=t.device))
    return t


def _added_scores(
    tiling: tuple[Tiling, ...], heads: int, like: Tensor, bias: Callable[[Tensor], Tensor] | None
) -> Tensor | None:
    """What is added to the scores, ``(windows * heads, queries, keys)``: the bias, and -inf at no key."""
    key_exists = np.ones((1, 1), dtype=bool)
    for axis in tiling:
        key_exists = np.einsum("mk,nl->mnkl", key_exists, axis.key_exists).reshape(
            len(key_exists) * len(axis.key_exists), -1
        )
    scores: Tensor | None = None
    if bias is not None:
        scores = _bias_table(bias, [axis.offsets for axis in tiling], like)
        if len(scores) > 1:
            windows = [len(axis.queries) for axis in tiling]
            shared = [len(axis.offsets) for axis in tiling]
            scores = scores.unflatten(0, shared).expand(*windows, *[-1] * 3).flatten(0, len(windows) - 1)
    if not key_exists.all():
        mask = torch.zeros(key_exists.shape, dtype=like.dtype, device=like.device)
        mask.masked_fill_(~torch.as_tensor(key_exists, device=like.device), -torch.inf)
        mask = rearrange(mask, "m k -> m 1 1 k")
        scores = mask if scores is None else scores + mask
    if scores is None:
        return None
    n_queries = int(np.prod([axis.queries.shape[1] for axis in tiling]))
    return scores.expand(len(key_exists), heads, n_queries, -1).flatten(0, 1)


def _bias_table(
    bias: Callable[[Tensor], Tensor], offsets: Sequence[NDArray[np.float64]], like: Tensor
) -> Tensor:
    """The bias of every pair of a query and a key of a window, ``(windows, heads, queries, keys)``.

    Many pairs have the same offset or nearly so. It is evaluated on a lattice: whole steps where all offsets
    are whole, else quarters, between which it is interpolated linearly.
    """
    steps, places = [], []
    for offset in offsets:
        step = 1.0 if (offset == np.rint(offset)).all() else 0.25
        place = offset / step
        first = np.floor(place.min())
        # One more than the last, which what lies beyond it is interpolated with.
        steps.append(step * np.arange(first, np.floor(place.max()) + (1 if step == 1 else 2)))
        places.append(place - first)
    lattice = [torch.as_tensor(s, dtype=like.dtype, device=like.device) for s in steps]
    table = bias(torch.stack(torch.meshgrid(*lattice, indexing="ij"), dim=-1))
    n_dim = len(offsets)
    for axis, place in enumerate(places):  # (o0, o1, ..., heads) -> (m0, q0, k0, m1, q1, k1, ..., heads)
        below = np.floor(place)
        table = _between(table, 3 * axis, below.astype(int), place - below)
    order = " ".join(f"m{i} q{i} k{i}" for i in range(n_dim))
    windows, queries, keys = (" ".join(f"{letter}{i}" for i in range(n_dim)) for letter in "mqk")
    return rearrange(table, f"{order} h -> ({windows}) h ({queries}) ({keys})")


def _between(table: Tensor, dim: int, below: NDArray[np.int64], share: NDArray[np.float64]) -> Tensor:
    """Entries of a table along a dimension, which becomes those of `below`; `share` is of the next one."""

    def entries(index: NDArray[np.int64]) -> Tensor:
        chosen = torch.as_tensor(index.reshape(-1), device=table.device)
        return table.index_select(dim, chosen).unflatten(dim, index.shape)

    if not share.any():
        return entries(below)
    weight = torch.as_tensor(share, dtype=table.dtype, device=table.device)
    weight = weight.view(*share.shape, *[1] * (table.ndim - dim - 1))
    return torch.lerp(entries(below), entries(below + 1), weight)
