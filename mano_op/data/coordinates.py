"""Grids of labelled data sets, from coordinates that are checked, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.guards import check_each, check_has, check_one_of, check_same, check_shape
from mano_op.data.layout import COORDINATE_ATTRIBUTES
from mano_op.data.rounded import TOLERANCE, coarse_unit, deviation, scatter_by_rounding
from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid, Registration

Domain = Mapping[str, tuple[float, float]]
Registrations = Mapping[str, Registration]
Shape = int | tuple[int, ...]


def spread(data: xr.Dataset, name: str, dims: Sequence[str], axes: Sequence[str]) -> xr.DataArray:
    """Give a static field, or a profile along some of the axes, a value at each point of dimensions `dims`.

    Examples
    --------
    >>> data = xr.Dataset({"u": (("sample", "y", "x"), np.zeros((2, 3, 4))), "inflow": ("y", np.ones(3))})
    >>> spread(data, "inflow", ["sample", "y", "x"], ["y", "x"]).shape
    (2, 3, 4)
    """
    values = data[name]
    if not set(values.dims) & set(axes):
        like = next((str(key) for key, field in data.items() if {*axes} <= {*field.dims} - {name}), "...")
        time = ".isel(time=0)" if "time" in data.get(like, values).dims else ""
        raise InputError(
            f"{name} has dimensions {values.dims}, none of the axes {', '.join(map(str, axes))}; expected a "
            f"field: `data.assign({name}=data[{name!r}].broadcast_like(data[{like!r}]{time}))`"
        )
    missing = {dim: data.sizes[dim] for dim in dims if dim not in values.dims}
    if not missing:
        return values
    return values.drop_vars("sample", errors="ignore").expand_dims(missing).transpose(*dims)


def registrations_of(registration: Registration | Registrations, axes: Sequence[str]) -> Registrations:
    """Return the registration of each axis, from one word for all or one for each.

    Examples
    --------
    >>> registrations_of({"y": "node_both", "x": "node"}, ["y", "x"])["y"]
    'node_both'
    """
    each = dict(registration) if isinstance(registration, Mapping) else dict.fromkeys(axes, registration)
    words = f": {', '.join(REGISTRATIONS[:-1])} or {REGISTRATIONS[-1]}"
    check_each("registration", each, axes, "one word, or ", words)
    for word in each.values():
        check_one_of("registration", word, REGISTRATIONS)
    return each


def coordinates_of(fields: Mapping[Any, xr.Dataset], axes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return units, long_name and standard_name of the axes; all data sets have to agree."""
    attributes = {}
    for axis in axes:
        kept = {}
        for resolution, data in fields.items():
            stated = {"units": "1", "long_name": axis, **data[axis].attrs}
            kept[resolution] = {name: str(stated[name]) for name in COORDINATE_ATTRIBUTES if name in stated}
        check_same(f"axis {axis!r}: attributes", kept)
        attributes[axis] = next(iter(kept.values()))
    return attributes


def domain_of(
    resolution: Shape,
    data: xr.Dataset,
    axes: Sequence[str],
    registration: Registrations,
    periodic: Mapping[str, bool],
    *,
    alone: bool,
) -> Domain:
    """Infer the ends of the axes from their points, if anything could contradict them."""
    domain, confirmed = {}, dict(periodic)  # the domain of an axis that wraps may start anywhere
    for axis in axes:
        points = data[axis].values
        if len(points) < 2:
            raise InputError(f"axis {axis!r} has {len(points)} points, which have no spacing: give `domain`")
        domain[axis] = _domain(points, registration[axis])
        if scatter := scatter_by_rounding(points):
            start, stop = domain[axis]
            raise InputError(
                f"{resolution}: {axis} = {_ends(points)} is rounded, to {scatter:.3g}, so its ends are known "
                f"no better: give domain={{{axis!r}: ({start:.9g}, {stop:.9g})}}, or what the data's authors "
                "say, for all axes"
            )
        bounds = data[axis].attrs.get("bounds")
        if not periodic.get(axis) and bounds in data.variables:
            domain[axis] = float(data[bounds].min()) + 0.0, float(data[bounds].max()) + 0.0
            confirmed[axis] = True
    if alone and not all(confirmed.get(axis) for axis in axes):
        grid_of(resolution, data, axes, registration, domain, periodic)  # what else is wrong comes first
        words = set(registration.values())
        ends = ", ".join(f"{axis} = {_ends(data[axis].values)}" for axis in axes)
        raise InputError(
            "domain is not given, and nothing else tells whether registration="
            f"{words.pop() if len(words) == 1 else dict(registration)!r} is right for {ends}. If it is, "
            f"give domain={domain}; if that is not the domain, the registration is another one too"
        )
    return domain


