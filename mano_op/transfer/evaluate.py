r"""Evaluate resolution transfer against the baselines that it has to beat.

A model that accepts a finer grid need not gain from it: predicting on the training grid and interpolating
may do as well, and so may the same model trained on the finer grid. So direct inference is judged by each
metric of `mano_op.transfer.metrics` beside the others of `mano_op.transfer.predictors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from mano_op.boundary import Boundary
from mano_op.cost import count_parameters
from mano_op.data.dataset import FieldDataset, collate
from mano_op.data.store import FieldStore, Resolution, opened
from mano_op.errors import InputError, check_whole
from mano_op.grid import Grid
from mano_op.prediction import predict
from mano_op.resample import nests
from mano_op.transfer.evidence import Evidence
from mano_op.transfer.metrics import METRICS, all_metrics
from mano_op.transfer.predictors import (
    KEPT,
    PREDICTORS,
    Ends,
    averages_states,
    averaging_error,
    by_predictor,
    cost_on,
    exact_outputs,
    group_numbers,
    known_ends,
    naming,
    sample_numbers,
)
from mano_op.transfer.runs import JudgedRun, Models, judged_runs, run_coordinates

_REPEATS = 3


def evaluate_transfer(
    models: Models,
    store: str | Path | FieldStore,
    resolutions: Sequence[Resolution],
    *,
    split: str = "test",
    batch_size: int = 50,
    rollout: int = 1,
    boundary: Mapping[str, Boundary | None] | None = None,
    evidence: Evidence | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""Evaluate models at several resolutions, beside the baselines.

    Errors are in physical units. A prediction with a NaN or an infinity has an error that is not finite, and
    is kept.

    A model that was trained on several resolutions is labelled with all of them, "r16+r32". Its training
    grid is that of its home resolution, which most training samples had; of several such, the finest.

    Parameters
    ----------
    models : mapping of str to Run or Trained, or to a list of them
        By the names to report; the runs of a name differ in training resolution or seed. A model is evaluated
        on its device, in evaluation mode: to use a GPU, move ``run.model`` and ``run.processor``.
    store : path or FieldStore
        With the variables that the models were trained on, and their home resolutions among its own.
    resolutions : sequence of int, tuple of int, str or Grid
        Of the store, to judge at.
    split : str
    batch_size : int
        Samples in memory at a time.
    rollout : int
        Steps of models trained with ``time_steps=(steps_in, 1)``, each from the predictions before it; DPU
        takes all on the training grid. Each is a variable of the results, such as "vorticity@+20".
    boundary : mapping, optional
        For the interpolation, known values of outputs at the ends of axes, in place of the store's
        (`Variable.boundary_value`): ``{"pressure": {"y": (0.0, None)}}``, None for no known value.
    evidence : Evidence, optional
        Gets the fields and predictions of some samples, for a report.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Dataset
        ``error`` (run, resolution, predictor, metric, variable, sample), resolutions coarsest first, and
        ``defined`` (resolution, predictor, metric), whether the error exists. ``run`` is indexed by
        ``model``, ``train_resolution`` and ``seed``, and has a ``label``, the same for all seeds:
        ``results["error"].groupby("label").mean()`` averages over them. By run: ``home`` and
        ``home_points``, the home resolution; ``parameters``, NaN for a function that has none to count;
        ``training_flops`` of one sample on the home grid. By run and resolution, of direct inference:
        ``flops``, ``peak_bytes`` (`mano_op.memory.peak_bytes`) and ``seconds_per_sample``, the best of some
        batches; operations and seconds of a rollout are of all steps. ``restriction``, of ``dpu_injection``,
        is "injection" or "nearest". ``averaging`` is the mean relative L2 error of the averages of finer
        inputs, of models that step in time from averages; NaN of others. ``group`` (sample) is the store's
        number of a sample: runs of times of one sample have one group, and are not independent.

    Raises
    ------
    InputError
        Before any sample, if a resolution, split, variable or time is missing, two runs have the same
        coordinates, or a model cannot predict on one of the grids.

    Examples
    --------
    The mean of the training split, as a function that was trained at 4, and judged at 4 and 8:

    >>> import tempfile
    >>> import torch
    >>> from mano_op.problems import generate_darcy
    >>> from mano_op.transfer import Trained
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4, 8], samples={"train": 4, "test": 3},
    ...     progress=False)
    >>> mean = store.statistics["pressure"]["mean"]
    >>> constant = Trained(lambda x: torch.full_like(x, mean), resolution=4)
    >>> results = evaluate_transfer({"constant": constant}, store, [4, 8], progress=False)
    >>> errors = results["error"].sel(model="constant", train_resolution="r4", seed=0, metric="relative_l2")
    >>> dict(errors.sizes)
    {'resolution': 2, 'predictor': 6, 'variable': 1, 'sample': 3}
    >>> same = np.isclose(errors.sel(predictor="direct"), errors.sel(predictor="mean"))
    >>> bool(same.all()), float(errors.sel(resolution="r4", predictor="floor").max())
    (True, 0.0)
    """
    store = opened(store)
    keys = _keys(store, resolutions, split)
    check_whole(batch_size=batch_size, rollout=rollout)
    runs = judged_runs(models, store)
    times = runs[0].source.times
    if rollout > 1:
        for run in runs:
            run.processor.check_rollout()
        times = {"time_steps": (times["time_steps"][0], rollout)}
    data = {
        key: FieldDataset(store, key, split, **times, cache_bytes=0)
        for key in dict.fromkeys([*keys, *(run.home for run in runs)])
        if split in store.layout.held[key]
    }
    first = data[keys[0]]
    ends = known_ends(store, first.channels, first.grid, boundary or {})
    costs = [
        {key: cost_on(run, key, store.grids[key]) for key in dict.fromkeys([*keys, run.home])} for run in runs
    ]
    if evidence is not None:
        evidence.begin(runs, store, {key: data[key] for key in keys}, rollout)
    errors, seconds, averaging = _judge(runs, data, keys, ends, batch_size, rollout, evidence, progress)
    grids = {key: store.grids[key] for key in keys}
    results = _labelled(errors, seconds, averaging, runs, costs, grids, rollout)
    return results.assign_coords(
        variable=list(first.outputs), sample=sample_numbers(first), group=("sample", group_numbers(first))
    ).assign_attrs(
        title=f"Resolution transfer on {store.attrs['title']}",
        split=split,
        rollout=rollout,
        n_dim=first.grid.n_dim,
        boundary=json.dumps(ends),
    )


