"""Evidence of an evaluation for its report: the runs, the store, and the fields of some samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from mano_op.data.dataset import FieldDataset
from mano_op.data.store import FieldStore
from mano_op.transfer.predict import sample_numbers
from mano_op.transfer.rollout import shown_labels
from mano_op.transfer.runs import JudgedRun, run_coordinates
from mano_op.transfer.significance import DPU

KEPT = ("direct", *DPU)


@dataclass
class Evidence:
    """Collects, while `mano_op.transfer.evaluate_transfer` runs, what `mano_op.report.write_report` shows.

    Attributes
    ----------
    max_bytes : int
        Memory for fields. Those of the first samples of the split are kept, as many as fit and at least one,
        at the home resolutions and at the finest that is judged. Of a rollout the first, the middle and the
        last step are kept.
    runs : list of JudgedRun
    store : FieldStore
    fields : dict of str to Dataset
        By resolution, coarsest first: ``input`` (input_variable, sample, *axes), ``truth`` (variable, sample,
        *axes) and ``prediction`` (run, predictor, variable, sample, *axes), direct and by each DPU, in
        float32 and physical units, with the coordinates of the grid.
    """

    max_bytes: int = 2**28
    runs: list[JudgedRun] = field(default_factory=list, init=False)
    store: FieldStore = field(init=False, repr=False)
    fields: dict[str, xr.Dataset] = field(default_factory=dict, init=False, repr=False)

    def begin(
        self, runs: list[JudgedRun], store: FieldStore, data: Mapping[str, FieldDataset], rollout: int
    ) -> None:
        """Reserve the memory for the fields of `data`, by resolution, coarsest first."""
        self.runs, self.store = runs, store
        homes, (*_, finest) = {run.home for run in runs}, data
        shown = {key: fields for key, fields in data.items() if key in homes or key == finest}
        labels = shown_labels(data[finest].outputs, rollout)
        channels = len(data[finest].inputs) + len(labels) * (1 + len(runs) * len(KEPT))
        sample_bytes = 4 * channels * sum(math.prod(fields.grid.shape) for fields in shown.values())
        n = min(len(data[finest]), max(1, self.max_bytes // sample_bytes))
        coordinates = run_coordinates([(run.model, run.train_resolution, run.seed) for run in runs])
        self.fields = {key: _reserved(fields, coordinates, labels, n) for key, fields in shown.items()}

    def add_truth(self, key: str, rows: range, x: Tensor, y: Tensor, labels: Sequence[str]) -> None:
        """Keep the inputs and outputs of a batch, whose output channels are `labels`."""
        self._put(key, "input", (), rows, x)
        self._put(key, "truth", (), rows, y, labels)

    def add(
        self, key: str, run: int, rows: range, predictions: Mapping[str, Tensor], labels: Sequence[str]
    ) -> None:
        """Keep the predictions of a run for a batch."""
        for k, predictor in enumerate(KEPT):
            self._put(key, "prediction", (run, k), rows, predictions[predictor], labels)

    def _put(
        self,
        key: str,
        name: str,
        at: tuple[int, ...],
        rows: range,
        values: Tensor,
        labels: Sequence[str] | None = None,
    ) -> None:
        if key not in self.fields:
            return
        kept = self.fields[key]
        n = max(0, min(len(rows), kept.sizes["sample"] - rows.start))
        if labels is not None:
            values = values[:, [labels.index(label) for label in kept["variable"].values]]
        kept[name].values[at][:, rows.start : rows.start + n] = values[:n].transpose(0, 1).numpy()


def _reserved(data: FieldDataset, coordinates: xr.Coordinates, labels: list[str], n: int) -> xr.Dataset:
    axes, shape = data.grid.names, data.grid.shape
    sizes = {"run": coordinates.sizes["run"], "predictor": len(KEPT), "variable": len(labels), "sample": n}
    sizes["input_variable"] = len(data.inputs)

    def empty(*dims: str) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        return (*dims, *axes), np.empty((*(sizes[dim] for dim in dims), *shape), np.float32)

    arrays = {
        "input": empty("input_variable", "sample"),
        "truth": empty("variable", "sample"),
        "prediction": empty("run", "predictor", "variable", "sample"),
    }
    labelled = {
        "input_variable": list(data.inputs),
        "predictor": list(KEPT),
        "variable": labels,
        "sample": sample_numbers(data)[:n],
        **dict(zip(axes, data.grid.points, strict=True)),
    }
    return xr.Dataset(arrays, coordinates).assign_coords(labelled)
