"""Each chunk of a source is read once, whatever its chunks and those of the store are."""

import threading
from collections import Counter

import dask
import dask.array as da
import numpy as np
import psutil
import xarray as xr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from mano_op.data.source import SourceReader
from mano_op.data.write import write_fields
from mano_op.grid import Grid

LINE = Grid.uniform((4,), registration="cell")
OPTIONS = {
    "inputs": ["a"],
    "outputs": ["u"],
    "registration": "cell",
    "boundary_conditions": {"x": "open"},
    "domain": {"x": (0.0, 1.0)},
    "initial": {},
    "progress": False,
}


def values(*shape):
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def counted(array, name, chunks, reads):
    """An array behind dask whose blocks are counted as they are computed."""

    def load(block, block_info=None):
        reads[name, tuple(block_info[0]["chunk-location"])] += 1
        return block

    return da.from_array(array, chunks).map_blocks(load, name=f"{name} {id(reads)}", meta=np.empty(0))


def fields(reads, chunks, n=12, grid=LINE, prefix=""):
    """A steady input and an output of five times, behind dask."""
    a, u = values(n, *grid.shape), -values(n, 5, *grid.shape)
    sample, time = chunks
    dims = ("sample", "time", *grid.names)
    arrays = {
        "a": (("sample", *grid.names), counted(a, f"{prefix}a", (sample, *grid.shape), reads)),
        "u": (dims, counted(u, f"{prefix}u", (sample, time, *grid.shape), reads)),
    }
    return (
        xr.Dataset(arrays, {"time": np.arange(5.0), **dict(zip(grid.names, grid.points, strict=True))}),
        a,
        u,
    )


@settings(max_examples=7)
@given(
    sample=st.integers(1, 12), time=st.integers(1, 5), chunk=st.integers(1, 12), chunk_times=st.integers(1, 5)
)
def test_chunk_of_a_source_is_read_once(tmp_path_factory, sample, time, chunk, chunk_times):
    reads = Counter()
    data, a, u = fields(reads, (sample, time))
    store = write_fields(
        tmp_path_factory.mktemp("store") / "a.zarr",
        {4: data},
        splits={"train": 8, "test": 4},
        chunk=chunk,
        chunk_times=chunk_times,
        **OPTIONS,
    )
    assert set(reads.values()) == {1}
    np.testing.assert_array_equal(store.read(4, "a"), a)
    np.testing.assert_array_equal(store.read(4, "u"), u)


def test_resolutions_with_other_chunks_are_each_read_once(tmp_path):
    reads, fine = Counter(), LINE.refine()
    coarse, _, u = fields(reads, (5, 2))
    tests, fine_a, _ = fields(reads, (3, 5), n=4, grid=fine, prefix="fine ")
    store = write_fields(
        tmp_path / "a.zarr",
        {4: coarse, 8: tests.assign_coords(sample=np.arange(8, 12))},
        splits={"train": 8, "test": 4},
        chunk=2,
        **OPTIONS,
    )
    assert set(reads.values()) == {1}
    np.testing.assert_array_equal(store.read(4, "u"), u)
    np.testing.assert_array_equal(store.read(8, "a"), fine_a)
    assert store.layout.held == {"r4": ("train", "test"), "r8": ("test",)}


def test_shared_source_of_variables_is_computed_once(tmp_path):
    """An input that is derived from the output, and a resolution that is the mean of another."""
    reads = Counter()
    data, _, u = fields(reads, (4, 5))
    data = data.assign(a=data["u"].mean("time"))
    coarse = data.coarsen(x=2).mean()
    store = write_fields(tmp_path / "a.zarr", {4: data, 2: coarse}, splits={"train": 12}, chunk=3, **OPTIONS)
    assert Counter(reads.values()) == {1: 3}
    np.testing.assert_allclose(store.read(2, "a"), u.mean(1).reshape(12, 2, 2).mean(2), rtol=1e-6)


def test_workers_of_a_cluster_read_every_chunk_once(tmp_path, scheduler):
    data, a, u = fields(Counter(), (5, 5))

    def noted(block, name, block_info=None):
        place, number = block_info[0]["chunk-location"], np.random.default_rng().integers(10**9)
        (tmp_path / f"{name}{place}-{threading.get_ident()}-{number}").touch()
        return block

    for name, array in (("a", a), ("u", u)):
        np.save(tmp_path / f"{name}.npy", array)
        file = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
        lazy = da.from_array(file, chunks=(5, *[-1] * (array.ndim - 1)))
        data[name] = (data[name].dims, lazy.map_blocks(noted, f"read {name}", dtype=float, meta=np.empty(0)))
    for file in tmp_path.glob("read *"):
        file.unlink()
    with Client(scheduler) as client:
        store = write_fields(
            tmp_path / "a.zarr", {4: data}, splits={"train": 12}, chunk=2, client=client, **OPTIONS
        )
    np.testing.assert_array_equal(store.read(4, "u"), u)
    assert len(list(tmp_path.glob("read a*"))) == len(list(tmp_path.glob("read u*"))) == 3


def test_finished_chunk_is_freed():
    data, a, _ = fields(Counter(), (5, 5))
    reader = SourceReader({LINE: data}, ["a"], "synchronous")
    for row in range(12):
        read = reader.read({LINE: slice(row, row + 1)}, slice(0, 1), ["a"])
        np.testing.assert_array_equal(read[LINE]["a"], a[row : row + 1])
        assert len(reader._kept) == (0 if row + 1 in (5, 10, 12) else 1)


def test_run_longer_than_memory_is_written_in_pieces_of_time(tmp_path):
    """Memory at the peak is that of a few chunks, and does not grow with the run."""
    side, part = 64, 100
    grid = Grid.uniform((side, side), registration="cell")

    def piece(start):
        return np.random.default_rng(start).normal(size=(1, part, side, side)).astype(np.float32)

    def run(n):
        arrays = [
            da.from_delayed(dask.delayed(piece, pure=False)(start), (1, part, side, side), np.float32)
            for start in range(0, n, part)
        ]
        coords = {"time": np.arange(n) * 6.0, "y": grid.points[0], "x": grid.points[1]}
        return xr.Dataset({"u": (("sample", "time", "y", "x"), da.concatenate(arrays, axis=1))}, coords)

    def peak(n):
        process, stop, seen = psutil.Process(), threading.Event(), []

        def watch():
            while not stop.wait(0.005):
                seen.append(process.memory_info().rss)

        before, watcher = process.memory_info().rss, threading.Thread(target=watch)
        watcher.start()
        try:
            axes = {"y": "open", "x": "open"}
            options = OPTIONS | {"inputs": [], "boundary_conditions": axes, "overwrite": True}
            options["domain"] = dict.fromkeys(axes, (0.0, 1.0))
            store = write_fields(tmp_path / f"{n}.zarr", {side: run(n)}, splits={"train": 1}, **options)
        finally:
            stop.set()
            watcher.join()
        np.testing.assert_array_equal(
            store.read(side, "u", slice(0, 1), slice(n - 1, n))[0, 0], piece(n - part)[0, -1]
        )
        return max(seen) - before

    peak(200)  # what is allocated once
    whole = 4 * 3000 * side * side
    assert any(peak(3000) < 0.6 * whole for _ in range(2))
