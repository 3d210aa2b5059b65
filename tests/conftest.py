"""One thread a worker, property tests that are quick and draw the same examples every time, shared data."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("mano_op", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("mano_op")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a dask scheduler with two workers, each a process of its own."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store of waves at 8 x 8 and 16 x 16 points."""
    from helpers import wave_store
    from training import GRIDS

    folder = tmp_path_factory.mktemp("fields")
    return wave_store(folder / "waves.zarr", GRIDS, {"train": 12, "validation": 5, "test": 4})


@pytest.fixture(scope="session")
def images() -> Any:
    """A tenth of the digits."""
    from training import tenth_of_digits

    return tenth_of_digits()
