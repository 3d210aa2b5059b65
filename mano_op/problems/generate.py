"""Data sets from problems: samples are computed in parallel and written to a store chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mano_op.data.jobs import write_store
from mano_op.data.layout import Layout, group_name
from mano_op.data.options import WriteOptions
from mano_op.data.store import FieldStore
from mano_op.grid import Grid, Registration
from mano_op.problems.darcy import Darcy
from mano_op.problems.problem import Problem


def generate_fields(
    path: str | Path,
    problem: Problem,
    resolutions: Sequence[int | Sequence[int]],
    *,
    samples: Mapping[str, int] | None = None,
    seed: int = 0,
    registration: Registration = "node",
    solver_resolution: int | None = None,
    chunk: int = 50,
    **options: Any,
) -> FieldStore:
    """Make a store of a problem's fields, the same samples at every resolution.

    Sample i of split s is ``problem.sample(split_seed(seed, s), i, grids, solver_resolution)``, so more
    samples keep the first ones.

    Parameters
    ----------
    path : path
        The new store. Dask workers must see it under the same name.
    problem : Problem
    resolutions : sequence of int or tuple of int
        16 for 16 points along every axis, a tuple for any other shape.
    samples : mapping of str to int, optional
        Size of each split; ``{"train": 1000, "test": 50}`` if not given.
    seed : int
    registration : {"node", "node_both", "cell"}
    solver_resolution : int, optional
        Intervals or points of the solver grid along each axis, which stores to be compared should share;
        default and accuracy are in the notes of the problem.
    chunk : int
        Samples of a task and of a chunk of the store. A worker holds as many in float64.
    **options
        Of `mano_op.data.options.WriteOptions`: ``progress``, ``resume``, ``overwrite``, ``client``.

    Returns
    -------
    FieldStore
        The complete store. An interrupted call leaves a partial one, which `open_store` refuses.

    Raises
    ------
    InputError
        If an option is out of its range, `path` exists without `resume` or `overwrite`, a store to resume was
        started with other options, or another process is writing it.

    Examples
    --------
    >>> import tempfile
    >>> store = generate_fields(f"{tempfile.mkdtemp()}/darcy.zarr", Darcy(coefficient="lognormal"), [8, 16],
    ...                         samples={"train": 3, "test": 1}, progress=False)
    >>> coarse, fine = store.read(8, "pressure"), store.read(16, "pressure")
    >>> bool((coarse == fine[:, ::2, ::2]).all())
    True
    """
    writing = WriteOptions(**options)
    grids = [problem_grid(problem, n, registration) for n in resolutions]
    solvers = problem.solvers(grids, solver_resolution)
    for grid in grids:
        problem.inputs(split_seed(seed, "train"), 0, grid)  # refuses bad arguments before a store is made
    layout = Layout.plan(
        grids,
        problem.variables,
        {"train": 1000, "test": 50} if samples is None else samples,
        boundary_conditions=dict.fromkeys(grids[0].names, problem.boundary_condition),
        levels="resampled" if len(set(solvers.values())) == 1 else "independent",
        chunk=chunk,
        times=problem.times,
    )
    provenance = {
        "problem": problem.name,
        "options": asdict(problem),
        "seed": int(seed),
        "sample_seed": "SeedSequence((seed, *split.encode()), spawn_key=(number within the split,))",
        "solver": problem.solver,
        "solver_points": {group_name(grid.shape): solver.shape for grid, solver in solvers.items()},
    }
    return write_store(
        path,
        layout,
        partial(_write_chunk, problem, seed, grids, solver_resolution),
        writing,
        title=problem.title,
        provenance=provenance,
    )


def generate_darcy(
    path: str | Path,
    resolutions: Sequence[int | Sequence[int]],
    *,
    problem: Darcy | None = None,
    **options: Any,
) -> FieldStore:
    """Make a store of Darcy fields: `generate_fields` with the problem ``Darcy()`` by default.

    Examples
    --------
    >>> import tempfile
    >>> generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [8], samples={"train": 3}, progress=False).splits
    {'train': 3}
    """
    return generate_fields(path, Darcy() if problem is None else problem, resolutions, **options)


def problem_grid(problem: Problem, resolution: int | Sequence[int], registration: Registration) -> Grid:
    """Grid of the problem's domain with `resolution` points along each axis."""
    shape = tuple(resolution) if isinstance(resolution, Sequence) else (resolution,) * problem.n_dim
    return Grid.uniform(
        shape,
        domain=[problem.domain] * len(shape),
        registration=registration,
        periodic=problem.boundary_condition == "periodic",
    )


def split_seed(seed: int, split: str) -> tuple[int, ...]:
    """Seed of the samples of one split; the random numbers of different splits are independent.

    Examples
    --------
    >>> split_seed(0, "test")
    (0, 116, 101, 115, 116)
    """
    return (seed, *split.encode())


def _write_chunk(
    problem: Problem,
    seed: int,
    grids: Sequence[Grid],
    solver_resolution: int | None,
    store: FieldStore,
    samples: slice,
) -> int:
    """Compute and write the samples of one chunk; return their number."""
    numbered = ((split, i) for split, size in store.splits.items() for i in range(size))
    n, chunk = samples.stop - samples.start, {}
    for row, (split, i) in enumerate(islice(numbered, samples.start, samples.stop)):
        for grid, fields in problem.sample(split_seed(seed, split), i, grids, solver_resolution).items():
            if row == 0:
                chunk[grid] = {name: np.empty((n, *field.shape)) for name, field in fields.items()}
            for name, field in fields.items():
                chunk[grid][name][row] = field
    store.write(samples, chunk)
    return n
