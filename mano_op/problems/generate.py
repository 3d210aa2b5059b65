"""Data sets from problems: samples computed in parallel with dask, written chunk by chunk to a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import config
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from dask.system import CPU_COUNT
from tqdm import tqdm

from mano_op.data.layout import Layout, group_name
from mano_op.data.schema import partial_path
from mano_op.data.store import FieldStore, create_store, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid, Registration
from mano_op.problems.darcy import Darcy
from mano_op.problems.solver_grid import solver_grids

if TYPE_CHECKING:
    from distributed import Client


def generate_darcy(
    path: str | Path,
    resolutions: Sequence[int | tuple[int, ...]],
    *,
    samples: Mapping[str, int] | None = None,
    seed: int = 0,
    problem: Darcy | None = None,
    registration: Registration = "node",
    solver_resolution: int | None = None,
    client: Client | None = None,
    chunk: int = 50,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> FieldStore:
    """Make a store of Darcy fields, the same samples at every resolution.

    Sample i of split s is ``problem.sample(split_seed(seed, s), i, grids, solver_resolution)``. So
    it is the same however many samples are asked for, and more of one split leave the others as they are.

    Parameters
    ----------
    path : path
        Of the new store. Dask workers must see it under the same name.
    resolutions : sequence of int or tuple of int
        Points of each level: 16 for 16 x 16 on the unit square, a tuple for any other shape.
    samples : mapping of str to int
        Size of each split; ``{"train": 1000, "test": 50}`` if not given.
    seed : int
    problem : Darcy
        ``Darcy()`` if not given.
    registration : {"node", "node_both", "cell"}
    solver_resolution : int, optional
        Intervals along each axis on which to solve; see `solver_grids` for what is taken if not
        given and `Darcy` for how accurate it is. Stores that are to be compared with each other
        should share it.
    client : distributed.Client, optional
        Where to compute. If not given, in threads of this process, one a core or as many as
        ``dask.config.set(num_workers=...)`` says; the solver lets other threads run meanwhile.
    chunk : int
        Samples to a task and to a chunk of the store. A worker holds this many, in float64.
    progress : bool
        Whether to show a progress bar on stderr.
    resume : bool
        Go on with an interrupted store at `path`, which must have been started with the same
        options; chunks that are finished stay as they are. Starts one if there is none.
    overwrite : bool
        Replace a store that lies at `path`.

    Returns
    -------
    FieldStore
        Complete. If the work is interrupted, the store is left partial, and `open_store` says so.

    Raises
    ------
    InputError
        If an option is out of its range, `path` exists and neither `resume` nor `overwrite` is
        given, or a store to resume was started with other options.

    Examples
    --------
    >>> import tempfile
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [8, 16], samples={"train": 3, "test": 1},
    ...                        progress=False)
    >>> coarse, fine = store.read(8, "pressure"), store.read(16, "pressure")
    >>> bool((coarse == fine[:, ::2, ::2]).all())
    True
    """
    problem = Darcy() if problem is None else problem
    shapes = [(n, n) if isinstance(n, int | np.integer) else tuple(n) for n in resolutions]
    grids = [Grid.uniform(shape, registration=registration) for shape in shapes]
    solvers = solver_grids(grids, solver_resolution)
    for grid in grids:  # what the problem refuses, it refuses here, before there is a store
        problem.permeability(split_seed(seed, "train"), 0, grid)
    plan = {
        "grids": grids,
        "variables": problem.variables,
        "splits": {"train": 1000, "test": 50} if samples is None else samples,
        "boundary_conditions": dict.fromkeys(grids[0].names, problem.boundary_condition),
        "levels": "resampled" if len(set(solvers.values())) == 1 else "independent",
        "chunk": chunk,
    }
    provenance = {
        "problem": problem.name,
        "options": asdict(problem),
        "seed": int(seed),
        "sample_seed": "SeedSequence((seed, *split.encode()), spawn_key=(number within the split,))",
        "solver": f"scipy {version('scipy')}: SuperLU",
        "solver_points": {group_name(grid.shape): solver.shape for grid, solver in solvers.items()},
    }
    store = _start(Path(path).absolute(), plan, provenance, resume=resume, overwrite=overwrite)
    if store.complete:
        return store
    pending = store.pending()
    write = delayed(partial(_write_chunk, store, problem, seed, grids, solver_resolution), pure=False)
    total, missing = store.layout.n_samples, sum(_length(samples) for samples in pending)
    with tqdm(total=total, initial=total - missing, unit="sample", disable=not progress) as bar:
        _compute([write(samples) for samples in pending], client, bar.update)
    store.finish()
    return store


def split_seed(seed: int, split: str) -> tuple[int, ...]:
    """The seed of the samples of one split.

    Each split has a stream of its own, so a test set stays what it is, and apart from the training
    set, when more training samples are asked for.

    Examples
    --------
    >>> split_seed(0, "test")
    (0, 116, 101, 115, 116)
    """
    return (seed, *split.encode())


def _start(
    path: Path, plan: dict[str, Any], provenance: dict[str, Any], *, resume: bool, overwrite: bool
) -> FieldStore:
    """The store to go on with: a new one, or the one at `path` if it was started in the same way."""
    if resume and overwrite:
        raise InputError("resume=True and overwrite=True: pass one of them, to go on or to start anew")
    begun = partial_path(path).exists()
    if overwrite or not (begun or path.exists()):
        return create_store(path, **plan, title="Darcy flow", provenance=provenance, overwrite=overwrite)
    if not resume:
        raise InputError(
            f"{path} {'was begun and not finished' if begun else 'exists'}; pass resume=True to go on "
            "with it, overwrite=True to replace it, or another path"
        )
    store = open_store(path, incomplete=True)
    asked = _summary(Layout.plan(**plan), json.loads(json.dumps(provenance)))
    there = _summary(store.layout, {name: store.attrs["provenance"].get(name) for name in provenance})
    different = [
        f"{name} is {there[name]}, not {asked[name]}" for name in asked if there[name] != asked[name]
    ]
    if different:
        raise InputError(
            f"{path} was started with other options: {'; '.join(different)}. To resume it, "
            "pass the options it was started with, or overwrite=True to start anew"
        )
    return store


def _summary(layout: Layout, provenance: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for a store to be resumed."""
    about = {field.name: getattr(layout, field.name) for field in fields(layout)}
    return {**about, "grids": {key: str(grid) for key, grid in layout.grids.items()}, **provenance}


