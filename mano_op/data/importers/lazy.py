"""Files opened, compared and concatenated, and read in pieces while the store is written."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from glob import glob, has_magic
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.guards import check_alike, check_has, check_real, check_shape
from mano_op.data.rounded import agree
from mano_op.data.store import FieldStore
from mano_op.data.times import Times
from mano_op.data.write import write_fields
from mano_op.errors import InputError, refusing

PIECE_BYTES = 2**23  # of an array of a file, read at once
Files = Mapping[str, Sequence[str | Path]]


class Part(NamedTuple):
    """Content of a file: fields ``(sample, [time], *axes)`` with coordinates, options and scalars.

    `options` are those of `write_fields`; boundary conditions have to be the same in all files.
    """

    data: xr.Dataset
    options: Mapping[str, Any]
    scalars: Mapping[str, Any] | None = None


def import_files(
    path: str | Path,
    files: Files,
    read: Callable[[ExitStack, Path], Part],
    *,
    provenance: Mapping[str, Any],
    **options: Any,
) -> FieldStore:
    """Write files, split after split, to a store, if all have the same fields on one grid."""
    paths = paths_of(files, "{'train': ['a.hdf5']}")
    with ExitStack() as stack:
        parts = {file: read(stack, file) for file in chain(*paths.values())}
        first, stated = next((file, part.options) for file, part in parts.items())
        for file, part in parts.items():
            conditions = (given.get("boundary_conditions") for given in (part.options, stated))
            check_alike(file, first, "boundary conditions", *conditions)
        data = concatenated({file: part.data for file, part in parts.items()}, "sample")
        about = dict(provenance) | {"files": [file.name for file in parts], "files_as_read": stamps(parts)}
        if parts[first].scalars is not None:
            about["scalars"] = {file.name: part.scalars for file, part in parts.items()}
        return write_fields(
            path,
            {tuple(data.sizes[name] for name in data.coords if name != "time"): data},
            outputs=[str(name) for name in data.data_vars if name not in stated["inputs"]],
            splits={split: sum(len(parts[file].data["sample"]) for file in paths[split]) for split in paths},
            provenance=about,
            **{**stated, **options},
        )


def paths_of(files: Mapping[Any, Any], example: str) -> dict[Any, list[Path]]:
    """Return the files of each split or resolution, those of patterns too, each present and named once."""
    paths = {
        key: list(chain(*map(_matched, [names] if isinstance(names, str | Path) else names)))
        for key, names in (files.items() if isinstance(files, Mapping) else ())
        if isinstance(names, Sequence | Path)
    }
    if not paths or len(paths) < len(files) or not all(paths.values()):
        raise InputError(f"files={files!r}; expected at least one for each, such as {example}")
    for path, n in Counter(chain(*paths.values())).items():
        if n > 1 or not path.exists():
            problem = "is given twice" if n > 1 else "does not exist"
            raise InputError(f"{path} {problem}; expected files to import, each once")
    return paths


def _matched(name: str | Path) -> list[Path]:
    """Return the files that a pattern matches, numbers in their names in order; the path itself of a path.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for i in (1, 2, 10):
    ...     (folder / f"run_{i}.nc").touch()
    >>> [path.name for path in _matched(f"{folder}/*.nc")]
    ['run_1.nc', 'run_2.nc', 'run_10.nc']
    """
    path = Path(name)
    if path.exists() or not has_magic(str(name)):
        return [path]
    found = sorted(map(Path, glob(str(name), recursive=True)), key=natural)
    if not found:
        raise InputError(f"{name} matches no file; expected files to import: correct the pattern")
    return found


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Return the key by which paths are sorted with their numbers in order, 2 before 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


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
    remedy = "expected an HDF5 file: give the path of one, or restore it"
    with refusing(f"{path} cannot be opened", remedy, OSError):
        return stack.enter_context(h5py.File(path, "r"))


def dataset(file: h5py.File | h5py.Group, name: str) -> h5py.Dataset:
    """Return a data set of numbers in a file."""
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        known = [key for key in file if isinstance(file.get(key), h5py.Dataset)]
        check_has(location(file), "data set", [name], known)
    check_real(location(node), "nothing" if node.shape is None else node.dtype)
    return node


def coordinate(file: h5py.File | h5py.Group, name: str) -> NDArray[Any]:
    """Read points or times: all of a data set of one dimension."""
    node = dataset(file, name)
    remedy = "coordinates and times are the same for all samples, others go into stores of their own"
    check_shape(location(node), node.shape, (max(1, node.size),), remedy)
    return np.asarray(node[:], dtype=np.result_type(node.dtype, np.float32))


def location(node: h5py.Group | h5py.Dataset) -> str:
    """Name the file, and the place of a group or data set in it."""
    return node.file.filename + ("" if node.name == "/" else f", {node.name.removeprefix('/')}")


def in_pieces(array: Any, *, reverse: bool = False) -> da.Array:
    """Put an array ``(samples, ...)`` of a file behind dask, in pieces of whole chunks of the file.

    With `reverse` the array has its dimensions the other way round.

    Examples
    --------
    >>> in_pieces(np.zeros((512, 1024, 10)), reverse=True).chunks[0]
    (2, 2, 2, 2, 2)
    """
    order = -1 if reverse else 1
    own = getattr(array, "chunks", None) or (1,) * array.ndim
    piece = piece_of(array.shape[::order], own[::order], array.dtype.itemsize)
    values = da.from_array(array, chunks=piece[::order])
    return values.T if reverse else values


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


def labelled(
    where: object, fields: Mapping[str, da.Array], coordinates: Mapping[str, NDArray[Any]]
) -> xr.Dataset:
    """Return fields ``(sample, [time], *axes)`` as a data set, with the coordinates of the axes in order."""
    axes = [name for name in coordinates if name != "time"]
    check_free(where, fields, {"sample", *coordinates})
    dims = {n: ("sample", *(["time"] if n > 1 + len(axes) else []), *axes) for n in range(len(axes) + 3)}
    return xr.Dataset({name: (dims[field.ndim], field) for name, field in fields.items()}, dict(coordinates))


def check_free(where: object, names: Iterable[object], taken: Container[object]) -> None:
    """Refuse names of fields or dimensions that others have."""
    if used := [name for name in names if name in taken]:
        raise InputError(
            f"{where}: {used[0]!r} is the name of two fields, components or dimensions; expected one name "
            "for each: rename one of them in the files"
        )


def concatenated(parts: Mapping[Any, xr.Dataset], dim: str) -> xr.Dataset:
    """Concatenate files along a dimension, if they have the same variables, attributes and coordinates."""
    first, *others = parts
    for file in others:
        check_continues(file, parts[file], first, parts[first], dim)
    what = f"{', '.join(map(str, parts))} cannot be concatenated along {dim!r}"
    remedy = "expected variables of the same types and dimensions in all of them: make them agree"
    with refusing(what, remedy, ValueError, TypeError, KeyError, NotImplementedError):
        if not others:
            return parts[first]
        return xr.concat(
            parts.values(), dim, data_vars="minimal", coords="minimal", compat="override", join="override"
        )


def check_continues(file: object, data: xr.Dataset, first: object, expected: xr.Dataset, dim: str) -> None:
    """Refuse a file that does not continue the first along a dimension."""
    check = partial(check_alike, file, first)
    check("variables", sorted(map(str, data.data_vars)), sorted(map(str, expected.data_vars)))
    for name, size in expected.sizes.items():
        if name != dim:
            check(f"points along {name}", data.sizes.get(name), size)
    known = [str(name) for name in data.coords if name in {*expected.coords, *expected.dims}]
    check("coordinates", sorted(known), sorted(map(str, expected.coords)))
    for name in expected.variables:
        ours, theirs = data.variables[name], expected.variables[name]
        check(f"dimensions of {name}", ours.dims, theirs.dims)
        for label in ("units", "long_name", "standard_name", "cell_methods"):
            check(f"{label} of {name}", *(repr(variable.attrs.get(label)) for variable in (ours, theirs)))
        if dim not in ours.dims and (pair := _difference(ours, theirs)):
            check(f"{name}", *pair)


def _difference(ours: xr.Variable, theirs: xr.Variable) -> tuple[object, object] | None:
    """Return the first two values that differ by more than rounding, if any."""
    values, others = ours.values, theirs.values
    if ours.dtype.kind in "mM" and theirs.dtype.kind in "mM" and ours.ndim == 1:
        times, expected = Times.of("", ours), Times.of("", theirs)
        same = times.agrees_with(expected) & (times.measure == expected.measure)
    elif ours.dtype.kind in "iuf" and theirs.dtype.kind in "iuf":
        same = (np.isnan(values) & np.isnan(others)) | (
            agree(values, others) if ours.ndim == 1 else np.isclose(values, others, rtol=1e-6, atol=1e-12)
        )
    else:
        same = np.asarray(values == others)
    if np.all(same):
        return None
    i = np.unravel_index(int(np.argmin(same)), np.shape(same))
    return values[i], others[i]
