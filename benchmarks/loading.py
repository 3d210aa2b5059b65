"""How fast batches come from a store, as ratios within one run.

A store of 128 x 128 fields, chunked at 8 and at 64 samples, is read in random batches of 16:

* ``store``: `FieldDataset`, one sorted read for each variable of a batch;
* ``samples``: the same data set, sample by sample, as a data set without ``__getitems__`` does it;
* ``isel``: ``level[name].isel(sample=i).values`` for each sample and variable, as a data set written by hand
  over xarray does it;
* ``raw``: the same rows, sorted, so from the same chunks, in one ``oindex`` call of zarr for each array, and
  nothing else;
* ``by chunks``: an epoch in which the samples of four chunks at a time are shuffled, and no more kept;
* ``memory``: `FieldDataset` with the split in memory;
* ``neuralop``: neuraloperator's own tensor data set on the same fields, which holds them in memory;
* ``xbatcher``: its torch data set over the same zarr arrays.

What is timed is a batch as a training loop gets it, stacked; of ``raw`` only the reading. Each is timed by
turns, several times; the medians are compared. Then generation over one and over two dask workers, and the
memory of a process that streams a store four times larger than its limit. Run:

    python benchmarks/loading.py

Results go to ``benchmarks/results/loading.json``.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr
from harness import RESULTS, parser, write_results
from neuralop.data.datasets.tensor_dataset import TensorDataset
from torch.utils.data import default_collate
from xbatcher import BatchGenerator
from xbatcher.loaders.torch import MapDataset

from mano_op.data.dataset import FieldDataset, collate
from mano_op.data.layout import Variable
from mano_op.data.loaders import Reading, field_loaders
from mano_op.data.store import FieldStore, create_store
from mano_op.grid import Grid
from mano_op.machine import machine

N, SAMPLES, BATCH, BATCHES, ROUNDS = 128, 512, 16, 4, 7
GRID = Grid.uniform((N, N))


def make_store(path: Path, chunk: int, samples: int = SAMPLES) -> FieldStore:
    """A store of random smooth fields."""
    store = create_store(
        path,
        [GRID],
        [Variable("a", "input"), Variable("u", "output")],
        {"train": samples},
        title="Random waves",
        provenance={},
        levels="unknown",
        boundary_conditions={"y": "open", "x": "open"},
        chunk=chunk,
    )
    y, x = GRID.mesh
    for rows in store.pending():
        random = np.random.default_rng(rows.start)
        draws = random.normal(size=(rows.stop - rows.start, 4, 1, 1))
        a = draws[:, 0] * np.sin(7 * x + draws[:, 1]) + draws[:, 2] * np.cos(9 * y + draws[:, 3])
        store.write(rows, {GRID: {"a": a + 0.01 * random.normal(size=a.shape), "u": a**2}})
    store.finish()
    return store


def readers(store: FieldStore) -> dict[str, Callable[[np.ndarray], Any]]:
    """What is timed: functions of the indices of a batch."""
    streamed, kept = FieldDataset(store, N, cache_bytes=0), FieldDataset(store, N)
    arrays = [zarr.open_array(store.path / f"r{N}" / name, mode="r") for name in ("a", "u")]
    in_memory = TensorDataset(*(torch.from_numpy(kept.store.read(N, name)) for name in ("a", "u")))

    def raw(indices: np.ndarray) -> list[Any]:
        rows = np.sort(indices)
        return [array.oindex[rows] for array in arrays]

    functions: dict[str, Callable[[np.ndarray], Any]] = {
        "store": lambda indices: collate(streamed.__getitems__(indices.tolist())),
        "samples": lambda indices: default_collate([streamed[i] for i in indices.tolist()]),
        "raw": raw,
        "memory": lambda indices: collate(kept.__getitems__(indices.tolist())),
        "neuralop": lambda indices: default_collate([in_memory[i] for i in indices.tolist()]),
    }
    level = xr.open_zarr(store.path, group=f"r{N}", chunks=None)
    functions["isel"] = lambda indices: default_collate(
        [
            {
                name: torch.from_numpy(level[source].isel(sample=i).values)[None]
                for name, source in (("x", "a"), ("y", "u"))
            }
            for i in indices.tolist()
        ]
    )
    size = {"sample": 1, "y": N, "x": N}
    mapped = MapDataset(*(BatchGenerator(level[name], input_dims=size) for name in ("a", "u")))
    functions["xbatcher"] = lambda indices: default_collate([mapped[i] for i in indices.tolist()])
    return functions


def seconds(store: FieldStore) -> dict[str, float]:
    """The median seconds for a batch of each reader, timed by turns."""
    timed: dict[str, list[float]] = {}
    random = np.random.default_rng(0)
    functions = readers(store)
    for _ in range(ROUNDS):
        batches = [random.permutation(SAMPLES)[:BATCH] for _ in range(BATCHES)]
        for name, read in functions.items():
            start = perf_counter()
            for batch in batches:
                read(batch)
            timed.setdefault(name, []).append((perf_counter() - start) / BATCHES)
    return {name: statistics.median(times) for name, times in timed.items()}


def touched(chunk: int) -> float:
    """How many chunks a random batch touches, on average: each is missed by ``BATCH`` draws of the others."""
    missed = math.prod((SAMPLES - chunk - i) / (SAMPLES - i) for i in range(BATCH))
    return SAMPLES // chunk * (1 - missed)


def by_chunks(store: FieldStore) -> float:
    """The median seconds for a batch of an epoch that goes by chunks, four of them in memory."""
    at_once = 4 * 2 * 4 * N * N * store.layout.chunk
    loader = field_loaders(
        store,
        train=N,
        test=[],
        batch_size=BATCH,
        reading=Reading(shuffle="chunks", cache_bytes=min(at_once, 2**25)),
    ).train
    times = []
    for _ in range(3):
        start = perf_counter()
        batches = sum(1 for _ in loader)
        times.append((perf_counter() - start) / batches)
    return statistics.median(times)


def generation(folder: Path) -> dict[str, float]:
    """Seconds to generate the same store on one and on two dask workers, by turns."""
    from distributed import Client, LocalCluster

    from mano_op.problems import Darcy, generate_fields

    timed: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(3):
        for workers in timed:
            with (
                LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
                Client(cluster) as client,
            ):
                options = {"client": client, "chunk": 8, "progress": False}
                warm, real = (folder / f"{what}-{turn}-{workers}.zarr" for what in ("warm", "real"))
                generate_fields(warm, Darcy(), [16], samples={"train": 16}, **options)  # imports
                start = perf_counter()
                generate_fields(real, Darcy(), [64], samples={"train": 160}, solver_resolution=256, **options)
                timed[workers].append(perf_counter() - start)
    return {f"{workers} workers": statistics.median(times) for workers, times in timed.items()}


STREAM = """
import sys
from mano_op.data.loaders import Reading, field_loaders
def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])
loader = field_loaders(sys.argv[1], train=128, test=[], batch_size=16, reading=Reading(cache_bytes=0)).train
first = next(iter(loader))
before = most = resident()
samples = 0
for batch in loader:
    samples += len(batch["x"])
    most = max(most, resident())
