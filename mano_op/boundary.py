"""Boundary conditions and known boundary values of a field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from mano_op.errors import InputError, is_finite_number
from mano_op.grid import Grid

BoundaryCondition = Literal["periodic", "dirichlet", "neumann", "robin", "wall", "open", "mixed", "unknown"]
End = float | None
Boundary = float | Mapping[str, float | tuple[End, End]]


def ends_by_axis(grid: Grid, boundary: Boundary | None) -> dict[str, tuple[End, End]]:
    """Normalise known boundary values to a pair (at start, at stop) for each axis that has any.

    `boundary` is as in `resample`. Axes that are unknown or periodic, and values that are no finite numbers,
    raise an `InputError`.

    Examples
    --------
    >>> channel = Grid.uniform((4, 8), periodic=[False, True])
    >>> ends_by_axis(channel, 0), ends_by_axis(channel, {"y": (None, 1)}), ends_by_axis(channel, None)
    ({'y': (0.0, 0.0)}, {'y': (None, 1.0)}, {})
    """
    with_ends = [axis.name for axis in grid if not axis.periodic]
    if boundary is None:
        return {}
    values = boundary if isinstance(boundary, Mapping) else dict.fromkeys(with_ends, boundary)
    if not set(values) <= set(with_ends) or not (with_ends or values is boundary):
        raise InputError(
            f"boundary={boundary}: expected values for axes that do not wrap, which here are "
            f"{', '.join(with_ends) or 'none, so leave it out'}"
        )
    ends: dict[str, tuple[End, End]] = {}
    for name, value in values.items():
        pair = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value, value)
        if len(pair) != 2 or not all(end is None or is_finite_number(end) for end in pair):
            raise InputError(
                f"boundary={boundary}: axis {name!r} expects a finite number, or a pair of them for its two "
                "ends, with None for one that is not known"
            )
        start, stop = (None if end is None else float(end) for end in pair)
        ends[name] = (start, stop)
    return ends
