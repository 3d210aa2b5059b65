"""Files that xarray opens: NetCDF, and with the engine for it HDF5, GRIB or zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr

from mano_op.data.coordinates import Shape
from mano_op.data.guards import check_alike, check_has, refusing
from mano_op.data.importers.lazy import paths_of, piece_of, stamps
from mano_op.data.rounded import agree
from mano_op.data.samples import check_distinct
from mano_op.data.source import chunk_in_file
from mano_op.data.store import FieldStore
from mano_op.data.times import Times
from mano_op.data.write import write_fields
from mano_op.errors import InputError

_Shape = TypeVar("_Shape", bound=Shape)


def import_netcdf(
    path: str | Path,
    files: Mapping[_Shape, str | Path | Sequence[str | Path]],
    *,
    sample: str = "sample",
    time: str = "time",
    engine: str | None = None,
    relabel: bool = False,
    **options: Any,
) -> FieldStore:
    """Import files that xarray opens, larger than memory or not, one or several for each resolution.

    Files of a resolution are concatenated along `sample`, whose labels, if there are any, have to be
    distinct; variables, attributes and grids have to be the same. An axis that decreases is turned round.
    Each chunk of a file is read once.

    Parameters
    ----------
    path : path
    files : mapping of int or tuple of int to path or sequence of path
        For each resolution.
    sample, time : str
        Names of those dimensions in the files.
    engine : str, optional
        Of xarray, by default chosen by the file. NetCDF 4 needs ``pip install 'mano_op[netcdf]'``. With
        "zarr" a file is the folder of a zarr store.
    relabel : bool
        Number the samples anew, in the order of the files.
    **options
        Of `mano_op.data.write.write_fields`: ``inputs``, ``outputs``, ``splits``, ``registration``, ...

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> u = np.arange(12.0).reshape(3, 4)
    >>> made = xr.Dataset({"a": (("run", "x"), u), "u": (("run", "x"), 2 * u)}, {"x": [3.5, 2.5, 1.5, 0.5]})
    >>> made.to_netcdf(f"{folder}/runs.nc", engine="scipy")
    >>> store = import_netcdf(f"{folder}/runs.zarr", {4: f"{folder}/runs.nc"}, sample="run", inputs=["a"],
    ...     outputs=["u"], splits={"train": 3}, registration="cell", domain={"x": (0.0, 4.0)},
    ...     boundary_conditions={"x": "open"}, progress=False)
    >>> store.read(4, "u")[0]
    array([6., 4., 2., 0.], dtype=float32)
    """
    paths = paths_of(files, "{64: ['runs.nc']}")
    with ExitStack() as stack:
        opened = {resolution: _open(stack, given, sample, engine) for resolution, given in paths.items()}
        fields = {
            resolution: _joined(resolution, parts, sample, time, relabel)
            for resolution, parts in opened.items()
        }
        every = list(chain(*paths.values()))
        about = {"files": [file.name for file in every], "files_as_read": stamps(every)}
        options.setdefault("provenance", about)
        return write_fields(path, fields, **options)


def _open(stack: ExitStack, files: Sequence[Path], sample: str, engine: str | None) -> dict[str, xr.Dataset]:
    """Open the files of one resolution as data sets, unread."""
    parts: dict[str, xr.Dataset] = {}
    for file in files:
        _check_engine(file, engine)
        remedy = (
            "NetCDF 4 needs pip install 'mano_op[netcdf]', and other formats the engine that xarray names"
        )
        with refusing(f"{file} cannot be opened", remedy, OSError, ValueError, ImportError):
            # Without dask, whose pieces would be those of the file; and nothing is kept that was read.
            part = stack.enter_context(xr.open_dataset(file, engine=engine, chunks=None, cache=False))
        check_has(file, "dimension", [sample], part.dims, "; give sample=")
        parts[str(file)] = part
    for name in list(parts)[1:]:
        _check_alike(parts, name, sample)
    return parts


def _check_engine(path: Path, engine: str | None) -> None:
    """Refuse a folder or a file that does not fit the engine."""
    zarr = any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))
    if zarr == (engine == "zarr") and zarr == path.is_dir():
        return
    what, remedy = ("a file", "leave engine out")
    if path.is_dir():
        what, remedy = "a folder, and no zarr store", "give the files in it"
    if zarr:
        what, remedy = "a zarr store", "give engine='zarr'"
    raise InputError(f"{path} is {what}, and engine={engine!r}; {remedy}")


def _joined(
    resolution: object, parts: Mapping[str, xr.Dataset], sample: str, time: str, relabel: bool
) -> xr.Dataset:
    """Concatenate the files of a resolution, read in pieces of whole chunks."""
    pieced = [part.assign({name: _pieced(part[name]) for name in part.data_vars}) for part in parts.values()]
    labelled = sample in pieced[0].coords
    if labelled and not relabel:
        labels = [(name, pd.Index(np.atleast_1d(part[sample].values))) for name, part in parts.items()]
        remedy = "leave one out, or pass relabel=True if each file counts its own samples"
        check_distinct(f"{resolution}, {sample}", labels, remedy)
    what = f"{', '.join(parts)} cannot be put one after another along {sample!r}"
    remedy = "expected variables of the same types and dimensions in all of them: make them agree"
    with refusing(what, remedy, ValueError, TypeError, KeyError, NotImplementedError):
        data = pieced[0]
        if len(pieced) > 1:
            data = xr.concat(
                pieced, sample, data_vars="minimal", coords="minimal", compat="override", join="override"
            )
    if labelled and relabel:
        data = data.drop_vars(sample)
    renamed = {
        old: new for old, new in ((sample, "sample"), (time, "time")) if old != new and old in data.dims
    }
    for old, new in renamed.items():
        if new in data.variables or new in data.dims:
            raise InputError(
                f"{resolution}: {old!r} becomes {new!r}, which the files have too; expected no other "
                f"dimension or variable of that name: give {new}={new!r}, or rename it in the files"
            )
    data = data.rename(renamed)
    for axis in data.dims:
        points = data[axis].values if axis in data.coords else np.empty(0)
        if axis in ("sample", "time") or len(points) < 2 or points.dtype.kind not in "iuf":
            continue
        if (np.diff(points.astype(np.float64)) < 0).all():
            data = data.isel({axis: slice(None, None, -1)})
    return data


def _pieced(values: xr.DataArray) -> xr.DataArray:
    """Put a variable behind dask, in pieces of whole chunks of the file."""
    if not values.ndim or values.dtype.kind == "O":
        return values
    own = [chunk_in_file(values.variable, str(dim)) or 1 for dim in values.dims]
    piece = piece_of(values.shape, own, values.dtype.itemsize)
    return values.chunk(dict(zip(values.dims, piece, strict=True)))


def _check_alike(parts: Mapping[str, xr.Dataset], file: str, sample: str) -> None:
    """Refuse a file that does not continue the first."""
    first, one = next(iter(parts)), parts[file]
    expected, check = parts[first], partial(check_alike, file, first)
    check("variables", sorted(map(str, one.data_vars)), sorted(map(str, expected.data_vars)))
    for dim, size in expected.sizes.items():
        if dim != sample:
            check(f"points along {dim}", one.sizes.get(dim), size)
    known = [str(name) for name in one.coords if name in {*expected.coords, *expected.dims}]
    check("coordinates", sorted(known), sorted(map(str, expected.coords)))
    for name in expected.variables:
        ours, theirs = one.variables[name], expected.variables[name]
        check(f"dimensions of {name}", ours.dims, theirs.dims)
        for label in ("units", "long_name", "standard_name", "cell_methods"):
            found, wanted = (repr(variable.attrs.get(label)) for variable in (ours, theirs))
            check(f"{label} of {name}", found, wanted)
        if sample not in ours.dims and (pair := _difference(ours, theirs)):
            check(f"{name}", *pair)


def _difference(one: xr.Variable, other: xr.Variable) -> tuple[object, object] | None:
    """Return the first two values that differ by more than rounding, if any."""
    ours, theirs = one.values, other.values
    if one.dtype.kind in "mM" and other.dtype.kind in "mM" and one.ndim == 1:
        seconds, others = Times.of("", one), Times.of("", other)
        same = seconds.agrees_with(others) if seconds.measure == others.measure else np.zeros(len(ours), bool)
    elif one.dtype.kind in "iuf" and other.dtype.kind in "iuf":
        same = (np.isnan(ours) & np.isnan(theirs)) | (
            agree(ours, theirs) if one.ndim == 1 else np.isclose(ours, theirs, rtol=1e-6, atol=1e-12)
        )
    else:
        same = np.asarray(ours == theirs)
    if np.all(same):
        return None
    i = np.unravel_index(int(np.argmin(same)), np.shape(same))
    return ours[i], theirs[i]
