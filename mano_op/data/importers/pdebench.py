"""PDEBench's HDF5 files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.guards import check_alike, check_each, check_has, check_shape
from mano_op.data.importers import lazy
from mano_op.data.store import FieldStore
from mano_op.errors import InputError

_AXES = ("x", "y", "z")
_ARRANGE = (
    "the samples and times of the first field, and the points of the coordinates. Arrange the file so, with "
    "a data set for each component, or give its arrays to `mano_op.write_fields`"
)


def import_pdebench(
    path: str | Path,
    files: lazy.Files,
    *,
    boundary_conditions: Mapping[str, str],
    domain: Mapping[str, tuple[float, float]],
    variables: tuple[str, ...] = (),
    **options: Any,
) -> FieldStore:
    """Import HDF5 files as PDEBench [1]_ publishes them.

    The names in a file tell four layouts apart:

    ===================================  ===========================================================
    names                                fields
    ===================================  ===========================================================
    ``tensor`` (N, T, X, ...)            one variable in time
    ``nu`` (N, X, Y), ``tensor``         Darcy flow: a steady input and a steady output
    (N, 1, X, Y)
    ``density``, ``Vx`` (N, T, X, ...)   several variables in time
    ``0000/data`` (T, X, ..., C), ...    a group for each sample, variables last
    ===================================  ===========================================================

    with coordinates of cells' centres, ``x-coordinate``, ..., ``t-coordinate`` (or ``grid/x``, ``grid/t``).
    One time more than the fields have, the end of the last step, is left out.

    Parameters
    ----------
    path : path
    files : mapping of str to sequence of path
        Of each split, all of one layout and grid.
    boundary_conditions, domain
        For each axis, "x" first; as in `mano_op.data.write.write_fields`. Files do not state them.
    variables : tuple of str
        Names for ``tensor`` or ``data``; by default "u", or "u0", "u1", ...
    **options
        Of `mano_op.data.write.write_fields`: ``title``, ``overwrite``, ``resume``, ``chunk``, ...

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
    return lazy.import_files(
        path,
        files,
        partial(_read, tuple(variables)),
        registration="cell",
        domain=domain,
        boundary_conditions=boundary_conditions,
        provenance={"source": "PDEBench"},
        **{"title": "PDEBench", **options},
    )


def _read(variables: tuple[str, ...], stack: ExitStack, path: Path) -> lazy.Part:
    file = lazy.open_hdf5(stack, path)
    axes = [axis for axis in _AXES if f"{axis}-coordinate" in file]
    if not axes:
        return _groups(variables, path, file)
    coordinates = {axis: lazy.coordinate(file, f"{axis}-coordinate") for axis in axes}
    nodes = {name: file.get(name) for name in file if not name.endswith("-coordinate")}
    arrays = {
        name: lazy.dataset(file, name)
        for name, node in nodes.items()
        if isinstance(node, h5py.Dataset) and node.ndim > len(axes)
    } or {"tensor": lazy.dataset(file, "tensor")}
    steady = "nu" in arrays  # the files of Darcy flow have it, and a pressure at one time
    if steady:
        shapes = {name: array.shape for name, array in arrays.items()}
        check_each(f"{path}, Darcy flow by its 'nu': shapes of fields", shapes, ["nu", "tensor"])
    n, steps = (*next(iter(arrays.values())).shape, 1, 1)[:2]
    times = [1 if steady else steps]
    for name, array in arrays.items():
        expected = (n, *([] if name == "nu" else times), *map(len, coordinates.values()))
        check_shape(lazy.location(array), array.shape, expected, _ARRANGE)
    fields = {name: lazy.in_pieces(array) for name, array in arrays.items()}
    if steady:
        (name,) = _names(path, variables, ("u",))
        fields = {"nu": fields["nu"], name: fields["tensor"][:, 0]}
        return lazy.Part(lazy.labelled(path, fields, coordinates), {"inputs": ["nu"]})
    unnamed = ("u",) if list(arrays) == ["tensor"] else ()
    names = _names(path, variables, unnamed) or tuple(fields)
    coordinates["time"] = _times(path, lazy.coordinate(file, "t-coordinate"), steps)
    named = dict(zip(names, fields.values(), strict=True))
    return lazy.Part(lazy.labelled(path, named, coordinates), {"inputs": []})


def _names(path: Path, variables: tuple[str, ...], unnamed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of fields that have none in a file: as asked for, or the usual ones."""
    if variables and (len(variables) != len(unnamed) or len(set(variables)) < len(variables)):
        remedy = f"give {len(unnamed)}, or" if unnamed else "there is none,"
        raise InputError(
            f"variables={variables}; expected one name for each field that {path} does not name, each once: "
            f"{remedy} leave variables out"
        )
    return variables or unnamed


def _groups(variables: tuple[str, ...], path: Path, file: h5py.File) -> lazy.Part:
    groups = [node for name in sorted(file) if isinstance(node := file.get(name), h5py.Group)]
    if not any("data" in group for group in groups):
        flow = (
            ". Incompressible flow has no coordinates of points: give its arrays to `mano_op.write_fields`, "
            "with the grid that they are on"
        )
        raise InputError(
            f"{path} has {', '.join(file) or 'nothing'}; expected 'x-coordinate', ..., 't-coordinate' and "
            f"fields, or a group for each sample, with 'data' and 'grid'{flow if 'velocity' in file else ''}"
        )
    arrays: list[da.Array] = []
    first, expected = lazy.location(groups[0]), dict[str, Any]()
    for group in groups:
        where = lazy.location(group)
        nodes = [name for name in group if isinstance(group.get(name), h5py.Group)]
        check_has(where, "group", ["grid"], nodes, ", with coordinates")
        data, grid = lazy.dataset(group, "data"), group["grid"]
        labels = {axis: lazy.coordinate(grid, axis) for axis in _AXES if axis in grid or axis == "x"}
        steps, channels = (data.shape[0], data.shape[-1]) if data.ndim > 1 else (1, 1)
        shape = (max(1, steps), *map(len, labels.values()), max(1, channels))
        remedy = "times, points of the coordinates in grid, and channels"
        check_shape(lazy.location(data), data.shape, shape, remedy)
        labels["time"] = _times(path, lazy.coordinate(grid, "t"), steps)
        expected = expected or labels
        alike = labels.keys() == expected.keys()
        if not alike or not all(map(np.array_equal, labels.values(), expected.values())):
            ours, theirs = (xr.Dataset(coords=coordinates) for coordinates in (labels, expected))
            lazy.check_continues(where, ours, first, theirs, "sample")
        check_alike(where, first, "variables", channels, arrays[0].shape[-1] if arrays else channels)
        arrays.append(da.from_array(data, chunks=data.shape))
    names = _names(path, variables, ("u",) if channels == 1 else tuple(f"u{i}" for i in range(channels)))
    values = da.stack(arrays)
    fields = {name: values[..., i] for i, name in enumerate(names)}
    return lazy.Part(lazy.labelled(path, fields, expected), {"inputs": []})


def _times(path: Path, times: NDArray[Any], steps: int) -> NDArray[Any]:
    """Return the times of the fields, of which a file may have one more."""
    if not steps or not 0 <= len(times) - steps <= 1:
        expected = (steps or len(times) + 1,)
        check_shape(f"{path}, times", times.shape, expected, "as many as the fields have, or one more")
    return times[:steps]
