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
from mano_op.data.chunking import chunk_for
from mano_op.data.coordinates import (
    Domain,
    Registrations,
    Shape,
    coordinates_of,
    domain_of,
    grid_of,
    registrations_of,
    times_of,
)
from mano_op.data.jobs import check_sendable, write_store
from mano_op.data.layout import Levels, Variable, check_splits, group_name
from mano_op.data.store import FieldStore
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
    time, and every dimension but the first has a coordinate. They are read
    and written chunk by chunk, so data sets behind dask may be larger than memory.

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
        1000 the training split. A data set that holds only some of the splits says which by an integer
        coordinate "sample" that numbers its samples among all of them.
    registration : {"node", "node_both", "cell"} or mapping
        Where points lie; see `mano_op.grid`. One for all axes, or for each, such as
        ``{"y": "node_both", "x": "node"}`` between walls with points on both of them, along an axis that
        wraps. Never guessed: the coordinates are checked against it.
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
    levels, title, provenance, chunk, chunk_times, overwrite
        As in `mano_op.data.store.create_store`. Chunks are of some 1 MiB at the finest level if not given.
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
        and a store that was to be replaced is still there.

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
    grids: dict[Grid, xr.Dataset] = {}
    held: dict[Grid, list[str]] = {}
    for resolution in sorted(fields, key=lambda key: -math.prod(fields[key].sizes[axis] for axis in axes)):
        data = fields[resolution]
        if domain is None:  # as the finest level has it
            domain = domain_of(resolution, data, axes, registration, periodic, alone=len(fields) == 1)
        grid = grid_of(resolution, data, axes, registration, domain, periodic)
        grids[grid], held[grid] = data, _splits_held(resolution, data, splits)

    plan = {
        "grids": list(grids),
        "variables": _variables(fields, axes, inputs, outputs, boundary_values or {}, varying),
        "splits": splits,
        "boundary_conditions": boundary_conditions,
        "levels": levels,
        "chunk": _chunk_for(fields, axes, splits) if chunk is None else chunk,
        "held": held,
        "times": times,
        "time_units": time_units,
        "chunk_times": chunk_times,
        "coordinates": coordinates_of(fields, axes),
    }
    if client is not None:
        for resolution, data in fields.items():
            check_sendable(f"fields at {resolution}", _lazily(data, names, slice(0, 1)))
    return write_store(
        path,
        plan,
        provenance or {},
        partial(_write_chunk, grids, names) if client is None else _write_parts,
        title=title,
        client=client,
        workers=1,  # one chunk in memory; dask reads its parts side by side
        parts=None if client is None else partial(_parts, grids, names),
        progress=progress,
        resume=resume,
        overwrite=overwrite,
        check=partial(_check_chunk, grids, names),
    )


def default_chunk(
    fields: Mapping[_Shape, xr.Dataset],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    splits: Mapping[str, int],
) -> int:
    """The samples to a chunk of the store that `write_fields` makes of these if it is not told how many.

    Who reads files for it can then read chunk by chunk.

    Parameters
    ----------
    fields, inputs, outputs, splits
        As in `write_fields`.

    Raises
    ------
    InputError
        As `write_fields` does, if they do not fit together.

    Examples
    --------
    >>> data = xr.Dataset({"u": (("sample", "x"), np.zeros((1000, 1024)))}, {"x": np.arange(1024)})
    >>> default_chunk({1024: data}, inputs=[], outputs=["u"], splits={"train": 1000})
    256
    """
    _check_given(fields, inputs, outputs, splits)
    axes, _ = _check_variables(fields, [*inputs, *outputs])
    return _chunk_for(fields, axes, splits)


def _chunk_for(fields: Mapping[_Shape, xr.Dataset], axes: Sequence[str], splits: Mapping[str, int]) -> int:
    finest = max(math.prod(data.sizes[axis] for axis in axes) for data in fields.values())
    held = [_splits_held(resolution, data, splits) for resolution, data in fields.items()]
    return chunk_for(finest, splits, held)


