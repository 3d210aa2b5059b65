"""Files that xarray opens: NetCDF, and with the engine for it HDF5, GRIB or zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mano_op.data.coordinates import Domain, registrations_of
from mano_op.data.guards import check_has
from mano_op.data.importers.lazy import check_free, concatenated, natural, paths_of, piece_of, stamps
from mano_op.data.samples import check_distinct
from mano_op.data.source import chunk_in_file
from mano_op.data.store import FieldStore
from mano_op.data.write import write_fields
from mano_op.errors import InputError, refusing
from mano_op.grid import Axis


def import_netcdf(
    path: str | Path,
    files: Mapping[Any, str | Path | Sequence[str | Path]],
    *,
    sample: str = "sample",
    time: str = "time",
    engine: str | None = None,
    relabel: bool = False,
    **options: Any,
) -> FieldStore:
    """Import files that xarray opens, larger than memory or not, one or several for each resolution.

    Files of a resolution are concatenated along `sample`, whose labels, if there are any, have to be
    distinct; the inputs and outputs, their attributes and grids have to be the same, other variables may
    differ. A file without the dimension is one sample, labelled by a scalar of its name or by the file's own.
    An axis that decreases is turned round; one without coordinates, as those of WRF, lies where `domain` and
    `registration` say. Each chunk of a file is read once.

    Parameters
    ----------
    path : path
    files : mapping of int or tuple of int to path or sequence of path
        For each resolution; also patterns, ``{64: "runs/*.nc"}``, and folders, whose NetCDF files are taken,
        in the order of their names and of the numbers in these.
    sample, time : str
        Names of the dimensions of samples and times in the files.
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
    >>> data = xr.Dataset({"a": (("run", "x"), u), "u": (("run", "x"), 2 * u)}, {"x": [3.5, 2.5, 1.5, 0.5]})
    >>> data.to_netcdf(f"{folder}/runs.nc", engine="scipy")
    >>> store = import_netcdf(f"{folder}/runs.zarr", {4: f"{folder}/runs.nc"}, sample="run", inputs=["a"],
    ...     outputs=["u"], splits={"train": 3}, registration="cell", domain={"x": (0.0, 4.0)},
    ...     boundary_conditions={"x": "open"}, progress=False)
    >>> store.read(4, "u")[0]
    array([6., 4., 2., 0.], dtype=float32)
    """
    paths = {key: _in_folders(names) for key, names in paths_of(files, "{64: ['runs.nc']}").items()}
    wanted = list(dict.fromkeys([*options.get("inputs", ()), *options.get("outputs", ())]))
    known = {*options.get("boundary_conditions", ()), time}
    with ExitStack() as stack:
        fields = {}
        for resolution, names in paths.items():
            parts = {str(file): _open(stack, file, sample, engine, wanted, known) for file in names}
            data = concatenated(parts, sample)
            if relabel:
                data = data.drop_vars(sample, errors="ignore")
            elif sample in data.coords:
                labels = [(name, pd.Index(np.atleast_1d(part[sample]))) for name, part in parts.items()]
                remedy = "leave one out, or pass relabel=True if each file counts its own samples"
                check_distinct(f"{resolution}, {sample}", labels, remedy)
            data = _renamed(resolution, data, {"sample": sample, "time": time})
            fields[resolution] = _located(data, options)
        named = list(chain(*paths.values()))
        provenance = {"files": [file.name for file in named], "files_as_read": stamps(named)}
        return write_fields(path, fields, **{"provenance": provenance, **options})


def _in_folders(paths: Sequence[Path]) -> list[Path]:
    """Return paths with the NetCDF files of folders, but of zarr stores, in their place."""
    files = []
    for path in paths:
        inside = [] if not path.is_dir() or is_zarr(path) else sorted(path.glob("*.nc*"), key=natural)
        files += inside or [path]
    return files


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def _open(
    stack: ExitStack, path: Path, sample: str, engine: str | None, wanted: Sequence[str], known: Set[str]
) -> xr.Dataset:
    """Open some variables of a file as a data set, unread, in pieces of whole chunks of the file.

    A file that has none but `known` dimensions is one sample.
    """
    data = open_file(stack, path, engine)
    check_has(path, "variable", wanted, data.data_vars)
    data = data.drop_vars([name for name in data.data_vars if name not in wanted])
    if sample not in data.dims:
        if not {*data.dims} <= known:
            check_has(path, "dimension", [sample], data.dims, "; give sample=")
        label = data[sample].item() if sample in data.variables else path.stem
        data = data.drop_vars(sample, errors="ignore").expand_dims({sample: [label]})
    return data.assign({name: pieced(data[name]) for name in data.data_vars})


def open_file(stack: ExitStack, path: Path, engine: str | None) -> xr.Dataset:
    """Open a file, or a folder of zarr, as a data set, unread; the stack closes it."""
    _check_engine(path, engine)
    remedy = "NetCDF 4 needs pip install 'mano_op[netcdf]', and other formats the engine that xarray names"
    with refusing(f"{path} cannot be opened", remedy, OSError, ValueError, ImportError):
        # Without dask, whose pieces would be the chunks of the file, and without a cache.
        return stack.enter_context(xr.open_dataset(path, engine=engine, chunks=None, cache=False))


def _check_engine(path: Path, engine: str | None) -> None:
    zarr = is_zarr(path)
    if zarr == (engine == "zarr") and zarr == path.is_dir():
        return
    what, remedy = ("a file", "leave engine out")
    if path.is_dir():
        what, remedy = "a folder without NetCDF files, and no zarr store", "give the files in it"
    if zarr:
        what, remedy = "a zarr store", "give engine='zarr'"
    raise InputError(f"{path} is {what}, and engine={engine!r}; {remedy}")


def _renamed(resolution: object, data: xr.Dataset, names: Mapping[str, str]) -> xr.Dataset:
    """Rename dimensions, and turn round the axes that decrease."""
    changed = {old: new for new, old in names.items() if old != new and old in data.dims}
    check_free(resolution, changed.values(), {*data.variables, *data.dims})
    data = data.rename(changed)
    for axis in {*data.dims} & {*data.indexes} - {"sample", "time"}:
        several = len(data[axis]) > 1 and data[axis].dtype.kind in "iuf"
        if several and data.indexes[axis].is_monotonic_decreasing:
            data = data.isel({axis: slice(None, None, -1)})
    return data


def _located(data: xr.Dataset, options: Mapping[str, Any]) -> xr.Dataset:
    """Give axes without coordinates those that the options of `write_fields` declare."""
    domain: Domain = options.get("domain") or {}
    conditions = options.get("boundary_conditions", {})
    bare = [str(dim) for dim in data.dims if dim in domain and dim in conditions and dim not in data.coords]
    if not bare or "registration" not in options:  # which `write_fields` asks for
        return data
    registration = registrations_of(options["registration"], [*conditions])
    axes = [
        Axis(name, data.sizes[name], *domain[name], registration[name], conditions[name] == "periodic")
        for name in bare
    ]
    return data.assign_coords({axis.name: axis.points for axis in axes})


def pieced(values: xr.DataArray) -> xr.DataArray:
    """Return a variable of a file in pieces of whole chunks of the file, read when they are asked for."""
    if not values.ndim or values.dtype.kind == "O":
        return values
    own = [chunk_in_file(values.variable, str(dim)) or 1 for dim in values.dims]
    piece = piece_of(values.shape, own, values.dtype.itemsize)
    return values.chunk(dict(zip(values.dims, piece, strict=True)))
