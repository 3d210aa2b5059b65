r"""Errors at other resolutions than the one trained at, beside what no claim of transfer may ignore.

A model that accepts a finer grid does not yet gain from it: predicting on the training grid and
interpolating may do as well, and so may the same model trained on the finer grid. So direct inference is
judged, sample by sample, beside the other predictors of `mano_op.transfer.predictors`, by each of the metrics
of `mano_op.transfer.metrics`, for every model in every way it was trained, and for each of its seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from mano_op.boundary import Boundary
from mano_op.data.dataset import FieldDataset
from mano_op.data.store import FieldStore, Resolution, open_store
from mano_op.errors import InputError, check_whole
from mano_op.grid import Grid
from mano_op.resample import nests
from mano_op.transfer.entries import Entry, Models, entries_of, places
from mano_op.transfer.metrics import METRICS, all_metrics
from mano_op.transfer.predict import (
    Cost,
    cost_on,
    group_numbers,
    sample_numbers,
    timed_predict,
    times_of,
)
from mano_op.transfer.predictors import PREDICTORS, Ends, by_predictor, exact_outputs, known_ends

DIMS = ("model", "train_resolution", "seed", "resolution", "predictor", "metric", "variable", "sample")
_REPEATS = 3
_OF_THE_TRUTH = ("floor", "mean")  # predictors that are the same for all models of a training grid


def evaluate_transfer(
    models: Models,
    store: str | Path | FieldStore,
    resolutions: Sequence[Resolution],
    *,
    split: str = "test",
    batch_size: int = 50,
    rollout: int = 1,
    boundary: Mapping[str, Boundary | None] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""The errors of models at several resolutions, with those of the baselines.

    Errors are in physical units. A prediction with a NaN or an infinity has an error that is not finite, and
    is kept.

    A model that was trained on several resolutions is labelled with all of them, "r16+r32". What has to go
    by way of its training grid goes by way of its home level: the one that most of its training samples had,
    the finest of several such.

    Parameters
    ----------
    models : mapping of str to Run, or to a sequence of Run
        By the names to report them under. The runs of a name differ in ``training["resolution"]``, a level's
        key or a list of them, or in ``training["seed"]``, 0 if not there: a model trained at the target's
        resolution, one trained on several, and other seeds belong under one name. Any ``nn.Module`` will do
        in a `Run` with a processor and ``training={"resolution": key}``. It is evaluated where it is: to use
        a GPU, move ``run.model`` and ``run.processor``. Both are put into evaluation mode.
    store : path or FieldStore
        With the variables that the models were trained on, and their home levels among its own.
    resolutions : sequence of int, tuple of int, str or Grid
        Levels to judge at: finer, coarser, odd or not square, as the store has them.
    split : str
    batch_size : int
        Samples at a time; memory is for these alone.
    rollout : int
        Of models that step on in time (trained with ``time_steps=(steps_in, 1)``): how many steps to take,
        each but the first from the predictions before it. The variables of the results are then those of each
        step, "vorticity@+1" to "vorticity@+20"; by way of the training grid all steps are taken there.
    boundary : mapping, optional
        For the interpolation, known values of outputs at the ends of axes, in place of those that the store
        states (`Variable.boundary_value`): ``{"pressure": {"y": (0.0, None)}}``, None for no known value.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Dataset
        ``error`` with dimensions ``(model, train_resolution, seed, resolution, predictor, metric, variable,
        sample)``, resolutions coarsest first. What was not given is NaN there, and False in ``present``
        (model, train_resolution, seed); ``defined`` (resolution, predictor, metric) says which errors there
        can be. ``group`` (sample) is the store's number of a sample: runs of times of one sample have one
        group, and are not independent. By model, train_resolution and seed ``parameters`` and
        ``training_flops``, those of one sample on the home grid, and for each resolution ``flops``,
        ``peak_bytes`` (`mano_op.memory.peak_bytes`) and ``seconds_per_sample`` of direct inference, the last
        the best of some batches and indicative only; of a rollout all but the bytes are of all its steps.
        By model, train_resolution and resolution ``restriction``, "injection" or "nearest": what
        ``dpu_injection`` did; ``home`` and ``home_points`` say by way of which level.

    Raises
    ------
    InputError
        Before any sample is predicted, if a level, split or variable is missing, two runs have one place,
        a model cannot predict on one of the grids, or a rollout is asked for that models or store have not
        the times for.

    Examples
    --------
    A model that knows nothing, and so predicts the training mean; both grids of 4 and 8 points are given:

    >>> import tempfile
    >>> import torch
    >>> from mano_op.problems import generate_darcy
    >>> from mano_op.data.processor import FieldProcessor
    >>> from mano_op.runs import Run
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4, 8], samples={"train": 4, "test": 3},
    ...     progress=False)
    >>> class Zero(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.zeros_like(x)
    >>> run = Run(Zero(), FieldProcessor.from_store(store), "zero", {}, {"resolution": "r4"})
    >>> results = evaluate_transfer({"zero": run}, store, [4, 8], progress=False)
    >>> errors = results["error"].sel(model="zero", train_resolution="r4", seed=0, metric="relative_l2")
    >>> dict(errors.sizes)
    {'resolution': 2, 'predictor': 6, 'variable': 1, 'sample': 3}
    >>> same = np.isclose(errors.sel(predictor="direct"), errors.sel(predictor="mean"))
    >>> bool(same.all()), float(errors.sel(resolution="r4", predictor="floor").max())
    (True, 0.0)
    """
    store = store if isinstance(store, FieldStore) else open_store(store)
    keys = _levels(store, resolutions, split)
    grids = {key: store.grids[key] for key in keys}
    check_whole(batch_size=batch_size, rollout=rollout)
    entries = entries_of(models, store)
    if rollout > 1:
        for one in entries:
            one.run.processor.check_rollout()
    times = times_of(entries[0].run, rollout)
    first = FieldDataset(store, keys[0], split, **times, cache_bytes=0)
    ends = known_ends(store, first.channels, grids[keys[0]], boundary or {})
    costs = {
        one.name: {
            key: cost_on(one.name, one.run, store.grids[key], key) for key in dict.fromkeys([*keys, one.home])
        }
        for one in entries
    }
    labels = places(entries, store)
    shape = tuple(len(label) for label in labels)
    errors = np.full((*shape, len(keys), len(PREDICTORS), len(METRICS), len(ends), len(first)), np.nan)
    seconds = np.full((*shape, len(keys)), np.nan)
    for one, found, took in _judge(entries, store, split, times, grids, ends, batch_size, rollout, progress):
        at = _place(one, labels)
        errors[at], seconds[at] = found, took
    return (
        _labelled(errors, seconds, entries, labels, costs, store, grids, rollout)
        .assign_coords(
            variable=list(first.outputs),
            sample=sample_numbers(first),
            group=("sample", group_numbers(first)),
        )
        .assign_attrs(
            title=f"Resolution transfer on {store.attrs['title']}",
            split=split,
            rollout=rollout,
            n_dim=grids[keys[0]].n_dim,
            boundary=json.dumps(ends),
        )
    )


