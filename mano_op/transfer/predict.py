"""Predictions in physical units, and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mano_op.cost import count_flops
from mano_op.data.dataset import FieldDataset
from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.memory import peak_bytes
from mano_op.transfer.runs import JudgedRun


def predict(network: nn.Module, processor: FieldProcessor, x: Tensor, steps: int = 1) -> Tensor:
    """Predict in physical units, on the CPU, from ``x`` of shape ``(batch, in_channels, *grid)``.

    With several `steps` each step after the first starts from the outputs of the step before. The channels
    of the prediction are the outputs of the first step, then those of the second, and so on.
    """
    network.eval()
    processor.eval()
    outputs: list[Tensor] = []
    with torch.inference_mode():
        x = x.to(processor.device)
        for step in range(steps):
            if step:
                x = processor.next_known(x, outputs[-1])
            data = processor.preprocess({"x": x})
            output, _ = processor.postprocess(network(data["x"]), data)
            outputs.append(output)
        return torch.cat(outputs, dim=1).cpu()


def timed_predict(run: JudgedRun, x: Tensor, repeats: int, steps: int = 1) -> tuple[Tensor, float]:
    """Predict several times, and return a prediction and the seconds of the quickest."""
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        predicted = predict(run.network, run.processor, x, steps)
        best = min(best, perf_counter() - start)
    return predicted, best


def times_of(times: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The times of the fields for a rollout of some steps, as `FieldDataset` takes them."""
    return dict(times) if steps == 1 else {"time_steps": (times["time_steps"][0], steps)}


class Cost(NamedTuple):
    """Floating point operations, and the peak bytes of tensors, of one sample on a grid."""

    flops: int
    peak_bytes: int


def cost_on(run: JudgedRun, grid: Grid, key: str) -> Cost:
    """Count the cost of a sample on a grid, the resolution `key`.

    Raises
    ------
    InputError
        If the model cannot predict there.
    """
    x = torch.zeros(1, len(run.processor.inputs), *grid.shape)
    expected = (1, len(run.processor.outputs), *grid.shape)
    try:
        shape = tuple(predict(run.network, run.processor, x).shape)
        if shape != expected:
            raise InputError(f"its output has shape {shape}, expected {expected}")
        x = x.to(run.processor.device)
        return Cost(count_flops(run.network, x), peak_bytes(run.network, x))
    except Exception as error:  # the model may be anybody's function
        raise InputError(
            f"{run.name} cannot predict at {key}: {error}. Leave out the model or the resolution"
        ) from error


def sample_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """Number the samples of a data set as the store does; runs of times are numbered 0, 1, ..."""
    return np.arange(len(data)) if len(data.channels.starts) > 1 else group_numbers(data)


def group_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """The store's number of each sample of a data set; the runs of times of one sample share it."""
    rows = data.store.layout.rows(data.key, data.split)
    return np.repeat(data.store.layout.samples(data.key)[rows], len(data.channels.starts))
