"""Published data sets into a store, with the registration and boundary conditions that they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mano_op.boundary import BoundaryCondition
from mano_op.data.chunking import chunk_for
from mano_op.data.guards import (
    check_ends_differ,
    check_has,
    check_one_of,
    check_real,
    check_same,
    check_shape,
)
from mano_op.data.importers.lazy import REPEATED, stamps
from mano_op.data.jobs import write_store
from mano_op.data.layout import Layout, Levels, Variable
from mano_op.data.options import Writing
from mano_op.data.store import FieldStore
from mano_op.data.validate import check_finite
from mano_op.errors import InputError, check_whole
from mano_op.files import read_tensors
from mano_op.grid import Grid

Problem = Literal["darcy", "navier_stokes"]


@dataclass(frozen=True)
class _Kind:
    variables: tuple[Variable, Variable]
    condition: BoundaryCondition
    title: str


_KINDS: dict[str, _Kind] = {
    "darcy": _Kind(
        (
            Variable("permeability", "input", long_name="which of the two permeabilities: 0 or 1"),
            Variable("pressure", "output", boundary_value=0.0),
        ),
        "dirichlet",
        "Darcy flow, neuraloperator",
    ),
    "navier_stokes": _Kind(
        (Variable("forcing", "input", long_name="forcing of the vorticity"), Variable("vorticity", "output")),
        "periodic",
        "Navier-Stokes flow, neuraloperator",
    ),
}


def import_neuralop_pt(
    path: str | Path,
    files: Mapping[str, Sequence[tuple[int, str | Path]]],
    *,
    problem: Problem | None = None,
    levels: Levels = "resampled",
    title: str | None = None,
    chunk: int | None = None,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> FieldStore:
    r"""Import neuraloperator's files of Darcy and Navier-Stokes flow, as its ``data.datasets`` download them.

    Each file is a dictionary of two tensors of shape ``(samples, n, n)``:

    =================  ==========================================  =========================================
    problem            ``x``                                       ``y``
    =================  ==========================================  =========================================
    ``darcy``          ``permeability``, 0 or 1                    ``pressure``, 0 on the boundary
    ``navier_stokes``  ``forcing``, on a torus                     ``vorticity``
    =================  ==========================================  =========================================

    .. math:: -\nabla \cdot (a \nabla u) = f \ \text{on} \ [0, 1]^2, \qquad u = 0 \ \text{on the boundary}.

    Points are nodes at i/n: at 16 exactly every second one of those at 32. On the boundary that is in, the
    published pressures are small, 0.003 on average where the largest are 2, but not zero.

    Parameters
    ----------
    path : path
    files : mapping of str to sequence of (int, path)
        For each split its resolutions and their files; not every split need be at every resolution.
    problem : {"darcy", "navier_stokes"}, optional
        Of the files; not needed for Darcy flow, whose ``x`` is 0 or 1 everywhere.
    levels : {"resampled", "independent", "unknown"}
        "resampled" checks that coarser fields are the finest ones at every k-th point.
    title, chunk, progress, resume, overwrite
        As in `mano_op.data.options.FieldWriting`.

    Raises
    ------
    InputError
        Before anything is written, if a file is not of that layout, problem, resolution or number of samples,
        has a NaN or an infinity, or differs from another resolution's.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> fields = {"x": torch.ones(2, 4, 4, dtype=torch.bool), "y": torch.zeros(2, 4, 4)}
    >>> torch.save(fields, f"{folder}/darcy_train_4.pt")
    >>> store = import_neuralop_pt(f"{folder}/darcy.zarr", {"train": [(4, f"{folder}/darcy_train_4.pt")]},
    ...     progress=False)
    >>> store.splits, store.grids["r4"] == Grid.uniform((4, 4))
    ({'train': 2}, True)
    """
    if problem is not None:
        check_one_of("problem", problem, _KINDS)
    _check_pairs(files)
    loaded = {split: {n: _load_pt(Path(file), n) for n, file in given} for split, given in files.items()}
    problem = _problem_of(files, loaded, problem)
    kind = _KINDS[problem]
    names = [variable.name for variable in kind.variables]
    splits = {split: _check_split(split, by_size, levels) for split, by_size in loaded.items()}
    sizes = sorted({n for by_size in loaded.values() for n in by_size})
    periodic = kind.condition == "periodic"
    grids = {n: Grid.uniform((n, n), registration="node", periodic=periodic) for n in sizes}
    held = {grid: [split for split in splits if n in loaded[split]] for n, grid in grids.items()}
    layout = Layout.plan(
        list(grids.values()),
        kind.variables,
        splits,
        boundary_conditions={"y": kind.condition, "x": kind.condition},
        levels=levels,
        chunk=chunk_for(sizes[-1] ** 2, splits, held.values()) if chunk is None else chunk,
        held=held,
    )
    provenance = {
        "problem": problem,
        "source": "neuraloperator",
        "files": {split: [Path(file).name for _, file in given] for split, given in files.items()},
        "files_as_read": stamps(file for given in files.values() for _, file in given),
    }
    joined = {
        grid: {
            name: np.concatenate([loaded[split][n][key] for split in held[grid]])
            for name, key in zip(names, ("x", "y"), strict=True)
        }
        for n, grid in grids.items()
    }
    return write_store(
        path,
        layout,
        partial(_write_chunk, joined),
        Writing(progress=progress, resume=resume, overwrite=overwrite),
        title=kind.title if title is None else title,
        provenance=provenance,
        workers=1,
    )


def _check_pairs(files: Mapping[str, Sequence[tuple[int, str | Path]]]) -> None:
    for given in files.values() if isinstance(files, Mapping) and files else [()]:
        pairs = not isinstance(given, str | Path) and all(
            isinstance(pair, Sequence) and len(pair) == 2 for pair in given
        )
        if not pairs or not given or len({n for n, _ in given}) != len(given):
            raise InputError(
                f"files={files!r}; expected pairs of a resolution and a file, one file for each of a split's "
                "resolutions, such as {'train': [(16, 'darcy_train_16.pt')]}"
            )
        for n, _ in given:
            check_whole(resolution=n)


def _write_chunk(fields: Mapping[Grid, Mapping[str, NDArray[Any]]], store: FieldStore, samples: slice) -> int:
    """Write a chunk of samples at every level that holds any; return their number."""
    held = {
        grid: {name: values[rows] for name, values in variables.items()}
        for grid, variables in fields.items()
        if (rows := store.layout.rows_of(store.key(grid), samples)).start < rows.stop
    }
    store.write(samples, held)
    return samples.stop - samples.start


def _load_pt(file: Path, n: int) -> dict[str, NDArray[Any]]:
    data = read_tensors(file)
    check_has(file, "tensor", ("x", "y"), [name for name in data if isinstance(data[name], torch.Tensor)])
    for name in ("x", "y"):
        tensor, samples = data[name], data["x"].shape[:1]
        remedy = "the samples, as many of both, and the points of the resolution"
        check_shape(f"{file}, {name!r}", tensor.shape, (*samples, n, n), remedy)
        dense = tensor.layout == torch.strided and not (tensor.is_complex() or tensor.is_quantized)
        check_real(f"{file}, {name!r}", np.dtype(float) if dense else tensor.dtype)
    fields = {name: data[name].detach().double().numpy() for name in ("x", "y")}
    for name, values in fields.items():
        check_finite(values, np.arange(len(values)), f"{file}, {name}")
    return fields


def _problem_of(
    files: Mapping[str, Sequence[tuple[int, str | Path]]],
    loaded: Mapping[str, Mapping[int, Mapping[str, NDArray[Any]]]],
    asked: Problem | None,
) -> Problem:
    """Return the problem that was said, unless values contradict it, or Darcy flow."""
    for split, given in files.items():
        for n, file in given:
            x = loaded[split][n]["x"]
            other = x[(x != 0) & (x != 1)]
            if asked != "navier_stokes" and len(other):
                raise InputError(
                    f"{file}: 'x' has the value {other[0]:.6g}, so it is not which of two permeabilities a "
                    "point has, 0 or 1, and not of neuraloperator's Darcy flow. For its Navier-Stokes files, "
                    "from a forcing to the vorticity on a torus, give problem='navier_stokes'; for others, "
                    "`mano_op.write_fields` with what is known of them"
                )
            if asked == "navier_stokes" and not len(other):
                raise InputError(
                    f"{file}: 'x' is 0 or 1 everywhere, so it is no forcing; expected problem='darcy' for "
                    "neuraloperator's Darcy flow"
                )
            y = loaded[split][n]["y"]
            if asked == "navier_stokes":
                check_ends_differ(file, [x[:4], y[:4]], {"y": -2, "x": -1}, REPEATED)
            elif y.any() and not (y[:, -1].any() or y[:, :, -1].any()):
                raise InputError(
                    f"{file}: 'y' is 0 at the last points along both axes, so both ends are in; expected "
                    "points at i/n, of which the last is inside: for others, `mano_op.write_fields` "
                    "with registration='node_both'"
                )
    return asked or "darcy"


def _check_split(split: str, by_size: Mapping[int, Mapping[str, NDArray[Any]]], levels: Levels) -> int:
    """Return the number of samples of a split, if all its resolutions hold the same ones."""
    counts = {n: len(fields["y"]) for n, fields in by_size.items()}
    check_same(f"split {split!r}: numbers of samples", counts)
    finest = max(by_size)
    for n, fields in by_size.items():
        if levels != "resampled":
            break
        step = finest // n
        for name, values in fields.items():
            if finest % n or not np.array_equal(values, by_size[finest][name][:, ::step, ::step]):
                raise InputError(
                    f"split {split!r}: {name!r} at {n} differs from that at {finest} where they share "
                    "points. If they were solved for apart, pass levels='independent'; if not, the files do "
                    "not match"
                )
    return counts[finest]
