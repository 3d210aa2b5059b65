r"""Errors at other resolutions than the one trained at, beside what no claim of transfer may ignore.

A model that accepts a finer grid does not yet gain from it: predicting on the training grid and
interpolating may do as well. So six predictors are judged, sample by sample:

=====================  =============================================================================
predictor              prediction on a grid :math:`n`, by a model trained on the grid :math:`m`
=====================  =============================================================================
``direct``             the model, given the input on n
``dpu_injection``      "down, predict, up": restrict the input to m, predict, interpolate to n. The input
                       keeps its values at the shared points, or the nearest where grids do not nest
``dpu_mean``           the same with the input's means over the control volumes of m
``dpu_interpolation``  the same with the input interpolated to m: another prediction only where grids
                       do not nest, and there the better one for a smooth input
``floor``              the true output on m, interpolated to n likewise: what DPU makes of a perfect coarse
                       prediction. On m it is the values at the shared points; where grids do not nest,
                       the store's own, or those interpolated from n where the store has none
``mean``               the mean of the variable over the training split, everywhere: the store's, or
                       the processor's where the store has no such split
=====================  =============================================================================

How fields are restricted and interpolated is in `mano_op.transfer.baselines`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.data.channels import Channels, channels_of
from mano_op.data.dataset import FieldDataset
from mano_op.data.store import FieldStore, Resolution, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.resample import nests
from mano_op.runs import Run
from mano_op.transfer.baselines import interpolate, restrict
from mano_op.transfer.predict import check_predicts, predict, sample_numbers, timed_predict
from mano_op.transfer.verdict import DPU

Ends = Mapping[str, dict[str, tuple[float | None, float | None]]]
PREDICTORS = ("direct", *DPU, "floor", "mean")
_REPEATS = 3


def evaluate_transfer(
    models: Mapping[str, Run],
    store: str | Path | FieldStore,
    resolutions: Sequence[Resolution],
    *,
    split: str = "test",
    batch_size: int = 50,
    boundary: Mapping[str, Boundary | None] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    r"""The errors of models at several resolutions, with those of the baselines.

    The error of a sample and output variable is

    .. math:: \lVert \hat u - u \rVert_2 / \lVert u \rVert_2

    over the points of the level, each counted once, in physical units: what neuraloperator's
    ``LpLoss(p=2).rel`` computes for one sample and channel, so the numbers compare with published ones.
    A prediction with a NaN or an infinity has an error that is not finite, and is kept.

    Parameters
    ----------
    models : mapping of str to Run
        By the names to report them under. Any ``nn.Module`` will do in a `Run` with a processor and
        ``training={"resolution": key}``. It is evaluated where it is: to use a GPU, move ``run.model``
        and ``run.processor``. Both are put into evaluation mode.
    store : path or FieldStore
        With the variables that the models were trained on, and their training resolutions among its levels.
    resolutions : sequence of int, tuple of int, str or Grid
        Levels to judge at.
    split : str
    batch_size : int
        Samples at a time; memory is for these alone.
    boundary : mapping, optional
        For the interpolation, known values of outputs at the ends of axes, in place of those that the store
        states (`Variable.boundary_value`): ``{"pressure": {"y": (0.0, None)}}``, None for no known value.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Dataset
        ``relative_l2`` with dimensions ``(model, resolution, predictor, variable, sample)``, resolutions
        coarsest first. For each model ``parameters`` and ``training_flops``, those of one sample on the
        training grid. For each model and resolution ``flops`` and ``seconds_per_sample`` of direct inference,
        the latter the best of some batches and indicative only, and ``restriction``, "injection" or
        "nearest": what ``dpu_injection`` did.

    Raises
    ------
    InputError
        Before any sample is predicted, if a level, split or variable is missing, or a model cannot predict
        on one of the grids.

    Examples
    --------
    A model that knows nothing, and so predicts the training mean; both grids of 4 and 8 points are given:

    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> from mano_op.data.processor import FieldProcessor
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4, 8], samples={"train": 4, "test": 3},
    ...     progress=False)
    >>> class Zero(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.zeros_like(x)
    >>> run = Run(Zero(), FieldProcessor.from_store(store), "zero", {}, {"resolution": "r4"})
    >>> errors = evaluate_transfer({"zero": run}, store, [4, 8], progress=False)["relative_l2"]
    >>> dict(errors.sizes)
    {'model': 1, 'resolution': 2, 'predictor': 6, 'variable': 1, 'sample': 3}
    >>> same = np.isclose(errors.sel(predictor="direct"), errors.sel(predictor="mean"))
    >>> bool(same.all()), float(errors.sel(resolution="r4", predictor="floor").max())
    (True, 0.0)
    """
    store = store if isinstance(store, FieldStore) else open_store(store)
    keys = _levels(store, resolutions, split)
    grids = {key: store.grids[key] for key in keys}
    if not models or batch_size < 1:
        raise InputError(f"{len(models)} models, batch_size={batch_size}; expected at least one of each")
    times = _times(models)
    trained = {name: store.grids[_training_key(name, run, store)] for name, run in models.items()}
    first = FieldDataset(store, keys[0], split, **times, cache_bytes=0)
    ends = _known_ends(store, first.channels, grids[keys[0]], boundary or {})
    flops = np.array(
        [[check_predicts(name, run, grids[key], store) for key in keys] for name, run in models.items()]
    )
    training_flops = [check_predicts(name, run, trained[name], store) for name, run in models.items()]

    errors, seconds = _judge(models, store, split, times, grids, trained, ends, batch_size, progress)
    return xr.Dataset(
        {
            "relative_l2": (
                ("model", "resolution", "predictor", "variable", "sample"),
                errors,
                {"units": "1", "long_name": "relative L2 error"},
            ),
            "parameters": ("model", [run.n_parameters for run in models.values()]),
            "training_flops": ("model", np.array(training_flops, dtype=np.float64)),
            "flops": (("model", "resolution"), flops.astype(np.float64)),
            "seconds_per_sample": (
                ("model", "resolution"),
                seconds,
                {"units": "s", "comment": f"best of some batches of {batch_size}; indicative"},
            ),
            "restriction": (
                ("model", "resolution"),
                [
                    ["injection" if nests(grids[key], trained[name]) else "nearest" for key in keys]
                    for name in models
                ],
            ),
        },
        coords={
            "model": list(models),
            "training_resolution": ("model", [store.key(grid) for grid in trained.values()]),
            "training_points": ("model", [int(np.prod(grid.shape)) for grid in trained.values()]),
            "resolution": keys,
            "points": ("resolution", [int(np.prod(grid.shape)) for grid in grids.values()]),
            "predictor": list(PREDICTORS),
            "variable": list(first.outputs),
            "sample": sample_numbers(first),
        },
        attrs={
            "title": f"Resolution transfer on {store.attrs['title']}",
            "split": split,
            "n_dim": grids[keys[0]].n_dim,
            "boundary": json.dumps(ends),
        },
    )


def relative_l2(predicted: Tensor, true: Tensor, n_dim: int) -> Tensor:
    """The relative L2 error of each sample and channel, over the last `n_dim` dimensions, in float64.

    Examples
    --------
    >>> relative_l2(torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]), 1)
    tensor([0.2000], dtype=torch.float64)
    """
    dims = tuple(range(-n_dim, 0))
    difference = torch.linalg.vector_norm(predicted.double() - true.double(), dim=dims)
    return difference / torch.linalg.vector_norm(true.double(), dim=dims)


def _judge(
    models: Mapping[str, Run],
    store: FieldStore,
    split: str,
    times: Mapping[str, Any],
    grids: Mapping[str, Grid],
    trained: Mapping[str, Grid],
    ends: Ends,
    batch_size: int,
    progress: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The errors, as ``relative_l2`` has them, and the seconds for a sample of each model and level."""
    data = {key: FieldDataset(store, key, split, **times, cache_bytes=0) for key in grids}
    n_samples = len(data[next(iter(grids))])
    errors = np.full((len(models), len(grids), len(PREDICTORS), len(ends), n_samples), np.nan)
    seconds = np.full((len(models), len(grids)), np.inf)
    batches = -(-n_samples // batch_size)
    with tqdm(total=len(grids) * batches * len(models), unit="batch", disable=not progress) as bar:
        for r, (key, grid) in enumerate(grids.items()):
            # A batch is read once, for all models.
            loader = DataLoader(data[key], batch_size)
            for b, batch in enumerate(loader):
                rows = slice(b * batch_size, b * batch_size + len(batch["y"]))
                exact = {
                    level: _exact(data[key], level, batch["y"], rows, times, ends)
                    for level in dict.fromkeys(trained.values())
                }
                for m, (name, run) in enumerate(models.items()):
                    bar.set_description(f"{name} at {key}")
                    direct, best = timed_predict(run, batch["x"], _REPEATS if b == 0 else 1)
                    seconds[m, r] = min(seconds[m, r], best / len(direct))
                    predictions = _with_baselines(
                        run,
                        store,
                        direct,
                        {**batch, "exact": exact[trained[name]]},
                        grid,
                        trained[name],
                        ends,
                    )
                    for k, predictor in enumerate(PREDICTORS):
                        error = relative_l2(predictions[predictor], batch["y"], grid.n_dim)
                        errors[m, r, k, :, rows] = error.T.numpy()
                    bar.update()
    return errors, seconds


def _with_baselines(
    run: Run,
    store: FieldStore,
    direct: Tensor,
    batch: Mapping[str, Tensor],
    grid: Grid,
    trained: Grid,
    ends: Ends,
) -> dict[str, Tensor]:
    """What each of `PREDICTORS` makes for one batch, which has the outputs on `trained` under "exact"."""

    def dpu(x: Tensor) -> Tensor:
        # On the training grid nothing is restricted, and the prediction is the one that is there.
        coarse = direct if x is batch["x"] else predict(run, x)
        return _interpolate(coarse, trained, grid, ends)

    injection = dpu(restrict(batch["x"], grid, trained, "injection"))
    nested = nests(grid, trained)
    interpolation = injection if nested else dpu(interpolate(batch["x"], grid, trained))
    # What the processor makes of zero is its mean, or under a transform what that is the mean of.
    zero, _ = run.processor.postprocess(torch.zeros(1, len(ends), 1, device=run.processor.device), {})
    means = torch.tensor(
        [
            store.statistics.get(_variable(label), {"mean": middle})["mean"]
            for label, middle in zip(ends, zero.flatten().tolist(), strict=True)
        ]
    )
    return {
        "direct": direct,
        "dpu_injection": injection,
        "dpu_mean": dpu(restrict(batch["x"], grid, trained, "mean")),
        "dpu_interpolation": interpolation,
        "floor": _interpolate(batch["exact"], trained, grid, ends),
        "mean": means.reshape(1, -1, *[1] * grid.n_dim).expand_as(batch["y"]),
    }


def _exact(
    data: FieldDataset, level: Grid, outputs: Tensor, rows: slice, times: Mapping[str, Any], ends: Ends
) -> Tensor:
    """The true outputs of some samples of a split on another level, from those on the data set's grid."""
    key = data.store.key(level)
    if nests(data.grid, level) or data.split not in data.store.layout.held[key]:
        return _interpolate(outputs, data.grid, level, ends)
    there = FieldDataset(data.store, key, data.split, **times, cache_bytes=0)
    return torch.stack([sample["y"] for sample in there.__getitems__(range(rows.start, rows.stop))])


def _interpolate(outputs: Tensor, source: Grid, target: Grid, ends: Ends) -> Tensor:
    """Every output with the boundary values that are known of it; channels are in the order of `ends`."""
    channels = outputs.split(1, dim=1)
    known = zip(channels, ends.values(), strict=True)
    return torch.cat([interpolate(channel, source, target, its) for channel, its in known], dim=1)


def _known_ends(
    store: FieldStore, channels: Channels, grid: Grid, given: Mapping[str, Boundary | None]
) -> Ends:
    """The known ends of each output channel, as given or as the store has them."""
    if not set(given) <= set(store.outputs):
        raise InputError(
            f"boundary={dict(given)}: expected values of outputs, which here are {', '.join(store.outputs)}"
        )
    stated = {variable.name: variable.boundary_value for variable in store.variables}
    known = {**stated, **given}
    return {channel.label: ends_by_axis(grid, known[channel.variable]) for channel in channels.y}


def _variable(label: str) -> str:
    """The variable of a channel, of which "@" tells the time."""
    return label.partition("@")[0]


def _times(models: Mapping[str, Run]) -> dict[str, Any]:
    """Which times the models are for, if they are for the same."""
    asked = {name: run.times for name, run in models.items()}
    first = next(iter(asked.values()))
    if any(times != first for times in asked.values()):
        raise InputError(f"models for different times, {asked}; judge them one after the other")
    return first


def _levels(store: FieldStore, resolutions: Sequence[Resolution], split: str) -> list[str]:
    """The levels that are asked for, coarsest first, if all of them hold the split."""
    asked = {store.key(resolution) for resolution in resolutions}
    keys = [key for key in store.grids if key in asked]
    if not keys:
        raise InputError(f"no resolutions; expected some of {', '.join(store.grids)}")
    for key in keys:
        store.layout.rows(key, split)  # raises, and lists what is there
    return keys


def _training_key(name: str, run: Run, store: FieldStore) -> str:
    """The level of the training grid, if the model is one for this store."""
    channels = channels_of(store.layout, **run.times)
    for role, mine, theirs in (
        ("inputs", run.processor.inputs, channels.inputs),
        ("outputs", run.processor.outputs, channels.outputs),
    ):
        if mine != theirs:
            raise InputError(
                f"{name} has the {role} {mine}, {store.path} has {theirs}: "
                "judge it on a store of the variables that it was trained on"
            )
    units = {variable.name: variable.units for variable in store.variables}
    for variable, unit in run.training.get("units", {}).items():
        if units.get(variable, unit) != unit:
            raise InputError(
                f"{name} was trained on {variable} in {unit}, {store.path} has it in {units[variable]}: "
                "convert the fields of the store"
            )
    if "resolution" not in run.training:
        raise InputError(f"{name}: training={run.training} does not say at which resolution it was trained")
    try:
        key = store.key(run.training["resolution"])
    except InputError as error:
        raise InputError(
            f"{name} was trained at {run.training['resolution']}, whose grid is needed to predict there and "
            f"interpolate: {error}"
        ) from error
    trained = run.training.get("grid", str(store.grids[key]))
    if trained != str(store.grids[key]):
        raise InputError(
            f"{name} was trained on the grid {trained}, {key} of {store.path} is {store.grids[key]}: judge "
            "it on a store with the registration and domain that it was trained with"
        )
    return key
