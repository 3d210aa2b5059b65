"""Samples ``{"x", "y"}`` of one grid, or of several, out of a store."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, default_collate

from mano_op.data.channels import Channel, channels_of
from mano_op.data.chunk_cache import ChunkCache
from mano_op.data.guards import check_not_forked
from mano_op.data.layout import Resolution, Variable
from mano_op.data.store import FieldStore, opened
from mano_op.errors import InputError
from mano_op.grid import Grid

Sample = dict[str, Tensor]


class Batch(Sequence[Sample]):
    """Samples that are views of a stacked batch, so that `collate` need not copy them into another.

    `stacked` has tensors of shape ``(samples, ...)``.

    Examples
    --------
    >>> batch = Batch({"x": torch.arange(6).reshape(3, 2), "y": torch.arange(3)})
    >>> len(batch), batch[-1], [sample["y"].item() for sample in batch[:2]]
    (3, {'x': tensor([4, 5]), 'y': tensor(2)}, [0, 1])
    """

    def __init__(self, stacked: Sample) -> None:
        self.stacked = stacked

    def __len__(self) -> int:
        return len(next(iter(self.stacked.values())))

    def __getitem__(self, index: Any) -> Any:
        fields = {name: field[index] for name, field in self.stacked.items()}
        return Batch(fields) if isinstance(index, slice) else fields


def collate(samples: Sequence[Sample]) -> Any:
    """Collate samples as torch does; a `Batch` is left as it is."""
    return samples.stacked if isinstance(samples, Batch) else default_collate(list(samples))


class FieldDataset(Dataset[Sample]):
    """Samples of one split at one resolution of a store.

    A sample has float32 tensors in physical units, ``x`` of shape ``(in_channels, *grid)`` and ``y`` of shape
    ``(out_channels, *grid)``, channels in the store's order, one time after another.

    A split that fits into `cache_bytes` is read once, here. Otherwise `__getitems__` reads a batch in one go,
    much faster than single samples, and the last chunks are kept. A pickled copy reads from the store.

    Parameters
    ----------
    store : path or FieldStore
    resolution : int, tuple of int, str or Grid
        16, (16, 24), "r16", or the grid itself.
    split : str
    time_steps : (int, int), optional
        Numbers of known and of predicted steps, as of `channels_of`; each such run of times is a sample.
    at : sequence of float, optional
        Instead, the times to predict from the steady inputs.
    coordinates : bool
        Add ``coordinates`` of the points, shape ``(n_dim, *grid)``.
    cache_bytes : int
        Fields that may be kept in memory; 0 keeps none.

    Attributes
    ----------
    key : str
        Name of the resolution in the store.
    channels : Channels
        Variable and time of each channel.
    inputs, outputs : tuple of str
        Names of the channels of ``x`` and ``y``.

    Raises
    ------
    InputError
        If the store is partial, has no such resolution, split or times, or (when it is read) a value is not
        finite. Reading in a forked process is refused, since it can hang.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4], samples={"train": 2}, progress=False)
    >>> data = FieldDataset(store, 4)
    >>> len(data), data[1]["x"].shape, np.array_equal(data[1]["y"][0], store.read(4, "pressure")[1])
    (2, torch.Size([1, 4, 4]), True)
    """

    def __init__(
        self,
        store: str | Path | FieldStore,
        resolution: Resolution,
        split: str = "train",
        *,
        time_steps: Sequence[int] | None = None,
        at: Sequence[float] | None = None,
        coordinates: bool = False,
        cache_bytes: int = 2**30,
    ) -> None:
        self.store = opened(store)
        self.split = split
        self.channels = channels_of(self.store.layout, time_steps, at)
        self.inputs, self.outputs = self.channels.inputs, self.channels.outputs
        self.key = self.store.key(resolution)
        self._rows = self.store.layout.rows(self.key, split)
        self._n_rows = self._rows.stop - self._rows.start
        self._coordinates = coordinates
        self._process = os.getpid()
        self._cache: dict[str, NDArray[np.float32]] | None = None
        self.keep(cache_bytes)

    def keep(self, cache_bytes: int) -> None:
        """Read the split into memory if it fits into `cache_bytes`, or keep the last chunks from now on."""
        self._chunks, self._cache = ChunkCache(self.store, self.key, cache_bytes), None
        if self.nbytes <= cache_bytes:
            self._cache = {name: self.store.read(self.key, name, self._rows) for name in self._variables}

    @property
    def nbytes(self) -> int:
        """Bytes that the split takes in memory."""
        layout = self.store.layout
        values = sum(math.prod(layout.shape(self.key, variable)) for variable in self._variables.values())
        return 4 * self._n_rows * values

    @property
    def grid(self) -> Grid:
        """Points of the samples."""
        return self.store.grids[self.key]

    @property
    def cached(self) -> bool:
        """Whether the split is in memory."""
        return self._cache is not None

    @property
    def _variables(self) -> dict[str, Variable]:
        used = {channel.variable for channel in self.channels.all}
        return {variable.name: variable for variable in self.store.variables if variable.name in used}

    @property
    def chunks(self) -> list[NDArray[np.int64]]:
        """Indices of the samples in each chunk of the store."""
        runs, length = len(self.channels.starts), self.store.layout.chunk
        owner = (self._rows.start + np.arange(self._n_rows)) // length
        samples = np.arange(len(self)).reshape(self._n_rows, runs)
        return [samples[owner == chunk].ravel() for chunk in np.unique(owner)]

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of the split that each sample belongs to: several runs of times share one."""
        return np.repeat(np.arange(self._n_rows), len(self.channels.starts))

    def __len__(self) -> int:
        return self._n_rows * len(self.channels.starts)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Sample]:
        """Read several samples, in the order asked for, at once."""
        if len(indices) == 0:
            return []
        wanted = _counted(indices, len(self), f"the split {self.split!r} has")
        rows, starts = np.divmod(wanted, len(self.channels.starts))
        fields, rows, first = self._fields(rows, starts)
        batch = {
            name: torch.from_numpy(_gather(fields, channels, rows, starts - first))
            for name, channels in (("x", self.channels.x), ("y", self.channels.y))
        }
        if self._coordinates:
            mesh = torch.from_numpy(self.grid.mesh.astype(np.float32))
            batch["coordinates"] = mesh.expand(len(wanted), *mesh.shape).contiguous()
        return Batch(batch)

    def _fields(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64], int]:
        """Return fields with the samples, the rows of these, and the first time."""
        if self._cache is not None:
            return self._cache, rows, 0
        check_not_forked(self._process, os.getpid(), "a store", "use `field_loaders`")
        distinct, index = np.unique(self._rows.start + rows, return_inverse=True)
        layout, first, times = self.store.layout, 0, None
        if layout.chunk_times < len(layout.times):  # otherwise a chunk has all times, and is read whole
            offsets = [channel.offset for channel in self.channels.all if channel.offset is not None]
            first = int(starts.min()) + min(offsets)
            times = slice(first, int(starts.max()) + max(offsets) + 1)
        fields = {
            name: self.store.read(self.key, name, distinct, times)
            if variable.time and times
            else self._chunks.read(name, distinct)
            for name, variable in self._variables.items()
        }
        return fields, index, first

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_chunks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy in another process keeps nothing: there are as many as there are workers.
        chunks = ChunkCache(state["store"], state["key"], 0)
        self.__dict__ |= {**state, "_process": os.getpid(), "_chunks": chunks}


