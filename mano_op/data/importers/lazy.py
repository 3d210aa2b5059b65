"""Arrays of files that are read when they are written on, piece by piece, and put one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
from numpy.typing import NDArray

from mano_op.errors import InputError

Files = Mapping[str, Sequence[str | Path]]

# Samples to a piece: what is read at a time.
_PIECE_BYTES = 2**24


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
    about = ((Path(file).name, Path(file).stat()) for file in files)
    return [f"{name}, {seen.st_size} bytes, changed {_utc(seen.st_mtime)}" for name, seen in about]


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
    """A data set of a file as an array in pieces along its first dimension."""
    size = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    return da.from_array(array, chunks=(max(1, _PIECE_BYTES // size), *array.shape[1:]))


def joined(arrays: Sequence[da.Array]) -> da.Array:
    """Arrays one after another along their first dimension."""
    return da.concatenate(list(arrays), axis=0)


def same(what: str, found: Sequence[tuple[Path, NDArray[Any]]]) -> NDArray[np.float64]:
    """What all files have to agree on, such as coordinates."""
    (first, expected), *others = found
    for path, values in others:
        if values.shape != expected.shape or not np.allclose(values, expected, rtol=1e-6, atol=1e-12):
            raise InputError(f"{path}: {what} differs from that of {first}; expected one grid for all files")
    return np.asarray(expected, dtype=np.float64)


def sizes(files: Files, counts: Mapping[Path, int]) -> dict[str, int]:
    """The number of samples of each split."""
    return {split: sum(counts[Path(file)] for file in given) for split, given in files.items()}