def _write_chunk(
    store: FieldStore,
    problem: Darcy,
    seed: int,
    grids: Sequence[Grid],
    solver_resolution: int | None,
    samples: slice,
) -> int:
    """Compute and write the samples of one chunk; returns how many they are."""
    chunk = {
        grid: {variable.name: np.empty((_length(samples), *grid.shape)) for variable in problem.variables}
        for grid in grids
    }
    for row, (split, i) in enumerate(_numbers(store.splits, samples)):
        sample = problem.sample(split_seed(seed, split), i, grids, solver_resolution)
        for grid, values in sample.items():
            for name, field in values.items():
                chunk[grid][name][row] = field
    store.write(samples, chunk)
    return _length(samples)


def _numbers(splits: Mapping[str, int], samples: slice) -> Iterator[tuple[str, int]]:
    """Split and number within the split of each of the samples of a store."""
    first = 0
    for split, size in splits.items():
        for i in range(max(samples.start - first, 0), min(samples.stop - first, size)):
            yield split, i
        first += size


def _compute(tasks: list[Delayed], client: Client | None, report: Callable[[int], object]) -> None:
    """Run the tasks and report the result of each as it is finished."""
    if client is None:
        workers = config.get("num_workers", None) or CPU_COUNT
        ours = {task.key for task in tasks}  # callbacks are told of all tasks, of other threads too

        def finished(key: object, result: int, *state: object) -> None:
            if key in ours:
                report(result)

        # A pool of our own, so that no task is still writing when an exception leaves this function.
        with ThreadPoolExecutor(workers) as pool, Callback(posttask=finished):
            compute(*tasks, scheduler="threads", pool=pool, num_workers=workers)
        return
    from distributed import as_completed

    futures = client.compute(tasks)
    try:
        for future in as_completed(futures):
            report(future.result())
    finally:
        client.cancel(futures)  # after a failure, those that have not started


def _length(samples: slice) -> int:
    return samples.stop - samples.start
