"""Coordinates that are rounded, told from ones that are not uniform, and compared."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# How far a coordinate may lie from where it should, in spacings.
TOLERANCE = 1e-3


def deviation(points: NDArray[Any]) -> float:
    """Return the largest distance of points from uniform ones, fitted by least squares."""
    if len(points) < 3:
        return 0.0
    numbers = np.arange(len(points)) - (len(points) - 1) / 2
    values = points.astype(np.float64) - float(points[0])  # the differences keep their digits
    centred = values - values.mean()
    return float(np.abs(centred - numbers * (numbers @ centred) / (numbers @ numbers)).max())


def scatter_by_rounding(points: NDArray[Any]) -> float:
    """Return how far the points of a uniform axis may lie from their places by rounding.

    Points shorter than float64 are rounded to their type. Others are taken as rounded to the unit that all
    are multiples of, in float32 or decimals, if they scatter by no more. The unit is at most half a spacing;
    0 stands for less than `TOLERANCE` spacings, no scatter, or scatter that rounding does not explain.

    Examples
    --------
    Metres in float32, thirds to two decimals, and an axis that is stretched:

    >>> metres = np.float32(5634000) + np.float32(2.7) * np.arange(16, dtype=np.float32)
    >>> scatter_by_rounding(metres), scatter_by_rounding(np.round(np.arange(16) / 3, 2))
    (1.0, 0.01)
    >>> scatter_by_rounding(np.cumsum(1.1 ** np.arange(16)))
    0.0
    """
    if len(points) < 3:
        return 0.0
    spacing, scatter = _mean_step(points), deviation(points)
    least = TOLERANCE * spacing
    units = [_float_unit(points)] if scatter > least or _is_short(points) else []
    units += [_decimal_unit(points, spacing / 2)] if scatter > least else []
    return max((unit for unit in units if max(scatter, least) < unit <= spacing / 2), default=0.0)


def coarse_unit(points: NDArray[Any]) -> float:
    """Return the unit that explains the scatter of points, but is too large to tell where they lie.

    Examples
    --------
    >>> coarse_unit(np.round(np.arange(64) / 64, 2)), coarse_unit(np.cumsum(1.1 ** np.arange(16)))
    (0.01, 0.0)
    """
    if len(points) < 3:
        return 0.0
    spacing, scatter = _mean_step(points), deviation(points)
    units = [_float_unit(points), _decimal_unit(points, 2 * spacing)]
    explaining = [unit for unit in units if spacing / 2 < unit <= 2 * spacing and scatter <= unit]
    return max(explaining, default=0.0)


def unit_in_the_last_place(points: NDArray[Any]) -> float:
    """Return the distance of neighbouring numbers at the largest point.

    Examples
    --------
    >>> unit_in_the_last_place(np.array([1.0, 5e6], dtype=np.float32)), unit_in_the_last_place(np.arange(3))
    (0.5, 0.0)
    """
    if points.dtype.kind != "f" or not len(points):
        return 0.0
    return float(np.spacing(np.abs(points).max()))


def tolerance_between(first: NDArray[Any], second: NDArray[Any], rounding: float = 0.0) -> float:
    """Return how far equal numbers of two increasing sequences may lie apart.

    `TOLERANCE` of the smallest step of either, or the rounding, below a quarter of the step.
    """
    rounding += 2 * (unit_in_the_last_place(first) + unit_in_the_last_place(second))
    steps = [
        np.abs(np.diff(points.astype(np.float64))).min() for points in (first, second) if len(points) > 1
    ]
    return max(TOLERANCE * min(steps), min(rounding, min(steps) / 4)) if steps else rounding


def agree(first: NDArray[Any], second: NDArray[Any], rounding: float = 0.0) -> NDArray[np.bool_]:
    """Compare two sequences of as many numbers, within `tolerance_between` them."""
    apart = np.abs(first.astype(np.float64) - second.astype(np.float64))
    return np.asarray(apart <= tolerance_between(first, second, rounding))


def _mean_step(points: NDArray[Any]) -> float:
    return abs(float(points[-1]) - float(points[0])) / (len(points) - 1)


def _is_short(points: NDArray[Any]) -> bool:
    return points.dtype.kind == "f" and points.dtype.itemsize < 8


def _float_unit(points: NDArray[Any]) -> float:
    """Twice the spacing of a short type, or of float32: sums and products round more than once."""
    single = points if _is_short(points) else points.astype(np.float32)
    exact = np.array_equal(single.astype(np.float64), points.astype(np.float64))
    return 2 * unit_in_the_last_place(single) if exact else math.inf


def _decimal_unit(points: NDArray[Any], largest: float) -> float:
    """Return the largest power of ten, up to `largest`, that all points are multiples of."""
    values = points.astype(np.float64)
    noise = 4 * (unit_in_the_last_place(points) or unit_in_the_last_place(values))
    for exponent in range(math.floor(math.log10(largest)), math.floor(math.log10(largest)) - 16, -1):
        unit = 10.0**exponent
        if 2 * noise > unit:
            break
        if np.abs(values - np.rint(values / unit) * unit).max() <= noise:
            return unit
    return math.inf
