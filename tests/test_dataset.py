"""Samples and batches are the store's fields, whoever reads them and from wherever."""

import pickle

import pytest
import torch
from helpers import wave_store, waves
from torch.utils.data import DataLoader, default_collate

from mano_op.data.dataset import FieldDataset, collate
from mano_op.data.loaders import field_loaders
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid

COARSE, FINE = Grid.uniform((6, 6)), Grid.uniform((12, 12))
SPLITS = {"train": 8, "test": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FieldStore:
    path = tmp_path_factory.mktemp("stores") / "waves.zarr"
    return wave_store(path, [COARSE, FINE], SPLITS, held={FINE: ["test"]}, chunk=4)


def batch(samples, grid):
    fields = {name: torch.from_numpy(values).float() for name, values in waves(samples, grid).items()}
    return {"x": torch.stack([fields["a"], fields["b"]], dim=1), "y": fields["u"][:, None]}


def assert_same(sample, expected):
    assert sample.keys() == {"x", "y"}
    for name, field in sample.items():
        assert field.dtype == torch.float32
        torch.testing.assert_close(field, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize(
    ("split", "first", "grid"), [("train", 0, COARSE), ("test", 8, COARSE), ("test", 8, FINE)]
)
def test_samples_are_the_fields_of_their_split(store, split, first, grid, cache_bytes):
    data = FieldDataset(store.path, grid.shape[0], split, cache_bytes=cache_bytes)
    assert data.cached == (cache_bytes > 0)
    assert (data.grid, data.inputs, data.outputs) == (grid, ("a", "b"), ("u",))
    expected = batch(range(first, first + SPLITS[split]), grid)
    assert len(data) == len(expected["y"])
    for i, sample in enumerate(data):
        assert_same(sample, {name: field[i] for name, field in expected.items()})
    assert_same(data[-1], {name: field[-1] for name, field in expected.items()})


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_batch_comes_in_the_order_asked_for(store, cache_bytes):
    data = FieldDataset(store, 6, cache_bytes=cache_bytes)
    order = [5, 0, 7, 5, -1, 2]
    expected = batch([5, 0, 7, 5, 7, 2], COARSE)
    samples = data.__getitems__(order)
    for i, sample in enumerate(samples):
        assert_same(sample, {name: field[i] for name, field in expected.items()})
    samples[0]["x"].zero_()
    assert_same(samples[3], {name: field[3] for name, field in expected.items()})
    assert_same(data[5], {name: field[0] for name, field in expected.items()})
    assert data.__getitems__([]) == []
    for i in (8, -9):
        with pytest.raises(IndexError, match="the split 'train' has 8"):
            data[i]


def test_batch_reads_each_variable_once(store, monkeypatch):
    data, reads = FieldDataset(store, 6, cache_bytes=0), []
    read = FieldStore.read

    def count(self, resolution, name, rows, times=slice(None)):
        reads.append((name, rows.tolist()))
        return read(self, resolution, name, rows, times)

    monkeypatch.setattr(FieldStore, "read", count)
    data.__getitems__([6, 1, 6, 3])
    assert reads == [(name, [1, 3, 6]) for name in ("a", "b", "u")]


def test_pickled_data_set_is_a_path(store):
    data = FieldDataset(store, 6)
    content = pickle.dumps(data)
    assert len(content) < 1000 < 4 * 8 * 3 * 6 * 6
    copy = pickle.loads(content)
    assert data.cached and not copy.cached
    assert_same(copy[3], data[3])


def test_field_that_is_not_finite_is_named(tmp_path):
    store = wave_store(tmp_path / "waves.zarr", [COARSE], SPLITS, chunk=1)
    next((store.path / "r6" / "b" / "c" / "10").glob("*/*")).unlink()  # sample 10, of the test split
    with pytest.raises(InputError, match="r6/b: sample 10 has a NaN"):
        FieldDataset(store, 6, "test")
    lazy = FieldDataset(store, 6, "test", cache_bytes=0)
    assert_same(lazy[1], {name: field[0] for name, field in batch([9], COARSE).items()})
    with pytest.raises(InputError, match="r6/b: sample 10 has a NaN"):
        lazy[2]


def test_loaders_have_the_resolutions_and_batch_sizes_asked_for(store):
    loaders = field_loaders(store.path, train=6, test=[6, (12, 12)], batch_size=3, test_batch_size=2)
    assert list(loaders.test) == [6, (12, 12)]
    for resolution, grid in ((6, COARSE), ((12, 12), FINE)):
        batches = list(loaders.test[resolution])
        assert [len(one["x"]) for one in batches] == [2, 2, 1]
        joined = {name: torch.cat([one[name] for one in batches]) for name in ("x", "y")}
        assert_same(joined, batch(range(8, 13), grid))
    assert [len(one["x"]) for one in loaders.train] == [3, 3, 2]
    assert loaders.processor.to_dict()["outputs"]["u"] == pytest.approx(store.statistics["u"], rel=1e-6)


def order_of(loader: DataLoader) -> list[int]:
    """Which samples of the training split came, by their first value."""
    firsts = batch(range(8), COARSE)["x"][:, 0, 0, 0]
    came = torch.cat([one["x"][:, 0, 0, 0] for one in loader])
    return [int(torch.nonzero(firsts == value).item()) for value in came]


def test_training_order_is_shuffled_and_follows_the_seed(store):
    def epochs(seed):
        train = field_loaders(store, train=6, test=[], batch_size=3, seed=seed).train
        return [order_of(train) for _ in range(3)]

    assert epochs(1) == epochs(1) != epochs(2)
    assert all(sorted(order) == list(range(8)) for order in epochs(1))
    assert len(set(map(tuple, [*epochs(1), range(8)]))) == 4


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_batch_is_stacked_once_and_its_samples_are_views(store, cache_bytes):
    data = FieldDataset(store, 6, cache_bytes=cache_bytes, coordinates=True)
    samples = data.__getitems__([5, 0, 7])
    stacked = collate(samples)
    expected = batch([5, 0, 7], COARSE) | {"coordinates": stacked["coordinates"].clone()}
    torch.testing.assert_close(stacked["coordinates"][1], torch.from_numpy(COARSE.mesh).float())
    assert len(samples) == 3 and samples[1]["x"].data_ptr() == stacked["x"][1].data_ptr()
    for collated in (stacked, default_collate(list(samples)), default_collate(samples)):
        torch.testing.assert_close(collated, expected, rtol=0, atol=0)
    torch.testing.assert_close(collate(samples[1:])["x"], expected["x"][1:], rtol=0, atol=0)
    torch.testing.assert_close(samples[-1]["y"], expected["y"][2], rtol=0, atol=0)
    with pytest.raises(IndexError):
        samples[3]
    for field in stacked.values():  # what is done to a batch is not done to the cache
        field.zero_()
    torch.testing.assert_close(collate(data.__getitems__([5, 0, 7])), expected, rtol=0, atol=0)
    plain = [{"x": torch.ones(1)}, {"x": torch.zeros(1)}]  # of other data sets
    assert collate(plain)["x"].tolist() == [[1.0], [0.0]]
