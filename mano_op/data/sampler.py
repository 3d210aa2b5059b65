"""Order of samples: batches of one resolution each, or the samples of a chunk together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mano_op.errors import InputError, check_finite_number, check_whole


def ranks(num_replicas: int | None = None, rank: int | None = None) -> tuple[int, int]:
    """Return how many processes train together, and which this one is: as given, or as of the default group.

    Examples
    --------
    >>> ranks(), ranks(4, 3)
    ((1, 0), (4, 3))
    """
    group = (1, 0)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed.get_world_size(), torch.distributed.get_rank()
    num_replicas = group[0] if num_replicas is None else num_replicas
    rank = group[1] if rank is None else rank
    check_whole(num_replicas=num_replicas)
    check_whole(rank=rank, at_least=0)
    if rank >= num_replicas:
        raise InputError(f"rank={rank} of num_replicas={num_replicas}; expected 0 to {num_replicas - 1}")
    return num_replicas, rank


class _Epochs:
    """Passes of a sampler, each with random numbers that follow from the seed and the epoch."""

    def __init__(self, seed: int, num_replicas: int | None, rank: int | None) -> None:
        check_whole(seed=seed, at_least=0)
        self.seed, self.epoch = seed, 0
        self.num_replicas, self.rank = ranks(num_replicas, rank)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, to resume a training."""
        check_whole(epoch=epoch, at_least=0)
        self.epoch = epoch

    def _next_epoch(self) -> np.random.Generator:
        self.epoch += 1
        return np.random.default_rng([self.seed, self.epoch - 1])


class ResolutionBatchSampler(_Epochs, Sampler[list[int]]):
    """Batches of indices into concatenated data sets, each batch out of one of them.

    The ``batch_sampler`` of a DataLoader over `mano_op.data.dataset.MixedDataset`. All randomness follows
    from `seed` and the epoch, so all ranks take the same resolution, and as many samples, in every step.

    Parameters
    ----------
    sizes : sequence of int
        Number of samples of each resolution.
    batch_size : int or sequence of int
        One for all resolutions, or for each; of each rank.
    ratios : sequence of float, optional
        Parts of an epoch's samples, scaled to sum 1; the epoch is as large as it can be without repetition.
        By default an epoch has every sample once.
    shuffle : bool
        Draw samples and the order of batches anew in each epoch.
    drop_last : bool
        Leave out the last batch of a resolution if it is not full.
    seed : int
    num_replicas, rank : int, optional
        Of a distributed training; by default those of the process group. Where samples do not divide, some
        come twice, or with `drop_last` are left out.

    Attributes
    ----------
    epoch : int
        Of the next pass. It goes on by itself, since neuraloperator's Trainer does not say which it is in.

    Examples
    --------
    >>> batches = list(ResolutionBatchSampler([4, 3], batch_size=2, shuffle=False))
    >>> batches
    [[0, 1], [2, 3], [4, 5], [6]]
    >>> sampler = ResolutionBatchSampler([90, 10], batch_size=5, ratios=[0.5, 0.5])
    >>> len(sampler), sum(index >= 90 for batch in sampler for index in batch)
    (4, 10)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int | Sequence[int],
        *,
        ratios: Sequence[float] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(seed, num_replicas, rank)
        batch_sizes = list(batch_size) if isinstance(batch_size, Sequence) else [batch_size] * len(sizes)
        check_whole(**{f"sizes[{i}]": size for i, size in enumerate(sizes)})
        check_whole(**{f"batch_size[{i}]": size for i, size in enumerate(batch_sizes)})
        weights = [1] * len(sizes) if ratios is None else list(ratios)
        check_finite_number(zero=True, **{f"ratios[{i}]": weight for i, weight in enumerate(weights)})
        for name, values in (("batch_size", batch_sizes), ("ratios", weights)):
            if len(values) != len(sizes) or not sum(values) > 0:
                raise InputError(
                    f"{name}={list(values)} for {len(sizes)} resolutions; expected one for each, and at "
                    "least one above 0"
                )
        self.sizes, self.batch_sizes = [int(size) for size in sizes], batch_sizes
        self.drawn = self.sizes
        if ratios is not None:  # the resolution that runs out first is drawn whole
            epoch = min(n / weight for n, weight in zip(self.sizes, weights, strict=True) if weight > 0)
            self.drawn = [min(n, round(epoch * w)) for n, w in zip(self.sizes, weights, strict=True)]
        self.shuffle, self.drop_last = shuffle, drop_last
        if len(self) == 0:
            raise InputError(
                f"no full batch: batches of {batch_sizes} on {self.num_replicas} ranks, of {self.drawn} "
                "samples, with drop_last=True; give smaller batches, or drop_last=False"
            )

    def __len__(self) -> int:
        return sum(
            n // (size * self.num_replicas) if self.drop_last else -(-n // (size * self.num_replicas))
            for n, size in zip(self.drawn, self.batch_sizes, strict=True)
        )

    def __iter__(self) -> Iterator[list[int]]:
        random = self._next_epoch()
        batches: list[list[int]] = []
        firsts = np.cumsum([0, *self.sizes])
        for first, size, n, batch_size in zip(firsts, self.sizes, self.drawn, self.batch_sizes, strict=False):
            chosen = first + (random.permutation(size) if self.shuffle else np.arange(size))[:n]
            step = batch_size * self.num_replicas
            for start in range(0, n - step + 1 if self.drop_last else n, step):
                together = chosen[start : start + step]
                each = -(-len(together) // self.num_replicas)  # as large a part for this rank as for any
                parts = np.resize(together, each * self.num_replicas)
                batches.append(parts[self.rank :: self.num_replicas].tolist())
        order = random.permutation(len(batches)) if self.shuffle else range(len(batches))
        yield from (batches[i] for i in order)


class ChunkSampler(_Epochs, Sampler[int]):
    """Order of samples that comes back to no chunk, for stores larger than memory.

    Chunks come in an order drawn anew in every epoch, `at_once` at a time, and their samples shuffled
    together: more at once are closer to a full shuffle and take more memory. `chunks` are those of
    `mano_op.data.dataset.FieldDataset`. Each rank (`rank` of `num_replicas`, by default those of the process
    group) has a run of the order, of equal length.

    Examples
    --------
    >>> order = list(ChunkSampler([np.arange(4), np.arange(4, 8), np.arange(8, 12)], at_once=1, seed=0))
    >>> sorted(order) == list(range(12)), [len({i // 4 for i in order[k : k + 4]}) for k in (0, 4, 8)]
    (True, [1, 1, 1])
    """

    def __init__(
        self,
        chunks: Sequence[NDArray[np.int64]],
        *,
        at_once: int = 4,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(seed, num_replicas, rank)
        check_whole(at_once=at_once)
        self._chunks, self._at_once = list(chunks), at_once

    def __len__(self) -> int:
        return -(-sum(len(chunk) for chunk in self._chunks) // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        each, random = len(self), self._next_epoch()
        order, samples = random.permutation(len(self._chunks)), []
        for start in range(0, len(order), self._at_once):
            at_hand = np.concatenate([self._chunks[i] for i in order[start : start + self._at_once]])
            samples.append(random.permutation(at_hand))
        together = np.resize(np.concatenate(samples), each * self.num_replicas)
        yield from together[self.rank * each :][:each].tolist()
