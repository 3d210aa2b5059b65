"""The MATLAB files that came with the Fourier neural operator."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from mano_op.data.guards import check_ends_differ, check_has, check_one_of, check_real, check_shape, refusing
from mano_op.data.importers.lazy import REPEATED, Files, Part, dataset, lazy, open_hdf5, paths_of, write_parts
from mano_op.data.store import FieldStore
from mano_op.grid import Axis, Registration


@dataclass(frozen=True)
class _Kind:
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
    """Import MATLAB files as Li et al. [1]_ published them, of version 5 (read whole) or 7.3 (in pieces).

    =================  ========================================  ============================================
    kind               arrays                                    fields, on the unit interval or square
    =================  ========================================  ============================================
    ``burgers``        ``a``, ``u`` (N, X)                       at time 0 and 1; periodic nodes
    ``darcy``          ``coeff``, ``sol`` (N, Y, X)              nodes, both ends in; the solution is 0 there
    ``navier_stokes``  ``a`` (N, Y, X), ``u`` (N, Y, X, T),      vorticity at time 0 and at the times ``t``;
                       ``t`` (T)                                 periodic nodes
    =================  ========================================  ============================================

    Parameters
    ----------
    path : path
    files : mapping of str to sequence of path
    kind : {"burgers", "darcy", "navier_stokes"}
    **options
        Of `mano_op.data.write.write_fields`: ``overwrite``, ``resume``, ...

    References
    ----------
    .. [1] Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021,
       arXiv:2010.08895.
    """
    check_one_of("kind", kind, _KINDS)
    known, paths = _KINDS[kind], paths_of(files, "{'train': ['a.mat']}")
    inputs, outputs = ([name] for name in known.names.values())
    options.setdefault("initial", {inputs[0]: outputs[0]} if known.varying else None)
    options.setdefault("title", f"{kind.replace('_', ' ').capitalize()}, Li et al.")
    with ExitStack() as stack:
        return write_parts(
            path,
            paths,
            {file: _part(file, _read(stack, file, known), known) for file in chain(*paths.values())},
            inputs=inputs,
            registration=known.registration,
            domain={name: (0.0, 1.0) for name in known.axes},
            boundary_conditions=dict.fromkeys(known.axes, known.condition),
            boundary_values={} if known.ends is None else {outputs[0]: known.ends},
            provenance={"source": "Li et al.", "kind": kind},
            **options,
        )


def _read(stack: ExitStack, path: Path, known: _Kind) -> dict[str, Any]:
    """Read the arrays of a file, samples first."""
    wanted = [*known.names, *(["t"] if known.varying else [])]
    if h5py.is_hdf5(path):
        file = open_hdf5(stack, path)
        check_has(path, "array", wanted, file)
        # MATLAB's first index varies fastest, so HDF5 has the dimensions the other way round.
        return {name: _Turned(dataset(file, name)) for name in known.names} | {
            name: np.asarray(dataset(file, name)) for name in wanted if name not in known.names
        }
    what = f"{path} is no MATLAB file that can be read"
    with refusing(what, "restore it, or give another", Exception):  # whatever scipy meets damage with
        listed = [name for name, _, _ in scipy.io.whosmat(path)]
        content = scipy.io.loadmat(path, variable_names=wanted)
    check_has(path, "array", wanted, listed)
    for name in wanted:
        array = content[name]
        check_real(f"{path}, {name}", array.dtype if isinstance(array, np.ndarray) else type(array).__name__)
    return {name: content[name] for name in wanted}


class _Turned:
    """A data set with its dimensions the other way round, unread."""

    def __init__(self, array: h5py.Dataset) -> None:
        self._array = array
        self.shape, self.dtype, self.ndim = array.shape[::-1], array.dtype, array.ndim
        self.chunks = None if array.chunks is None else array.chunks[::-1]

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        return np.asarray(self._array[index[::-1]]).T


def _part(path: Path, arrays: dict[str, Any], known: _Kind) -> Part:
    """Return the fields and coordinates of a file, if shapes fit the kind and each other."""
    shape = arrays[next(iter(known.names))].shape
    times = np.ravel(arrays["t"]) if known.varying else np.empty(0)
    fields = {}
    for name, variable in known.names.items():
        varies = name in known.varying
        expected = (*shape, times.size) if varies else shape
        if len(shape) != 1 + len(known.axes) or not math.prod(expected):
            expected = (1,) * (1 + len(known.axes) + varies)
        remedy = f"the samples, {' and '.join(known.axes)}, and times where it varies, none of them empty"
        check_shape(f"{path}, {name}", arrays[name].shape, expected, remedy)
        values = lazy(arrays[name])
        fields[variable] = (
            (("sample", "time", *known.axes), da.moveaxis(values, -1, 1))
            if varies
            else (("sample", *known.axes), values)
        )
    if known.varying and times.size not in np.shape(arrays["t"]):
        check_shape(f"{path}, t", np.shape(arrays["t"]), (1, times.size), "a row or a column of times")
    if known.registration == "node":
        check_ends_differ(
            path,
            [lazy(arrays[name])[:4].compute() for name in known.names if name not in known.varying],
            {name: i - len(known.axes) for i, name in enumerate(known.axes)},
            REPEATED,
        )
    points = {
        name: Axis(name, n, registration=known.registration).points
        for name, n in zip(known.axes, shape[1:], strict=True)
    }
    return Part(fields, points | ({"time": times} if known.varying else {}))
