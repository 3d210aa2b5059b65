"""Write results to NetCDF or zarr, and read them."""

from __future__ import annotations

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mano_op.errors import InputError
from mano_op.files import write_file
from mano_op.paths import target_of
from mano_op.transfer.runs import COORDINATES


def save_results(results: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write results, or a summary, as NetCDF, or as zarr if the path ends in ``.zarr``.

    NetCDF is version 4, compressed, where h5netcdf is installed (``pip install 'mano_op[netcdf]'``), and 3
    elsewhere. The index of ``run`` is written as its coordinates; `load_results` restores it.

    Parameters
    ----------
    results : Dataset
    path : path
        ``results.nc`` or ``results.zarr``.
    overwrite : bool
        Whether a file at the path may be replaced.

    Raises
    ------
    InputError
        Before anything is written, if the path has another suffix, or exists.

    Examples
    --------
    >>> some = xr.Dataset({"error": ("sample", [0.5, 0.25])}, attrs={"split": "test"})
    >>> path = Path(tempfile.mkdtemp()) / "results.nc"
    >>> save_results(some, path)
    >>> load_results(path).identical(some)
    True
    """
    path = target_of(_results_path(path))
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: give another path, or overwrite=True to replace it")
    if _index_names(results):  # files have no index of several parts
        results = _with_strings(results.reset_index("run"))
    if path.suffix == ".nc":
        engine: Any = "h5netcdf" if find_spec("h5netcdf") else "scipy"
        floats = [name for name, values in results.data_vars.items() if values.dtype.kind == "f"]
        compressed = {"zlib": True, "complevel": 4} if engine == "h5netcdf" else {}
        content = results.to_netcdf(engine=engine, encoding=dict.fromkeys(floats, compressed))
        write_file(path, bytes(content))
        return
    # zarr 3 has strings of any length, and no other kind.
    text = {"dtype": np.dtypes.StringDType()}
    encoding = {name: text for name, values in results.variables.items() if values.dtype.kind == "U"}
    # Written under another name and renamed, so that the path never has half a store.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        beside = Path(folder) / path.name
        results.to_zarr(beside, zarr_format=3, consolidated=False, encoding=encoding)
        if path.exists():
            shutil.rmtree(path)
        beside.rename(path)


def load_results(path: str | Path) -> xr.Dataset:
    """Read what `save_results` wrote, or the ``results.nc`` of a report, into memory.

    Raises
    ------
    InputError
        If there is no file, or one of something else, the path has another suffix, or the file needs
        h5netcdf, which is not installed.
    """
    path = _results_path(path)
    if not path.exists():
        raise InputError(f"there is no {path}: save results with `save_results`")
    options: dict[str, Any] = {"engine": "zarr", "consolidated": False}
    if path.suffix == ".nc":
        with path.open("rb") as file:
            options = {"engine": "h5netcdf" if file.read(4) == b"\x89HDF" else "scipy"}
        if options["engine"] == "h5netcdf" and find_spec("h5netcdf") is None:
            raise InputError(f"{path} is NetCDF 4, which needs h5netcdf: pip install 'mano_op[netcdf]'")
    with xr.open_dataset(path, **options) as stored:
        if "error" not in stored and "run" not in stored.dims:
            raise InputError(f"{path} holds no results, no dimension 'run': save results with `save_results`")
        results = _with_strings(stored.load())
    names = _index_names(results)
    return results.set_index(run=names) if names else results


def _results_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise InputError(f"{path} ends in {path.suffix!r}, expected .nc for NetCDF or .zarr")
    return path


def _index_names(results: xr.Dataset) -> list[str]:
    return [name for name in COORDINATES if name in results and results[name].dims == ("run",)]


def _with_strings(results: xr.Dataset) -> xr.Dataset:
    """Results whose texts, objects of pandas and zarr's strings too, are numpy's fixed-width strings."""
    texts = {
        name: (values.dims, values.values.astype(object).astype(str), values.attrs)
        for name, values in results.variables.items()
        if values.dtype.kind in "OT"
    }
    coords = {name: text for name, text in texts.items() if name in results.coords}
    return results.assign(texts).assign_coords(coords)
