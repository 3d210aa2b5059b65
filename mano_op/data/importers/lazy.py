"""Arrays of files that are read when they are written on, piece by piece, and put one after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
from numpy.typing import NDArray

from mano_op.data.chunking import chunk_for
from mano_op.errors import InputError, check_whole

WHOLE = 2**62  # samples to a piece, of what is read in one
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


def lazy(array: Any, chunk: int, before: int = 0) -> da.Array:
    """A data set of a file as an array in pieces along its first dimension, each read once.

    Parameters
    ----------
    array : array, shape (samples, ...)
    chunk : int
        Samples to a chunk of the store; a piece is what of the array goes into one.
    before : int
        How many samples of other files come before it in the store.

    Examples
    --------
    >>> lazy(np.zeros((10, 2)), 4, before=5).chunks[0]
    (3, 4, 3)
    """
    return da.from_array(array, chunks=(pieces(array.shape[0], chunk, before), *array.shape[1:]))


def pieces(n: int, chunk: int, before: int) -> tuple[int, ...]:
    """The lengths of the parts of `n` samples in chunks of a store, where others come before."""
    ends = [*range(chunk - before % chunk, n, chunk), n]
    return tuple(end - start for start, end in pairwise([0, *ends]))


def chunk_of(options: dict[str, Any], points: int, counts: Mapping[str, int]) -> int:
    """Samples to a chunk of the store, as the options say or for fields of so many points; noted in them."""
    if options.get("chunk") is None:
        options["chunk"] = chunk_for(points, counts)
    check_whole(chunk=options["chunk"])
    return int(options["chunk"])


def befores(counts: Mapping[Path, int]) -> dict[Path, int]:
    """How many samples come before those of each file."""
    return dict(zip(counts, [0, *accumulate(counts.values())], strict=False))


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