def _labelled(
    errors: NDArray[np.float64],
    seconds: NDArray[np.float64],
    averaging: NDArray[np.float64],
    runs: Sequence[JudgedRun],
    costs: Sequence[Mapping[str, tuple[int, int]]],
    grids: Mapping[str, Grid],
    rollout: int,
) -> xr.Dataset:
    """The data set of the results, without the names of variables and samples."""
    parameters = [float(count_parameters(run.network)) or np.nan for run in runs]
    training = [float(rollout * cost[run.home][0]) for run, cost in zip(runs, costs, strict=True)]
    by_run = np.array([[cost[key] for key in grids] for cost in costs], dtype=np.float64)
    flops, peak = by_run[..., 0], by_run[..., 1]
    ways = [["injection" if nests(grid, run.grid) else "nearest" for grid in grids.values()] for run in runs]
    cells = ("run", "resolution")
    dims = (*cells, "predictor", "metric", "variable", "sample")
    return xr.Dataset(
        {
            "error": (dims, errors, {"units": "1", "long_name": "error, by its metric"}),
            "defined": (dims[1:4], _defined(grids)),
            "parameters": ("run", parameters, {"long_name": "real numbers that were learned"}),
            "training_flops": ("run", training, {"long_name": "of one sample on the home grid"}),
            "flops": (cells, rollout * flops, {"long_name": "of one sample, directly"}),
            "peak_bytes": (cells, peak, {"units": "B", "long_name": "tensors of one sample, directly"}),
            "seconds_per_sample": (cells, seconds, {"units": "s", "comment": "best of some; indicative"}),
            "restriction": (cells, ways),
            "averaging": (cells, averaging, {"units": "1", "long_name": "relative L2 error of the averages"}),
        },
        run_coordinates([run.coordinates for run in runs]),
    ).assign_coords(
        home=("run", [run.home for run in runs]),
        home_points=("run", [math.prod(run.grid.shape) for run in runs]),
        resolution=list(grids),
        points=("resolution", [math.prod(grid.shape) for grid in grids.values()]),
        predictor=list(PREDICTORS),
        metric=list(METRICS),
    )


