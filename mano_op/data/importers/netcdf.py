"""Files that xarray opens: NetCDF, and with the engine for it HDF5, GRIB or zarr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.coordinates import Shape
from mano_op.data.fields import default_chunk, write_fields
from mano_op.data.importers.lazy import WHOLE, pieces, stamps
from mano_op.data.store import FieldStore
from mano_op.errors import InputError, check_whole

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

    Samples are read by whole chunks of the store, each once. Where a file is compressed in chunks of its own
    that hold more samples, ``chunk`` had better be a multiple of those: each is decompressed whole.

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
        If a file cannot be opened or has no dimension for samples; if a file of a resolution has other
        variables, units or other labels, or another grid than the first; or as `write_fields` does.

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
    if isinstance(files, str | Path) or not isinstance(files, Mapping) or not files:
        raise InputError(f"files={files!r}; expected those of each resolution, such as {{64: ['runs.nc']}}")
    for resolution, given in files.items():
        if not _several(given):
            raise InputError(f"files={files!r}: none for {resolution}; expected at least one")
    with ExitStack() as stack:
        opened = {resolution: _open(stack, given, sample, engine) for resolution, given in files.items()}

        def fields(chunk: int) -> dict[_Shape, xr.Dataset]:
            return {resolution: _joined(parts, sample, time, chunk) for resolution, parts in opened.items()}

        every = [file for given in files.values() for file in _several(given)]
        about = {"files": [Path(file).name for file in every], "files_as_read": stamps(every)}
        options.setdefault("provenance", about)
        if options.get("chunk") is None:
            wanted = {name: options[name] for name in ("inputs", "outputs", "splits") if name in options}
            options["chunk"] = default_chunk(fields(WHOLE), **wanted)
        check_whole(chunk=options["chunk"])
        return write_fields(path, fields(options["chunk"]), **options)


def _several(given: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [given] if isinstance(given, str | Path) else list(given)


def _open(
    stack: ExitStack, given: str | Path | Sequence[str | Path], sample: str, engine: str | None
) -> list[xr.Dataset]:
    """The files of one resolution, each as a data set that is read when it is asked for."""
    parts: dict[str, xr.Dataset] = {}
    for file in _several(given):
        if not Path(file).is_file():
            raise InputError(f"{file} does not exist; give the path of a file to import")
        try:
            # Without dask, whose pieces would be those of the file; and nothing is kept that was read.
            part = stack.enter_context(xr.open_dataset(file, engine=engine, chunks=None, cache=False))
        except (OSError, ValueError, ImportError) as error:
            raise InputError(
                f"{file} cannot be opened ({error}); NetCDF 4 needs pip install 'mano_op[netcdf]', and other "
                "formats the engine that xarray names"
            ) from error
        if sample not in part.dims:
            raise InputError(
                f"{file} has the dimensions {', '.join(map(str, part.dims))}, no {sample!r}: give sample="
            )
        if str(file) in parts:
            raise InputError(f"{file} twice among the files; expected each once")
        parts[str(file)] = part
    for file in list(parts)[1:]:
        _check_alike(parts, file, sample)
    return list(parts.values())


def _joined(parts: Sequence[xr.Dataset], sample: str, time: str, chunk: int) -> xr.Dataset:
    """Data sets one after another, in pieces of which each goes into one chunk of the store."""
    befores = accumulate((part.sizes[sample] for part in parts), initial=0)
    pieced = [
        part.chunk({sample: pieces(part.sizes[sample], chunk, before)})
        for part, before in zip(parts, befores, strict=False)  # the last is the number of all samples
    ]
    data = (
        xr.concat(pieced, sample, data_vars="minimal", coords="minimal", compat="override", join="override")
        if len(pieced) > 1
        else pieced[0]
    )
    renamed = {
        old: new for old, new in ((sample, "sample"), (time, "time")) if old != new and old in data.dims
    }
    data = data.rename(renamed)
    if "sample" in data.coords:
        data = data.drop_vars("sample") if len(pieced) > 1 else data
    for axis in data.dims:
        points = data[axis].values if axis in data.coords else np.empty(0)
        if axis not in ("sample", "time") and len(points) > 1 and (np.diff(points) < 0).all():
            data = data.isel({axis: slice(None, None, -1)})
    return data


def _check_alike(parts: Mapping[str, xr.Dataset], file: str, sample: str) -> None:
    """Refuse a file that does not continue the first: other variables, labels, sizes or coordinates."""
    first, one = next(iter(parts)), parts[file]
    expected = parts[first]
    remedy = "make them agree, or import them into two stores"
    if set(one.data_vars) != set(expected.data_vars):
        raise InputError(
            f"{file} has the variables {', '.join(map(str, one.data_vars))}, {first} has "
            f"{', '.join(map(str, expected.data_vars))}; {remedy}"
        )
    for dim, size in expected.sizes.items():
        if dim != sample and one.sizes.get(dim) != size:
            raise InputError(
                f"{file} has {one.sizes.get(dim)} points along {dim}, {first} has {size}; {remedy}"
            )
    for name in expected.variables:
        if name not in one.variables:
            raise InputError(f"{file} has no coordinate {name}, {first} has one; {remedy}")
        ours, theirs = one.variables[name], expected.variables[name]
        if ours.dims != theirs.dims:
            raise InputError(
                f"{file}: {name} has the dimensions {ours.dims}, in {first} {theirs.dims}; {remedy}"
            )
        for label in ("units", "long_name", "standard_name", "cell_methods"):
            found, wanted = (variable.attrs.get(label) for variable in (ours, theirs))
            if found != wanted:
                raise InputError(f"{file}: {name} has {label}={found!r}, in {first} {wanted!r}; {remedy}")
        if sample not in ours.dims and not _same(ours.values, theirs.values):
            raise InputError(f"{file}: {name} differs from that of {first}; expected one grid, {remedy}")


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind in "iuf" and other.dtype.kind in "iuf":
        return np.allclose(one, other, rtol=1e-6, atol=1e-12, equal_nan=True)
    return np.array_equal(one, other)
