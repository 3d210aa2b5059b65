"""The MATLAB files that came with the Fourier neural operator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import dask.array as da
import h5py
import numpy as np
import scipy.io

from mano_op.data.guards import check_has, check_one_of, check_real, check_shape
from mano_op.data.importers.lazy import Files, Part, dataset, import_files, in_pieces, labelled, open_hdf5
from mano_op.data.store import FieldStore
from mano_op.errors import refusing
from mano_op.grid import Axis, Registration


class _Kind(NamedTuple):
    names: dict[str, str]
    axes: tuple[str, ...]
    registration: Registration
    condition: str
    varying: Sequence[str] = ()


_KINDS = {
    "burgers": _Kind({"a": "initial", "u": "velocity"}, ("x",), "node", "periodic"),
    "darcy": _Kind({"coeff": "permeability", "sol": "pressure"}, ("y", "x"), "node_both", "dirichlet"),
    "navier_stokes": _Kind({"a": "initial_vorticity", "u": "vorticity"}, ("y", "x"), "node", "periodic", "u"),
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
    known = _KINDS[kind]
    initial, predicted = known.names.values()
    options.setdefault("initial", {initial: predicted} if known.varying else None)
    options.setdefault("title", f"{kind.replace('_', ' ').capitalize()}, Li et al.")
    return import_files(
        path,
        files,
        partial(_read, known),
        registration=known.registration,
        domain=dict.fromkeys(known.axes, (0.0, 1.0)),
        boundary_conditions=dict.fromkeys(known.axes, known.condition),
        boundary_values={predicted: 0.0} if known.condition == "dirichlet" else {},
        provenance={"source": "Li et al.", "kind": kind},
        **options,
    )


def _read(known: _Kind, stack: ExitStack, path: Path) -> Part:
    arrays = _arrays(known, stack, path)
    shape, n_dim = arrays[next(iter(known.names))].shape, len(known.axes)
    times = np.ravel(arrays["t"]) if known.varying else np.empty(0)
    remedy = f"the samples, {' and '.join(known.axes)}, and times where it varies, none of them empty"
    fields = {}
    for name, variable in known.names.items():
        varies = name in known.varying
        expected = (*shape, times.size) if varies else shape
        if len(shape) != 1 + n_dim or 0 in expected:
            expected = (1,) * (1 + n_dim + varies)
        check_shape(f"{path}, {name}", arrays[name].shape, expected, remedy)
        fields[variable] = da.moveaxis(arrays[name], -1, 1) if varies else arrays[name]
    axes = zip(known.axes, shape[1:], strict=True)
    coordinates = {name: Axis(name, n, registration=known.registration).points for name, n in axes}
    if known.varying:
        if times.size not in arrays["t"].shape:
            check_shape(f"{path}, t", arrays["t"].shape, (1, times.size), "a row or a column of times")
        coordinates["time"] = times
    return Part(labelled(path, fields, coordinates), {"inputs": [next(iter(fields))]})


def _arrays(known: _Kind, stack: ExitStack, path: Path) -> dict[str, Any]:
    """Read the arrays of a file, samples first: fields behind dask, and times."""
    names = [*known.names, *(["t"] if known.varying else [])]
    if h5py.is_hdf5(path):
        file = open_hdf5(stack, path)
        check_has(path, "array", names, file)
        # MATLAB's first index varies fastest, so HDF5 has the dimensions the other way round.
        arrays = {name: in_pieces(dataset(file, name), reverse=True) for name in names}
    else:
        what = f"{path} is no MATLAB file that can be read"
        with refusing(what, "restore it, or give another", Exception):  # whatever scipy meets damage with
            listed = [name for name, _, _ in scipy.io.whosmat(path)]
            content = scipy.io.loadmat(path, variable_names=names)
        check_has(path, "array", names, listed)
        for name in names:
            check_real(f"{path}, {name}", getattr(content[name], "dtype", type(content[name]).__name__))
        arrays = {name: in_pieces(content[name]) for name in names}
    return arrays | {name: arrays[name].compute() for name in names if name == "t"}