def _defined(grids: Mapping[str, Grid]) -> NDArray[np.bool_]:
    """Return whether an error exists, by resolution, predictor and metric."""
    defined = np.ones((len(grids), len(PREDICTORS), len(METRICS)), dtype=bool)
    defined[:, 1:, METRICS.index("mismatch")] = False
    for r, grid in enumerate(grids.values()):
        defined[r, :, METRICS.index("boundary_band")] = not all(axis.periodic for axis in grid)
        defined[r, :, METRICS.index("relative_h1")] = all(axis.n > 2 or axis.periodic for axis in grid)
    return defined


def _judge(
    runs: Sequence[JudgedRun],
    data: Mapping[str, FieldDataset],
    keys: Sequence[str],
    ends: Ends,
    batch_size: int,
    rollout: int,
    evidence: Evidence | None,
    progress: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The errors, as in the results, and by run and resolution the seconds for a sample, and `averaging`."""
    statistics, n_samples = data[keys[0]].store.statistics, len(data[keys[0]])
    errors = np.full((len(runs), len(keys), len(PREDICTORS), len(METRICS), len(ends), n_samples), np.nan)
    seconds = np.full((len(runs), len(keys)), np.inf)
    averaging = np.where([[averages_states(run)] for run in runs], np.zeros((len(runs), len(keys))), np.nan)
    homes, labels = {run.home: run.grid for run in runs}, list(ends)
    total = len(keys) * -(-n_samples // batch_size) * len(runs)
    with tqdm(total=total, unit="batch", disable=not progress) as bar:
        for r, key in enumerate(keys):
            grid = data[key].grid
            # A batch is read once, for all models.
            for b, batch in enumerate(DataLoader(data[key], batch_size, collate_fn=collate)):
                x, y = batch["x"], batch["y"]
                rows = slice(b * batch_size, b * batch_size + len(y))
                exact = {home: exact_outputs(data, key, home, y, rows, g, ends) for home, g in homes.items()}
                shared: dict[tuple[str, ...], NDArray[np.float64]] = {}
                if evidence is not None:
                    evidence.add(key, "input", rows, x, data[key].inputs)
                    evidence.add(key, "truth", rows, y, labels)
                for m, run in enumerate(runs):
                    bar.set_description(f"{run.name} at {key}")
                    repeats = _REPEATS if b == 0 and rollout == 1 else 1
                    for _ in range(repeats):
                        start = perf_counter()
                        with naming(run, key):
                            direct = predict(run.network, run.processor, x, rollout)
                        seconds[m, r] = min(seconds[m, r], (perf_counter() - start) / len(direct))
                    predictions, mismatch = by_predictor(
                        run, statistics, direct, x, exact[run.home], grid, ends, rollout
                    )
                    for k, predictor in enumerate(PREDICTORS):
                        if evidence is not None and predictor in KEPT:
                            evidence.add(key, "prediction", rows, predictions[predictor], labels, m, k)
                        # Floor and mean are the same for all models of a home, unless the mean is the
                        # processor's, where the store has none.
                        same = predictor in ("floor", "mean") and statistics
                        at = (predictor, run.home, "" if same else run.name)
                        if at not in shared:
                            values = all_metrics(predictions[predictor], y, grid, run.grid)
                            shared[at] = values.transpose(1, 2).numpy()
                        errors[m, r, k, :, :, rows] = shared[at]
                    errors[m, r, 0, METRICS.index("mismatch"), :, rows] = mismatch.T.numpy()
                    if averages_states(run):
                        averaging[m, r] += averaging_error(x, grid, run.grid).sum().item() / n_samples
                    bar.update()
    return errors, seconds, averaging


def _keys(store: FieldStore, resolutions: Sequence[Resolution], split: str) -> list[str]:
    """The keys of the resolutions, coarsest first; all of them hold the split."""
    if isinstance(resolutions, int | str):
        raise InputError(f"resolutions={resolutions!r}, expected a list of them, such as [{resolutions!r}]")
    asked = {store.key(resolution) for resolution in resolutions}
    keys = [key for key in store.grids if key in asked]
    if not keys:
        raise InputError(f"no resolutions; expected some of {', '.join(store.grids)}")
    for key in keys:
        store.layout.rows(key, split)  # raises, and lists what is there
    return keys
