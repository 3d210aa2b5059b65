"""Samples ``{"x", "y"}`` of one grid out of a store, and the loaders that batch them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from mano_op.data.layout import Resolution
from mano_op.data.processor import FieldProcessor
from mano_op.data.store import FieldStore, open_store
from mano_op.grid import Grid

Sample = dict[str, Tensor]


class FieldDataset(Dataset[Sample]):
    """The samples of one split at one resolution of a store.

    A sample is neuraloperator's dictionary of float32 tensors, ``x`` of shape ``(in_channels, *grid)`` and
    ``y`` of shape ``(out_channels, *grid)``, in physical units, channels in the store's order of fields.

    A split that fits into `cache_bytes` is read once, when the data set is made. Otherwise every batch
    is read when it is asked for: `__getitems__` reads it in one go, each chunk once, so batches are
    much faster than single samples. A copy sent to another process holds the path alone, no fields,
    and reads from the store.

    Parameters
    ----------
    store : path or FieldStore
    resolution : int, tuple of int, str or Grid
        16, (16, 24), "r16", or the grid itself.
    split : str
    cache_bytes : int
        Largest split, in bytes, that is kept in memory; 0 keeps none.

    Attributes
    ----------
    store : FieldStore
    split : str

    Raises
    ------
    InputError
        If the store is partial, has no such resolution or split, or a field has a NaN or an infinity: here
        for a cached split, otherwise when the sample is read.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.data.store import Variable, create_store
    >>> grid = Grid.uniform((4, 4))
    >>> store = create_store(f"{tempfile.mkdtemp()}/fields.zarr", [grid],
    ...     [Variable("a", "input"), Variable("u", "output")], {"train": 2}, title="Fields",
    ...     provenance={}, levels="unknown", boundary_conditions={"y": "open", "x": "open"}, chunk=2)
    >>> a = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    >>> store.write(slice(0, 2), {grid: {"a": a, "u": 2 * a}})
    >>> store.finish()
    >>> data = FieldDataset(store, 4)
    >>> len(data), data[1]["x"].shape, data[1]["y"].mean().item()
    (2, torch.Size([1, 4, 4]), 2.0)
    """

    def __init__(
        self,
        store: str | Path | FieldStore,
        resolution: Resolution,
        split: str = "train",
        *,
        cache_bytes: int = 2**30,
    ) -> None:
        self.store = open_store(store.path if isinstance(store, FieldStore) else store)
        self.split = split
        self._key = self.store.key(resolution)
        self._rows = self.store.layout.rows(self._key, split)
        fields = len(self.inputs) + len(self.outputs)
        cells = int(np.prod(self.grid.shape))
        self._cache: Sample | None = None
        if 4 * len(self) * fields * cells <= cache_bytes:
            self._cache = self._read(np.arange(len(self)))

    @property
    def grid(self) -> Grid:
        """Where the points of the samples are."""
        return self.store.grids[self._key]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the channels of ``x``."""
        return self.store.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the channels of ``y``."""
        return self.store.outputs

    @property
    def cached(self) -> bool:
        """Whether the split is in memory."""
        return self._cache is not None

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, in the order asked for, in one read of the store."""
        n = len(self)
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) == 0:
            return []
        if wanted.min() < -n or wanted.max() >= n:
            raise IndexError(f"samples {wanted.min()} to {wanted.max()}; the split {self.split!r} has {n}")
        # Indexing copies, so what is done to a sample is not done to the cache.
        if self._cache is not None:
            fields, index = self._cache, wanted % n
        else:
            distinct, index = np.unique(wanted % n, return_inverse=True)
            fields = self._read(distinct)
        batch = {name: field[torch.from_numpy(index)] for name, field in fields.items()}
        return [{name: field[i] for name, field in batch.items()} for i in range(len(wanted))]

    def _read(self, indices: NDArray[np.int64]) -> Sample:
        """Fields of samples of the split, given in increasing order, as one batch."""
        batch = {}
        for name, channels in (("x", self.inputs), ("y", self.outputs)):
            fields = np.empty((len(indices), len(channels), *self.grid.shape), dtype=np.float32)
            for channel, variable in enumerate(channels):
                fields[:, channel] = self.store.read(self._key, variable, self._rows.start + indices)
            batch[name] = torch.from_numpy(fields)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}


class FieldLoaders(NamedTuple):
    """What `neuralop.Trainer` asks for.

    Attributes
    ----------
    train : DataLoader
        Shuffled anew every epoch.
    test : dict of int or tuple of int to DataLoader
        In order, under the resolutions as they were asked for.
    processor : FieldProcessor
        With the statistics of `train_split`.
    """

    train: DataLoader[Sample]
    test: dict[Resolution, DataLoader[Sample]]
    processor: FieldProcessor


def field_loaders(
    store: str | Path | FieldStore,
    *,
    train: Resolution,
    test: Sequence[Resolution],
    batch_size: int,
    test_batch_size: int | None = None,
    train_split: str = "train",
    test_split: str = "test",
    num_workers: int = 0,
    seed: int = 0,
    cache_bytes: int = 2**30,
) -> FieldLoaders:
    """Loaders to train at one resolution and to test at several.

    Parameters
    ----------
    store : path or FieldStore
    train : int, tuple of int, str or Grid
        Resolution to train at.
    test : sequence of resolutions
        Each becomes a key of ``test``, and so part of the name of a metric: 16 gives "16_l2".
    batch_size : int
    test_batch_size : int, optional
        `batch_size` if not given.
    train_split, test_split : str
    num_workers : int
        Processes that read for each loader. 0, the default, is the fastest for what fits into memory; others
        are for larger stores, and cache nothing. They are started afresh, not forked, since a fork
        of a process that has used zarr, dask or CUDA may hang, and they stay between epochs.
    seed : int
        Of the order of the training samples, which is the same for any number of workers.
    cache_bytes : int
        As in `FieldDataset`, for each loader.

    Returns
    -------
    FieldLoaders

    Raises
    ------
    InputError
        As `FieldDataset`, and if a loader option is no number that can be used.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems.generate import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [8, 16], samples={"train": 4, "test": 2},
    ...                        progress=False)
    >>> train, test, processor = field_loaders(store, train=8, test=[8, 16], batch_size=2)
    >>> len(train), {n: tuple(batch["y"].shape) for n, loader in test.items() for batch in loader}
    (2, {8: (2, 1, 8, 8), 16: (2, 1, 16, 16)})
    """
    store = open_store(store.path if isinstance(store, FieldStore) else store)
    options: dict[str, Any] = {"num_workers": num_workers}
    if num_workers:
        starts = multiprocessing.get_all_start_methods()
        options["multiprocessing_context"] = "forkserver" if "forkserver" in starts else "spawn"
        options["persistent_workers"] = True
        cache_bytes = 0

    def samples(resolution: Resolution, split: str) -> FieldDataset:
        return FieldDataset(store, resolution, split, cache_bytes=cache_bytes)

    training = samples(train, train_split)
    # A generator of its own, because a DataLoader draws from its generator, or from the global one, for its
    # workers too, and not as often with workers as without: the order would depend on their number.
    order = RandomSampler(training, generator=torch.Generator().manual_seed(seed))
    options["generator"] = torch.Generator().manual_seed(seed)
    return FieldLoaders(
        train=DataLoader(training, batch_size=batch_size, sampler=order, **options),
        test={
            resolution: DataLoader(
                samples(resolution, test_split), batch_size=test_batch_size or batch_size, **options
            )
            for resolution in test
        },
        processor=FieldProcessor.from_store(store, train_split),
    )
