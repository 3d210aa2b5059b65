"""Write labelled data sets, in memory or behind dask, to a store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from dask.base import optimize
from numpy.typing import NDArray

from mano_op.boundary import Boundary
from mano_op.data import coordinates, guards
from mano_op.data.jobs import check_sendable, write_store
from mano_op.data.layout import TARGET_BYTES, Layout, Variable, check_splits, chunk_for, group_name
from mano_op.data.options import StoreOptions
from mano_op.data.samples import splits_held
from mano_op.data.source import SourceReader, blocks_of
from mano_op.data.store import FieldStore
from mano_op.data.times import times_of
from mano_op.errors import InputError
from mano_op.grid import Grid, Registration
from mano_op.options import with_fields_of

# The attributes of a variable that are kept, and what is taken where they are missing.
_ATTRIBUTES = {"units": "1", "long_name": ""}

_Fields = dict[Grid, dict[str, NDArray[Any]]]


@with_fields_of(StoreOptions)
def write_fields(
    path: str | Path,
    fields: Mapping[Any, xr.Dataset],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    splits: Mapping[str, int],
    registration: Registration | coordinates.Registrations,
    boundary_conditions: Mapping[str, str],
    boundary_values: Mapping[str, Boundary] | None = None,
    domain: coordinates.Domain | None = None,
    reference: Mapping[str, float] | None = None,
    initial: Mapping[str, str] | None = None,
    **options: Any,
) -> FieldStore:
    """Write xarray data sets, one for each resolution, to a store, and open it.

    Variables have the dimensions ``("sample", *axes)`` or ``("sample", "time", *axes)``, all but the
    first with coordinates. Behind dask, data sets may be larger than memory: each chunk is read once. Labels
    "sample", times (within a fraction of the step), units, long_name and standard_name have to be the same at
    every resolution; cell_methods need not be. Missing ones are CF's: the unit "1" and "area: point".

    Parameters
    ----------
    path : path
    fields : mapping of int or tuple of int to Dataset
        Under the number of points along each axis: 64, or (64, 96).
    inputs, outputs : sequence of str
        Names of variables, in the order of a model's channels. An input may lack "sample", if it is the same
        for all of them, and some of the axes.
    splits : mapping of str to int
        Sizes, in the order of the samples: ``{"train": 1000, "test": 50}``. A data set with only some of
        them says which by its coordinate "sample": numbers among all samples, or labels of a whole data set.
    registration : {"node", "node_both", "cell"} or mapping
        Where points lie, see `mano_op.grid`: for all axes or each, ``{"y": "node_both", "x": "node"}``. The
        coordinates are checked against it; rounded ones are replaced by exact ones.
    boundary_conditions : mapping of str to str
        For each axis: "periodic", "dirichlet", "neumann", "robin", "wall", "open", "mixed", "unknown".
    boundary_values : mapping of str to float or mapping, optional
        Known values at the boundary: ``{"pressure": 0.0}``, or ``{"temperature": {"y": (1.0, 0.0)}}``; see
        `Variable`. Without them the interpolated baseline of a transfer is worse than it could be.
    domain : mapping of str to (float, float), optional
        Ends of each axis. By default those of CF bounds, or what the finest coordinates and `registration`
        imply; with a single resolution one of the two is required, except where an axis is periodic.
    reference : mapping of str to float, optional
        Constants to subtract, where float32 does not hold the variation: ``{"pressure": 101325.0}``.
    initial : mapping of str to str, optional
        Steady inputs that an output starts from: ``{"u0": "u"}``. By default an input that is an output's
        first time is refused; ``{}`` says that there is none.
    **options
        Of `mano_op.data.options.StoreOptions`: ``title``, ``chunk``, ``client``, ``resume``, ...

    Raises
    ------
    InputError
        Before anything is written, if labels do not fit or a data set cannot be sent to workers; while
        writing, if a value is not finite: chunks before it are kept for `resume`; at the end, if float32
        loses more than 1e-3 of a variable's variation.

    Examples
    --------
    >>> import tempfile
    >>> x = Grid.uniform((8,), registration="cell").points[0]
    >>> u = np.outer([1.0, 2.0, 3.0], np.sin(np.pi * x))
    >>> data = xr.Dataset({"a": (("sample", "x"), u**2), "u": (("sample", "x"), u)}, {"x": x})
    >>> store = write_fields(f"{tempfile.mkdtemp()}/sines.zarr", {8: data}, inputs=["a"], outputs=["u"],
    ...     splits={"train": 2, "test": 1}, registration="cell", domain={"x": (0.0, 1.0)},
    ...     boundary_conditions={"x": "dirichlet"}, boundary_values={"u": 0.0})
    >>> store.grids["r8"] == Grid.uniform((8,), registration="cell")
    True
    """
    guards.check_options(write_fields, options, {})
    writing = StoreOptions(**options)
    for violation in _violations(fields, inputs, outputs):
        raise InputError(violation)
    check_splits(splits)
    fields = {key: _spread(key, data, inputs, outputs) for key, data in fields.items()}
    names = [*inputs, *outputs]
    axes, varying = _check_variables(fields, names)
    registration = coordinates.registrations_of(registration, axes)
    times, time_units = times_of(fields) if varying else ([], "1")
    guards.check_each("boundary_conditions", boundary_conditions, axes)
    periodic = {axis: bc == "periodic" for axis, bc in boundary_conditions.items()}
    splits_at = splits_held(fields, splits)
    grids: dict[Grid, xr.Dataset] = {}
    held: dict[Grid, list[str]] = {}
    for resolution in sorted(fields, key=lambda key: -math.prod(fields[key].sizes[axis] for axis in axes)):
        data = fields[resolution]
        if domain is None:  # as the finest resolution has it
            domain = coordinates.domain_of(
                resolution, data, axes, registration, periodic, alone=len(fields) == 1
            )
        grid = coordinates.grid_of(resolution, data, axes, registration, domain, periodic)
        grids[grid], held[grid] = data[names], splits_at[resolution]

    points, n_times = math.prod(next(iter(grids)).shape), max(1, len(times))
    chunk = writing.chunk or chunk_for(points * n_times, splits, held.values())
    # All times if a chunk then has at most 8 MiB, otherwise as many as make 1 MiB.
    at_once = TARGET_BYTES // (4 * points * chunk)
    chunk_times = n_times if 4 * points * chunk * n_times <= 8 * TARGET_BYTES else max(1, at_once)
    layout = Layout.plan(
        list(grids),
        _variables(fields, axes, inputs, outputs, boundary_values or {}, varying, reference or {}, initial),
        splits,
        boundary_conditions=boundary_conditions,
        levels=writing.levels,
        chunk=chunk,
        held=held,
        times=times,
        time_units=time_units,
        chunk_times=writing.chunk_times or chunk_times,
        coordinates=coordinates.coordinates_of(fields, axes),
        as_plane=writing.as_plane,
    )
    client = writing.client
    if client is not None:
        for resolution, data in fields.items():
            check_sendable(f"fields at {resolution}", optimize(data[names].isel(sample=slice(0, 1)))[0])
    return write_store(
        path,
        layout,
        partial(_write_block, grids) if client is None else partial(_write_parts, "synchronous"),
        writing,
        title=writing.title,
        provenance=writing.provenance or {},
        workers=1,  # one block in memory; dask reads its chunks side by side
        blocks=lambda store: blocks_of(
            store.layout, {store.key(g): data for g, data in grids.items()}, names
        ),
        parts=None if client is None else partial(_parts, grids, culled=True),
        check=partial(_check_chunk, grids),
    )


def _violations(fields: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[str]:
    several = isinstance(fields, Mapping) and not isinstance(fields, xr.Dataset) and fields
    if not several or not (inputs or outputs):
        yield (
            f"fields is a {type(fields).__name__}, inputs={inputs}, outputs={outputs}; expected a data set "
            "for each resolution: {64: data}, say, and names of its variables"
        )
    for option, names in (("inputs", inputs), ("outputs", outputs)):
        if isinstance(names, str):
            yield f"{option}={names!r}; expected a list of names: {option}=[{names!r}]"
    for resolution, data in fields.items():
        if not isinstance(data, xr.Dataset):
            yield (
                f"fields at {resolution} is a {type(data).__name__}; expected a Dataset: open a file with "
                "`xarray.open_dataset`, and make one of arrays with `xarray.Dataset({name: array})`"
            )


def _spread(key: Any, data: xr.Dataset, inputs: Sequence[str], outputs: Sequence[str]) -> xr.Dataset:
    """Give static inputs, and those along some of the axes, a value at each point of each sample."""
    guards.check_has(f"the data set at {key}", "variable", [*inputs, *outputs], data.data_vars)
    like = data[[*outputs, *inputs][0]]
    if "sample" not in like.dims:
        return data
    axes = [str(dim) for dim in like.dims if dim not in ("sample", "time")]
    full = {name: ["sample", *(["time"] if "time" in data[name].dims else []), *axes] for name in inputs}
    short = [name for name in inputs if set(data[name].dims) < set(full[name])]
    return data.assign({name: coordinates.spread(data, name, full[name], axes) for name in short})


def _parts(
    sources: Mapping[Grid, xr.Dataset], store: FieldStore, samples: slice, *, culled: bool = False
) -> dict[Grid, xr.Dataset]:
    """Select some samples, unread, of every data set that holds any of them."""
    parts = {
        grid: data.isel(sample=rows)
        for grid, data in sources.items()
        if (rows := store.layout.rows_of(store.key(grid), samples)).start < rows.stop
    }
    # Without the tasks behind dask that the values do not need.
    return {grid: optimize(part)[0] for grid, part in parts.items()} if culled else parts


def _write_block(sources: Mapping[Grid, xr.Dataset], store: FieldStore, block: slice) -> int:
    return _write_parts("threads", store, block, _parts(sources, store, block))


def _write_parts(scheduler: str, store: FieldStore, block: slice, parts: Mapping[Grid, xr.Dataset]) -> int:
    """Write the missing chunks of a block, piece of time after piece; return the number of samples."""
    missing = [samples for samples in store.pending() if block.start <= samples.start < block.stop]
    for samples, times, fields in _read(scheduler, store, block, parts, missing):
        if samples.start == times.start == 0:
            _check_ends(store, fields)
            _check_initial(store, fields)
        store.write(samples, fields, times)
    return sum(samples.stop - samples.start for samples in missing)


def _read(
    scheduler: str, store: FieldStore, block: slice, parts: Mapping[Grid, xr.Dataset], chunks: Sequence[slice]
) -> Iterator[tuple[slice, slice, _Fields]]:
    """Read chunks of a block by pieces of time, steady variables with the first, and subtract references."""
    reader = SourceReader(parts, store.layout.named(), scheduler)
    constants = {variable.name: variable.reference for variable in store.variables}
    for times, samples in product(store.layout.time_chunks, chunks):
        rows = {}
        for grid in parts:
            first = store.layout.rows_of(store.key(grid), block).start
            span = store.layout.rows_of(store.key(grid), samples)
            if span.start < span.stop:
                rows[grid] = slice(span.start - first, span.stop - first)
        fields = reader.read(rows, times, store.layout.named(time=True if times.start else None))
        for variables in fields.values():
            for name in filter(constants.get, variables):
                if variables[name].dtype.kind in "biuf":
                    variables[name] = variables[name].astype(np.float64) - constants[name]
        yield samples, times, fields


def _check_ends(store: FieldStore, fields: _Fields) -> None:
    """Refuse an axis that wraps whose last values repeat the first in all fields, unless by chance."""
    for (grid, variables), name in product(fields.items(), store.layout.boundary_conditions):
        dim = grid.names.index(name) - grid.n_dim
        n, periodic = grid.shape[dim], grid.axes[dim].periodic
        # Values of other types are refused when they are written.
        if not periodic or n < 3 or any(values.dtype.kind not in "biuf" for values in variables.values()):
            continue
        repeated, moving = True, False
        for values in variables.values():
            first, second, last = (values.take(k, dim).astype(np.float64) for k in (0, 1, -1))
            step, gap = (np.abs(x - first).reshape(len(first), -1).max(axis=1) for x in (second, last))
            repeated &= bool((gap <= 1e-6 * step).all())
            moving |= bool((first != first.flat[0]).any() or (step > 0).all())
        if repeated and moving:
            raise InputError(
                f"{store.key(grid)}: along {name} the last of {n} points repeats the first in all fields, "
                "but an axis that wraps has each point once: drop the last, of a data set by "
                f"`data.isel({{{name!r}: slice(None, -1)}})`"
            )


def _check_initial(store: FieldStore, fields: _Fields) -> None:
    """Refuse a steady input that is an output at the first time, undeclared."""
    for values, (name, output) in product(fields.values(), store.layout.undeclared):
        first = values[output][:, 0]
        if np.array_equal(values[name], first) and (first != first.flat[0]).any():
            raise InputError(
                f"{name} is {output} at the first time: give initial={{{name!r}: {output!r}}}, so that a "
                "step is not given where the field began, or initial={} if it is a parameter"
            )


def _check_chunk(sources: Mapping[Grid, xr.Dataset], store: FieldStore, samples: slice) -> None:
    """Refuse to go on with a store that has other values than the data sets."""
    parts, varying = _parts(sources, store, samples), store.layout.named(time=True)
    for _, times, fields in _read("threads", store, samples, parts, [samples]):
        for grid, variables in fields.items():
            key = store.key(grid)
            rows = store.layout.rows_of(key, samples)
            for name, values in variables.items():
                written = store.read(key, name, rows, times if name in varying else slice(None))
                if not np.array_equal(values.astype(np.float32), written):
                    raise InputError(
                        f"{store.path}, {key}/{name}: samples {samples.start} to {samples.stop - 1} were "
                        "written with other values than the data set has now. To resume, pass the data sets "
                        "that it was begun with, or overwrite=True to start anew"
                    )


def _check_variables(
    fields: Mapping[Any, xr.Dataset], names: Sequence[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the spatial dimensions, which all variables share, and the variables that vary in time."""
    dimensions: set[tuple[str, ...]] = set()
    varying: dict[str, set[bool]] = {name: set() for name in names}
    for resolution, data in fields.items():
        for name in names:
            guards.check_has(f"the data set at {resolution}", "variable", [name], data.data_vars)
            dims = tuple(map(str, data[name].dims))
            varying[name].add(dims[1:2] == ("time",))
            dimensions.add(dims)
    spatial = {("sample", *dims[2:]) if dims[1:2] == ("time",) else dims for dims in dimensions}
    first = min(spatial)
    alike = len(spatial) == 1 and all(len(has_times) == 1 for has_times in varying.values())
    if not alike or first[0] != "sample" or len(first) < 2:
        raise InputError(
            f"dimensions {sorted(dimensions)}; expected ('sample', ...) or ('sample', 'time', ...) and then "
            "the same axes for all variables at all resolutions: first `data.rename(run='sample')`, "
            "`data.transpose(...)`, or `data.expand_dims('sample')` for a single sample"
        )
    axes = first[1:]
    for resolution, data in fields.items():
        for axis in axes:
            if axis not in data.coords or data[axis].dims != (axis,) or data[axis].dtype.kind not in "iuf":
                what = f"of {data[axis].dtype}" if axis in data.coords else "missing"
                raise InputError(
                    f"{resolution}: the coordinate of axis {axis!r} is {what}; expected numbers: "
                    f"`data.assign_coords({{{axis!r}: ...}})`, {data.sizes[axis]} that increase"
                )
            guards.check_increasing(axis, data[axis].values, f"{resolution}: ")
    return axes, frozenset(name for name in names if True in varying[name])


