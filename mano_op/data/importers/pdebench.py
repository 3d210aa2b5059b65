"""PDEBench's HDF5 files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
from numpy.typing import NDArray

from mano_op.data.fields import write_fields
from mano_op.data.importers.lazy import (
    Files,
    coordinate,
    dataset,
    in_order,
    joined,
    labelled,
    lazy,
    open_hdf5,
    place,
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
        read = {file: _read(file, root, tuple(variables)) for file, root in opened.items()}
        first = read[paths[0]]
        for file, (fields, _) in read.items():
            if list(fields) != list(first[0]):
                raise InputError(
                    f"{file} has {', '.join(fields)}, {paths[0]} has {', '.join(first[0])}; import files of "
                    "other fields into two stores"
                )
        for file, (_, points) in read.items():
            if list(points) != list(first[1]):
                raise InputError(
                    f"{file} has the coordinates {', '.join(points)}, {paths[0]} has {', '.join(first[1])}; "
                    "import files of other grids into two stores"
                )
        coordinates = {
            name: same(f"coordinate {name}", [(file, points[name]) for file, (_, points) in read.items()])
            for name in first[1]
        }
        spatial = [name for name in _AXES if name in coordinates]
        steady = "time" not in coordinates
        dims = ("sample", *([] if steady else ["time"]), *spatial)
        data = {name: (dims, joined([fields[name] for fields, _ in read.values()])) for name in first[0]}
        inputs = [name for name in data if name == "nu" and steady]
        shape = tuple(len(coordinates[name]) for name in spatial)
        return write_fields(
            path,
            {shape: labelled(paths[0], data, coordinates)},
            inputs=inputs,
            outputs=[name for name in data if name not in inputs],
            splits=sizes(
                files, {file: len(next(iter(fields.values()))) for file, (fields, _) in read.items()}
            ),
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
        _check_shape(arrays["nu"], (n, *points), axes)
        _check_shape(arrays["tensor"], (n, 1, *points), axes)
        (name,) = _names(path, variables, ("u",))
        return {"nu": lazy(arrays["nu"]), name: lazy(arrays["tensor"])[:, 0]}, coordinates
    n, steps = next(iter(arrays.values())).shape[:2]
    for array in arrays.values():
        _check_shape(array, (n, steps, *points), axes)
    given = ("u",) if list(arrays) == ["tensor"] else tuple(arrays)
    if variables and list(arrays) != ["tensor"]:
        raise InputError(
            f"variables={variables}, but {path} has names of its own: {', '.join(arrays)}; leave them out"
        )
    fields = dict(zip(_names(path, variables, given), map(lazy, arrays.values()), strict=True))
    return fields, {**coordinates, "time": _times(path, coordinate(file, "t-coordinate"), steps)}


def _check_shape(array: h5py.Dataset, expected: tuple[int, ...], axes: Sequence[str]) -> None:
    """Refuse an array that has not the samples, the times and the points of the first one and the axes."""
    if array.shape != expected:
        leading = ("samples", "times")[: len(expected) - len(axes)]
        raise InputError(
            f"{place(array)}: shape {array.shape}; expected {expected}, by the first field and the "
            f"coordinates: {', '.join([*leading, *axes])}. Arrange the file so, with a data set for each "
            "component, or give its arrays to `mano_op.write_fields`"
        )


def _names(path: Path, asked: tuple[str, ...], plain: tuple[str, ...]) -> tuple[str, ...]:
    """What variables that have no names in a file are called."""
    names = asked or plain
    if len(names) != len(plain) or len(set(names)) != len(names):
        raise InputError(
            f"variables={names} for {len(plain)} channels in {path}; expected one name for each, each once"
        )
    return names


def _groups(
    path: Path, file: h5py.File, variables: tuple[str, ...]
) -> tuple[dict[str, da.Array], dict[str, NDArray[Any]]]:
    """The layout with a group for each sample."""
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
    for group, grid in zip(groups, grids, strict=True):
        if not isinstance(grid, h5py.Group):
            raise InputError(f"{place(group)} has no group 'grid' with coordinates; expected one")
    axes = [axis for axis in _AXES if axis in grids[0]]
    coordinates = {
        name: same(f"coordinate {name}", [(place(grid), coordinate(grid, name)) for grid in grids])
        for name in [*axes, "t"]
    }
    first, points = samples[0].shape, tuple(len(coordinates[axis]) for axis in axes)
    for sample in samples:
        if sample.shape != first or sample.shape[1:-1] != points or not axes:
            raise InputError(
                f"{place(sample)}: shape {sample.shape}; expected times, {points} points along "
                f"{', '.join(axes) or 'axes, of which none is in grid'}, and channels, in all samples"
            )
    plain = ("u",) if first[-1] == 1 else tuple(f"u{i}" for i in range(first[-1]))
    names = _names(path, variables, plain)
    stacked = da.stack([da.from_array(sample, chunks=sample.shape) for sample in samples])
    fields = {name: stacked[..., i] for i, name in enumerate(names)}
    if not fields:
        raise InputError(
            f"{place(samples[0])}: shape {first}; expected one channel at least, the last dimension"
        )
    times = _times(path, coordinates.pop("t"), first[0])
    return fields, {**coordinates, "time": times}


def _times(path: Path, times: NDArray[Any], steps: int) -> NDArray[Any]:
    if not steps or not 0 <= len(times) - steps <= 1:
        raise InputError(f"{path}: {len(times)} times for fields of {steps}; expected as many, or one more")
    return times[:steps]
