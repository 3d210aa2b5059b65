"""Patches cut by xbatcher: where they lie, what they hold, and what is refused."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from xbatcher import BatchGenerator

from mano_op.data.patches import PatchDataset
from mano_op.errors import InputError
from mano_op.grid import Axis
from mano_op.problems import generate_darcy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("patches") / "darcy.zarr"
    return generate_darcy(path, [24], samples={"train": 3}, progress=False)


def patches(data, sizes, overlap=None, **options):
    batches = BatchGenerator(data, {"sample": 1, **sizes}, overlap or {}, preload_batch=False)
    return PatchDataset(batches, **({"inputs": ["permeability"], "outputs": ["pressure"]} | options))


@pytest.mark.parametrize(("overlap", "starts"), [(0, [0, 8, 16]), (4, [0, 4, 8, 12, 16])])
def test_patches_are_where_their_coordinates_say(store, overlap, starts):
    data = patches(store.dataset(24), {"y": 8, "x": 8}, {"y": overlap, "x": overlap})
    assert len(data) == 3 * len(starts) ** 2
    whole = {name: store.read(24, name) for name in ("permeability", "pressure")}
    seen = set()
    for number in range(len(data)):
        patch = data[number]
        i, j = np.rint(24 * patch["coordinates"][:, 0, 0].numpy()).astype(int)
        match = [
            n for n in range(3) if (whole["pressure"][n, i : i + 8, j : j + 8] == patch["y"][0].numpy()).all()
        ]
        assert len(match) == 1
        assert (whole["permeability"][match[0], i : i + 8, j : j + 8] == patch["x"][0].numpy()).all()
        seen.add((match[0], i, j))
    assert seen == {(n, i, j) for n in range(3) for i in starts for j in starts}


def test_loader_batches_patches(store):
    data = patches(store.dataset(24), {"y": 12, "x": 8})
    batches = list(DataLoader(data, batch_size=6))
    assert [batch["x"].shape for batch in batches] == [(6, 1, 12, 8)] * 3
    total = sum(batch["y"].double().sum().item() for batch in batches)
    assert total == pytest.approx(store.read(24, "pressure").astype(float).sum(), rel=1e-6)
    assert torch.equal(data[-1]["y"], data[len(data) - 1]["y"])
    with pytest.raises(IndexError, match="there are 18"):
        data[18]


def test_misfitting_patches_are_refused(store):
    data = store.dataset(24)
    with pytest.raises(InputError, match=r"\['height'\].*that has permeability, pressure"):
        patches(data, {"y": 8, "x": 8}, inputs=["height"])
    with pytest.raises(InputError, match=r"one sample each: give the generator input_dims=\{'sample': 1"):
        patches(data, {"sample": 2, "y": 8, "x": 8})
    with pytest.raises(InputError, match="the same for all"):
        patches(data.assign(flat=data["pressure"].isel(y=0, drop=True)), {"y": 8, "x": 8}, inputs=["flat"])
    broken = data.load().copy(deep=True)
    broken["pressure"][1, 9, 17] = np.nan
    bad = patches(broken, {"y": 8, "x": 8})
    with pytest.raises(InputError, match=r"from y = 0.333333, x = 0.666667: pressure has a NaN"):
        list(bad)
    with pytest.raises(InputError, match="no patch"):
        PatchDataset([], inputs=["permeability"], outputs=["pressure"])


def read_in_a_fork(data, connection):
    try:
        connection.send(data[0]["y"].sum().item())
    except InputError as error:
        connection.send(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize("source", ["dask", "zarr", "memory"])
def test_a_forked_process_reads_patches_from_memory_only(store, source):
    level = store.dataset(24)
    if source == "dask":
        level = level.chunk()
    elif source == "memory":
        level = level.load()
    data = patches(level, {"y": 8, "x": 8})
    expected = data[0]["y"].sum().item()  # also starts the threads that a fork does not have
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=read_in_a_fork, args=(data, there))
    child.start()
    try:
        assert here.poll(30)
        said = here.recv()
    finally:
        child.join(30)
        child.kill()
    if source == "memory":
        assert said == expected
    else:
        assert "was forked" in said and "multiprocessing_context='forkserver'" in said
    assert pickle.loads(pickle.dumps(data))[0]["y"].sum().item() == expected


def test_missing_coordinates_are_refused_and_the_remedy_gives_them(store):
    """Dimensions without coordinates, as models of the ocean and the weather write them."""
    data = store.dataset(24)[["permeability", "pressure"]].load()
    names = {"data": data.drop_vars(data.coords), "Axis": Axis}
    names |= {"start": 0.0, "stop": 1.0, "registration": "node"}
    for axis in "yx":
        message = f"dimension '{axis}' has no coordinate, so nothing says where a patch lies"
        with pytest.raises(InputError, match=message) as caught:
            patches(names["data"], {"y": 8, "x": 8})
        names["data"] = eval(str(caught.value).split("`")[1], names)
    placed = patches(names["data"], {"y": 8, "x": 8})
    expected = patches(store.dataset(24), {"y": 8, "x": 8})
    for patch, other in zip(placed, expected, strict=True):
        assert torch.equal(patch["coordinates"], other["coordinates"])
        assert torch.equal(patch["y"], other["y"])


def test_dates_along_an_axis_become_numbers_by_the_remedy(store):
    days = np.datetime64("2000-01-01", "ns") + np.arange(3) * np.timedelta64(1, "D")
    data = store.dataset(24)[["permeability", "pressure"]].load().drop_vars("split")
    data = data.rename(sample="time").assign_coords(time=days).expand_dims("sample")
    sizes = {"time": 2, "y": 8, "x": 8}
    with pytest.raises(
        InputError, match=r"the coordinate of 'time' is of datetime64.*expected numbers"
    ) as caught:
        patches(data, sizes)
    data = eval(str(caught.value).split("`")[1], {"data": data, "np": np})
    found = patches(data, sizes)
    np.testing.assert_array_equal(found[0]["coordinates"][0, :, 0, 0], [0.0, 86400.0])
    np.testing.assert_array_equal(found[0]["y"][0], store.read(24, "pressure")[:2, :8, :8])
