"""Files that xarray opens: NetCDF, and with the engine for it HDF5, GRIB or zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from mano_op.data.coordinates import Shape
from mano_op.data.fields import write_fields
from mano_op.data.store import FieldStore
from mano_op.errors import InputError

_Shape = TypeVar("_Shape", bound=Shape)


def import_netcdf(
    path: str | Path,
    files: Mapping[_Shape, str | Path | Sequence[str | Path]],
    *,
    sample: str = "sample",
    time: str = "time",
    engine: str | None = None,
    **options: Any,
) -> FieldStore:
    """Import files that xarray opens, larger than memory or not, one or several for each resolution.

    Several files of a resolution are put one after another along `sample`. An axis that decreases, as
    latitudes do in many files, is turned round.

    Parameters
    ----------
    path : path
        Of the store to make.
    files : mapping of int or tuple of int to path or sequence of path
        For each resolution.
    sample, time : str
        What those dimensions are called in the files.
    engine : str, optional
        Of xarray; chosen by the file if not given. NetCDF 4 needs ``pip install 'mano_op[netcdf]'``.
    **options
        Of `mano_op.data.fields.write_fields`: ``inputs``, ``outputs``, ``splits``, ``registration``,
        ``domain``, ``boundary_conditions``, ...

    Raises
    ------
    InputError
        If a file cannot be opened or has no dimension for samples, or as `write_fields` does.

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
    with ExitStack() as stack:
        fields = {
            resolution: _open(stack, given, sample, time, engine) for resolution, given in files.items()
        }
        names = [str(file) for given in files.values() for file in _several(given)]
        options.setdefault("provenance", {"files": [Path(name).name for name in names]})
        return write_fields(path, fields, **options)


def _several(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, str | Path) else list(given)


def _open(
    stack: ExitStack,
    given: str | Path | Sequence[str | Path],
    sample: str,
    time: str,
    engine: str | None,
) -> xr.Dataset:
    """The files of one resolution, as one data set that is read when it is asked for."""
    parts = []
    for file in _several(given):
        if not Path(file).is_file():
            raise InputError(f"{file} does not exist; give the path of a file to import")
        try:
            part = stack.enter_context(xr.open_dataset(file, engine=engine, chunks={}))
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"{file} cannot be opened ({error}); NetCDF 4 needs pip install 'mano_op[netcdf]', and other "
                "formats the engine that xarray names"
            ) from error
        if sample not in part.dims:
            raise InputError(
                f"{file} has the dimensions {', '.join(map(str, part.dims))}, no {sample!r}: give sample="
            )
        parts.append(part.chunk({sample: max(1, 2**24 // max(1, part.isel({sample: 0}).nbytes))}))
    data = (
        xr.concat(parts, sample, data_vars="minimal", coords="minimal", compat="override", join="exact")
        if len(parts) > 1
        else parts[0]
    )
    renamed = {
        old: new for old, new in ((sample, "sample"), (time, "time")) if old != new and old in data.dims
    }
    data = data.rename(renamed)
    if "sample" in data.coords:
        data = data.drop_vars("sample") if len(parts) > 1 else data
    for axis in data.dims:
        points = data[axis].values if axis in data.coords else np.empty(0)
        if axis not in ("sample", "time") and len(points) > 1 and (np.diff(points) < 0).all():
            data = data.isel({axis: slice(None, None, -1)})
    return data
