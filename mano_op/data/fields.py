"""Labelled data sets that exist already, in memory or behind dask, into a store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import xarray as xr
from dask.base import optimize
from numpy.typing import NDArray

from mano_op.boundary import Boundary
from mano_op.data.chunking import TARGET_BYTES, chunk_for
from mano_op.data.coordinates import (
    Domain,
    Registrations,
    Shape,
    coordinates_of,
    domain_of,
    grid_of,
    registrations_of,
)
from mano_op.data.guards import (
    check_ends_differ,
    check_has,
    check_increasing,
    check_same,
    check_some_of,
)
from mano_op.data.jobs import check_sendable, write_store
from mano_op.data.layout import Levels, Variable, check_splits, group_name
from mano_op.data.samples import splits_held
from mano_op.data.source import SourceReader, blocks_of
from mano_op.data.store import FieldStore
from mano_op.data.times import times_of
from mano_op.errors import InputError
from mano_op.grid import Grid, Registration

if TYPE_CHECKING:
    from distributed import Client

# The attributes of a variable that are kept, and what is taken where they are missing.
_ATTRIBUTES = {"units": "1", "long_name": ""}
_CELL_METHODS = "area: point"

_Shape = TypeVar("_Shape", bound=Shape)


def write_fields(
    path: str | Path,
    fields: Mapping[_Shape, xr.Dataset],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    splits: Mapping[str, int],
    registration: Registration | Registrations,
    boundary_conditions: Mapping[str, str],
    boundary_values: Mapping[str, Boundary] | None = None,
    domain: Domain | None = None,
    reference: Mapping[str, float] | None = None,
    initial: Mapping[str, str] | None = None,
    as_plane: bool = False,
    levels: Levels = "unknown",
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    chunk: int | None = None,
    chunk_times: int | None = None,
    client: Client | None = None,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> FieldStore:
    """Write xarray data sets, one for each resolution, to a store.

    Variables have the dimensions ``("sample", *axes)``, or ``("sample", "time", *axes)`` if they vary in
    time, and every dimension but the first has a coordinate. Data sets behind dask may be larger than memory:
    each of their chunks is read once, whatever chunks the store has, and a long run is written in pieces of
    time. What is in memory is the chunks that a chunk of the store is made of.

    A coordinate "sample" labels the samples: each label once, and at every resolution the same ones in the
    same order. Times have to be the same at every resolution, within a fraction of the step. Both are
    compared in any type and unit, and dates decoded; the store numbers samples, and has times as numbers.

    Units, long_name and cell_methods are taken from the variables' attributes, and units, long_name and
    standard_name from those of the coordinates; all but cell_methods have to be the same at every resolution.
    Where one is missing it is what CF says that this means: without units a number has the unit "1", and
    without cell_methods it is a value at a point, "area: point".

    Parameters
    ----------
    path : path
    fields : mapping of int or tuple of int to Dataset
        The key is the number of points along each axis: 64, or (64, 96).
    inputs, outputs : sequence of str
        Names of variables, in the order of a model's channels.
    splits : mapping of str to int
        Sizes of the splits, in the order of the samples: ``{"train": 1000, "test": 50}`` makes the first
        1000 the training split. A data set that holds only some of the splits says which by the coordinate
        "sample": numbers among the samples of all splits, or labels of a data set that has all of them.
    registration : {"node", "node_both", "cell"} or mapping
        Where points lie; see `mano_op.grid`. One for all axes, or for each, such as
        ``{"y": "node_both", "x": "node"}`` between walls with points on both of them, along an axis that
        wraps. Never guessed: the coordinates are checked against it. Coordinates that are rounded, in float32
        or in decimals, are accepted, and the exact ones are written.
    boundary_conditions : mapping of str to str
        For each axis: "periodic", which also makes the axis of the grid wrap, "dirichlet", "neumann",
        "robin", "wall", "open", "mixed" or "unknown".
    boundary_values : mapping of str to float or mapping, optional
        Of variables whose values at the boundary are known, such as ``{"pressure": 0.0}``, or
        ``{"temperature": {"y": (1.0, 0.0)}}`` for the two ends of one axis; see `Variable`. Judging transfer
        without them, the interpolated baseline is worse than it could be.
    domain : mapping of str to (float, float), optional
        Ends of each axis. If not given, they are those of the coordinate's CF bounds, or follow from the
        finest level's coordinates and `registration`. With a single level nothing would then tell a wrong
        registration from a right one, so one of the two is required, except where an axis is periodic.
    reference : mapping of str to float, optional
        Of variables, constants to subtract before storing: ``{"pressure": 101325.0}``, where float32 holds
        the difference and not the variation of the whole. The store keeps them, see `Variable`.
    initial : mapping of str to str, optional
        Of steady inputs that are the field that an output starts from, that output: ``{"u0": "u"}``. Times
        are predicted from them, and steps are not given them. If not given, an input that is an output's
        first time is refused; ``{}`` says that there is none.
    as_plane : bool
        Take latitude and longitude as lengths on a plane, which the store then says; refused otherwise.
    levels, title, provenance, chunk, chunk_times, overwrite
        As in `mano_op.data.store.create_store`. Chunks are of some 1 MiB at the finest level if not given,
        and have all times if that is at most 8 MiB.
    client : distributed.Client, optional
        Where to read and write, a chunk at a time on each thread of its workers. They must see the store, and
        the files behind dask, under the same names; what is in memory is sent to them. If not given, in this
        process, a chunk at a time.
    progress : bool
        Whether to show a progress bar on stderr.
    resume : bool
        Go on with a store that a power cut, a full disk or a refused value interrupted, from the same data
        sets and with the same options. Some of what was written is compared with the data sets first.

    Returns
    -------
    FieldStore
        Complete, opened for reading.

    Raises
    ------
    InputError
        Before anything is written, if labels do not fit, or a data set cannot be sent to the workers of
        `client`; while writing, if a value is not finite. The chunks before it are then kept for `resume`,
        and a store that was to be replaced is still there. When all is read, if float32 loses more than 1e-3
        of a variable's own variation.

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
    _check_given(fields, inputs, outputs, splits)
    names = [*inputs, *outputs]
    axes, varying = _check_variables(fields, names)
    registration = registrations_of(registration, axes)
    times, time_units = times_of(fields) if varying else ([], "1")
    periodic = {axis: bc == "periodic" for axis, bc in boundary_conditions.items()}
    held = splits_held(fields, splits)
    grids: dict[Grid, xr.Dataset] = {}
    holds: dict[Grid, list[str]] = {}
    for resolution in sorted(fields, key=lambda key: -math.prod(fields[key].sizes[axis] for axis in axes)):
        data = fields[resolution]
        if domain is None:  # as the finest level has it
            domain = domain_of(resolution, data, axes, registration, periodic, alone=len(fields) == 1)
        grid = grid_of(resolution, data, axes, registration, domain, periodic)
        grids[grid], holds[grid] = data[names], held[resolution]

    finest, n_times = next(iter(grids)), max(1, len(times))
    if chunk is None:
        chunk = chunk_for(math.prod(finest.shape) * n_times, splits, held.values())
    plan = {
        "grids": list(grids),
        "variables": _variables(
            fields, axes, inputs, outputs, boundary_values or {}, varying, reference or {}, initial
        ),
        "splits": splits,
        "boundary_conditions": boundary_conditions,
        "levels": levels,
        "chunk": chunk,
        "held": holds,
        "times": times,
        "time_units": time_units,
        "chunk_times": _times_to_a_chunk(finest, n_times, chunk) if chunk_times is None else chunk_times,
        "coordinates": coordinates_of(fields, axes),
        "as_plane": as_plane,
    }
    if client is not None:
        for resolution, data in fields.items():
            check_sendable(f"fields at {resolution}", _culled(data[names].isel(sample=slice(0, 1))))
    ask = initial is None
    return write_store(
        path,
        plan,
        provenance or {},
        partial(_write_block, grids, ask) if client is None else partial(_write_parts, "synchronous", ask),
        title=title,
        client=client,
        workers=1,  # one block in memory; dask reads its chunks side by side
        blocks=partial(_blocks, grids, names),
        parts=None if client is None else partial(_parts, grids, culled=True),
        progress=progress,
        resume=resume,
        overwrite=overwrite,
        check=partial(_check_chunk, grids),
    )


