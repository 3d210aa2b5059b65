"""Predictions in physical units, and their cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

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
    expected = (len(x), len(processor.outputs), *x.shape[2:])
    outputs: list[Tensor] = []
    with torch.inference_mode():
        x = x.to(processor.device)
        for step in range(steps):
            if step:
                x = processor.next_known(x, outputs[-1])
            data = processor.preprocess({"x": x})
            output = network(data["x"])
            _check_output(output, expected)
            outputs.append(processor.postprocess(output, data)[0])
        return torch.cat(outputs, dim=1).cpu()


def _check_output(output: Any, expected: tuple[int, ...]) -> None:
    """Refuse what is no real tensor of a shape: networks and functions are anybody's."""
    if isinstance(output, Tensor):
        kind = f"{output.dtype} of shape {tuple(output.shape)}".removeprefix("torch.")
        fits = tuple(output.shape) == expected and not output.is_complex()
    else:
        kind, fits = type(output).__name__, False
    if not fits:
        raise InputError(
            f"its output is {kind}, expected a tensor or array of real numbers of shape {expected}"
        )


@contextmanager
def naming(run: JudgedRun, key: str) -> Iterator[None]:
    """Name the run and the resolution in any error of a prediction."""
    try:
        yield
    except Exception as error:
        cause = str(error).rstrip(".")
        raise InputError(
            f"{run.name} cannot predict at {key}: {cause}. Leave out the model or the resolution"
        ) from error


def timed_predict(run: JudgedRun, x: Tensor, repeats: int, steps: int = 1) -> tuple[Tensor, float]:
    """Predict several times, and return a prediction and the seconds of the quickest."""
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        predicted = predict(run.network, run.processor, x, steps)
        best = min(best, perf_counter() - start)
    return predicted, best


def cost_on(run: JudgedRun, grid: Grid) -> tuple[int, int]:
    """Predict a sample on a grid, and return its floating point operations and peak bytes of tensors."""
    x = torch.zeros(1, len(run.processor.inputs), *grid.shape)
    predict(run.network, run.processor, x)
    x = x.to(run.processor.device)
    return count_flops(run.network, x), peak_bytes(run.network, x)


def sample_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """Number the samples of a data set as the store does; runs of times are numbered 0, 1, ..."""
    return np.arange(len(data)) if len(data.channels.starts) > 1 else group_numbers(data)


def group_numbers(data: FieldDataset) -> NDArray[np.int64]:
    """The store's number of each sample of a data set; the runs of times of one sample share it."""
    rows = data.store.layout.rows(data.key, data.split)
    return np.repeat(data.store.layout.samples(data.key)[rows], len(data.channels.starts))
