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
from numpy.typing import NDArray

from mano_op.data.rounded import agree
from mano_op.errors import InputError

PIECE_BYTES = 2**23  # of an array of a file, read in one
Files = Mapping[str, Sequence[str | Path]]


def in_order(files: Files) -> list[Path]:
    """All files, split after split, if each is there."""
    if not files or not all(files.values()):
        raise InputError(f"files={dict(files)}; expected those of a split, such as {{'train': ['a.hdf5']}}")
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
        raise InputError(f"{path} is no HDF5 file, or is damaged: {error}") from error


def dataset(file: h5py.File | h5py.Group, name: str) -> h5py.Dataset:
    """A data set of numbers in a file, by its name."""
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        raise InputError(f"{file.file.filename} has no data set {name!r}; it has {', '.join(file) or 'none'}")
    if node.dtype.kind not in "biuf":
        raise InputError(f"{file.file.filename}, {name}: {node.dtype}, expected real numbers")
    return node


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


def joined(arrays: Sequence[da.Array]) -> da.Array:
    """Arrays one after another along their first dimension."""
    return da.concatenate(list(arrays), axis=0)


def same(what: str, found: Sequence[tuple[Path, NDArray[Any]]]) -> NDArray[np.float64]:
    """Coordinates that all files have to agree on, as far as they are rounded."""
    (first, expected), *others = found
    for path, values in others:
        if values.shape != expected.shape:
            raise InputError(
                f"{path}: {what} has the shape {values.shape}, in {first} {expected.shape}; import files of "
                "other grids or times into two stores"
            )
        if expected.ndim == 1 and not (alike := agree(values, expected)).all():
            i = int(np.argmin(alike))
            raise InputError(
                f"{path}: {what} {i} is {values[i]:.9g}, in {first} {expected[i]:.9g}; import files of other "
                "grids or times into two stores"
            )
    return np.asarray(expected, dtype=np.float64)


def sizes(files: Files, counts: Mapping[Path, int]) -> dict[str, int]:
    """The number of samples of each split."""
    return {split: sum(counts[Path(file)] for file in given) for split, given in files.items()}
