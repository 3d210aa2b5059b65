"""Patches of fields too large for a model, cut by xbatcher, as samples ``{"x", "y"}``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import Dataset

from mano_op.data.guards import check_not_forked
from mano_op.errors import InputError


class Batches(Protocol):
    """Protocol of the part of an ``xbatcher.BatchGenerator`` that is used."""

    def __len__(self) -> int: ...

    def __getitem__(self, idx: int) -> xr.Dataset: ...


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches of an ``xbatcher.BatchGenerator`` as neuraloperator's samples, each with its coordinates.

    The generator decides size and overlap, and drops what does not fill a patch. Every patch takes
    milliseconds of xarray, and the chunk that holds it: meant for fields of which one fills the device,
    stored one a chunk. Reading from disk in a forked process is refused. Needs ``pip install
    'mano_op[patches]'``.

    Parameters
    ----------
    batches : xbatcher.BatchGenerator
        Over ``store.dataset(resolution)`` or any labelled data set, with the sample of size 1 in its
        ``input_dims``, and ``preload_batch=False``.
    inputs, outputs : sequence of str
        Variables that become the channels of ``x`` and ``y``.
    sample : str
        Dimension of the samples.

    Examples
    --------
    >>> import tempfile
    >>> from xbatcher import BatchGenerator
    >>> from mano_op.problems import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [16], samples={"train": 3}, progress=False)
    >>> batches = BatchGenerator(store.dataset(16), {"sample": 1, "y": 8, "x": 8}, preload_batch=False)
    >>> patches = PatchDataset(batches, inputs=["permeability"], outputs=["pressure"])
    >>> len(patches), patches[1]["x"].shape, patches[1]["coordinates"][:, 0, 0]
    (12, torch.Size([1, 8, 8]), tensor([0.0000, 0.5000]))
    """

    def __init__(
        self, batches: Batches, *, inputs: Sequence[str], outputs: Sequence[str], sample: str = "sample"
    ) -> None:
        self.batches, self.inputs, self.outputs = batches, tuple(inputs), tuple(outputs)
        self._sample, self._process = sample, os.getpid()
        for violation in self._violations():
            raise InputError(violation)
        names, first = (*self.inputs, *self.outputs), batches[0]
        self._dims = tuple(dim for dim in first[names[0]].dims if dim != sample)
        # A patch of a data set in memory is a view of it; any other is read when its values are asked for.
        self._in_memory = all(first[name].variable._in_memory for name in names)

    def _violations(self) -> Iterator[str]:
        if not len(self):
            yield "batches has no patch; expected patches no larger than the fields"
        first, names = self.batches[0], (*self.inputs, *self.outputs)
        if not (self.inputs and self.outputs and set(names) <= set(first.data_vars)):
            yield (
                f"inputs={list(self.inputs)} and outputs={list(self.outputs)} of a data set that has "
                f"{', '.join(map(str, first.data_vars))}; expected one input and one output at least"
            )
        dims = {name: first[name].dims for name in names}
        if len(set(dims.values())) > 1:
            yield f"variables of the dimensions {dims}; expected the same for all"
        if first.sizes.get(self._sample) != 1:
            yield (
                f"patches of the sizes {dict(first.sizes)}; expected one sample each: give the generator "
                f"input_dims={{{self._sample!r}: 1, ...}}"
            )
        for dim in dims[names[0]]:
            if dim != self._sample and dim not in first.coords:
                yield (
                    f"dimension {dim!r} has no coordinate, so nothing says where a patch lies; assign it to "
                    f"the data set that the generator cuts: `data.assign_coords({{{dim!r}: Axis({dim!r}, "
                    f"data.sizes[{dim!r}], start, stop, registration).points}})`, with mano_op.Axis"
                )
            if dim != self._sample and first[dim].dtype.kind not in "iuf":
                yield (
                    f"the coordinate of {dim!r} is of {first[dim].dtype}; expected numbers. Of dates, in the "
                    "data set that the generator cuts, those since the first: `data.assign_coords({"
                    f"{dim!r}: (data[{dim!r}] - data[{dim!r}][0]) / np.timedelta64(1, 's')}})`"
                )

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index}; there are {len(self)}")
        if not self._in_memory:
            check_not_forked(self._process, os.getpid(), "a patch", "load the data set first")
        patch = self.batches[index % len(self)].isel({self._sample: 0}).load()
        for name in (*self.inputs, *self.outputs):
            if not np.isfinite(patch[name]).all():
                origin = ", ".join(f"{dim} = {float(patch[dim][0]):g}" for dim in self._dims)
                raise InputError(
                    f"patch {index}, from {origin}: {name} has a NaN or an infinity; expected finite values"
                )
        mesh = np.meshgrid(*(patch[dim].to_numpy() for dim in self._dims), indexing="ij")
        return {
            "x": self._stacked(patch, self.inputs),
            "y": self._stacked(patch, self.outputs),
            "coordinates": torch.from_numpy(np.stack(mesh).astype(np.float32)),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_process": os.getpid()}  # sent to another process, not forked

    def _stacked(self, patch: xr.Dataset, names: Sequence[str]) -> Tensor:
        values = np.stack([patch[name].transpose(*self._dims).to_numpy() for name in names])
        return torch.from_numpy(values.astype(np.float32))
