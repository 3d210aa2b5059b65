"""From the coordinates of a labelled data set to its `Grid` and times: checked, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid, Registration

# How far a coordinate may lie from where it should, in spacings: coordinates in float32 pass.
_TOLERANCE = 1e-3

Domain = Mapping[str, tuple[float, float]]
Shape = int | tuple[int, ...]


def times_of(fields: Mapping[Any, xr.Dataset]) -> tuple[list[float], str]:
    """The times of data sets as numbers, and their units; none if they have no coordinate "time".

    Dates and durations become what CF makes of them: numbers since a date, or of a unit.
    """
    found = []
    for resolution, data in fields.items():
        if "time" not in data.coords:
            raise InputError(f"{resolution}: dimension 'time' has no coordinate; assign the times")
        encoded = xr.conventions.encode_cf_variable(data["time"].variable)
        if encoded.dtype.kind not in "iuf":
            raise InputError(
                f"{resolution}: times of type {encoded.dtype}; expected numbers, dates or durations"
            )
        found.append((encoded.values.astype(np.float64).tolist(), str(encoded.attrs.get("units", "1"))))
    if any(other != found[0] for other in found):
        raise InputError("the times differ between resolutions; `data.sel(time=...)` those that all have")
    return found[0]


def domain_of(
    resolution: Shape,
    data: xr.Dataset,
    axes: Sequence[str],
    registration: Registration,
    periodic: Mapping[str, bool],
    *,
    alone: bool,
) -> Domain:
    """The ends of the axes from their points, if there is anything that could contradict them."""
    domain, told = {}, dict(periodic)  # the domain of an axis that wraps may start anywhere
    for axis in axes:
        domain[axis] = _domain(axis, data[axis].values, registration)
        bounds = data[axis].attrs.get("bounds")
        if not periodic.get(axis) and bounds in data.variables:
            domain[axis] = float(data[bounds].min()) + 0.0, float(data[bounds].max()) + 0.0
            told[axis] = True
    if alone and not all(told.get(axis) for axis in axes):
        grid_of(resolution, data, axes, registration, domain, periodic)  # what else is wrong comes first
        raise InputError(
            f"domain is not given, and nothing else tells whether registration={registration!r} is right for "
            f"{', '.join(f'{axis} = {_ends(data[axis].values)}' for axis in axes)}. If it is, give "
            f"domain={domain}; if that is not the domain, the registration is another one too"
        )
    return domain


def _domain(axis: str, points: NDArray[Any], registration: Registration) -> tuple[float, float]:
    """The ends of an axis, from its first and last point and where on [0, 1] these would lie."""
    if len(points) < 2:
        raise InputError(
            f"axis {axis!r} has {len(points)} points, from which no domain follows: give `domain`"
        )
    unit = Axis(axis, len(points), registration=registration).points
    length = float(points[-1] - points[0]) / (unit[-1] - unit[0])
    start = float(points[0]) - length * unit[0]
    # The differences leave 0.9999999999999999 where the coordinates mean 1: take the round number if
    # there is one within the rounding of the coordinates.
    precision = np.finfo(points.dtype if points.dtype.kind == "f" else np.float64)
    scale = max(abs(start), abs(start + length))
    digits = precision.precision - 2 - math.ceil(math.log10(scale))
    ends = [(end, round(end, digits)) for end in (start, start + length)]
    start, stop = (near if abs(near - end) <= 8 * precision.eps * scale else end for end, near in ends)
    return float(start) + 0.0, float(stop) + 0.0  # no -0.0


def grid_of(
    resolution: Shape,
    data: xr.Dataset,
    axes: Sequence[str],
    registration: Registration,
    domain: Domain,
    periodic: Mapping[str, bool],
) -> Grid:
    """The grid that a data set is on, if its coordinates say that it is the one declared."""
    made = []
    for name in axes:
        if name not in domain:
            raise InputError(f"domain={dict(domain)} has no axis {name!r}; expected the ends of {list(axes)}")
        points = data[name].values.astype(np.float64)
        axis = Axis(name, len(points), *domain[name], registration, periodic.get(name, False))
        if np.abs(points - axis.points).max() > _TOLERANCE * axis.spacing:
            raise InputError(
                f"{resolution}: {name} is {_ends(points)}, but {axis.n} points in registration "
                f"{registration!r} on {list(domain[name])} are {_ends(axis.points)}{_remedy(points, axis)}"
            )
        made.append(axis)
    grid = Grid(tuple(made))
    if resolution != grid.shape and any(n != resolution for n in grid.shape):
        raise InputError(f"the data set under {resolution} has shape {grid.shape}; use that as its key")
    return grid


def _ends(points: NDArray[np.float64]) -> str:
    return ", ".join(f"{point:g}" for point in points[:2]) + f", ..., {points[-1]:g}"


def _remedy(points: NDArray[np.float64], axis: Axis) -> str:
    if np.ptp(np.diff(points)) > _TOLERANCE * axis.spacing:
        return ": the spacing is not uniform; interpolate to a uniform grid first"
    fitting = [
        name
        for name in REGISTRATIONS
        if not (axis.periodic and name == "node_both")
        and np.allclose(
            replace(axis, registration=cast(Registration, name)).points,
            points,
            rtol=0,
            atol=_TOLERANCE * axis.spacing,
        )
    ]
    if fitting:
        return f": registration={fitting[0]!r} would fit"
    return ": look up the registration and the domain of your data and give both"
