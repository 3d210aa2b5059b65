"""Batches of one resolution, every sample as often as it should be, on every rank alike."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.sampler import ChunkSampler, ResolutionBatchSampler
from mano_op.errors import InputError

counts = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def owner(sizes, index):
    return int(np.searchsorted(np.cumsum(sizes), index, side="right"))


@given(sizes=counts, data=st.data(), shuffle=st.booleans(), drop_last=st.booleans(), seed=st.integers(0, 99))
def test_sample_comes_once_in_a_batch_of_its_resolution(sizes, data, shuffle, drop_last, seed):
    batch_sizes = [data.draw(st.integers(1, size)) for size in sizes]
    sampler = ResolutionBatchSampler(sizes, batch_sizes, shuffle=shuffle, drop_last=drop_last, seed=seed)
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        seen = Counter(index for batch in batches for index in batch)
        assert set(seen.values()) == {1}
        for k, (size, batch_size) in enumerate(zip(sizes, batch_sizes, strict=True)):
            mine = [batch for batch in batches if owner(sizes, batch[0]) == k]
            assert all(owner(sizes, index) == k for batch in mine for index in batch)
            full, rest = divmod(size, batch_size)
            lengths = [batch_size] * full + ([rest] if rest and not drop_last else [])
            assert sorted(map(len, mine), reverse=True) == lengths


@given(
    sizes=counts,
    data=st.data(),
    ranks=st.integers(1, 4),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_ranks_share_samples_and_take_one_resolution_in_every_step(sizes, data, ranks, shuffle, drop_last):
    batch_size = data.draw(st.integers(1, max(1, max(sizes) // ranks)))
    if drop_last and all(size < batch_size * ranks for size in sizes):
        return
    epochs = [
        list(
            ResolutionBatchSampler(
                sizes, batch_size, shuffle=shuffle, drop_last=drop_last, num_replicas=ranks, rank=rank
            )
        )
        for rank in range(ranks)
    ]
    assert len({len(epoch) for epoch in epochs}) == 1
    seen = Counter()
    for together in zip(*epochs, strict=True):
        assert len({len(batch) for batch in together}) == 1
        assert len({owner(sizes, index) for batch in together for index in batch}) == 1
        step = [index for batch in together for index in batch]
        if drop_last:
            assert len(set(step)) == len(step) == batch_size * ranks
        seen.update(set(step))
    assert set(seen.values()) == {1}
    if not drop_last:
        assert set(seen) == set(range(sum(sizes)))


@given(
    sizes=st.lists(st.integers(20, 400), min_size=2, max_size=4),
    data=st.data(),
)
def test_epoch_has_the_ratios_and_is_as_large_as_possible(sizes, data):
    ratios = [data.draw(st.floats(0.05, 1)) for _ in sizes]
    drawn = Counter(
        owner(sizes, index) for batch in ResolutionBatchSampler(sizes, 7, ratios=ratios) for index in batch
    )
    total, wanted = sum(drawn.values()), np.array(ratios) / sum(ratios)
    for k, size in enumerate(sizes):
        assert abs(drawn[k] - wanted[k] * total) <= 1 + len(sizes)
        assert drawn[k] <= size
    assert any(drawn[k] == size for k, size in enumerate(sizes))


def test_resolution_of_ratio_zero_is_left_out():
    batches = list(ResolutionBatchSampler([10, 10], 4, ratios=[1, 0]))
    assert {index for batch in batches for index in batch} == set(range(10))


def test_epochs_differ_and_follow_from_the_seed():
    def epochs(seed, first=0, n=3):
        sampler = ResolutionBatchSampler([30, 30], 4, seed=seed)
        sampler.set_epoch(first)
        return [list(sampler) for _ in range(n)]

    one = epochs(1)
    assert one == epochs(1) != epochs(2)
    assert one[0] != one[1] != one[2]
    assert epochs(1, first=2, n=1) == one[2:]
    # Resolutions come mixed, not one after another.
    resolutions = [batch[0] >= 30 for batch in one[0]]
    assert sum(a != b for a, b in pairwise(resolutions)) > 3


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([], {}, "and at least one"),
        ([0], {}, r"sizes\[0\]=0, expected a whole number, at least 1"),
        ([4, 4], {"batch_size": [2]}, r"batch_size=\[2\] for 2 resolutions"),
        ([4, 4], {"batch_size": 0}, r"batch_size\[0\]=0"),
        ([4, 4], {"ratios": [1.0]}, r"ratios=\[1.0\] for 2 resolutions"),
        ([4, 4], {"ratios": [1.0, -1.0]}, r"ratios\[1\]=-1.0"),
        ([4, 4], {"ratios": [0.0, 0.0]}, "at least one above 0"),
        ([4, 4], {"drop_last": True, "batch_size": 5}, "no full batch"),
        ([4, 4], {"num_replicas": 2, "rank": 2}, "rank=2 of num_replicas=2"),
        ([4, 4], {"seed": -1}, "seed=-1"),
    ],
)
def test_sampler_options_that_do_not_fit_are_refused(sizes, options, message):
    with pytest.raises(InputError, match=message):
        ResolutionBatchSampler(sizes, **({"batch_size": 2} | options))


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    ranks=st.integers(1, 4),
    at_once=st.integers(1, 3),
)
def test_ranks_share_the_chunks(sizes, ranks, at_once):
    chunks = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    samplers = [ChunkSampler(chunks, at_once=at_once, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    alone = ChunkSampler(chunks, at_once=at_once)
    for _ in range(2):
        epochs = [list(sampler) for sampler in samplers]
        assert {len(epoch) for epoch in epochs} == {len(sampler) for sampler in samplers}
        in_one = [index for epoch in epochs for index in epoch]
        order = list(alone)
        assert in_one[: len(order)] == order and sorted(order) == list(range(sum(sizes)))
        assert in_one[len(order) :] == np.resize(order, len(in_one))[len(order) :].tolist()