def _labelled(
    errors: NDArray[np.float64],
    seconds: NDArray[np.float64],
    entries: Sequence[Entry],
    labels: tuple[list[str], list[str], list[int]],
    costs: Mapping[str, Mapping[str, Cost]],
    store: FieldStore,
    grids: Mapping[str, Grid],
    rollout: int,
) -> xr.Dataset:
    """The data set of the results, all but its variables' and samples' names."""
    keys, shape = list(grids), errors.shape[:3]
    present = np.zeros(shape, dtype=bool)
    parameters = np.zeros(shape, dtype=np.int64)
    training_flops = np.full(shape, np.nan)
    flops, peak = np.full((*shape, len(keys)), np.nan), np.full((*shape, len(keys)), np.nan)
    home, points = np.full(shape[:2], "", dtype=object), np.zeros(shape[:2], dtype=np.int64)
    restriction = np.full((*shape[:2], len(keys)), "", dtype=object)
    for one in entries:
        at, cost = _place(one, labels), costs[one.name]
        present[at], parameters[at] = True, one.run.n_parameters
        training_flops[at] = rollout * cost[one.home].flops
        flops[at] = [rollout * cost[key].flops for key in keys]
        peak[at] = [cost[key].peak_bytes for key in keys]
        home[at[:2]], points[at[:2]] = one.home, np.prod(one.grid.shape)
        restriction[at[:2]] = ["injection" if nests(grids[key], one.grid) else "nearest" for key in keys]
    run, series = DIMS[:3], DIMS[:2]
    return xr.Dataset(
        {
            "error": (DIMS, errors, {"units": "1", "long_name": "error, by its metric"}),
            "present": (run, present, {"long_name": "whether there is such a run"}),
            "defined": (("resolution", "predictor", "metric"), _defined(grids)),
            "parameters": (run, parameters, {"long_name": "real numbers that were learned"}),
            "training_flops": (run, training_flops, {"long_name": "of one sample on the home grid"}),
            "flops": ((*run, "resolution"), flops, {"long_name": "of one sample, directly"}),
            "peak_bytes": (
                (*run, "resolution"),
                peak,
                {"units": "B", "long_name": "tensors that live at once, one sample, directly"},
            ),
            "seconds_per_sample": (
                (*run, "resolution"),
                seconds,
                {"units": "s", "comment": "best of some batches; indicative"},
            ),
            "restriction": ((*series, "resolution"), restriction.astype(str)),
        },
        coords={
            "model": labels[0],
            "train_resolution": labels[1],
            "seed": labels[2],
            "home": (series, home.astype(str)),
            "home_points": (series, points),
            "resolution": keys,
            "points": ("resolution", [int(np.prod(grid.shape)) for grid in grids.values()]),
            "predictor": list(PREDICTORS),
            "metric": list(METRICS),
        },
    )


