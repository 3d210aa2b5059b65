"""What the fields were that a model was trained on, as far as its predictions need it to be fields again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr

from mano_op.boundary import Boundary
from mano_op.data.coordinates import grid_of
from mano_op.data.guards import check_has, check_increasing
from mano_op.data.layout import Layout
from mano_op.data.times import Times
from mano_op.errors import InputError
from mano_op.grid import Axis, Grid


@dataclass(frozen=True)
class FieldRecord:
    """Grid, variables and time step of the fields of a training.

    Attributes
    ----------
    grid : Grid
    coordinates : dict
        Attributes of the coordinate of each axis.
    variables : dict
        Units, long name, reference and known boundary value of each variable.
    time_units : str
        As of a store.
    step : float, optional
        Between two times, in these units; None where the times are not evenly spaced.

    Examples
    --------
    >>> from mano_op.data.layout import Variable
    >>> grid = Grid.uniform((4,), registration="cell")
    >>> layout = Layout.plan([grid], [Variable("a", "input"), Variable("u", "output", units="m")],
    ...     {"train": 1}, levels="unknown", boundary_conditions={"x": "open"}, chunk=1)
    >>> record = FieldRecord.of(layout, "r4")
    >>> FieldRecord.from_dict(record.to_dict()) == record, record.variables["u"]["units"]
    (True, 'm')
    """

    grid: Grid
    coordinates: dict[str, dict[str, str]]
    variables: dict[str, dict[str, Any]]
    time_units: str = "1"
    step: float | None = None

    @classmethod
    def of(cls, layout: Layout, key: str) -> FieldRecord:
        """Record the fields of a resolution of a store."""
        variables = {}
        for variable in layout.variables:
            kept = {name: getattr(variable, name) for name in ("units", "long_name", "reference")}
            variables[variable.name] = kept | {"boundary_value": variable.boundary_value}
        steps = np.diff(layout.times)
        even = len(steps) > 0 and np.allclose(steps, steps.mean(), rtol=1e-4, atol=0)
        step = float(steps.mean()) if even else None
        return cls(layout.grids[key], layout.coordinates, variables, layout.time_units, step)

    def to_dict(self) -> dict[str, Any]:
        """Return the record in JSON types."""
        axes = {axis.name: {**asdict(axis), **self.coordinates[axis.name]} for axis in self.grid}
        axes = {name: {k: v for k, v in axis.items() if k != "name"} for name, axis in axes.items()}
        return {
            "axes": axes,
            "variables": self.variables,
            "time": {"units": self.time_units, "step": self.step},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FieldRecord:
        """Make the record that `to_dict` wrote down."""
        places = ("n", "start", "stop", "registration", "periodic")
        axes, coordinates = [], {}
        for name, labels in record["axes"].items():
            axes.append(Axis(name, *(labels[place] for place in places)))
            coordinates[name] = {k: v for k, v in labels.items() if k not in places}
        variables = {name: dict(variable) for name, variable in record["variables"].items()}
        return cls(Grid(tuple(axes)), coordinates, variables, record["time"]["units"], record["time"]["step"])

    def boundary(self, variable: str) -> Boundary | None:
        """Return the known boundary values of a variable, differences from its reference."""
        known: Boundary | None = self.variables[variable]["boundary_value"]
        return known

    def grid_of(self, data: xr.Dataset) -> Grid:
        """Return the grid of a data set over the same domain, whose coordinates are checked."""
        domain = {axis.name: (axis.start, axis.stop) for axis in self.grid}
        registration = {axis.name: axis.registration for axis in self.grid}
        periodic = {axis.name: axis.periodic for axis in self.grid}
        for name in self.grid.names:
            remedy = f": the model has axes {', '.join(self.grid.names)}; rename those of the data"
            check_has("the data set", "dimension", [name], data.dims, remedy)
            if name not in data.coords or data[name].dtype.kind not in "iuf":
                raise InputError(
                    f"the coordinate of axis {name!r} is missing, or no numbers: "
                    f"`data.assign_coords({{{name!r}: ...}})`, {data.sizes[name]} that increase"
                )
            check_increasing(name, data[name].values)
        shape = tuple(data.sizes[name] for name in self.grid.names)
        return grid_of(shape, data, self.grid.names, registration, domain, periodic)

    def later(self, times: xr.Variable, count: int) -> xr.Variable:
        """Return the next times after the last of some, one step apart."""
        if self.step is None:
            raise InputError("the times of the training are not evenly spaced, so a last one has no next")
        own = Times.of("the training", xr.Variable("time", [0.0, self.step], {"units": self.time_units}))
        step, given = float(np.diff(own.seconds)[0]), Times.of("the data set", times)
        if given.measure != own.measure and not {given.measure, own.measure} <= {"dates", "durations"}:
            raise InputError(
                f"times are {given.measure}, those of the training {own.measure}: give times in these units"
            )
        apart = np.diff(given.seconds)
        if not np.allclose(apart, step, rtol=1e-3, atol=given.rounding):
            raise InputError(
                f"times {given.text(0)}, {given.text(1)}, ... are {apart[0]:g} apart, the model steps by "
                f"{step:g}, in seconds where units are of time: give {len(times)} times that are a step apart"
            )
        ahead = step * np.arange(1, count + 1)
        if times.dtype.kind in "mM":
            later = times.values[-1] + (ahead * 1e9).round().astype("timedelta64[ns]")
        else:
            unit = Times.of("", times.copy(data=times.values + 1.0)).seconds[-1] - given.seconds[-1]
            later = times.values[-1] + ahead / unit
        return xr.Variable("time", later, times.attrs, times.encoding)
