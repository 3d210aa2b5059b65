"""Loaders for `neuralop.Trainer`: batches of a store's samples, each of one resolution."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, RandomSampler

from mano_op.data.channels import channels_of
from mano_op.data.dataset import FieldDataset, MixedDataset, Sample, SomeSamples, collate
from mano_op.data.guards import check_options
from mano_op.data.layout import Resolution
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.sampler import ChunkSampler, ResolutionBatchSampler, ranks
from mano_op.data.store import FieldStore, opened
from mano_op.errors import InputError, check_whole
from mano_op.grid import Grid
from mano_op.options import Positive, Whole, options


@options
class Splits:
    """Splits of a store that are trained and tested on.

    Parameters
    ----------
    train, test : str
    hold_out : float, optional
        Part of the samples of `train`, drawn by the loaders' seed, to test on in place of `test`, at every
        resolution. The statistics are those of the whole split.
    """

    train: str = "train"
    test: str = "test"
    hold_out: Positive | None = None


@options
class Reading:
    """Reading of training samples: order, processes and memory.

    Parameters
    ----------
    shuffle : {"samples", "chunks"}
        Shuffle all samples, or those of some chunks at a time, so that each is read once; see `ChunkSampler`.
    drop_last : bool
        Leave out a last batch of training samples that is not full.
    num_workers : int
        Processes that read for each loader, without a cache; 0 is the fastest for what fits into memory.
    start_method : {"forkserver", "spawn"}, optional
        Of workers, by default the first that the platform has. A fork may hang.
    cache_bytes : int
        Fields kept in memory, all loaders together: whole splits while they fit, training first, then chunks.
    """

    shuffle: Literal["samples", "chunks"] = "samples"
    drop_last: bool = False
    num_workers: Whole = 0
    start_method: Literal["forkserver", "spawn"] | None = None
    cache_bytes: Whole = 2**30


# Old names of options, with what to give today.
_RENAMED = {field.name: f"reading=Reading({field.name}=...)" for field in fields(Reading)} | {
    "train_split": "splits=Splits(train=...)",
    "test_split": "splits=Splits(test=...)",
    "hold_out": "splits=Splits(hold_out=...)",
    "ratios": "train=Mixed([16, 32], ratios=...)",
    "window": "time_steps=...",
}


class FieldLoaders(NamedTuple):
    """Loaders and processor for `neuralop.Trainer`; tests under the resolutions as they were asked for."""

    train: DataLoader[Sample]
    test: dict[Resolution, DataLoader[Sample]]
    processor: FieldProcessor


def field_loaders(
    store: str | Path | FieldStore,
    *,
    train: Resolution | Mixed,
    test: Sequence[Resolution],
    batch_size: int = 20,
    test_batch_size: int | None = None,
    time_steps: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
    rollout: int | None = None,
    pushforward: int = 0,
    transforms: Mapping[str, str] | None = None,
    coordinates: bool = False,
    splits: Splits | None = None,
    reading: Reading | None = None,
    seed: int = 0,
    **options: Any,
) -> FieldLoaders:
    """Make loaders to train at one resolution, or at several, and to test at several.

    In a distributed training, call it on every rank with the same arguments, after ``init_process_group``.
    Each rank has a part of the training samples, as large as others' in each step, and all test samples.

    Parameters
    ----------
    store : path or FieldStore
    train : int, tuple of int, str, Grid or Mixed
        ``Mixed([16, (32, 48)])`` mixes resolutions in an epoch.
    test : sequence of resolutions
        Keys of ``test``, and so parts of names of metrics: 16 gives "16_l2".
    batch_size, test_batch_size : int
        Of each rank; of tests by default `batch_size`, or the smallest of `Mixed`.
    time_steps, at, coordinates
        As in `FieldDataset`.
    rollout : int, optional
        Steps of the test samples, ``(steps_in, rollout)``, for the Trainer's mode "autoregression".
    pushforward : int
        Steps after the first in ``y`` of training samples, for `mano_op.train.perturbation.PerturbedInputs`.
    transforms : mapping of str to str, optional
        Of variables, ``{"permeability": "log"}``; takes the statistics anew.
    splits, reading : optional
    seed : int
        Of the order of the training samples, the same for any number of workers.

    Raises
    ------
    InputError
        As `FieldDataset` and `ResolutionBatchSampler`, or if nothing would be held out or left.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems.generate import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [8, 16], samples={"train": 4, "test": 2},
    ...                        progress=False)
    >>> train, test, processor = field_loaders(store, train=8, test=[8, 16], batch_size=2)
    >>> len(train), {n: tuple(batch["y"].shape) for n, loader in test.items() for batch in loader}
    (2, {8: (2, 1, 8, 8), 16: (2, 1, 16, 16)})
    >>> mixed = field_loaders(store, train=Mixed([8, 16], batch_size=[4, 2]), test=[]).train
    >>> sorted(tuple(batch["x"].shape) for batch in mixed)
    [(2, 1, 16, 16), (2, 1, 16, 16), (4, 1, 8, 8)]
    """
    check_options(field_loaders, options, _RENAMED)
    store, splits, reading = opened(store), splits or Splits(), reading or Reading()
    mixed = train if isinstance(train, Mixed) else None
    resolutions = list(train.resolutions) if isinstance(train, Mixed) else [train]
    check_whole(batch_size=batch_size, test_batch_size=1 if test_batch_size is None else test_batch_size)
    sizes = list(mixed.batch_size) if mixed and mixed.batch_size else [batch_size] * len(resolutions)
    if reading.shuffle == "chunks" and mixed:
        raise InputError(f"shuffle='chunks' with train={train!r}; expected one resolution, or 'samples'")
    if isinstance(test, str | int | Grid) or not isinstance(test, Sequence):
        raise InputError(f"test={test!r}; expected a list of resolutions, such as test=[{test!r}]")
    test_size = min(sizes) if test_batch_size is None else test_batch_size
    check_whole(at_least=0, seed=seed, pushforward=pushforward)
    train_steps, test_steps = time_steps, time_steps
    if rollout is not None or pushforward:
        check_whole(rollout=1 if rollout is None else rollout)
        steps_in = _steps_in(time_steps, rollout, pushforward, len(store.layout.times))
        train_steps = steps_in, 1 + pushforward
        test_steps = steps_in, rollout or 1

    samples = partial(FieldDataset, store, at=at, coordinates=coordinates, cache_bytes=0)
    wholes = [samples(resolution, splits.train, time_steps=train_steps) for resolution in resolutions]
    test_split = splits.test if splits.hold_out is None else splits.train
    # Equal fields are read once.
    same = {w.key: w for w in wholes if (test_split, test_steps) == (splits.train, train_steps)}
    tested = {
        name: same.get(store.key(name)) or samples(name, test_split, time_steps=test_steps)
        for name in (tuple(key) if isinstance(key, list) else key for key in test)
    }
    parts: list[FieldDataset | SomeSamples] = list(wholes)
    tests: dict[Resolution, FieldDataset | SomeSamples] = dict(tested)
    if splits.hold_out is not None:
        held = _held_out(store.splits[splits.train], splits.hold_out, seed)
        parts = [SomeSamples(whole, np.flatnonzero(~held[whole.rows])) for whole in wholes]
        tests = {name: SomeSamples(w, np.flatnonzero(held[w.rows])) for name, w in tested.items()}
    read = [*wholes, *(whole for whole in tested.values() if whole not in wholes)]
    _share(0 if reading.num_workers else reading.cache_bytes, read)
    common = {"collate_fn": collate, **workers(reading.num_workers, seed, reading.start_method)}
    sampler: dict[str, Any] = {"batch_size": sizes[0], "drop_last": reading.drop_last}
    if mixed or (ranks()[0] > 1 and reading.shuffle == "samples"):
        lengths, ratios = [len(part) for part in parts], mixed.ratios if mixed else None
        order: dict[str, Any] = {"ratios": ratios, "drop_last": reading.drop_last, "seed": seed}
        sampler = {"batch_sampler": ResolutionBatchSampler(lengths, sizes, **order)}
    elif reading.shuffle == "samples":
        sampler["sampler"] = RandomSampler(parts[0], generator=torch.Generator().manual_seed(seed))
    else:
        sampler["sampler"] = ChunkSampler(parts[0].chunks, seed=seed)
    channels = channels_of(store.layout, time_steps, at)
    return FieldLoaders(
        train=DataLoader(MixedDataset(parts) if mixed else parts[0], **sampler, **common),
        test={name: DataLoader(data, batch_size=test_size, **common) for name, data in tests.items()},
        processor=FieldProcessor.from_store(store, splits.train, channels, transforms),
    )


def workers(number: int, seed: int, start_method: str | None = None) -> dict[str, Any]:
    """Return the options of a DataLoader for a number of workers; a fork of this process may hang.

    A DataLoader draws from its generator for its workers, and not as often with workers as without: samplers
    draw from numbers of their own, or the order would depend on the number of workers.
    """
    options: dict[str, Any] = {"num_workers": number, "generator": torch.Generator().manual_seed(seed)}
    if number:
        methods = multiprocessing.get_all_start_methods()
        start = start_method or ("forkserver" if "forkserver" in methods else "spawn")
        options |= {"multiprocessing_context": start, "persistent_workers": True}
    return options


def _held_out(n: int, part: float, seed: int) -> NDArray[np.bool_]:
    size = round(part * n)
    if not 0 < size < n:
        remedy = "leave hold_out out, and test on another split"
        if n > 1:
            remedy = f"give {1 / n:.3g} to {1 - 1 / n:.3g}"
        raise InputError(
            f"hold_out={part} of {n} samples is {size}; expected at least one, and one to be left: {remedy}"
        )
    held = np.zeros(n, dtype=bool)
    # A stream of its own, so that the order of the remaining samples does not follow from those held out.
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    held[random.permutation(n)[:size]] = True
    return held


def _share(cache_bytes: int, parts: Sequence[FieldDataset]) -> None:
    """Share memory among data sets: whole splits while they fit, equal parts of the rest."""
    others = []
    for part in parts:
        if part.nbytes <= cache_bytes:
            part.keep(part.nbytes)
            cache_bytes -= part.nbytes
        else:
            others.append(part)
    for part in others:
        part.keep(cache_bytes // len(others))


def _steps_in(time_steps: Sequence[int] | None, rollout: int | None, pushforward: int, n_times: int) -> int:
    if time_steps is None or len(time_steps) != 2 or time_steps[1] != 1:
        raise InputError(
            f"rollout={rollout}, pushforward={pushforward} with time_steps={time_steps}; expected fields "
            "that vary in time and to train one step out, time_steps=(steps_in, 1)"
        )
    check_whole(steps_in=time_steps[0])
    most = n_times - time_steps[0] - 1
    if n_times and pushforward > most:  # without times, `channels_of` refuses
        raise InputError(
            f"pushforward={pushforward} with time_steps={tuple(time_steps)} needs "
            f"{1 + time_steps[0] + pushforward} times, the store has {n_times}: give at most {max(0, most)}"
        )
    return time_steps[0]
