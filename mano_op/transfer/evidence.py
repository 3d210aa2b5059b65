"""Evidence of an evaluation for its report: the runs, the store, and the fields of some samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from torch import Tensor

from mano_op.data.dataset import FieldDataset
from mano_op.data.store import FieldStore
from mano_op.transfer.predictors import KEPT, sample_numbers
from mano_op.transfer.rollout import shown_labels
from mano_op.transfer.runs import JudgedRun, run_coordinates


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
        coordinates = run_coordinates([run.coordinates for run in runs])
        self.fields = {key: _reserved(fields, coordinates, labels, n) for key, fields in shown.items()}

    def add(
        self, key: str, name: str, rows: slice, values: Tensor, labels: Sequence[str], *place: int
    ) -> None:
        """Keep a batch of a field, whose channels are `labels`; a prediction's place is run and predictor."""
        if key in self.fields:
            kept = self.fields[key][name][place]
            channels = [labels.index(label) for label in kept[kept.dims[0]].values]
            reserved = kept.values[:, rows]
            reserved[:] = values[: reserved.shape[1], channels].transpose(0, 1).numpy()


def _reserved(data: FieldDataset, runs: xr.Coordinates, labels: list[str], n: int) -> xr.Dataset:
    coordinates = {
        "input_variable": list(data.inputs),
        "predictor": list(KEPT),
        "variable": labels,
        "sample": sample_numbers(data)[:n],
        **dict(zip(data.grid.names, data.grid.points, strict=True)),
    }
    labelled = xr.Dataset(coords=runs).assign_coords(coordinates)
    leading = {
        "input": ("input_variable", "sample"),
        "truth": ("variable", "sample"),
        "prediction": ("run", "predictor", "variable", "sample"),
    }
    for name, dims in leading.items():
        shape = [labelled.sizes[dim] for dim in (*dims, *data.grid.names)]
        labelled[name] = (*dims, *data.grid.names), np.empty(shape, np.float32)
    return labelled