def _times_to_a_chunk(grid: Grid, n_times: int, chunk: int) -> int:
    """All times, where a chunk of the store is then no larger than 8 MiB; as many as make 1 MiB otherwise."""
    field_bytes = 4 * math.prod(grid.shape) * chunk
    return n_times if field_bytes * n_times <= 8 * TARGET_BYTES else max(1, TARGET_BYTES // field_bytes)


def _check_given(fields: Any, inputs: Sequence[str], outputs: Sequence[str], splits: Any) -> None:
    """Refuse what is of another kind than a data set for each resolution, names, and sizes of splits."""
    several = isinstance(fields, Mapping) and not isinstance(fields, xr.Dataset)
    if not several or not fields or not (inputs or outputs):
        raise InputError(
            f"fields is a {type(fields).__name__}, inputs={inputs}, outputs={outputs}; expected a data set "
            "for each resolution: {64: data}, say, and names of its variables"
        )
    for what, given in (("inputs", inputs), ("outputs", outputs)):
        if isinstance(given, str):
            raise InputError(f"{what}={given!r}; expected a list of names: {what}=[{given!r}]")
    for resolution, data in fields.items():
        if not isinstance(data, xr.Dataset):
            raise InputError(
                f"fields at {resolution} is a {type(data).__name__}; expected a Dataset: open a file with "
                "`xarray.open_dataset`, and make one of arrays with `xarray.Dataset({name: array})`"
            )
    check_splits(splits)


def _blocks(sources: Mapping[Grid, xr.Dataset], names: Sequence[str], store: FieldStore) -> list[slice]:
    return blocks_of(store.layout, {store.key(grid): data for grid, data in sources.items()}, names)


def _parts(
    sources: Mapping[Grid, xr.Dataset], store: FieldStore, samples: slice, *, culled: bool = False
) -> dict[Grid, xr.Dataset]:
    """Some samples, not read yet, of every data set that holds any of them."""
    rows = {grid: store.layout.rows_of(store.key(grid), samples) for grid in sources}
    parts = {
        grid: data.isel(sample=rows[grid])
        for grid, data in sources.items()
        if rows[grid].start < rows[grid].stop
    }
    return {grid: _culled(part) for grid, part in parts.items()} if culled else parts


def _culled(data: xr.Dataset) -> xr.Dataset:
    """A data set with the tasks of its values alone, where it is behind dask."""
    (culled,) = optimize(data)
    return cast(xr.Dataset, culled)


def _write_block(sources: Mapping[Grid, xr.Dataset], ask: bool, store: FieldStore, block: slice) -> int:
    """Read a block of samples of every data set that holds any, and write it; returns how many."""
    return _write_parts("threads", ask, store, block, _parts(sources, store, block))


def _write_parts(
    scheduler: str, ask: bool, store: FieldStore, block: slice, parts: Mapping[Grid, xr.Dataset]
) -> int:
    """Write the chunks of a block that are missing, piece of time after piece; returns how many samples.

    Parameters
    ----------
    scheduler : str
        Of dask.
    ask : bool
        Whether to refuse inputs that nobody said are initial fields.
    store : FieldStore
    block : slice
        Of samples.
    parts : mapping of Grid to Dataset
        The block's samples.
    """
    missing = [samples for samples in store.pending() if block.start <= samples.start < block.stop]
    reader = SourceReader(parts, [*store.inputs, *store.outputs], scheduler)
    for times in store.layout.time_chunks:
        for samples in missing:
            fields = _differences(store, _read(reader, store, parts, block, samples, times))
            if samples.start == 0 and times.start == 0:
                _check_ends(store, fields)
                if ask:
                    _check_initial(store, fields)
            store.write(samples, fields, *([times] if len(store.layout.time_chunks) > 1 else []))
    return sum(samples.stop - samples.start for samples in missing)


def _read(
    reader: SourceReader,
    store: FieldStore,
    parts: Mapping[Grid, xr.Dataset],
    block: slice,
    samples: slice,
    times: slice,
) -> dict[Grid, dict[str, NDArray[Any]]]:
    """Some samples of a block at some times; what does not vary in time, with the first."""
    names = [variable.name for variable in store.variables if variable.time or not times.start]
    rows = {}
    for grid in parts:
        first = store.layout.rows_of(store.key(grid), block).start
        span = store.layout.rows_of(store.key(grid), samples)
        if span.start < span.stop:
            rows[grid] = slice(span.start - first, span.stop - first)
    return reader.read(rows, times, names)


def _differences(
    store: FieldStore, fields: Mapping[Grid, Mapping[str, NDArray[Any]]]
) -> dict[Grid, dict[str, NDArray[Any]]]:
    """Fields as they are stored: their differences from the constants that variables have."""
    constants = {variable.name: variable.reference for variable in store.variables}
    return {
        grid: {
            name: values.astype(np.float64) - constants[name]
            if constants[name] and values.dtype.kind in "biuf"
            else values
            for name, values in variables.items()
        }
        for grid, variables in fields.items()
    }


def _varies(values: NDArray[Any]) -> bool:
    return bool((values != values.flat[0]).any())


def _check_ends(store: FieldStore, fields: Mapping[Grid, Mapping[str, NDArray[Any]]]) -> None:
    """Refuse an axis that wraps whose last point is its first one again, by the values there."""
    for grid, variables in fields.items():
        wrapping = {axis.name: i - grid.n_dim for i, axis in enumerate(grid) if axis.periodic}
        remedy = "drop the last, `data.isel({{{name!r}: slice(None, -1)}})`"
        check_ends_differ(store.key(grid), list(variables.values()), wrapping, remedy, whole=True)


def _check_initial(store: FieldStore, fields: Mapping[Grid, Mapping[str, NDArray[Any]]]) -> None:
    """Refuse a steady input that is an output at the first time, of which nobody said that it is."""
    evolving = [variable.name for variable in store.variables if variable.time and variable.role == "output"]
    steady = [variable.name for variable in store.variables if not variable.time and variable.role == "input"]
    for values in fields.values():
        for name in steady:
            for output in evolving:
                first = values[output][:, 0]
                if np.array_equal(values[name], first) and _varies(first):
                    raise InputError(
                        f"{name} is {output} at the first time: give initial={{{name!r}: {output!r}}}, so "
                        "that a step is not given where the field began, or initial={} if it is a parameter"
                    )


def _check_chunk(sources: Mapping[Grid, xr.Dataset], store: FieldStore, samples: slice) -> None:
    """Refuse to go on with a store that has other values in some samples than the data sets."""
    parts = _parts(sources, store, samples)
    reader = SourceReader(parts, [*store.inputs, *store.outputs], "threads")
    varying = {variable.name for variable in store.variables if variable.time}
    for times in store.layout.time_chunks:
        fields = _differences(store, _read(reader, store, parts, samples, samples, times))
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
    fields: Mapping[_Shape, xr.Dataset], names: Sequence[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The spatial dimensions, which all variables share, and the variables that have times too."""
    found: set[tuple[str, ...]] = set()
    varying: dict[str, set[bool]] = {name: set() for name in names}
    for resolution, data in fields.items():
        for name in names:
            check_has(f"the data set at {resolution}", "variable", [name], data.data_vars)
            dimensions = tuple(map(str, data[name].dims))
            varying[name].add(dimensions[1:2] == ("time",))
            found.add(dimensions)
    spatial = {("sample", *dims[2:]) if dims[1:2] == ("time",) else dims for dims in found}
    first = min(spatial)
    if (
        len(spatial) > 1
        or first[0] != "sample"
        or len(first) < 2
        or any(len(v) > 1 for v in varying.values())
    ):
        raise InputError(
            f"dimensions {sorted(found)}; expected ('sample', ...) or ('sample', 'time', ...) and then the "
            "same axes for all variables at all resolutions: first `data.rename(run='sample')`, "
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
            check_increasing(axis, data[axis].values, f"{resolution}: ")
    return axes, frozenset(name for name in names if True in varying[name])


def _variables(
    fields: Mapping[_Shape, xr.Dataset],
    axes: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    boundary_values: Mapping[str, Boundary],
    varying: Set[str],
    reference: Mapping[str, float],
    initial: Mapping[str, str] | None,
) -> list[Variable]:
    """What the attributes say of each variable: at every resolution the same, but for cell_methods."""
    given = {"boundary_values": boundary_values, "reference": reference, "initial": initial or {}}
    for option, about in given.items():
        check_some_of(f"{option} of", about, [*inputs, *outputs])
    levels = {group_name([data.sizes[axis] for axis in axes]): data for data in fields.values()}
    variables = []
    for role, names in (("input", inputs), ("output", outputs)):
        for name in names:
            told: list[dict[str, Any]] = [
                {about: str(data[name].attrs.get(about, missing)) for about, missing in _ATTRIBUTES.items()}
                for data in fields.values()
            ]
            check_same(f"{name}: attributes", dict(zip(fields, told, strict=True)))
            variables.append(
                Variable(
                    name,
                    cast(Literal["input", "output"], role),
                    **told[0],
                    cell_methods={
                        key: str(data[name].attrs.get("cell_methods", _CELL_METHODS))
                        for key, data in levels.items()
                    },
                    boundary_value=_difference(boundary_values.get(name), reference.get(name, 0.0)),
                    time=name in varying,
                    reference=reference.get(name, 0.0),
                    initial_of=None if initial is None else initial.get(name, _unsaid(name, role, varying)),
                )
            )
    return variables


def _unsaid(name: str, role: str, varying: Set[str]) -> str | None:
    """What it means that an input is not among those that are said to be initial fields: a parameter."""
    return "" if role == "input" and varying and name not in varying else None


def _difference(boundary: Boundary | None, reference: float) -> Boundary | None:
    """Boundary values as differences from the constant that is subtracted from the field."""
    if boundary is None or not reference:
        return boundary
    if not isinstance(boundary, Mapping):
        return boundary - reference
    return {
        axis: tuple(None if end is None else end - reference for end in ends)  # type: ignore[misc]
        if isinstance(ends, Sequence)
        else ends - reference
        for axis, ends in boundary.items()
    }
