"""Coarser resolutions of a store: by means, by low-pass or at shared points, never by a silent stride."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mano_op.data.guards import check_each, check_one_of, check_options
from mano_op.data.jobs import write_store
from mano_op.data.layout import AVERAGE, Layout, Resolution, Variable, group_name
from mano_op.data.options import WriteOptions
from mano_op.data.schema import path_of
from mano_op.data.store import FieldStore, opened
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.options import with_fields_of
from mano_op.resample import nests, resample

Coarsening = Literal["mean", "lowpass", "injection"]


@with_fields_of(WriteOptions)
def coarsen_store(
    source: str | Path | FieldStore,
    path: str | Path,
    resolutions: Sequence[int | tuple[int, ...]],
    *,
    method: Coarsening | Mapping[str, Coarsening],
    from_resolution: Resolution | None = None,
    keep: bool = True,
    **options: Any,
) -> FieldStore:
    r"""Make a store with coarser resolutions of the same samples, "resampled" from one.

    =============  =====================================================================================
    method         values at a coarse resolution
    =============  =====================================================================================
    "mean"         mean over the control volume of each point, which keeps the integral ("area: mean")
    "lowpass"      Fourier modes that the coarse grid carries, on axes that all wrap
    "injection"    values at shared points, finer scales aliased: what taking every k-th point gives
    =============  =====================================================================================

    Parameters
    ----------
    source : path or FieldStore
    path : path
        Of the new store.
    resolutions : sequence of int or tuple of int
        Points of each new resolution.
    method : str or mapping of str to str
        For all variables, or for each.
    from_resolution : resolution, optional
        Of the source, to make them from; by default its finest.
    keep : bool
        Whether the new store has that resolution too.
    **options
        Of `mano_op.data.options.WriteOptions`: ``progress``, ``resume``, ``overwrite``, ``client``.

    Raises
    ------
    InputError
        If a resolution is not coarser, a method cannot be used between the grids, or as `write_store`.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> fine = generate_darcy(f"{tempfile.mkdtemp()}/fine.zarr", [16], samples={"train": 2}, progress=False)
    >>> store = coarsen_store(fine, f"{tempfile.mkdtemp()}/both.zarr", [8], progress=False,
    ...     method={"permeability": "mean", "pressure": "injection"})
    >>> bool((store.read(8, "pressure") == fine.read(16, "pressure")[:, ::2, ::2]).all())
    True
    """
    check_options(coarsen_store, options, {"level": "from_resolution=64, say"})
    writing = WriteOptions(**options)
    source = opened(source)
    finest = source.key(next(reversed(source.grids)) if from_resolution is None else from_resolution)
    fine = source.grids[finest]
    names = source.layout.named()
    chosen = method if isinstance(method, Mapping) else dict.fromkeys(names, method)
    check_each("method", chosen, names)
    methods = {name: chosen[name] for name in names}
    for name, how in methods.items():
        check_one_of(f"method for {name}", how, get_args(Coarsening))
    coarse = [_coarser(fine, resolution) for resolution in resolutions]
    if not coarse:
        raise InputError("resolutions=[]; expected at least one to make")
    for grid, (name, how) in product(coarse, methods.items()):
        remedy = ""
        if how == "lowpass" and not all(axis.periodic for axis in fine):
            remedy = "expected axes that all wrap; use 'mean'"
        elif how == "injection" and not nests(fine, grid):
            remedy = (
                f"they do not share the coarse points ({grid}); use 'mean', or a resolution whose points are "
                "among those of the fine one"
            )
        if remedy:
            raise InputError(f"{name} from {finest} to {group_name(grid.shape)} by {how!r}: {remedy}")
    if isinstance(source.path, Path) and path_of(path).resolve() == source.path.resolve():
        raise InputError(f"{path} is the source itself; give another path")
    held = source.layout.held[finest]
    grids = [*coarse, *([fine] if keep else [])]
    keys = [group_name(grid.shape) for grid in grids]
    words = {name: AVERAGE if how == "mean" else how for name, how in methods.items()}
    in_words = ", ".join(f"{name}: {words[name]}" for name in words)
    if len(set(words.values())) == 1:
        in_words = next(iter(words.values()))
    kept = ("boundary_conditions", "chunk", "times", "time_units", "coordinates", "as_plane")
    layout = Layout.plan(
        grids,
        [_described(v, methods[v.name], finest, keys) for v in source.variables],
        {split: size for split, size in source.splits.items() if split in held},
        levels="resampled",
        chunk_times=source.layout.chunk_times if source.layout.times else None,
        derived={grid: (fine, in_words) for grid in coarse} if keep else {},
        **{name: getattr(source.layout, name) for name in kept},
    )
    provenance = {
        "coarsened": {"store": source.name, "level": finest, "method": methods},
        "of": {k: v for k, v in source.attrs.get("provenance", {}).items() if k != "versions"},
    }
    return write_store(
        path,
        layout,
        partial(_write_chunk, source, finest, methods),
        writing,
        title=source.attrs.get("title", ""),
        provenance=provenance,
    )


def coarsened(
    values: NDArray[np.float32], fine: Grid, coarse: Grid, method: Coarsening
) -> NDArray[np.float32]:
    """Coarsen fields to shape ``(..., *coarse.shape)``, in float64."""
    if fine == coarse:
        return values
    how = "spectral" if method == "lowpass" else method
    field = torch.from_numpy(np.ascontiguousarray(values)).double()
    return resample(field, fine, coarse, how).numpy().astype(np.float32)


def _coarser(fine: Grid, resolution: int | tuple[int, ...]) -> Grid:
    shape = tuple(resolution) if isinstance(resolution, Sequence) else (resolution,) * fine.n_dim
    fits = len(shape) == fine.n_dim and all(n <= axis.n for n, axis in zip(shape, fine, strict=True))
    if not fits or shape == fine.shape:
        raise InputError(
            f"resolution {resolution} from {fine.shape}; expected one number, or one for each of "
            f"{fine.n_dim} axes, and fewer points"
        )
    return Grid(tuple(replace(axis, n=n) for axis, n in zip(fine, shape, strict=True)))


def _described(variable: Variable, method: Coarsening, finest: str, keys: Sequence[str]) -> Variable:
    """Describe the variable in the new store, where coarse values may stand for something else."""
    fine = variable.cell_methods_at(finest)
    coarse = "area: mean" if method == "mean" else fine
    return replace(variable, cell_methods={key: fine if key == finest else coarse for key in keys})


def _write_chunk(
    source: FieldStore, finest: str, methods: Mapping[str, Coarsening], store: FieldStore, samples: slice
) -> int:
    fine = source.grids[finest]
    # Splits that the resolution does not hold are not in the new store, so its samples are the rows there.
    for times in store.layout.time_chunks:
        fields: dict[Any, dict[str, NDArray[np.float32]]] = {grid: {} for grid in store.grids.values()}
        for variable in store.variables:
            if not variable.time and times.start:
                continue
            values = source.read(finest, variable.name, samples, times if variable.time else slice(None))
            for grid in fields:
                fields[grid][variable.name] = coarsened(values, fine, grid, methods[variable.name])
        store.write(samples, fields, times)
    return samples.stop - samples.start
