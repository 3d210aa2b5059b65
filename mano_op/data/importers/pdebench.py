"""PDEBench's HDF5 files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
from numpy.typing import NDArray

from mano_op.data.guards import check_has, check_shape
from mano_op.data.importers.lazy import (
    Files,
    Part,
    coordinate,
    dataset,
    lazy,
    open_hdf5,
    paths_of,
    place,
    same,
    write_parts,
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

    with coordinates of cells' centres, ``x-coordinate``, ..., ``t-coordinate`` (or ``grid/x``, ``grid/t``). A
    time more than fields, the end of the last step, is left out.

    Parameters
    ----------
    path : path
    files : mapping of str to sequence of path
        Of each split, all of one layout and grid.
    boundary_conditions, domain
        For each axis, "x" first; as in `mano_op.data.write.write_fields`. The files do not say them.
    variables : tuple of str
        Names for ``tensor`` or ``data``; by default "u", or "u0", "u1", ...
    title : str
    **options
        Of `mano_op.data.write.write_fields`: ``overwrite``, ``resume``, ``chunk``, ...

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
    paths = paths_of(files, "{'train': ['a.hdf5']}")
    with ExitStack() as stack:
        parts = {
            file: _read(file, open_hdf5(stack, file), tuple(variables)) for file in chain(*paths.values())
        }
        first = next(iter(parts.values()))
        return write_parts(
            path,
            paths,
            parts,
            inputs=[name for name in first.fields if name == "nu" and "time" not in first.coordinates],
            registration="cell",
            domain=domain,
            boundary_conditions=boundary_conditions,
            title=title,
            provenance={"source": "PDEBench"},
            **options,
        )


def _read(path: Path, file: h5py.File, variables: tuple[str, ...]) -> Part:
    """Read the fields of a file, in pieces, and its coordinates."""
    axes = [axis for axis in _AXES if f"{axis}-coordinate" in file]
    if not axes:
        return _groups(path, file, variables)
    coordinates = {axis: coordinate(file, f"{axis}-coordinate") for axis in axes}
    points = tuple(map(len, coordinates.values()))
    nodes = {name: file.get(name) for name in file if name not in {f"{axis}-coordinate" for axis in "xyzt"}}
    arrays = {
        name: dataset(file, name)
        for name, node in nodes.items()
        if isinstance(node, h5py.Dataset) and node.ndim > len(axes)
    }
    if not arrays:
        raise InputError(f"{path} has {', '.join(file)}; expected 'tensor' too, or fields by their names")
    if "nu" in arrays:
        if set(arrays) != {"nu", "tensor"} or arrays["tensor"].shape[1] != 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise InputError(
                f"{path} has {shapes}; with 'nu', which is Darcy flow's, expected 'tensor' of one time, and "
                "no other field"
            )
        n = len(arrays["nu"])
        check_shape(place(arrays["nu"]), arrays["nu"].shape, (n, *points), _ARRANGE)
        check_shape(place(arrays["tensor"]), arrays["tensor"].shape, (n, 1, *points), _ARRANGE)
        (name,) = _names(path, variables, ("u",))
        return _part({"nu": lazy(arrays["nu"]), name: lazy(arrays["tensor"])[:, 0]}, coordinates)
    n, steps = next(iter(arrays.values())).shape[:2]
    for array in arrays.values():
        check_shape(place(array), array.shape, (n, steps, *points), _ARRANGE)
    given = ("u",) if list(arrays) == ["tensor"] else tuple(arrays)
    names = _names(path, variables, given, named=list(arrays) != ["tensor"])
    fields = dict(zip(names, map(lazy, arrays.values()), strict=True))
    return _part(fields, {**coordinates, "time": _times(path, coordinate(file, "t-coordinate"), steps)})


_ARRANGE = (
    "the samples and times of the first field, and the points of the coordinates. Arrange the file so, with "
    "a data set for each component, or give its arrays to `mano_op.write_fields`"
)


def _part(fields: Mapping[str, da.Array], coordinates: Mapping[str, NDArray[Any]]) -> Part:
    spatial = [name for name in _AXES if name in coordinates]
    dims = ("sample", *(["time"] if "time" in coordinates else []), *spatial)
    return Part({name: (dims, values) for name, values in fields.items()}, coordinates)


def _names(
    path: Path, asked: tuple[str, ...], plain: tuple[str, ...], *, named: bool = False
) -> tuple[str, ...]:
    """Name variables that have no names in a file, or as the file does."""
    names = asked or plain
    if (asked and named) or len(names) != len(plain) or len(set(names)) != len(names):
        what = "one name for each, each once"
        if named:
            what = f"{', '.join(plain)}, which have names: leave them out"
        raise InputError(f"variables={names} for {len(plain)} channels in {path}; expected {what}")
    return names


def _groups(path: Path, file: h5py.File, variables: tuple[str, ...]) -> Part:
    """Read the layout with a group for each sample."""
    groups = [node for name in sorted(file) if isinstance(node := file.get(name), h5py.Group)]
    if not any("data" in group for group in groups):
        flow = (
            ". Incompressible flow (force, particles, velocity, t) has components last, times for each "
            "sample and no coordinates, and is not imported: give its arrays to `mano_op.write_fields`, with "
            "the grid that they are on"
        )
        raise InputError(
            f"{path} has {', '.join(file) or 'nothing'}; expected 'x-coordinate', ..., 't-coordinate' and "
            f"fields, or a group for each sample, with 'data' and 'grid'{flow if 'velocity' in file else ''}"
        )
    samples = [dataset(group, "data") for group in groups]
    grids = [group.get("grid") for group in groups]
    for group in groups:
        nodes = [name for name in group if isinstance(group.get(name), h5py.Group)]
        check_has(place(group), "group", ["grid"], nodes, ", with coordinates")
    axes = [axis for axis in _AXES if axis in grids[0]]
    coordinates = {
        name: same(f"coordinate {name}", [(place(grid), coordinate(grid, name)) for grid in grids])
        for name in [*axes, "t"]
    }
    first, points = samples[0].shape or (0,), tuple(len(coordinates[axis]) for axis in axes)
    expected = (first[0] or 1, *points, max(1, first[-1]))
    for sample in samples:
        check_shape(
            place(sample),
            sample.shape,
            expected if axes else (),
            f"times, points along {', '.join(axes) or 'axes, of which none is in grid'}, and one channel at "
            "least, in all samples",
        )
    plain = ("u",) if first[-1] == 1 else tuple(f"u{i}" for i in range(first[-1]))
    names = _names(path, variables, plain)
    stacked = da.stack([da.from_array(sample, chunks=sample.shape) for sample in samples])
    fields = {name: stacked[..., i] for i, name in enumerate(names)}
    times = _times(path, coordinates.pop("t"), first[0])
    return _part(fields, {**coordinates, "time": times})


def _times(path: Path, times: NDArray[Any], steps: int) -> NDArray[Any]:
    if not steps or not 0 <= len(times) - steps <= 1:
        expected = (steps or len(times) + 1,)
        check_shape(f"{path}, times", times.shape, expected, "as many as the fields have, or one more")
    return times[:steps]
