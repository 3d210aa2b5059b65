"""neuraloperator's files of Darcy and Navier-Stokes flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.guards import check_has, check_one_of, check_real, check_same, check_shape
from mano_op.data.importers.lazy import stamps
from mano_op.data.layout import Levels
from mano_op.data.store import FieldStore
from mano_op.data.validate import check_finite
from mano_op.data.write import write_fields
from mano_op.errors import InputError, check_whole
from mano_op.files import read_tensors
from mano_op.grid import Axis

Problem = Literal["darcy", "navier_stokes"]
_Files = Mapping[str, Sequence[tuple[int, str | Path]]]
_Fields = Mapping[str, NDArray[Any]]


class _Kind(NamedTuple):
    title: str
    input: str
    long_name: str
    output: str
    condition: str


_PERMEABILITY = "which of the two permeabilities: 0 or 1"
_KINDS = {
    "darcy": _Kind("Darcy flow", "permeability", _PERMEABILITY, "pressure", "dirichlet"),
    "navier_stokes": _Kind(
        "Navier-Stokes flow", "forcing", "forcing of the vorticity", "vorticity", "periodic"
    ),
}


def import_neuralop_pt(
    path: str | Path,
    files: _Files,
    *,
    problem: Problem | None = None,
    levels: Levels = "resampled",
    **options: Any,
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

    Points are nodes at i/n, so that the nodes at 16 are every second node at 32. On the boundary at 0 the
    published pressures are small, 0.003 on average with a largest pressure of 2, but not zero.

    Parameters
    ----------
    path : path
    files : mapping of str to sequence of (int, path)
        Resolutions of each split, with their files; splits may have different resolutions.
    problem : {"darcy", "navier_stokes"}, optional
        Problem of the files; not needed for Darcy flow, whose ``x`` is 0 or 1 everywhere.
    levels : {"resampled", "independent", "unknown"}
        "resampled" checks that coarser fields are the finest ones at every k-th point.
    **options
        Of `mano_op.data.write.write_fields`: ``title``, ``chunk``, ``overwrite``, ``resume``, ...

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
    >>> store.splits, store.grids["r4"].shape
    ({'train': 2}, (4, 4))
    """
    if problem is not None:
        check_one_of("problem", problem, _KINDS)
    _check_pairs(files)
    problem = problem or "darcy"
    kind, axes = _KINDS[problem], ("y", "x")
    loaded = {
        split: {n: _load(Path(file), n, problem) for n, file in pairs} for split, pairs in files.items()
    }
    splits = {split: _check_split(split, by_size, levels) for split, by_size in loaded.items()}
    split_of = np.repeat(list(splits), list(splits.values()))
    fields = {}
    for n in {n for by_size in loaded.values() for n in by_size}:
        held = [split for split in splits if n in loaded[split]]
        x, y = (np.concatenate([loaded[split][n][key] for split in held]) for key in ("x", "y"))
        dims = ("sample", *axes)
        fields[n] = xr.Dataset(
            {kind.input: (dims, x, {"long_name": kind.long_name}), kind.output: (dims, y)},
            {"sample": np.flatnonzero(np.isin(split_of, held)), **dict.fromkeys(axes, Axis("x", n).points)},
        )
    return write_fields(
        path,
        fields,
        inputs=[kind.input],
        outputs=[kind.output],
        splits=splits,
        registration="node",
        domain=dict.fromkeys(axes, (0.0, 1.0)),
        boundary_conditions=dict.fromkeys(axes, kind.condition),
        boundary_values={kind.output: 0.0} if kind.condition == "dirichlet" else {},
        levels=levels,
        provenance={
            "problem": problem,
            "source": "neuraloperator",
            "files": {split: [Path(file).name for _, file in pairs] for split, pairs in files.items()},
            "files_as_read": stamps(file for pairs in files.values() for _, file in pairs),
        },
        **{"title": f"{kind.title}, neuraloperator", **options},
    )


def _check_pairs(files: _Files) -> None:
    for pairs in files.values() if isinstance(files, Mapping) and files else [()]:
        paired = not isinstance(pairs, str | Path) and all(
            isinstance(pair, Sequence) and len(pair) == 2 for pair in pairs
        )
        if not paired or not pairs or len({n for n, _ in pairs}) != len(pairs):
            raise InputError(
                f"files={files!r}; expected pairs of a resolution and a file, one file for each of a split's "
                "resolutions, such as {'train': [(16, 'darcy_train_16.pt')]}"
            )
        for n, _ in pairs:
            check_whole(resolution=n)


def _load(file: Path, n: int, problem: Problem) -> _Fields:
    """Read a file, if its layout fits and its values do not contradict the problem."""
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
    x, y = fields["x"], fields["y"]
    others = x[(x != 0) & (x != 1)]
    if bool(len(others)) != (problem == "navier_stokes"):
        raise InputError(
            f"{file}: 'x' {f'has the value {others[0]:.6g}' if len(others) else 'is 0 or 1 everywhere'}; "
            "expected the number of a permeability, 0 or 1, of neuraloperator's Darcy flow, and a forcing of "
            f"its Navier-Stokes flow: give problem={'navier_stokes' if len(others) else 'darcy'!r}; write "
            "other files by `mano_op.write_fields` with what is known of them"
        )
    if problem == "darcy" and y.any() and not (y[:, -1].any() or y[:, :, -1].any()):
        raise InputError(
            f"{file}: 'y' is 0 at the last points along both axes, so both ends are in; expected points at "
            "i/n, of which the last is inside: for others, `mano_op.write_fields` with "
            "registration='node_both'"
        )
    return fields


def _check_split(split: str, by_size: Mapping[int, _Fields], levels: Levels) -> int:
    """Return the number of samples of a split, if all its resolutions hold the same ones."""
    counts = {n: len(fields["y"]) for n, fields in by_size.items()}
    check_same(f"split {split!r}: numbers of samples", counts)
    finest = max(by_size)
    for n, name in product(by_size, ("x", "y")) if levels == "resampled" else ():
        shared = by_size[finest][name][:, :: finest // n, :: finest // n]
        if finest % n or not np.array_equal(by_size[n][name], shared):
            raise InputError(
                f"split {split!r}: {name!r} at {n} differs from that at {finest} where they share points. If "
                "they were solved for apart, pass levels='independent'; otherwise the files do not match"
            )
    return counts[finest]
