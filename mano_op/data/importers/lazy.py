"""Arrays of several files, concatenated, and read in pieces while the store is written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.rounded import agree
from mano_op.errors import InputError

PIECE_BYTES = 2**23  # of an array of a file, read in one
Files = Mapping[str, Sequence[str | Path]]


def in_order(files: Files) -> list[Path]:
    """All files, split after split, if each is there."""
    if (
        not isinstance(files, Mapping)
        or not files
        or not all(
            isinstance(given, Sequence) and given and not isinstance(given, str) for given in files.values()
        )
    ):
        raise InputError(f"files={files!r}; expected those of a split, such as {{'train': ['a.hdf5']}}")
    paths = [Path(file) for given in files.values() for file in given]
    if twice := {str(path) for path in paths if paths.count(path) > 1}:
        raise InputError(f"{', '.join(sorted(twice))} twice among the files; expected each once")
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} does not exist; give the path of a file to import")
    return paths


def stamps(files: Iterable[str | Path]) -> list[str]:
    """The name, the size and the time of change of each file: a store is not gone on with from others."""
    about = ((Path(file).name, _parts(Path(file))) for file in files)
    return [
        f"{name}, {sum(seen.st_size for seen in parts)} bytes, changed "
        f"{_utc(max(seen.st_mtime for seen in parts))}"
        for name, parts in about
    ]


def _parts(path: Path) -> list[os.stat_result]:
    """What the system knows of a file, or of each file in a folder such as a zarr store."""
    return [file.stat() for file in (path, *(path.rglob("*") if path.is_dir() else ()))]


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def open_hdf5(stack: ExitStack, path: Path) -> h5py.File:
    """An HDF5 file, open for as long as the stack is."""
    try:
        return stack.enter_context(h5py.File(path, "r"))
    except OSError as error:
        raise InputError(
            f"{path} is no HDF5 file, or is damaged ({error}); restore it, or give another"
        ) from error


def dataset(file: h5py.File | h5py.Group, name: str) -> h5py.Dataset:
    """A data set of numbers in a file, by its name."""
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        raise InputError(f"{place(file)} has no data set {name!r}; it has {', '.join(file) or 'none'}")
    if node.dtype.kind not in "biuf" or node.shape is None:
        what = "empty" if node.shape is None else node.dtype
        raise InputError(f"{place(node)}: {what}; expected real numbers: write the file anew with such")
    return node


def coordinate(file: h5py.File | h5py.Group, name: str) -> NDArray[Any]:
    """Points or times in a file: all of a data set of one dimension."""
    node = dataset(file, name)
    if node.ndim != 1 or not len(node):
        raise InputError(
            f"{place(node)}: shape {node.shape}; expected one dimension and at least one value: coordinates "
            "and times are the same for all samples, others go into stores of their own"
        )
    return np.asarray(node[:])


def place(node: h5py.Group | h5py.Dataset) -> str:
    """The file, and where in it."""
    return node.file.filename + ("" if node.name == "/" else f", {node.name.removeprefix('/')}")


def labelled(
    path: Path,
    fields: Mapping[str, tuple[tuple[str, ...], da.Array]],
    coordinates: Mapping[str, NDArray[Any]],
) -> xr.Dataset:
    """Fields with their dimensions and coordinates, if none is called as one of these."""
    if taken := sorted(set(fields) & {"sample", *coordinates}):
        raise InputError(
            f"{path}: a field is called {taken[0]!r}, as a dimension is; expected another name: rename it in "
            "the files"
        )
    return xr.Dataset(dict(fields), dict(coordinates))


def lazy(array: Any) -> da.Array:
    """A data set of a file as an array in pieces, of whole chunks of the file, each read once.

    Parameters
    ----------
    array : array, shape (samples, ...)
        With an attribute ``chunks`` where its file has any.

    Examples
    --------
    >>> lazy(np.zeros((10, 1024, 512))).chunks[0]
    (2, 2, 2, 2, 2)
    """
    own = getattr(array, "chunks", None) or (1,) * array.ndim
    return da.from_array(array, chunks=piece_of(array.shape, own, array.dtype.itemsize))


def piece_of(shape: Sequence[int], own: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The shape of a piece to read: of whole chunks of a file, up to 8 MiB, the last dimensions first.

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


def check_ends_differ(path: str | Path, fields: Sequence[NDArray[Any]], axes: Sequence[str]) -> None:
    """Refuse fields on an axis that wraps whose last points repeat the first ones: both ends are in.

    Parameters
    ----------
    path : path
        Of the file, for the message.
    fields : sequence of ndarray, shape (samples, ...)
        Some samples of each variable.
    axes : sequence of str
    """
    if any((values == np.rint(values)).all() for values in fields):
        return  # a constant, or of so few values that some are equal by chance
    for i, name in enumerate(axes, start=1):
        n = fields[0].shape[i]
        ends = (
            [[values.take(k, i).astype(np.float64) for k in (0, 1, -1)] for values in fields] if n > 3 else []
        )
        if ends and all(_is_repeated(*lines) for lines in ends):
            raise InputError(
                f"{path}: along {name} the last of {n} points repeats the first, so both ends are in; "
                "expected points at i/n of an axis that wraps: leave the last ones out, "
                f"`array.take(range({n - 1}), {i})`"
            )


def _is_repeated(first: NDArray[Any], second: NDArray[Any], last: NDArray[Any]) -> bool:
    """Whether the last values are the first ones in every sample, and the second are not."""
    step = np.abs(second - first).reshape(len(first), -1).max(axis=1)
    gap = np.abs(last - first).reshape(len(first), -1).max(axis=1)
    return bool((step > 0).all() and (gap <= 1e-6 * step).all())


def joined(arrays: Sequence[da.Array]) -> da.Array:
    """Arrays one after another along their first dimension."""
    return da.concatenate(list(arrays), axis=0)


def same(what: str, found: Sequence[tuple[object, NDArray[Any]]]) -> NDArray[np.float64]:
    """Coordinates that all files have to agree on, as far as they are rounded, those of the first.

    Parameters
    ----------
    what : str
        They are, for messages.
    found : sequence of (object, ndarray)
        Each file and its coordinates, of one dimension.
    """
    (first, expected), *others = found
    for path, values in others:
        if values.shape != expected.shape:
            raise InputError(
                f"{path}: {what} has the shape {values.shape}, in {first} {expected.shape}; import files of "
                "other grids or times into two stores"
            )
        if not (alike := agree(values, expected)).all():
            i = int(np.argmin(alike))
            raise InputError(
                f"{path}: {what} {i} is {values[i]:.9g}, in {first} {expected[i]:.9g}; import files of other "
                "grids or times into two stores"
            )
    return np.asarray(expected, dtype=np.float64)


def sizes(files: Files, counts: Mapping[Path, int]) -> dict[str, int]:
    """The number of samples of each split."""
    return {split: sum(counts[Path(file)] for file in given) for split, given in files.items()}
