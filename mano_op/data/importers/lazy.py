"""Files opened, compared and concatenated, and read in pieces while the store is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.guards import check_alike, check_has, check_real, check_shape, refusing
from mano_op.data.rounded import agree
from mano_op.data.store import FieldStore
from mano_op.data.write import write_fields
from mano_op.errors import InputError

PIECE_BYTES = 2**23  # of an array of a file, read in one
Files = Mapping[str, Sequence[str | Path]]
# What to do about arrays with both ends of an axis that wraps; see `check_ends_differ`.
REPEATED = "leave the last ones out, `array.take(range({n}), {dim})`"


@dataclass(frozen=True)
class Part:
    """Content of a file: variables with their dimensions, axes in order and "time".

    `about` is what else has to be the same in all files.
    """

    fields: Mapping[str, tuple[tuple[str, ...], da.Array]]
    coordinates: Mapping[str, NDArray[Any]]
    about: Mapping[str, Any] = field(default_factory=dict)


def paths_of(files: Mapping[Any, Any], example: str) -> dict[Any, list[Path]]:
    """Return the files of each split or resolution, each there and named once."""
    several = {
        key: [Path(given)] if isinstance(given, str | Path) else [Path(file) for file in given]
        for key, given in (files.items() if isinstance(files, Mapping) else ())
        if isinstance(given, Sequence | Path)
    }
    if not several or len(several) < len(files) or not all(several.values()):
        raise InputError(f"files={files!r}; expected at least one for each, such as {example}")
    paths = [path for given in several.values() for path in given]
    if twice := {str(path) for path in paths if paths.count(path) > 1}:
        raise InputError(f"{', '.join(sorted(twice))} twice among the files; expected each once")
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give the path of a file to import")
    return several


def write_parts(
    path: str | Path,
    files: Mapping[str, Sequence[Path]],
    parts: Mapping[Path, Part],
    *,
    inputs: Sequence[str],
    provenance: Mapping[str, Any],
    **options: Any,
) -> FieldStore:
    """Write files, split after split, to a store, if all have the same fields on one grid."""
    first, expected = next(iter(parts.items()))
    for file, part in parts.items():
        dims = {name: dims for name, (dims, _) in part.fields.items()}
        check_alike(file, first, "fields", dims, {name: dims for name, (dims, _) in expected.fields.items()})
        check_alike(file, first, "coordinates", list(part.coordinates), list(expected.coordinates))
        for what, value in part.about.items():
            check_alike(file, first, what, value, expected.about[what])
    coordinates = {
        name: same(name, [(file, part.coordinates[name]) for file, part in parts.items()])
        for name in expected.coordinates
    }
    data = {
        name: (dims, da.concatenate([part.fields[name][1] for part in parts.values()], axis=0))
        for name, (dims, _) in expected.fields.items()
    }
    if taken := sorted(set(data) & {"sample", *coordinates}):
        raise InputError(
            f"{first}: a field is called {taken[0]!r}, as a dimension is; expected another name: rename it "
            "in the files"
        )
    counts = {file: len(next(iter(part.fields.values()))[1]) for file, part in parts.items()}
    shape = tuple(len(points) for name, points in coordinates.items() if name != "time")
    return write_fields(
        path,
        {shape: xr.Dataset(data, coordinates)},
        inputs=inputs,
        outputs=[name for name in data if name not in inputs],
        splits={split: sum(counts[file] for file in given) for split, given in files.items()},
        provenance={**provenance, "files": [file.name for file in parts], "files_as_read": stamps(parts)},
        **options,
    )


def stamps(files: Iterable[str | Path]) -> list[str]:
    """Return name, size and time of change of each file, which resuming compares."""
    lines = []
    for path in map(Path, files):
        parts = [file.stat() for file in (path, *(path.rglob("*") if path.is_dir() else ()))]
        time = datetime.fromtimestamp(max(part.st_mtime for part in parts), UTC)
        size = sum(part.st_size for part in parts)
        lines.append(f"{path.name}, {size} bytes, changed {time.isoformat(timespec='microseconds')}")
    return lines


def open_hdf5(stack: ExitStack, path: Path) -> h5py.File:
    """Open an HDF5 file for as long as the stack is open."""
    with refusing(f"{path} is no HDF5 file, or is damaged", "restore it, or give another", OSError):
        return stack.enter_context(h5py.File(path, "r"))


def dataset(file: h5py.File | h5py.Group, name: str) -> h5py.Dataset:
    """Return a data set of numbers in a file."""
    known = [key for key in file if isinstance(file.get(key), h5py.Dataset)]
    check_has(place(file), "data set", [name], known)
    node = file[name]
    check_real(place(node), "nothing" if node.shape is None else node.dtype)
    return node


def coordinate(file: h5py.File | h5py.Group, name: str) -> NDArray[Any]:
    """Read points or times: all of a data set of one dimension."""
    node = dataset(file, name)
    remedy = "coordinates and times are the same for all samples, others go into stores of their own"
    check_shape(place(node), node.shape, (max(1, node.size),), remedy)
    return np.asarray(node[:])


def place(node: h5py.Group | h5py.Dataset) -> str:
    """Name the file, and where in it."""
    return node.file.filename + ("" if node.name == "/" else f", {node.name.removeprefix('/')}")


def lazy(array: Any) -> da.Array:
    """Put an array ``(samples, ...)`` of a file behind dask, in pieces of whole chunks of the file.

    Examples
    --------
    >>> lazy(np.zeros((10, 1024, 512))).chunks[0]
    (2, 2, 2, 2, 2)
    """
    own = getattr(array, "chunks", None) or (1,) * array.ndim
    return da.from_array(array, chunks=piece_of(array.shape, own, array.dtype.itemsize))


def piece_of(shape: Sequence[int], own: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the shape of a piece of whole chunks of a file, up to 8 MiB, the last dimensions first.

    Examples
    --------
    >>> piece_of((100, 50, 512, 512), (4, 1, 512, 512), 4)
    (4, 2, 512, 512)
    >>> piece_of((100, 50, 64, 64), (1, 1, 64, 64), 4)
    (10, 50, 64, 64)
    """
    piece = [max(1, min(chunk, n)) for chunk, n in zip(own, shape, strict=True)]
    for dim in reversed(range(len(shape))):
        others = itemsize * math.prod(piece) // piece[dim]
        chunks = max(1, PIECE_BYTES // (others * piece[dim]))
        piece[dim] = max(1, min(shape[dim], chunks * piece[dim]))
    return tuple(piece)


def same(what: str, given: Sequence[tuple[object, NDArray[Any]]]) -> NDArray[np.float64]:
    """Return the coordinates of the first file, if all agree within rounding."""
    (first, expected), *others = given
    for file, values in others:
        check_alike(file, first, f"shape of {what}", values.shape, expected.shape)
        if not (alike := agree(values, expected)).all():
            i = int(np.argmin(alike))
            check_alike(file, first, f"{what} {i}", float(values[i]), float(expected[i]))
    return np.asarray(expected, dtype=np.float64)
