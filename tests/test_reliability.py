"""What happens to a store when a process, a disk or a file does not hold."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

from mano_op.data.importers import import_netcdf
from mano_op.data.jobs import only_writer
from mano_op.data.store import open_store
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems import Darcy, generate_darcy

N = 40
OPTIONS = {
    "inputs": ["a"],
    "outputs": ["u"],
    "splits": {"train": 30, "test": 10},
    "registration": "node",
    "domain": {"y": (0.0, 1.0), "x": (0.0, 1.0)},
    "boundary_conditions": {"y": "open", "x": "open"},
    "chunk": 1,
    "progress": False,
}
SLOW_IMPORT = f"""
import sys, time
from mano_op.data.importers import import_netcdf
from mano_op.data.store import FieldStore
write = FieldStore.write
def slowly(self, *args):
    time.sleep(0.02)
    write(self, *args)
FieldStore.write = slowly
import_netcdf(sys.argv[2], {{8: sys.argv[1]}}, **{OPTIONS})
"""


def when(condition, process, seconds=120):
    """Wait for something that a process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended before it could be met"
        assert time.monotonic() < deadline, "the process does not write"
        time.sleep(0.005)


@pytest.fixture
def netcdf(tmp_path):
    grid = Grid.uniform((8, 8))
    values = np.random.default_rng(0).normal(size=(2, N, 8, 8))
    dims = ("sample", "y", "x")
    data = xr.Dataset(
        {"a": (dims, values[0]), "u": (dims, values[1])}, dict(zip("yx", grid.points, strict=True))
    )
    data.to_netcdf(tmp_path / "simulation.nc", engine="scipy")
    return tmp_path / "simulation.nc"


def test_a_killed_import_resumes_from_the_same_files(netcdf, tmp_path):
    """While it lives, no second writer is let in; killed, it holds no lock."""
    path = tmp_path / "imported.zarr"
    process = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT, str(netcdf), str(path)])
    try:
        when(lambda: len(list(tmp_path.glob("imported.zarr.partial/r8/u/c/*"))) > 4, process)
        os.kill(process.pid, signal.SIGSTOP)
        for choice in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(InputError, match=r"by another process, which holds .*imported\.zarr\.lock"):
                import_netcdf(path, {8: netcdf}, **OPTIONS, **choice)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with pytest.raises(InputError, match="partial store"):
        open_store(path)
    pending = {samples.start for samples in open_store(path, incomplete=True).pending()}
    assert 0 < len(pending) < N
    with pytest.raises(InputError, match=r"was begun and not finished .*resume=True"):
        import_netcdf(path, {8: netcdf}, **OPTIONS)
    read = netcdf.stat()
    os.utime(netcdf, ns=(0, 0))
    with pytest.raises(InputError, match=r"files_as_read is .*changed 1970-01-01"):
        import_netcdf(path, {8: netcdf}, resume=True, **OPTIONS)
    os.utime(netcdf, ns=(read.st_atime_ns, read.st_mtime_ns))
    chunk = f"r8/u/c/{min(set(range(N)) - pending)}/0/0"
    before = (tmp_path / "imported.zarr.partial" / chunk).stat().st_mtime_ns
    store = import_netcdf(path, {8: netcdf}, resume=True, **OPTIONS)
    assert (path / chunk).stat().st_mtime_ns == before and not list(tmp_path.glob("*.lock"))
    with xr.open_dataset(netcdf) as data:
        for name in ("a", "u"):
            np.testing.assert_array_equal(store.read(8, name), data[name].values.astype(np.float32))


def test_the_lock_is_held_by_one_at_a_time(tmp_path):
    refused = pytest.raises(InputError, match="is being written by another process")
    with only_writer(tmp_path / "a.zarr"), only_writer(tmp_path / "b.zarr"), refused:
        only_writer(tmp_path / "a.zarr").__enter__()
    with only_writer(tmp_path / "a.zarr"):
        assert (tmp_path / "a.zarr.lock").exists()
    assert not any(tmp_path.iterdir())


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_store_resumes_after_a_full_disk(tiny_disk):
    options = {
        "samples": {"train": 60},
        "problem": Darcy(n_modes=16, coefficient="lognormal"),
        "chunk": 2,
        "progress": False,
    }
    with pytest.raises(OSError, match="No space left"):
        generate_darcy(tiny_disk / "darcy.zarr", [32], **options)
    with pytest.raises(InputError, match="partial store"):
        open_store(tiny_disk / "darcy.zarr")
    done = 30 - len(open_store(tiny_disk / "darcy.zarr", incomplete=True).pending())
    assert 0 < done < 30
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    store = generate_darcy(tiny_disk / "darcy.zarr", [32], resume=True, **options)
    whole = generate_darcy(tiny_disk / "whole.zarr", [32], **options)
    for name in ("permeability", "pressure"):
        np.testing.assert_array_equal(store.read(32, name), whole.read(32, name))
