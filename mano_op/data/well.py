"""Samples that The Well's own package reads, without a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mano_op.data.guards import check_has, check_shape
from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError
from mano_op.labels import variable_of

_PERIODIC = 2  # The Well's number for the ends of an axis; 0 is a wall, 1 is open


class WellSamples(Dataset[dict[str, Tensor]]):
    r"""A ``the_well.data.WellDataset`` in neuraloperator's form: channels first, ``x`` and ``y``.

    .. math:: x = [c,\; u(t_{1-k}), \ldots, u(t_0)], \qquad y = [u(t_1), \ldots, u(t_m)]

    with the constant fields c and the varying ones u, at k = ``n_steps_input`` known and m =
    ``n_steps_output`` later times, as `mano_op.data.dataset.FieldDataset` has them. Scalars are left out.
    A store made by `mano_op.data.importers.import_the_well` is read faster, and is what `train_model` takes.

    Parameters
    ----------
    dataset : the_well.data.WellDataset
        With ``use_normalization=False``; `processor` has The Well's statistics.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Labels of the channels: "porosity", "velocity_x@-1", "velocity_x@+0"; "velocity_x@+1".

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class TwoSteps:  # attributes of a WellDataset that are used
    ...     metadata = SimpleNamespace(field_names={0: ["u"]}, constant_field_names={0: ["c"]})
    ...     n_steps_input, n_steps_output, max_rollout_steps, use_normalization = 1, 2, 100, False
    ...     def __len__(self): return 1
    ...     def __getitem__(self, index):
    ...         u, c = torch.arange(3.0).reshape(3, 1, 1).expand(3, 4, 1), torch.full((4, 1), 9.0)
    ...         return {"input_fields": u[:1], "output_fields": u[1:], "constant_fields": c}
    >>> samples = WellSamples(TwoSteps())
    >>> samples.inputs, samples.outputs
    (('c', 'u@+0'), ('u@+1', 'u@+2'))
    >>> samples[0]["x"][:, 0], samples[0]["y"][:, 0]
    (tensor([9., 0.]), tensor([1., 2.]))
    """

    def __init__(self, dataset: Any) -> None:
        used = ("metadata", "n_steps_input", "n_steps_output", "max_rollout_steps", "use_normalization")
        known = [name for name in used if hasattr(dataset, name)]
        check_has(type(dataset).__name__, "attribute", used, known, "; expected a the_well.data.WellDataset")
        grid_type = getattr(dataset.metadata, "grid_type", "cartesian")
        if dataset.use_normalization or grid_type != "cartesian":
            raise InputError(
                f"the data set has use_normalization={dataset.use_normalization}, on a {grid_type} grid; "
                "expected fields in units, as errors should be: make it with use_normalization=False, the "
                "statistics are for `WellSamples.processor`; on a cartesian grid, as losses and means would "
                "weight the poles of a sphere too much: project the fields onto a plane first"
            )
        self.dataset = dataset
        varying, steady = (
            [name for order in sorted(names) for name in names[order]]
            for names in (dataset.metadata.field_names, dataset.metadata.constant_field_names)
        )
        known, later = dataset.n_steps_input, min(dataset.n_steps_output, dataset.max_rollout_steps)
        self.inputs = (*steady, *(f"{name}@{step:+d}" for step in range(1 - known, 1) for name in varying))
        self.outputs = tuple(f"{name}@{step:+d}" for step in range(1, later + 1) for name in varying)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.dataset[index]
        parts = [_times_first(sample["input_fields"])]
        if "constant_fields" in sample:
            parts.insert(0, sample["constant_fields"].movedim(-1, 0))
        return {"x": torch.cat(parts).float(), "y": _times_first(sample["output_fields"]).float()}

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each axis wraps; refused if the data set has no boundary conditions."""
        remedy = '; make the data set with boundary_return_type="padding"'
        sample = self.dataset[0]
        check_has("a sample of the data set", "entry", ["boundary_conditions"], sample, remedy)
        return tuple(bool((axis == _PERIODIC).all()) for axis in sample["boundary_conditions"])

    def processor(self, statistics: Mapping[str, Mapping[str, Any]]) -> FieldProcessor:
        """Make the processor with The Well's statistics, the content of ``stats.yaml``.

        It has "mean" and "std" of each field, a number for each component; `InputError` if one is missing.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> dataset = SimpleNamespace(
        ...     metadata=SimpleNamespace(field_names={0: ["p"], 1: ["v_x", "v_y"]}, constant_field_names={},
        ...                              n_spatial_dims=2),
        ...     core_field_names=["p", "v"], core_constant_field_names=[],
        ...     n_steps_input=1, n_steps_output=1, max_rollout_steps=100, use_normalization=False)
        >>> statistics = {"mean": {"p": 1.0, "v": [2.0, 3.0]}, "std": {"p": 4.0, "v": [5.0, 6.0]}}
        >>> WellSamples(dataset).processor(statistics).out_mean
        tensor([1., 2., 3.])
        """
        numbers = self._numbers(statistics)
        return FieldProcessor(
            *(
                {label: numbers[variable_of(label)] for label in labels}
                for labels in (self.inputs, self.outputs)
            )
        )

    def _numbers(self, statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        numbers: dict[str, dict[str, float]] = {}
        metadata = self.dataset.metadata
        for fields, names in (
            (iter(self.dataset.core_field_names), metadata.field_names),
            (iter(self.dataset.core_constant_field_names), metadata.constant_field_names),
        ):
            for order in sorted(names):
                n = metadata.n_spatial_dims**order  # the components of a field follow one another
                for first in range(0, len(names[order]), n):
                    field = next(fields)
                    for what in ("mean", "std"):
                        values = np.ravel(statistics.get(what, {}).get(field, []))
                        where = f"statistics, {what} of {field!r}"
                        check_shape(where, values.shape, (n,), "a number for each component")
                        for name, value in zip(names[order][first:], values, strict=False):
                            numbers.setdefault(name, {})[what] = float(value)
        return numbers


def _times_first(fields: Tensor) -> Tensor:
    return fields.movedim(-1, 1).flatten(0, 1)