def _variables(
    fields: Mapping[Any, xr.Dataset],
    axes: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    boundary_values: Mapping[str, Boundary],
    varying: Set[str],
    reference: Mapping[str, float],
    initial: Mapping[str, str] | None,
) -> list[Variable]:
    options = {"boundary_values": boundary_values, "reference": reference, "initial": initial or {}}
    for option, by_name in options.items():
        guards.check_some_of(f"{option} of", by_name, [*inputs, *outputs])
    keyed = {group_name([data.sizes[axis] for axis in axes]): data for data in fields.values()}
    variables = []
    for name in [*inputs, *outputs]:
        role: Literal["input", "output"] = "input" if name in inputs else "output"
        attributes: dict[Any, dict[str, Any]] = {
            resolution: {key: str(data[name].attrs.get(key, missing)) for key, missing in _ATTRIBUTES.items()}
            for resolution, data in fields.items()
        }
        guards.check_same(f"{name}: attributes", attributes)
        parameter = role == "input" and varying and name not in varying
        variables.append(
            Variable(
                name,
                role,
                **next(iter(attributes.values())),
                cell_methods={
                    key: str(data[name].attrs.get("cell_methods", "area: point"))
                    for key, data in keyed.items()
                },
                boundary_value=_difference(boundary_values.get(name), reference.get(name, 0.0)),
                time=name in varying,
                reference=reference.get(name, 0.0),
                initial_of=None if initial is None else initial.get(name, "" if parameter else None),
            )
        )
    return variables


def _difference(boundary: Any, reference: float) -> Any:
    """Subtract the reference from boundary values: a number, or those of axes and of their ends."""
    if boundary is None or not reference:
        return boundary
    if isinstance(boundary, Mapping):
        return {axis: _difference(ends, reference) for axis, ends in boundary.items()}
    if isinstance(boundary, Sequence):
        return tuple(_difference(end, reference) for end in boundary)
    return boundary - reference