def _domain(points: NDArray[Any], registration: Registration) -> tuple[float, float]:
    unit = Axis("x", len(points), registration=registration).points
    length = float(points[-1] - points[0]) / (unit[-1] - unit[0])
    start = float(points[0]) - length * unit[0]
    # The differences leave 0.9999999999999999 where the coordinates mean 1: take the round number if
    # there is one within the rounding of the coordinates.
    precision = np.finfo(points.dtype if points.dtype.kind == "f" else np.float64)
    scale = max(abs(start), abs(start + length))
    digits = precision.precision - 2 - math.ceil(math.log10(scale) - 1e-6)  # 1000.00006 counts as 1000
    ends = [(end, round(end, digits)) for end in (start, start + length)]
    start, stop = (near if abs(near - end) <= 8 * precision.eps * scale else end for end, near in ends)
    return float(start) + 0.0, float(stop) + 0.0  # no -0.0


def grid_of(
    resolution: Shape,
    data: xr.Dataset,
    axes: Sequence[str],
    registration: Registrations,
    domain: Domain,
    periodic: Mapping[str, bool],
) -> Grid:
    """Return the declared grid of a data set, if its coordinates agree."""
    declared = []
    for name in axes:
        check_has("domain", "axis", [name], domain)
        points = data[name].values.astype(np.float64)
        axis = Axis(name, len(points), *domain[name], registration[name], periodic.get(name, False))
        tolerance = TOLERANCE * axis.spacing + scatter_by_rounding(data[name].values)
        if np.abs(points - axis.points).max() > tolerance:
            raise InputError(
                f"{resolution}: {name} is {_ends(points)}, but {axis.n} points in registration "
                f"{axis.registration!r} on {list(map(float, domain[name]))} are {_ends(axis.points)}"
                f"{_remedy(points, axis, tolerance)}"
            )
        declared.append(axis)
    grid = Grid(tuple(declared))
    expected = resolution if isinstance(resolution, tuple) else (resolution,) * grid.n_dim
    check_shape(f"the data set under {resolution}", grid.shape, expected, "use its shape as its key")
    return grid


def _ends(points: NDArray[np.float64]) -> str:
    return ", ".join(f"{point:g}" for point in points[:2]) + f", ..., {points[-1]:g}"


def _remedy(points: NDArray[np.float64], axis: Axis, tolerance: float) -> str:
    if unit := coarse_unit(points):
        return (
            f": these are rounded to {unit:.3g}, and do not tell where the points lie; give the exact ones, "
            f"`data.assign_coords({{{axis.name!r}: Axis({axis.name!r}, {axis.n}, {float(axis.start)!r}, "
            f"{float(axis.stop)!r}, {axis.registration!r}).points}})`, if this is their domain"
        )
    if deviation(points) > tolerance:
        steps = np.diff(points)
        first, last = int(steps.argmin()), int(steps.argmax())
        return (
            f": the spacing is not uniform, {steps[first]:.6g} after {points[first]:.6g} and "
            f"{steps[last]:.6g} after {points[last]:.6g}; interpolate to a uniform grid first, "
            f"`data.interp({{{axis.name!r}: np.linspace({points[0]:.9g}, {points[-1]:.9g}, {axis.n})}})`, "
            "and give its registration and domain"
        )
    for word in get_args(Registration):
        if axis.periodic and word == "node_both":
            continue
        if np.abs(replace(axis, registration=word).points - points).max() <= tolerance:
            return f": registration={word!r} would fit"
    remedy = ": look up the registration and the domain of your data and give both"
    if axis.n > 1:
        ends = [*_domain(points, axis.registration)]
        remedy += f"; in registration {axis.registration!r} these points lie on {ends}"
    return remedy
