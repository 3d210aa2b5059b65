"""PDEBench's HDF5 files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.fields import write_fields
from mano_op.data.importers.lazy import (
    Files,
    dataset,
    in_order,
    joined,
    lazy,
    open_hdf5,
    same,
    sizes,
    stamps,
)
from mano_op.data.store import FieldStore
from mano_op.errors import InputError

_AXES = ("x", "y", "z")


def import_pdebench(
    path: str | Path,
    files: Files,
    *,
    boundary_conditions: Mapping[str, str],
    domain: Mapping[str, tuple[float, float]],
    variables: tuple[str, ...] = (),
    title: str = "PDEBench",
    **options: Any,
) -> FieldStore:
    """Import HDF5 files as PDEBench [1]_ publishes them.

    Four layouts are told apart by the names in the file:

    ===================================  ===========================================================
    names                                fields
    ===================================  ===========================================================
    ``tensor`` (N, T, X, ...)            one variable in time
    ``nu`` (N, X, Y), ``tensor``         Darcy flow: a steady input and a steady output
    (N, 1, X, Y)
    ``density``, ``Vx`` (N, T, X, ...)   several variables in time
    ``0000/data`` (T, X, ..., C), ...    a group for each sample, variables last
    ===================================  ===========================================================

    with the coordinates ``x-coordinate``, ..., ``t-coordinate`` (or ``grid/x``, ``grid/t``), which are those
    of cells' centres. Some files have one time more than fields, the end of the last step, which is left out.
    The files say neither the domain nor what happens at its ends, so both have to be given.

    Parameters
    ----------
    path : path
        Of the store to make.
    files : mapping of str to sequence of path
        Of each split. All of one layout and grid.
    boundary_conditions, domain
        For each axis, "x" first; as in `mano_op.data.fields.write_fields`.
    variables : tuple of str
        What to call the variable of ``tensor``, or those of ``data``; "u", or "u0", "u1", ..., if not given.
    title : str
    **options
        Of `mano_op.data.fields.write_fields`: ``overwrite``, ``resume``, ``chunk``, ...

    Raises
    ------
    InputError
        If a file is of none of these layouts, files differ, or as `write_fields` does.

    References
    ----------
    .. [1] Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022,
       arXiv:2210.07182.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = tempfile.mkdtemp()
    >>> with h5py.File(f"{folder}/advection.hdf5", "w") as file:
    ...     file["tensor"] = np.zeros((4, 3, 8), dtype=np.float32)
    ...     file["x-coordinate"] = (np.arange(8) + 0.5) / 8
    ...     file["t-coordinate"] = np.arange(4) * 0.1
    >>> store = import_pdebench(f"{folder}/a.zarr", {"train": [f"{folder}/advection.hdf5"]},
    ...     boundary_conditions={"x": "periodic"}, domain={"x": (0.0, 1.0)}, progress=False)
    >>> store.outputs, len(store.layout.times), store.grids["r8"].axes[0].registration
    (('u',), 3, 'cell')
    """
    paths = in_order(files)
    with ExitStack() as stack:
        opened = {file: open_hdf5(stack, file) for file in paths}
        read = {file: _read(file, root, variables) for file, root in opened.items()}
        first = read[paths[0]]
        for file, (fields, _) in read.items():
            if list(fields) != list(first[0]):
                raise InputError(f"{file} has {', '.join(fields)}, {paths[0]} has {', '.join(first[0])}")
        coordinates = {
            name: same(f"coordinate {name}", [(file, found[name]) for file, (_, found) in read.items()])
            for name in first[1]
        }
        spatial = [name for name in _AXES if name in coordinates]
        shape = tuple(len(coordinates[name]) for name in spatial)
        counts = {file: len(next(iter(fields.values()))) for file, (fields, _) in read.items()}
        splits = sizes(files, counts)
        data: dict[str, Any] = {}
        for name, array in first[0].items():
            steady = array.ndim == 1 + len(spatial)
            dims = ("sample", *([] if steady else ["time"]), *spatial)
            data[name] = (dims, joined([fields[name] for fields, _ in read.values()]))
        if all(array.ndim == 1 + len(spatial) for array in first[0].values()):
            coordinates.pop("time", None)
        inputs = [name for name in data if name == "nu"]
        return write_fields(
            path,
            {shape: xr.Dataset(data, coordinates)},
            inputs=inputs,
            outputs=[name for name in data if name not in inputs],
            splits=splits,
            registration="cell",
            domain=domain,
            boundary_conditions=boundary_conditions,
            title=title,
            provenance={
                "source": "PDEBench",
                "files": [file.name for file in paths],
                "files_as_read": stamps(paths),
            },
            **options,
        )


def _read(
    path: Path, file: h5py.File, variables: tuple[str, ...]
) -> tuple[dict[str, da.Array], dict[str, NDArray[Any]]]:
    """The fields of a file, samples first, in pieces as `lazy` has them, and its coordinates."""
    if "x-coordinate" not in file:
        return _groups(path, file, variables)
    coordinates = {
        axis: dataset(file, f"{axis}-coordinate")[:] for axis in _AXES if f"{axis}-coordinate" in file
    }
    known = {f"{axis}-coordinate" for axis in (*_AXES, "t")}
    names = [name for name in file if name not in known and isinstance(file[name], h5py.Dataset)]
    fields = {name: lazy(dataset(file, name)) for name in names if file[name].ndim > len(coordinates)}
    if not fields:
        raise InputError(f"{path} has {', '.join(file)}; expected 'tensor', or fields by their names")
    if "nu" in fields:
        if set(fields) != {"nu", "tensor"} or fields["tensor"].shape[1] != 1:
            raise InputError(f"{path} has {', '.join(fields)}; expected 'nu' and 'tensor' of one time")
        name = variables[0] if variables else "u"
        return {"nu": fields["nu"], name: fields["tensor"][:, 0]}, coordinates
    if list(fields) == ["tensor"]:
        fields = {variables[0] if variables else "u": fields["tensor"]}
    steps = {array.shape[1] for array in fields.values()}
    return fields, {**coordinates, "time": _times(path, dataset(file, "t-coordinate")[:], steps)}


def _groups(
    path: Path, file: h5py.File, variables: tuple[str, ...]
) -> tuple[dict[str, da.Array], dict[str, NDArray[Any]]]:
    """The layout with a group for each sample."""
    groups = [
        file[name] for name in sorted(file) if isinstance(file[name], h5py.Group) and "data" in file[name]
    ]
    if not groups:
        raise InputError(
            f"{path} has {', '.join(file) or 'nothing'}; expected 'x-coordinate' and fields, or groups with "
            "'data'"
        )
    samples = [dataset(group, "data") for group in groups]
    for group, sample in zip(groups, samples, strict=True):
        if sample.shape != samples[0].shape:
            raise InputError(f"{path}, {group.name}: shape {sample.shape}, others have {samples[0].shape}")
    n_channels = samples[0].shape[-1]
    plain = ("u",) if n_channels == 1 else tuple(f"u{i}" for i in range(n_channels))
    names = variables or plain
    if len(names) != n_channels:
        raise InputError(f"variables={names} for {n_channels} channels in {path}; expected one name for each")
    stacked = da.stack([da.from_array(sample, chunks=sample.shape) for sample in samples])
    fields = {name: stacked[..., i] for i, name in enumerate(names)}
    grid = groups[0].get("grid")
    if not isinstance(grid, h5py.Group):
        raise InputError(f"{path}, {groups[0].name} has no group 'grid' with coordinates; expected one")
    coordinates = {axis: dataset(grid, axis)[:] for axis in _AXES if axis in grid}
    return fields, {**coordinates, "time": _times(path, dataset(grid, "t")[:], {samples[0].shape[0]})}


def _times(path: Path, times: NDArray[Any], steps: set[int]) -> NDArray[Any]:
    if len(steps) > 1 or not 0 <= len(times) - min(steps) <= 1:
        raise InputError(
            f"{path}: {len(times)} times for fields of {sorted(steps)}; expected as many, or one more"
        )
    return times[: min(steps)]