print(samples, most - before)
"""


def streaming(folder: Path, limit_mb: int = 64) -> dict[str, float]:
    """How much more memory a process takes that reads an epoch of a store four times larger than a limit."""
    samples = 4 * limit_mb * 2**20 // (2 * 4 * N * N)
    store = make_store(folder / "large.zarr", 8, samples)
    command = [sys.executable, "-c", STREAM, str(store.path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {
        "store_mb": 2 * 4 * N * N * int(said[0]) / 2**20,
        "limit_mb": limit_mb,
        "more_memory_mb": int(said[1]) / 2**20,
    }


def main() -> None:
    """Time everything and write the numbers."""
    command = parser(__doc__)
    command.add_argument("--out", type=Path, default=RESULTS / "loading.json")
    args = command.parse_args()
    report: dict[str, Any] = {"machine": machine(), "batch": BATCH, "points": N, "samples": SAMPLES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for chunk in (8, 64):
            store = make_store(folder / f"{chunk}.zarr", chunk)
            times = {**seconds(store), "by chunks": by_chunks(store)}
            report[f"chunks of {chunk}"] = {
                "chunks a batch": touched(chunk),
                "milliseconds a batch": {name: round(1000 * value, 3) for name, value in times.items()},
                "samples over store": times["samples"] / times["store"],
                "isel over store": times["isel"] / times["store"],
                "isel over by chunks": times["isel"] / times["by chunks"],
                "samples over by chunks": times["samples"] / times["by chunks"],
                "samples over memory": times["samples"] / times["memory"],
                "xbatcher over store": times["xbatcher"] / times["store"],
                "neuralop over memory": times["neuralop"] / times["memory"],
                "store over raw": times["store"] / times["raw"],
            }
            print(json.dumps(report[f"chunks of {chunk}"], indent=1))
        report["streaming"] = streaming(folder)
        print(report["streaming"])
        report["generation"] = generation(folder)
        report["generation"]["speed-up"] = (
            report["generation"]["1 workers"] / report["generation"]["2 workers"]
        )
        print(report["generation"])
    write_results(args.out, report)


if __name__ == "__main__":
    main()
