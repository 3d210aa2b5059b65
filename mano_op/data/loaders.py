"""The loaders that `neuralop.Trainer` is given: batches of a store's samples, each of one resolution."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, RandomSampler

from mano_op.data.channels import channels_of
from mano_op.data.dataset import FieldDataset, MixedDataset, Sample, SomeSamples, collate
from mano_op.data.layout import Resolution
from mano_op.data.processor import FieldProcessor
from mano_op.data.sampler import ChunkSampler, ResolutionBatchSampler, ranks
from mano_op.data.store import FieldStore, opened
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.grid import Grid


class FieldLoaders(NamedTuple):
    """What `neuralop.Trainer` asks for.

    Attributes
    ----------
    train : DataLoader
        Shuffled anew every epoch; of several resolutions, a batch has one of them.
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
    train: Resolution | list[Resolution],
    test: Sequence[Resolution],
    batch_size: int | Sequence[int],
    test_batch_size: int | None = None,
    ratios: Sequence[float] | None = None,
    window: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
    rollout: int | None = None,
    pushforward: int = 0,
    transforms: Mapping[str, str] | None = None,
    coordinates: bool = False,
    train_split: str = "train",
    test_split: str = "test",
    hold_out: float | None = None,
    drop_last: bool = False,
    shuffle: Literal["samples", "chunks"] = "samples",
    num_workers: int = 0,
    start_method: str | None = None,
    seed: int = 0,
    cache_bytes: int = 2**30,
) -> FieldLoaders:
    """Loaders to train at one resolution, or at several, and to test at several.

    In a distributed training, make them after ``torch.distributed.init_process_group``, on every rank with
    the same arguments: each rank then has its own part of the training samples, as many as every other, at
    the resolution that all have in that step, and all test samples. `batch_size` is of each rank.

    Parameters
    ----------
    store : path or FieldStore
    train : int, tuple of int, str or Grid, or list of these
        Resolution to train at. A list mixes several in an epoch, each batch of one: ``[16, (32, 48)]``.
    test : sequence of resolutions
        Each becomes a key of ``test``, and so part of the name of a metric: 16 gives "16_l2".
    batch_size : int, or sequence of int
        A sequence has one for each resolution to train at.
    test_batch_size : int, optional
        `batch_size` if not given, the smallest of several.
    ratios : sequence of float, optional
        What part of an epoch's samples comes from each resolution to train at; see `ResolutionBatchSampler`.
    window, at, coordinates
        As in `FieldDataset`.
    rollout : int, optional
        Steps of the test samples, for the Trainer's ``eval_modes={...: "autoregression"}``, where the model's
        output is its next input: their window is ``(steps_in, rollout)`` while that of training is
        ``(steps_in, 1)``.
    pushforward : int
        Steps of which the training samples, of window ``(steps_in, 1)``, have the truth beyond the first, for
        `mano_op.train.perturbation.PerturbedInputs`: the channels of their ``y`` are those of each step, one
        after another.
    transforms : mapping of str to str, optional
        Of variables, ``{"permeability": "log"}``; see `mano_op.data.transforms`. The statistics of the
        training split are then taken anew, in one pass.
    train_split, test_split : str
    hold_out : float, optional
        A part of the samples of `train_split`, drawn by `seed`, that ``train`` is to be without, at every
        resolution and in every window: ``test`` then has those, in place of `test_split`. The statistics
        are those of the whole split.
    drop_last : bool
        Whether to leave out a last batch of training samples that is not full.
    shuffle : {"samples", "chunks"}
        How training samples are shuffled: all of them, or, for a split that does not fit into `cache_bytes`,
        those of some chunks at a time, each of which is then read once an epoch; see `ChunkSampler`.
    num_workers : int
        Processes that read for each loader. 0, the default, is the fastest for what fits into memory; others
        are for larger stores, and cache nothing. They stay between epochs.
    start_method : {"forkserver", "spawn"}, optional
        How they are started: afresh, by the first of these that there is. "fork" is refused, since a fork
        of a process that has used zarr, dask or CUDA may hang.
    seed : int
        Of the order of the training samples, which is the same for any number of workers.
    cache_bytes : int
        As in `FieldDataset`. One budget for all loaders: resolutions take of it what they need, those to
        train at first, in their order, then those to test at; what does not fit into the rest is read chunk
        by chunk, with an equal part of it for each.

    Returns
    -------
    FieldLoaders

    Raises
    ------
    InputError
        As `FieldDataset` and `ResolutionBatchSampler`, or if a number is not one that can be used, or no
        sample would be held out or left.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems.generate import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [8, 16], samples={"train": 4, "test": 2},
    ...                        progress=False)
    >>> train, test, processor = field_loaders(store, train=8, test=[8, 16], batch_size=2)
    >>> len(train), {n: tuple(batch["y"].shape) for n, loader in test.items() for batch in loader}
    (2, {8: (2, 1, 8, 8), 16: (2, 1, 16, 16)})
    >>> mixed = field_loaders(store, train=[8, 16], test=[], batch_size=[4, 2]).train
    >>> sorted(tuple(batch["x"].shape) for batch in mixed)
    [(2, 1, 16, 16), (2, 1, 16, 16), (4, 1, 8, 8)]
    """
    store = opened(store)
    levels = train if isinstance(train, list) else [train]
    sizes = list(batch_size) if isinstance(batch_size, Sequence) else [batch_size] * len(levels)
    check_whole(**{f"batch_size[{i}]" if len(sizes) > 1 else "batch_size": n for i, n in enumerate(sizes)})
    if not levels or len(sizes) != len(levels):
        raise InputError(
            f"train={train} with batch_size={batch_size}; expected one batch size, or one for each"
        )
    if ratios is not None and not isinstance(train, list):
        raise InputError(f"ratios={ratios} with train={train!r}; expected a list of resolutions to mix")
    if shuffle not in ("samples", "chunks") or (shuffle == "chunks" and isinstance(train, list)):
        raise InputError(
            f"shuffle={shuffle!r} with train={train!r}; expected 'samples', or 'chunks' for one resolution"
        )
    if isinstance(test, str | int | Grid) or not isinstance(test, Sequence):
        raise InputError(f"test={test!r}; expected a list of resolutions, such as test=[{test!r}]")
    tested = min(sizes, default=1) if test_batch_size is None else test_batch_size
    check_whole(test_batch_size=tested)
    check_whole(
        at_least=0, num_workers=num_workers, seed=seed, cache_bytes=cache_bytes, pushforward=pushforward
    )
    options: dict[str, Any] = {"num_workers": num_workers, "collate_fn": collate}
    if num_workers:
        options |= {"multiprocessing_context": _start_method(start_method), "persistent_workers": True}
        cache_bytes = 0

    def samples(resolution: Resolution, split: str, window: Sequence[int] | None) -> FieldDataset:
        return FieldDataset(
            store, resolution, split, window=window, at=at, coordinates=coordinates, cache_bytes=0
        )

    test_window = window if rollout is None else _rollout_window(window, rollout)
    train_window = window if not pushforward else _pushed_window(window, pushforward, len(store.layout.times))
    wholes = [samples(resolution, train_split, train_window) for resolution in levels]
    parts: list[FieldDataset | SomeSamples] = list(wholes)
    tests: dict[Resolution, FieldDataset | SomeSamples] = {}
    others: list[FieldDataset] = []
    if hold_out is None:
        others = [samples(resolution, test_split, test_window) for resolution in test]
        tests.update(zip(test, others, strict=True))
    else:
        held = _held_out(store.splits[train_split], hold_out, seed)
        parts = [SomeSamples(whole, np.flatnonzero(~held[whole.rows])) for whole in wholes]
        # Where the same fields are trained on, they are read once.
        same = test_window == train_window
        there = {whole.key: whole for whole in wholes} if same else {}
        for resolution in test:
            whole = there.get(store.key(resolution)) or samples(resolution, train_split, test_window)
            tests[resolution] = SomeSamples(whole, np.flatnonzero(held[whole.rows]))
            others += [] if whole in wholes else [whole]
    _share(cache_bytes, [*wholes, *others])
    training: Dataset[Sample] = MixedDataset(parts) if isinstance(train, list) else parts[0]
    # A DataLoader draws from its generator, or from the global one, for its workers, and not as often with
    # workers as without: the order would depend on their number. The samplers draw from numbers of their own.
    options["generator"] = torch.Generator().manual_seed(seed)
    together, _ = ranks()
    if isinstance(train, list) or (together > 1 and shuffle == "samples"):
        sampler: dict[str, Any] = {
            "batch_sampler": ResolutionBatchSampler(
                [len(part) for part in parts], sizes, ratios=ratios, drop_last=drop_last, seed=seed
            )
        }
    else:
        order = torch.Generator().manual_seed(seed)
        sampler = {
            "sampler": RandomSampler(parts[0], generator=order)
            if shuffle == "samples"
            else ChunkSampler(parts[0].chunks, seed=seed),
            "batch_size": sizes[0],
            "drop_last": drop_last,
        }
    channels = channels_of(store.layout, window, at)
    return FieldLoaders(
        train=DataLoader(training, **sampler, **options),
        test={
            resolution: DataLoader(data, batch_size=tested, **options) for resolution, data in tests.items()
        },
        processor=FieldProcessor.from_store(store, train_split, channels, transforms),
    )