def _counted(indices: Sequence[int], n: int, whole: str) -> NDArray[np.int64]:
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.min() < -n or wanted.max() >= n:
        raise IndexError(f"samples {wanted.min()} to {wanted.max()}; {whole} {n}")
    return wanted % n


def _gather(
    fields: dict[str, NDArray[np.float32]],
    channels: Sequence[Channel],
    rows: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Stack the channels of samples; always a copy, to keep the cache as it is."""
    # numpy copies whole rows in one thread; torch's index_select waits for threads of its own, which costs
    # far more where another process has the cores. The rows are in range, so "clip" clips none.
    values = [
        fields[channel.variable].take(rows, axis=0, mode="clip")
        if channel.offset is None
        else fields[channel.variable][rows, starts + channel.offset]
        for channel in channels
    ]
    return values[0][:, None] if len(values) == 1 else np.stack(values, axis=1)


class SomeSamples(Subset[Sample]):
    """Samples of a data set at some indices, under numbers of their own.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4], samples={"train": 5}, progress=False)
    >>> whole = FieldDataset(store, 4)
    >>> some = SomeSamples(whole, np.array([0, 3]))
    >>> len(some), torch.equal(some[1]["y"], whole[3]["y"])
    (2, True)
    """

    dataset: FieldDataset

    def __init__(self, whole: FieldDataset, indices: NDArray[np.int64]) -> None:
        super().__init__(whole, np.asarray(indices).tolist())
        self.grid, self.inputs, self.outputs = whole.grid, whole.inputs, whole.outputs

    @property
    def chunks(self) -> list[NDArray[np.int64]]:
        """Indices of the samples in each chunk of the store that has any of them."""
        parts = [np.flatnonzero(np.isin(self.indices, chunk)) for chunk in self.dataset.chunks]
        return [part for part in parts if len(part)]


class MixedDataset(ConcatDataset[Sample]):
    """Samples of several resolutions, one data set after another, drawn in batches of one resolution.

    `InputError` if there is no part, channels differ, or the samples of a batch do not stack.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4, 8], samples={"train": 3},
    ...                        progress=False)
    >>> mixed = MixedDataset([FieldDataset(store, 4), FieldDataset(store, 8)])
    >>> len(mixed), mixed[2]["x"].shape, mixed[3]["x"].shape
    (6, torch.Size([1, 4, 4]), torch.Size([1, 8, 8]))
    """

    def __init__(self, parts: Sequence[FieldDataset | SomeSamples]) -> None:
        channels = [(part.inputs, part.outputs) for part in parts]
        if len(set(channels)) != 1:
            raise InputError(
                f"parts with the channels {channels}; expected at least one, and the same channels for all"
            )
        super().__init__(parts)
        self.parts, self.inputs, self.outputs = tuple(parts), parts[0].inputs, parts[0].outputs

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Sample]:
        """Read several samples of one resolution, in the order asked for."""
        if len(indices) == 0:
            return []
        wanted = _counted(indices, len(self), "there are")
        firsts = np.array([0, *self.cumulative_sizes])
        owners = np.searchsorted(firsts, wanted, side="right") - 1
        rows = wanted - firsts[owners]
        if len({self.parts[owner].grid.shape for owner in owners}) > 1:
            raise InputError(
                "a batch of samples of several resolutions, which do not stack: give the DataLoader a "
                "batch_sampler=ResolutionBatchSampler(...), as `field_loaders` does"
            )
        if len(set(owners)) == 1:
            return self.parts[owners[0]].__getitems__(rows.tolist())
        return [self.parts[owner][row] for owner, row in zip(owners, rows, strict=True)]