def _defined(grids: Mapping[str, Grid]) -> NDArray[np.bool_]:
    """Which errors there can be: by resolution, predictor and metric."""
    defined = np.ones((len(grids), len(PREDICTORS), len(METRICS)), dtype=bool)
    defined[:, 1:, METRICS.index("mismatch")] = False
    for r, grid in enumerate(grids.values()):
        if all(axis.periodic for axis in grid):
            defined[r, :, METRICS.index("boundary_band")] = False
        if any(axis.n < 3 and not axis.periodic for axis in grid):
            defined[r, :, METRICS.index("relative_h1")] = False
    return defined


def _place(one: Entry, labels: tuple[list[str], list[str], list[int]]) -> tuple[int, int, int]:
    models, trained, seeds = labels
    return models.index(one.model), trained.index(one.train_resolution), seeds.index(one.seed)


def _judge(
    entries: Sequence[Entry],
    store: FieldStore,
    split: str,
    times: Mapping[str, Any],
    grids: Mapping[str, Grid],
    ends: Ends,
    batch_size: int,
    rollout: int,
    progress: bool,
) -> list[tuple[Entry, NDArray[np.float64], NDArray[np.float64]]]:
    """Each entry with its errors, as ``error`` has them, and its seconds for a sample at each level."""
    data = {key: FieldDataset(store, key, split, **times, cache_bytes=0) for key in grids}
    n_samples = len(data[next(iter(grids))])
    shape = (len(entries), len(grids), len(PREDICTORS), len(METRICS), len(ends), n_samples)
    errors = np.full(shape, np.nan)
    seconds = np.full((len(entries), len(grids)), np.inf)
    homes = dict.fromkeys(one.grid for one in entries)
    batches = -(-n_samples // batch_size)
    with tqdm(total=len(grids) * batches * len(entries), unit="batch", disable=not progress) as bar:
        for r, (key, grid) in enumerate(grids.items()):
            # A batch is read once, for all models.
            for b, batch in enumerate(DataLoader(data[key], batch_size)):
                x, y = batch["x"], batch["y"]
                rows = slice(b * batch_size, b * batch_size + len(y))
                exact = {home: exact_outputs(data[key], home, y, rows, times, ends) for home in homes}
                known: dict[tuple[str, Grid, str], NDArray[np.float64]] = {}
                for m, one in enumerate(entries):
                    bar.set_description(f"{one.name} at {key}")
                    direct, best = timed_predict(
                        one.run, x, _REPEATS if b == 0 and rollout == 1 else 1, rollout
                    )
                    seconds[m, r] = min(seconds[m, r], best / len(direct))
                    predictions, mismatch = by_predictor(
                        one.run, store, direct, x, exact[one.grid], grid, one.grid, ends, rollout
                    )
                    for k, predictor in enumerate(PREDICTORS):
                        # The mean is the processor's, and so the model's, where the store has none.
                        whose = "" if predictor in _OF_THE_TRUTH and store.statistics else one.name
                        if (predictor, one.grid, whose) not in known:
                            found = all_metrics(predictions[predictor], y, grid, one.grid)
                            known[predictor, one.grid, whose] = found.transpose(1, 2).numpy()
                        errors[m, r, k, :, :, rows] = known[predictor, one.grid, whose]
                    errors[m, r, 0, METRICS.index("mismatch"), :, rows] = mismatch.T.numpy()
                    bar.update()
    return [(one, errors[m], seconds[m]) for m, one in enumerate(entries)]


def _levels(store: FieldStore, resolutions: Sequence[Resolution], split: str) -> list[str]:
    """The levels that are asked for, coarsest first, if all of them hold the split."""
    asked = {store.key(resolution) for resolution in resolutions}
    keys = [key for key in store.grids if key in asked]
    if not keys:
        raise InputError(f"no resolutions; expected some of {', '.join(store.grids)}")
    for key in keys:
        store.layout.rows(key, split)  # raises, and lists what is there
    return keys
