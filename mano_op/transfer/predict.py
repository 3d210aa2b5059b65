"""Predictions of a run in physical units: of a batch, of chosen samples, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mano_op.cost import count_flops
from mano_op.data.dataset import FieldDataset
from mano_op.data.store import FieldStore, Resolution
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.memory import peak_bytes
from mano_op.runs import Run


def predict(run: Run, x: Tensor, steps: int = 1) -> Tensor:
    """The prediction of a run in physical units, on the CPU; ``x`` is ``(batch, in_channels, *grid)``.

    With several `steps` each but the first starts from the outputs of those before, and the outputs of all
    are the channels of the prediction, the first step's first.
    """
    model, processor = run.model.eval(), run.processor.eval()
    outputs: list[Tensor] = []
    with torch.inference_mode():
        known = x.to(processor.device)
        for step in range(steps):
            if step:
                known = processor.next_known(known, outputs[-1])
            data = processor.preprocess({"x": known})
            output, _ = processor.postprocess(model(data["x"]), data)
            outputs.append(output)
        return torch.cat(outputs, dim=1).cpu()


def timed_predict(run: Run, x: Tensor, repeats: int, steps: int = 1) -> tuple[Tensor, float]:
    """A prediction, and the seconds that the quickest of some repeats took."""
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        predicted = predict(run, x, steps)
        best = min(best, perf_counter() - start)
    return predicted, best


def times_of(run: Run, steps: int) -> dict[str, Any]:
    """Which times of the fields a rollout of some steps is judged on, as `FieldDataset` takes them."""
    return run.times if steps == 1 else {"time_steps": (run.times["time_steps"][0], steps)}


class Cost(NamedTuple):
    """Of one sample on a grid: floating point operations, and the most bytes of tensors at a time."""

    flops: int
    peak_bytes: int


def cost_on(name: str, run: Run, grid: Grid, key: str) -> Cost:
    """What a sample costs on a grid, called `key`, if the model can predict there at all.

    Raises
    ------
    InputError
        If it cannot.
    """
    x = torch.zeros(1, len(run.processor.inputs), *grid.shape)
    expected = (1, len(run.processor.outputs), *grid.shape)
    try:
        shape = tuple(predict(run, x).shape)
        if shape != expected:
            raise InputError(f"its output has shape {shape}, expected {expected}")
        x = x.to(run.processor.device)
        return Cost(count_flops(run.model, x), peak_bytes(run.model, x))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{name} cannot predict at {key}: {error}. Leave out the model or the resolution"
        ) from error


def sample_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """The store's numbers of the samples of a data set; 0, 1, ... where several are of one sample."""
    if len(data.channels.starts) > 1:
        return np.arange(len(data))
    rows = data.store.layout.rows(data.key, data.split)
    return data.store.layout.samples(data.key)[rows]


def group_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """The number that the store has for each sample of a data set, runs of times of one sample having one."""
    rows = data.store.layout.rows(data.key, data.split)
    return np.repeat(data.store.layout.samples(data.key)[rows], len(data.channels.starts))


def sample_fields(
    models: Mapping[str, Run],
    store: FieldStore,
    resolution: Resolution,
    rows: Sequence[int],
    *,
    split: str = "test",
    steps: int = 1,
) -> xr.Dataset:
    """Some samples of a split, and what each model directly predicts for them.

    Parameters
    ----------
    models : mapping of str to Run
        For the same times.
    store : FieldStore
    resolution : int, tuple of int, str or Grid
    rows : sequence of int
        Counted within the split; of runs of times, within all of these.
    split : str
    steps : int
        Of a rollout; see `predict`.

    Returns
    -------
    Dataset
        ``input`` (input_variable, sample, *axes), ``truth`` (variable, sample, *axes) and ``prediction``
        (model, variable, sample, *axes), with the coordinates of the grid.
    """
    key = store.key(resolution)
    times = times_of(next(iter(models.values())), steps)
    data = FieldDataset(store, key, split, **times, cache_bytes=0)
    batch = next(iter(DataLoader(data, batch_size=len(rows), sampler=list(rows))))
    predictions = torch.stack([predict(run, batch["x"], steps) for run in models.values()])
    axes = data.grid.names
    return xr.Dataset(
        {
            "input": (("input_variable", "sample", *axes), batch["x"].transpose(0, 1).numpy()),
            "truth": (("variable", "sample", *axes), batch["y"].transpose(0, 1).numpy()),
            "prediction": (("model", "variable", "sample", *axes), predictions.transpose(1, 2).numpy()),
        },
        coords={
            "model": list(models),
            "input_variable": list(data.inputs),
            "variable": list(data.outputs),
            "sample": sample_numbers(data)[list(rows)],
            **dict(zip(axes, data.grid.points, strict=True)),
        },
    )
