"""Loaders on two ranks of a real process group: one resolution in every step, and every sample once."""

import multiprocessing
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


def train_on(rank, folder, options, connection):
    """Two epochs; tells the resolution and the samples of both ranks in every step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        loader = field_loaders(f"{folder}/waves.zarr", test=[], seed=3, **options).train
        epochs = []
        for _ in range(2):
            steps = []
            for batch in loader:
                mine = (tuple(batch["y"].shape[-2:]), batch["y"][:, 0, 0, 0].tolist())
                theirs = [None, None]
                torch.distributed.all_gather_object(theirs, mine)  # hangs if a rank has more steps
                steps.append(theirs)
            epochs.append(steps)
        connection.send((len(loader), epochs))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "options",
    [
        {"train": (6, 8), "batch_size": 2},
        {"train": (12, 10), "batch_size": 3, "reading": Reading(cache_bytes=0)},
        {"train": (6, 8), "batch_size": 2, "reading": Reading(shuffle="chunks")},
        {"train": Mixed([(6, 8), (12, 10)], batch_size=[3, 2])},
    ],
    ids=["one", "streamed", "by chunks", "mixed"],
)
def test_two_ranks_share_every_epoch(tmp_path, options):
    wave_store(tmp_path / "waves.zarr", [COARSE, FINE], {"train": N}, chunk=2)
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    ranks = [
        context.Process(target=train_on, args=(rank, tmp_path, options, there))
        for rank, (_, there) in enumerate(pipes)
    ]
    for rank in ranks:
        rank.start()
    try:
        assert all(here.poll(120) for here, _ in pipes)
        told = [here.recv() for here, _ in pipes]
    finally:
        for rank in ranks:
            rank.join(30)
            rank.kill()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert told[0] == told[1]
    length, epochs = told[0]
    train = options["train"]
    levels = train.resolutions if isinstance(train, Mixed) else [train]
    orders = []
    for steps in epochs:
        assert len(steps) == length
        seen = {shape: [] for shape in levels}
        for (shape, mine), (other, theirs) in steps:
            assert shape == other and len(mine) == len(theirs)
            assert not set(mine) & set(theirs)
            seen[shape] += mine + theirs
        for grid in (COARSE, FINE):
            if grid.shape in levels:
                u = waves(range(N), grid)["u"][:, 0, 0].astype(np.float32)
                np.testing.assert_array_equal(np.sort(seen[grid.shape]), np.sort(u))
        orders.append(steps)
    assert orders[0] != orders[1]