def _check_given(
    fields: Mapping[_Shape, xr.Dataset],
    inputs: Sequence[str],
    outputs: Sequence[str],
    splits: Mapping[str, int],
) -> None:
    """Refuse what is of another kind than a data set for each resolution, names, and sizes of splits."""
    if isinstance(fields, xr.Dataset) or not isinstance(fields, Mapping):
        raise InputError(
            f"fields is a {type(fields).__name__}; expected a data set for each resolution: {{64: data}}, say"
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


def _write_chunk(
    sources: Mapping[Grid, xr.Dataset], names: Sequence[str], store: FieldStore, samples: slice
) -> int:
    """Read one chunk of samples of every data set that holds any, and write it; returns how many they are."""
    store.write(samples, _values(_parts(sources, names, store, samples), "threads"))
    return samples.stop - samples.start


def _write_parts(store: FieldStore, samples: slice, parts: Mapping[Grid, xr.Dataset]) -> int:
    """The same, of data sets that were sent; the chunks, not the parts of one, are read side by side."""
    store.write(samples, _values(parts, "synchronous"))
    return samples.stop - samples.start


def _parts(
    sources: Mapping[Grid, xr.Dataset], names: Sequence[str], store: FieldStore, samples: slice
) -> dict[Grid, xr.Dataset]:
    """Some samples, not read yet, of every data set that holds any of them."""
    rows = {grid: store.layout.rows_of(store.key(grid), samples) for grid in sources}
    return {
        grid: _lazily(data, names, rows[grid])
        for grid, data in sources.items()
        if rows[grid].start < rows[grid].stop
    }


def _lazily(data: xr.Dataset, names: Sequence[str], rows: slice) -> xr.Dataset:
    """Some rows of a data set, with the tasks of these alone where it is behind dask."""
    (selected,) = optimize(data[list(names)].isel(sample=rows))
    return cast(xr.Dataset, selected)


def _values(parts: Mapping[Grid, xr.Dataset], scheduler: str) -> dict[Grid, dict[str, NDArray[Any]]]:
    """What is read of data sets, all their variables in one go."""
    read = {grid: data.compute(scheduler=scheduler) for grid, data in parts.items()}
    return {
        grid: {str(name): variable.values for name, variable in data.data_vars.items()}
        for grid, data in read.items()
    }


def _check_chunk(
    sources: Mapping[Grid, xr.Dataset], names: Sequence[str], store: FieldStore, samples: slice
) -> None:
    """Refuse to go on with a store that has other values in some samples than the data sets."""
    for grid, piece in _values(_parts(sources, names, store, samples), "threads").items():
        key = store.key(grid)
        for name, values in piece.items():
            written = store.read(key, name, store.layout.rows_of(key, samples))
            if not np.array_equal(values.astype(np.float32), written):
                raise InputError(
                    f"{store.path}, {key}/{name}: samples {samples.start} to {samples.stop - 1} were written "
                    "with other values than the data set has now. To resume, pass the data sets that it was "
                    "begun with, or overwrite=True to start anew"
                )


def _check_variables(
    fields: Mapping[_Shape, xr.Dataset], names: Sequence[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """The spatial dimensions, which all variables share, and the variables that have times too."""
    if not fields or not names:
        raise InputError("fields, inputs or outputs is empty; expected a data set and names of its variables")
    found: set[tuple[str, ...]] = set()
    varying: dict[str, set[bool]] = {name: set() for name in names}
    for resolution, data in fields.items():
        for name in names:
            if name not in data.data_vars:
                raise InputError(
                    f"{resolution}: no variable {name!r}; the data set has {list(data.data_vars)}"
                )
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
                raise InputError(f"{resolution}: axis {axis!r} has no coordinate of numbers; assign one")
            if not (np.isfinite(data[axis]).all() and (np.diff(data[axis]) > 0).all()):
                raise InputError(f"{resolution}: {axis} does not increase; use `data.sortby({axis!r})`")
    return axes, frozenset(name for name in names if True in varying[name])


def _variables(
    fields: Mapping[_Shape, xr.Dataset],
    axes: Sequence[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    boundary_values: Mapping[str, Boundary],
    varying: Set[str],
) -> list[Variable]:
    """What the attributes say of each variable: at every resolution the same, but for cell_methods."""
    if unknown := set(boundary_values) - {*inputs, *outputs}:
        raise InputError(
            f"boundary_values of {', '.join(sorted(unknown))}; expected some of {[*inputs, *outputs]}"
        )
    levels = {group_name([data.sizes[axis] for axis in axes]): data for data in fields.values()}
    variables = []
    for role, names in (("input", inputs), ("output", outputs)):
        for name in names:
            told: list[dict[str, Any]] = [
                {about: str(data[name].attrs.get(about, missing)) for about, missing in _ATTRIBUTES.items()}
                for data in fields.values()
            ]
            if any(other != told[0] for other in told):
                raise InputError(f"{name}: attributes differ between resolutions: {told}; make them agree")
            variables.append(
                Variable(
                    name,
                    cast(Literal["input", "output"], role),
                    **told[0],
                    cell_methods={
                        key: str(data[name].attrs.get("cell_methods", _CELL_METHODS))
                        for key, data in levels.items()
                    },
                    boundary_value=boundary_values.get(name),
                    time=name in varying,
                )
            )
    return variables


def _splits_held(resolution: Shape, data: xr.Dataset, splits: Mapping[str, int]) -> list[str]:
    """The splits that a data set holds, from the numbers of its samples."""
    total, n = sum(splits.values()), data.sizes["sample"]
    numbers = data["sample"].values if "sample" in data.coords else np.arange(n)
    split_of = np.repeat(np.array(list(splits), dtype=object), list(splits.values()))
    held = [split for split in splits if np.isin(np.flatnonzero(split_of == split), numbers).any()]
    if not np.array_equal(numbers, np.flatnonzero(np.isin(split_of, held))):
        raise InputError(
            f"{resolution}: {n} samples, numbers {numbers[0]} to {numbers[-1]}, are not whole splits of "
            f"{dict(splits)}; number them from 0 to {total - 1} in the order of the splits, with "
            "`data.assign_coords(sample=...)` where a data set holds only some of them"
        )
    if "split" in data.coords and not np.array_equal(data["split"].values.astype(object), split_of[numbers]):
        raise InputError(f"{resolution}: the coordinate 'split' says otherwise than splits={dict(splits)}")
    return held
