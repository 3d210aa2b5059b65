"""Stores are read from whatever fsspec can read."""

import pickle
import shutil

import fsspec
import numpy as np
import obstore
import pytest
import torch
import xarray as xr
import zarr
from helpers import wave_store, waves
from zarr.storage import LocalStore, ObjectStore

from mano_op.cli import main
from mano_op.data.check import check_store
from mano_op.data.coarsen import coarsen_store
from mano_op.data.loaders import Reading, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid

GRID = Grid.uniform((6, 6))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "waves.zarr"
    return wave_store(path, [GRID, GRID.refine()], {"train": 5, "test": 3})


@pytest.fixture(params=["file", "memory"])
def address(request, local):
    if request.param == "file":
        yield f"file://{local.path}"
        return
    memory = fsspec.filesystem("memory")
    memory.put(str(local.path), "/waves.zarr", recursive=True)
    yield "memory://waves.zarr"
    memory.rm("/waves.zarr", recursive=True)


def test_store_at_an_address_is_the_local_one(local, address, tmp_path):
    store = open_store(address)
    assert (store.name, store.complete) == ("waves.zarr", True)
    assert store.layout == local.layout and store.statistics == local.statistics
    for key in local.grids:
        for name in ("a", "b", "u"):
            np.testing.assert_array_equal(store.read(key, name), local.read(key, name))
        xr.testing.assert_identical(store.dataset(key).compute(), local.dataset(key).compute())
    assert check_store(address, progress=False) == []
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read(6, "u"), waves(range(8), GRID)["u"].astype(np.float32))
    made = coarsen_store(store, tmp_path / "coarse.zarr", [3], method="injection", progress=False)
    np.testing.assert_array_equal(made.read(3, "u"), local.read(12, "u")[:, ::4, ::4])


def test_loaders_read_from_an_address(local, address):
    for cache_bytes in (0, 2**30):
        options = {"train": Mixed([6, 12]), "test": [6], "batch_size": 3}
        options["reading"] = Reading(cache_bytes=cache_bytes)
        here, there = (field_loaders(store, **options) for store in (local, address))
        for one, other in zip(here.train, there.train, strict=True):
            torch.testing.assert_close(one["y"], other["y"], rtol=0, atol=0)


@pytest.fixture(params=["zarr", "obstore"])
def other_reader(request, local):
    if request.param == "obstore":
        return ObjectStore(obstore.store.LocalStore(str(local.path)), read_only=True)
    return LocalStore(local.path, read_only=True)


def test_store_is_read_through_any_reader_of_zarr(local, other_reader):
    store = open_store(other_reader)
    assert store.complete and store.layout == local.layout
    np.testing.assert_array_equal(store.read(12, "u"), local.read(12, "u"))
    xr.testing.assert_identical(store.dataset(6).compute(), local.dataset(6).compute())
    assert check_store(other_reader, progress=False) == []
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.read(6, "a"), local.read(6, "a"))
    with pytest.raises(InputError, match="a store is written to a file system"):
        store.write(slice(0, 2), {})
    with pytest.raises(InputError, match="is in its place"):
        store.discard()


def test_the_codecs_of_zarrs_read_the_same_and_find_the_same_damage(local, tmp_path):
    copy = shutil.copytree(local.path, tmp_path / "copy.zarr")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        store = open_store(copy)
        np.testing.assert_array_equal(store.read(12, "u"), local.read(12, "u"))
        chunk = copy / "r6" / "u" / "c" / "0" / "0" / "0"
        damaged = bytearray(chunk.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        chunk.write_bytes(bytes(damaged))
        with pytest.raises(InputError, match=r"r6/u: the chunk of samples 0 to 1 is damaged"):
            open_store(copy).read(6, "u")


def test_options_of_the_file_system_are_kept(local):
    options = {"auto_mkdir": False}
    store = open_store(f"file://{local.path}", storage_options=options)
    assert pickle.loads(pickle.dumps(store))._storage_options == options
    np.testing.assert_array_equal(store.read(6, "a"), local.read(6, "a"))
    assert store.dataset(6).sizes == local.dataset(6).sizes


def test_addresses_without_a_store_are_refused(local):
    with pytest.raises(InputError, match=r"memory://none.zarr is no zarr store of format 3"):
        open_store("memory://none.zarr")
    with pytest.raises(InputError, match=r"nonsense://waves.zarr is no zarr store.*nonsense"):
        open_store("nonsense://waves.zarr")
    with pytest.raises(InputError, match="a store is written to a file system"):
        FieldStore(f"file://{local.path}").write(slice(0, 2), {})
    with pytest.raises(InputError, match=r"Dataset is no path .*; give the folder of a store, or its addr"):
        open_store(xr.Dataset())


def test_version_in_icechunk_is_the_local_store(local, tmp_path):
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repository")))
    session = repository.writable_session("main")

    async def copy():
        prototype = zarr.core.buffer.default_buffer_prototype()
        source = await LocalStore.open(local.path, read_only=True)
        async for key in source.list():
            await session.store.set(key, await source.get(key, prototype))

    zarr.core.sync.sync(copy())
    session.commit("waves")
    store = open_store(repository.readonly_session("main").store)
    assert store.layout == local.layout and store.statistics == local.statistics
    for key in local.grids:
        for name in ("a", "b", "u"):
            np.testing.assert_array_equal(store.read(key, name), local.read(key, name))


def test_command_line_reads_from_an_address(local, address, tmp_path, capsys, monkeypatch):
    """All but the pictures of a report, whose data come from the same store."""
    written = []
    monkeypatch.setattr("mano_op.report.write_report", lambda *args, **options: written.append(args))

    def mano_op(words):
        assert main(words.split()) == 0
        return capsys.readouterr().out

    assert f"({address})" in mano_op(f"store info {address}")
    assert mano_op(f"store check {address} --quiet") == f"{address}: as the format asks\n"
    mano_op(f"store coarsen {address} {tmp_path}/coarse.zarr --resolution 3 --method injection --quiet")
    np.testing.assert_array_equal(
        open_store(tmp_path / "coarse.zarr").read(3, "u"), local.read(12, "u")[:, ::4, ::4]
    )
    model = "--arch fno --option n_modes=[2,2] --option hidden_channels=4"
    mano_op(f"train fields {address} {tmp_path}/fno --resolution 6 --epochs 1 {model} --quiet")
    mano_op(f"evaluate fields {address} {tmp_path}/fno --out {tmp_path}/report --quiet")
    assert len(written) == 1


def test_command_line_writes_to_a_file_system_alone(local, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate = "generate darcy memory://new.zarr --resolution 8 --samples train=2"
    coarsen = f"store coarsen {local.path} memory://new.zarr --resolution 3 --method injection"
    for command in (generate, coarsen):
        assert main(command.split()) == 2
        assert "memory://new.zarr: a store is written to a file system" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
