"""Tilings of an axis by windows, as indices.

Overlapping windows are a few shifted tilings of each axis, whose windows do not overlap. One of them for each
axis makes a tiling of the grid, `mano_op.layers.whole.Rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


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
        Position of each point of the axis among the flattened `queries`.
    share : float array, ``(n,)``
        Weight of this tiling in the average over all windows of a point; 0 without one here.
    """

    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    key_exists: NDArray[np.bool_]
    offsets: NDArray[np.float64]
    place: NDArray[np.int64]
    share: NDArray[np.float64]


@lru_cache(maxsize=256)
def tilings(
    n: int, window: int, stride: int, halo: int, periodic: bool, shift: int = 0
) -> tuple[Tiling, ...]:
    """Return the shifted tilings that together hold the windows of an axis of `n` points.

    Windows start at 0, `stride`, 2 `stride`, ... until one reaches the end of the axis. The windows of
    one tiling do not overlap. A window wider than the axis is cut down to it.

    With `shift`, windows side by side start that much later; see `first_window`.
    """
    window = min(window, n)
    stride = min(stride, window)
    # No more than there is, or than meets on the far side of an axis that wraps.
    halo = min(halo, (n - window) // 2 + (n - window) % 2 if periodic else n)
    per_period = -(-window // stride)
    first = first_window(n, window, periodic, shift)
    n_windows = -(-(n - window - (0 if periodic else first)) // stride) + 1
    starts = first + np.arange(n_windows) * stride
    ends = n + first if periodic else n
    held_by = np.zeros(n)
    for start in starts:
        held_by[np.arange(max(int(start), 0), min(int(start) + window, ends)) % n] += 1

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
        inside = (queries >= 0) & (queries < ends)
        queries = queries % n if periodic else queries
        place[queries[inside]] = np.flatnonzero(inside)
        share[queries[inside]] = 1 / held_by[queries[inside]]
        offsets = _offsets(np.arange(window)[None], np.arange(-halo, window + halo)[None], n, periodic)
        result.append(
            Tiling(queries.clip(0, n - 1), keys.clip(0, n - 1), key_exists.copy(), offsets, place, share)
        )
    return tuple(result)


def first_window(n: int, window: int, periodic: bool, shift: int) -> int:
    """Return the start of the first window of an axis.

    An axis with ends begins with the last `shift` points of a window. A window that holds all of the axis is
    not shifted.

    Examples
    --------
    >>> first_window(16, 4, periodic=False, shift=2), first_window(16, 4, periodic=True, shift=2)
    (-2, 2)
    >>> first_window(4, 4, periodic=False, shift=2)
    0
    """
    shift = 0 if window >= n else shift % window
    return shift if periodic or not shift else shift - window


@lru_cache(maxsize=256)
def placed_tilings(
    at: tuple[float, ...], n: int, window: int, halo: int, periodic: bool, shift: int = 0
) -> tuple[Tiling, ...]:
    r"""Return the windows of an axis of `n` keys, side by side, with the queries that lie in each of them.

    A query between two keys of one window is in that window. One between the last key of a window and the
    first of the next, a share t of the way, is in both, with weights :math:`1 - t` and t, so that results
    are continuous. The second tiling, if there is one, has such queries only. Windows without a query are
    left out.

    Parameters
    ----------
    at : tuple of float
        Positions of the queries, increasing, counted in keys. Before the first and beyond the last key of an
        axis that does not wrap they are in the window of that key.
    n, window, halo, periodic, shift
        As in `tilings`, whose keys these are.
    """
    positions = np.asarray(at)
    side = min(window, n)
    first_start = first_window(n, side, periodic, shift)
    below, above = (
        ((i.astype(int) - first_start) % n if periodic else i.astype(int).clip(0, n - 1) - first_start)
        // side
        for i in (np.floor(positions), np.ceil(positions))
    )
    way, shared = positions - np.floor(positions), below != above
    keys = tilings(n, window, window, halo, periodic, shift)[0]

    def placed(held: NDArray[np.bool_], of_window: NDArray[np.int64], share: NDArray[np.float64]) -> Tiling:
        return _placed(positions - first_start, held, of_window, share, keys, n, periodic)

    first = placed(np.ones_like(shared), below, np.where(shared, 1 - way, 1.0))
    if not shared.any():
        return (first,)
    return first, placed(shared, above, np.where(shared, way, 0.0))


def _placed(
    positions: NDArray[np.float64],
    held: NDArray[np.bool_],
    of_window: NDArray[np.int64],
    share: NDArray[np.float64],
    keys: Tiling,
    n: int,
    periodic: bool,
) -> Tiling:
    """The tiling of the queries that are `held`, each in its window."""
    width, side = keys.keys.shape[1], keys.queries.shape[1]
    mine = np.flatnonzero(held)
    mine = mine[np.argsort(of_window[mine], kind="stable")]
    used, row, counts = np.unique(of_window[mine], return_inverse=True, return_counts=True)
    firsts = np.cumsum(counts) - counts
    slot = np.arange(len(mine)) - firsts[row]
    # A window with fewer queries is filled up with any.
    queries = np.full((len(used), counts.max()), mine[0])
    queries[row, slot] = mine
    place = np.zeros(len(positions), dtype=np.int64)
    place[mine] = row * queries.shape[1] + slot
    inside = np.zeros(queries.shape)
    inside[row, slot] = positions[mine] - side * of_window[mine]
    if periodic:  # the nearest image of a window
        inside -= n * np.rint((inside - side / 2) / n)
    alike = inside[counts.argmax()]  # as where one spacing is a multiple of the other
    if (np.abs(inside - alike)[row, slot] < 1e-9).all():
        inside = alike[None]
    reach = np.arange(width)[None] - (width - side) // 2
    offsets = _offsets(inside, reach, n, periodic)
    return Tiling(queries, keys.keys[used], keys.key_exists[used], offsets, place, share)


def _offsets(
    queries: NDArray[np.generic], keys: NDArray[np.generic], n: int, periodic: bool
) -> NDArray[np.float64]:
    """Offsets from each query, ``(m, w)``, to the nearest image of each key, ``(1, k)``."""
    offsets: NDArray[np.float64] = np.subtract(keys[:, None, :], queries[:, :, None], dtype=np.float64)
    if periodic:  # the one ahead if two are equally near
        offsets = offsets - n * np.ceil(offsets / n - 0.5)
    return offsets