def _held_out(n: int, part: float, seed: int) -> NDArray[np.bool_]:
    """Which samples of a split are not trained on."""
    check_finite_number(zero=False, hold_out=part)
    size = round(part * n)
    if not 0 < size < n:
        remedy = (
            f"give {1 / n:.3g} to {1 - 1 / n:.3g}"
            if n > 1
            else "leave hold_out out, and test on another split"
        )
        raise InputError(
            f"hold_out={part} of {n} samples is {size}; expected at least one, and one to be left: {remedy}"
        )
    held = np.zeros(n, dtype=bool)
    # A stream of its own, so that what is held out says nothing of the order of what is left.
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    held[random.permutation(n)[:size]] = True
    return held


def _share(cache_bytes: int, parts: Sequence[FieldDataset]) -> None:
    """Let data sets keep fields in memory: whole splits while they fit, and equal parts of the rest."""
    streamed = []
    for part in parts:
        if part.nbytes <= cache_bytes:
            part.keep(part.nbytes)
            cache_bytes -= part.nbytes
        else:
            streamed.append(part)
    for part in streamed:
        part.keep(cache_bytes // len(streamed))


def _rollout_window(window: Sequence[int] | None, rollout: int) -> tuple[int, int]:
    check_whole(rollout=rollout)
    if window is None or len(window) != 2 or window[1] != 1:
        raise InputError(
            f"rollout={rollout} with window={window}; expected to train one step out, window=(steps_in, 1)"
        )
    return window[0], rollout


def _pushed_window(window: Sequence[int] | None, pushforward: int, n_times: int) -> tuple[int, int]:
    """The window of training samples that have the truth of more steps than one."""
    if window is None or len(window) != 2 or window[1] != 1:
        raise InputError(
            f"pushforward={pushforward} with window={window}; expected fields that vary in time and to train "
            "one step out, window=(steps_in, 1)"
        )
    most = n_times - window[0] - 1
    if n_times and pushforward > most:  # without any, what reads windows says so
        raise InputError(
            f"pushforward={pushforward} with window={tuple(window)} needs {sum(window) + pushforward} times, "
            f"the store has {n_times}: give at most {max(0, most)}"
        )
    return window[0], 1 + pushforward


def _start_method(asked: str | None) -> str:
    there = [
        method for method in ("forkserver", "spawn") if method in multiprocessing.get_all_start_methods()
    ]
    if asked is not None and asked not in there:
        reason = " (a fork of a process that has used zarr, dask or CUDA may hang)" if asked == "fork" else ""
        raise InputError(f"start_method={asked!r}{reason}; expected one of {', '.join(there)}")
    return asked or there[0]
