"""Loaders on two ranks of a real process group: one resolution in every step, and every sample once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import torch
from helpers import wave_store, waves

from mano_op.data.loaders import Reading, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.grid import Grid

COARSE, FINE = Grid.uniform((6, 8)), Grid.uniform((12, 10))
N = 12


OPTIONS = {
    "one": {"train": (6, 8), "batch_size": 2},
    "streamed": {"train": (12, 10), "batch_size": 3, "reading": Reading(cache_bytes=0)},
    "by chunks": {"train": (6, 8), "batch_size": 2, "reading": Reading(shuffle="chunks")},
    "mixed": {"train": Mixed([(6, 8), (12, 10)], batch_size=[3, 2])},
}


def read_on(rank, folder):
    """Return, of each options, the resolution and the samples of both ranks in every step of two epochs."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        steps = {}
        for name, options in OPTIONS.items():
            loader = field_loaders(f"{folder}/waves.zarr", test=[], seed=3, **options).train
            steps[name] = len(loader), [[both_ranks(batch) for batch in loader] for _ in range(2)]
        return steps
    finally:
        torch.distributed.destroy_process_group()


def both_ranks(batch):
    mine = (tuple(batch["y"].shape[-2:]), batch["y"][:, 0, 0, 0].tolist())
    both = [None, None]
    torch.distributed.all_gather_object(both, mine)  # hangs if a rank has more steps
    return both


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    wave_store(folder / "waves.zarr", [COARSE, FINE], {"train": N}, chunk=2)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as other:
        theirs = other.submit(read_on, 1, folder)
        ours = read_on(0, folder)
        assert ours == theirs.result(timeout=120)
    return ours


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_share_every_epoch(steps, name):
    length, epochs = steps[name]
    train = OPTIONS[name]["train"]
    levels = train.resolutions if isinstance(train, Mixed) else [train]
    for epoch in epochs:
        assert len(epoch) == length
        seen = {shape: [] for shape in levels}
        for (shape, mine), (other, theirs) in epoch:
            assert shape == other and len(mine) == len(theirs)
            assert not set(mine) & set(theirs)
            seen[shape] += mine + theirs
        for grid in (COARSE, FINE):
            if grid.shape in levels:
                u = waves(range(N), grid)["u"][:, 0, 0].astype(np.float32)
                np.testing.assert_array_equal(np.sort(seen[grid.shape]), np.sort(u))
    assert epochs[0] != epochs[1]
