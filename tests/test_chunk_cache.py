"""What comes out of the cache is what is in the store; each chunk is read as often as its budget allows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import wave_store, waves
from hypothesis import given, settings
from hypothesis import strategies as st

from mano_op.data.chunk_cache import ChunkCache
from mano_op.data.dataset import FieldDataset
from mano_op.data.loaders import Reading, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.sampler import ChunkSampler
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid

GRID = Grid.uniform((4, 4))
CHUNK = 4 * 3 * 16  # bytes of one variable


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("waves") / "waves.zarr"
    return wave_store(path, [GRID], {"first": 4, "train": 20, "test": 3}, chunk=3)


@pytest.fixture
def reads(monkeypatch):
    """The rows of every read of a store."""
    rows_read, read = [], FieldStore.read

    def noted(self, resolution, name, rows, times=slice(None)):
        rows_read.append((name, np.arange(27)[rows].tolist()))
        return read(self, resolution, name, rows, times)

    monkeypatch.setattr(FieldStore, "read", noted)
    return rows_read


@settings(max_examples=15)
@given(
    budget=st.integers(0, 12) | st.just(1000),
    batches=st.lists(st.lists(st.integers(0, 26), min_size=1, unique=True), min_size=1, max_size=12),
)
def test_rows_equal_those_of_the_store_for_any_budget(store, budget, batches):
    cache = ChunkCache(store, "r4", budget * CHUNK)
    expected = {name: values.astype(np.float32) for name, values in waves(range(27), GRID).items()}
    for rows in batches:
        rows = np.array(sorted(rows))
        for name in ("a", "u"):
            np.testing.assert_array_equal(cache.read(name, rows), expected[name][rows])
        assert sum(values.nbytes for values in cache._kept.values()) <= budget * CHUNK


def test_kept_chunks_are_not_read_again(store, reads):
    cache = ChunkCache(store, "r4", 2 * CHUNK)
    cache.read("a", np.array([0, 2, 4]))
    assert reads == [("a", [0, 1, 2, 3, 4, 5])]  # two chunks, in one read
    cache.read("a", np.array([1, 3]))
    assert len(reads) == 1
    cache.read("a", np.array([7]))  # the chunk of 0 to 2 was not used for longest
    cache.read("a", np.array([3]))
    assert [rows for _, rows in reads[1:]] == [[6, 7, 8]]
    cache.read("a", np.array([0]))
    assert reads[-1] == ("a", [0, 1, 2])


def test_returned_rows_are_copies(store):
    cache = ChunkCache(store, "r4", 10 * CHUNK)
    cache.read("a", np.array([1]))[:] = 0
    np.testing.assert_array_equal(cache.read("a", np.array([1])), waves([1], GRID)["a"].astype(np.float32))


def test_an_epoch_by_chunks_reads_each_chunk_once(store, reads):
    """The split starts within a chunk; three variables, seven chunks, four at once."""
    budget = 3 * 4 * CHUNK
    loaders = field_loaders(
        store, train=4, test=[], batch_size=5, seed=1, reading=Reading(shuffle="chunks", cache_bytes=budget)
    )
    assert not loaders.train.dataset.cached
    reads.clear()
    seen = []
    for batch in loaders.train:
        seen.append(batch["y"])
    chunks = [(name, row // 3) for name, rows in reads for row in rows[::3]]
    assert len(chunks) == len(set(chunks)) == 3 * len(loaders.train.dataset.chunks)
    expected = torch.from_numpy(waves(range(4, 24), GRID)["u"]).float()
    came = torch.cat(seen)[:, 0]
    torch.testing.assert_close(
        came[came[:, 0, 0].argsort()], expected[expected[:, 0, 0].argsort()], rtol=0, atol=0
    )


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=9),
    at_once=st.integers(1, 10),
    seed=st.integers(0, 50),
)
def test_sampler_never_returns_to_a_chunk(sizes, at_once, seed):
    ends = np.cumsum([0, *sizes])
    chunks = [np.arange(a, b) for a, b in pairwise(ends)]
    sampler = ChunkSampler(chunks, at_once=at_once, seed=seed)
    for _ in range(2):
        order = list(sampler)
        assert sorted(order) == list(range(ends[-1])) and len(sampler) == ends[-1]
        owners = np.searchsorted(ends, order, side="right") - 1
        open_chunks, left, at_hand = set(), set(), set()
        for owner in owners:
            if owner not in at_hand:
                if len(at_hand) == at_once:
                    left |= at_hand
                    at_hand = set()
                at_hand.add(owner)
            assert owner not in left
            open_chunks.add(owner)


def test_a_data_set_knows_its_chunks(store):
    data = FieldDataset(store, 4, "train")
    assert [chunk.tolist() for chunk in data.chunks][:3] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert np.concatenate(data.chunks).tolist() == list(range(20))


def test_chunks_of_several_resolutions_are_not_shuffled(store):
    with pytest.raises(InputError, match="expected one resolution, or 'samples'"):
        field_loaders(store, train=Mixed([4]), test=[], batch_size=2, reading=Reading(shuffle="chunks"))
    with pytest.raises(InputError, match="shuffle='none', expected 'samples' or 'chunks'"):
        field_loaders(store, train=4, test=[], batch_size=2, reading=Reading(shuffle="none"))
