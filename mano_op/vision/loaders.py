"""Batches of images, in order or shuffled by a seed, read by this process or by others."""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mano_op.data.sampler import ResolutionBatchSampler
from mano_op.errors import check_whole


def image_loader(
    data: Dataset[dict[str, Tensor]], batch_size: int, *, num_workers: int = 0, seed: int | None = None
) -> DataLoader[dict[str, Tensor]]:
    """A loader of images and labels.

    Parameters
    ----------
    data : Dataset
    batch_size : int
        Images in a batch, of each process that trains with others.
    num_workers : int
        Processes that read, which stay between epochs. Nothing but time depends on them.
    seed : int, optional
        By which the images are shuffled, anew in each epoch; they come in order without one.

    Examples
    --------
    >>> from mano_op.vision.images import open_images
    >>> split = open_images("digits")["test"]
    >>> batch = next(iter(image_loader(split, 100)))
    >>> tuple(batch["x"].shape), bool((batch["y"] == split.labels[:100]).all())
    ((100, 1, 8, 8), True)
    """
    check_whole(batch_size=batch_size)
    check_whole(at_least=0, num_workers=num_workers)
    options: dict[str, Any] = {"num_workers": num_workers}
    if num_workers:
        # A fork of a process that has computed may hang.
        there = multiprocessing.get_all_start_methods()
        method = "forkserver" if "forkserver" in there else "spawn"
        options |= {"multiprocessing_context": method, "persistent_workers": True}
    # A DataLoader draws from its generator for its workers, not as often with them as without: the sampler
    # draws from one of its own.
    options["generator"] = torch.Generator().manual_seed(seed or 0)
    if seed is None:
        return DataLoader(data, batch_size=batch_size, **options)
    order = ResolutionBatchSampler([len(data)], batch_size, seed=seed)  # type: ignore[arg-type]
    return DataLoader(data, batch_sampler=order, **options)
