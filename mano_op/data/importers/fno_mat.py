"""The MATLAB files that came with the Fourier neural operator."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import h5py
import numpy as np
import scipy.io
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.fields import write_fields
from mano_op.data.importers.lazy import (
    Files,
    check_ends_differ,
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
from mano_op.grid import Axis, Registration


@dataclass(frozen=True)
class _Kind:
    """What is known of a kind of file: the arrays' names, what they are, and where their points lie."""

    names: dict[str, str]
    axes: tuple[str, ...]
    registration: Registration
    condition: str
    ends: float | None
    varying: tuple[str, ...] = ()


_KINDS = {
    "burgers": _Kind({"a": "initial", "u": "velocity"}, ("x",), "node", "periodic", None),
    "darcy": _Kind({"coeff": "permeability", "sol": "pressure"}, ("y", "x"), "node_both", "dirichlet", 0.0),
    "navier_stokes": _Kind(
        {"a": "initial_vorticity", "u": "vorticity"}, ("y", "x"), "node", "periodic", None, ("u",)
    ),
}


def import_fno_mat(
    path: str | Path, files: Files, *, kind: Literal["burgers", "darcy", "navier_stokes"], **options: Any
) -> FieldStore:
    """Import MATLAB files as Li et al. [1]_ published them, of version 5 or 7.3.

    =================  ========================================  ============================================
    kind               arrays                                    fields, on the unit interval or square
    =================  ========================================  ============================================
    ``burgers``        ``a``, ``u`` (N, X)                       at time 0 and 1; periodic nodes
    ``darcy``          ``coeff``, ``sol`` (N, Y, X)              nodes, both ends in; the solution is 0 there
    ``navier_stokes``  ``a`` (N, Y, X), ``u`` (N, Y, X, T),      vorticity at time 0 and at the times ``t``;
                       ``t`` (T)                                 periodic nodes
    =================  ========================================  ============================================

    Files of version 5 are read whole, those of 7.3, which are HDF5, piece by piece.

    Parameters
    ----------
    path : path
        Of the store to make.
    files : mapping of str to sequence of path
    kind : {"burgers", "darcy", "navier_stokes"}
    **options
        Of `mano_op.data.fields.write_fields`: ``overwrite``, ``resume``, ...

    Raises
    ------
    InputError
        If a file is not of that kind, files differ, or as `write_fields` does.

    References
    ----------
    .. [1] Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021,
       arXiv:2010.08895.
    """
    if kind not in _KINDS:
        raise InputError(f"kind={kind!r}; expected one of {', '.join(_KINDS)}")
    known, paths = _KINDS[kind], in_order(files)
    with ExitStack() as stack:
        read = {file: _read(stack, file, known) for file in paths}
        first = read[paths[0]]
        for file, arrays in read.items():
            _check(file, arrays, first, known)
        shape = first[next(iter(known.names))].shape[1:]
        coordinates: dict[str, Any] = {
            name: Axis(name, n, registration=known.registration).points
            for name, n in zip(known.axes, shape, strict=True)
        }
        if known.varying:
            coordinates["time"] = same("t", [(file, np.ravel(arrays["t"])) for file, arrays in read.items()])
        counts = {file: arrays[next(iter(known.names))].shape[0] for file, arrays in read.items()}
        splits = sizes(files, counts)
        data = {}
        for name, variable in known.names.items():
            values, dims = joined([lazy(arrays[name]) for arrays in read.values()]), ("sample", *known.axes)
            if name in known.varying:
                values, dims = da.moveaxis(values, -1, 1), ("sample", "time", *known.axes)
            data[variable] = (dims, values)
        inputs, outputs = ([name] for name in known.names.values())
        options.setdefault("initial", {inputs[0]: outputs[0]} if known.varying else None)
        options.setdefault("title", f"{kind.replace('_', ' ').capitalize()}, Li et al.")
        return write_fields(
            path,
            {shape: xr.Dataset(data, coordinates)},
            inputs=inputs,
            outputs=outputs,
            splits=splits,
            registration=known.registration,
            domain={name: (0.0, 1.0) for name in known.axes},
            boundary_conditions=dict.fromkeys(known.axes, known.condition),
            boundary_values={} if known.ends is None else {outputs[0]: known.ends},
            provenance={
                "source": "Li et al.",
                "kind": kind,
                "files": [file.name for file in paths],
                "files_as_read": stamps(paths),
            },
            **options,
        )


def _read(stack: ExitStack, path: Path, known: _Kind) -> dict[str, Any]:
    """The arrays of a file, samples first."""
    wanted = [*known.names, *(["t"] if known.varying else [])]
    if h5py.is_hdf5(path):
        file = open_hdf5(stack, path)
        _check_names(path, wanted, list(file))
        # MATLAB's first index varies fastest, so HDF5 has the dimensions the other way round.
        return {name: _Turned(dataset(file, name)) for name in known.names} | {
            name: np.asarray(dataset(file, name)) for name in wanted if name not in known.names
        }
    try:
        listed = [name for name, _, _ in scipy.io.whosmat(path)]
        content = scipy.io.loadmat(path, variable_names=wanted)
    except Exception as error:  # whatever scipy meets damage with
        raise InputError(
            f"{path} is no MATLAB file that can be read ({error}); restore it, or give another"
        ) from error
    _check_names(path, wanted, listed)
    for name in wanted:
        if not isinstance(content[name], np.ndarray) or content[name].dtype.kind not in "biuf":
            kind = getattr(content[name], "dtype", "of no type")
            raise InputError(
                f"{path}, {name}: a {type(content[name]).__name__}, {kind}; expected an array of real "
                "numbers, not sparse: save it as one"
            )
    return {name: content[name] for name in wanted}


class _Turned:
    """A data set with its dimensions the other way round, read when it is asked for."""

    def __init__(self, array: h5py.Dataset) -> None:
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape[::-1], array.dtype, array.ndim
        self.chunks = None if array.chunks is None else array.chunks[::-1]

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        return np.asarray(self._array[index[::-1]]).T


def _check_names(path: Path, wanted: list[str], there: list[str]) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise InputError(f"{path} has no {', '.join(missing)}; it has {', '.join(there) or 'nothing'}")


def _check(path: Path, arrays: dict[str, Any], first: dict[str, Any], known: _Kind) -> None:
    """Refuse arrays whose shapes do not fit the kind, each other or the first file's."""
    shape = arrays[next(iter(known.names))].shape
    for name in known.names:
        expected = (*shape, np.asarray(arrays["t"]).size) if name in known.varying else shape
        if arrays[name].shape != expected or len(shape) != 1 + len(known.axes) or not math.prod(expected):
            raise InputError(
                f"{path}, {name}: shape {arrays[name].shape}, expected {expected} with "
                f"{len(known.axes)} axes after the samples, none of them empty"
            )
    if known.varying and np.asarray(arrays["t"]).size not in np.shape(arrays["t"]):
        raise InputError(f"{path}, t: shape {np.shape(arrays['t'])}; expected a row or a column of times")
    if shape[1:] != first[next(iter(known.names))].shape[1:]:
        raise InputError(
            f"{path} has {shape[1:]} points, the first file has another number; import files of other grids "
            "into two stores"
        )
    if known.registration == "node":
        steady = [lazy(arrays[name])[:4].compute() for name in known.names if name not in known.varying]
        check_ends_differ(path, steady, known.axes)
