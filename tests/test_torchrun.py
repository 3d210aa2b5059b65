"""Two processes that torchrun starts train the model that one process trains with the whole batches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import moving_wave_store, wave_store

from mano_op import Grid
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.runs import load_run
from mano_op.train import train_model

SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}
GRIDS = [Grid.uniform((n, n), registration="cell") for n in (8, 16)]
MIXED = {"resolution": Mixed([8, 16]), "options": SMALL, "epochs": 3, "progress": False}
# Each with the batch of one process; two have half of it each.
CASES: dict[str, dict[str, Any]] = {
    "clipped": {"batch_size": [6, 4], "clip": 0.5, "validate": "test"},
    "accumulated": {
        "batch_size": [4, 2],
        "accumulate": 2,
        "optimizer": "muon",
        "symmetries": ["reflect"],
        "validate": 0.34,
    },
    "fno": {
        "arch": "fno",
        "options": {"n_modes": [4, 4], "hidden_channels": 8, "n_layers": 1},
        "batch_size": [12, 6],
        "clip": 1.0,
    },
    # Of a store with times; the samples divide, so that each is perturbed as in one process.
    "perturbed": {
        "options": SMALL | {"n_levels": 1},
        "batch_size": [6, 4],
        "time_steps": [1, 1],
        "noise": 0.1,
        "pushforward": 1,
    },
}
RANK = """
import json, os, sys
import torch
torch.set_num_threads(1)
import torch.distributed as dist
from mano_op.data.loaders import field_loaders
from mano_op.registry import build_model
from mano_op.train import train_model
from mano_op.train.distributed import copy_from_first, sum_gradients, sum_numbers

folder, cases = sys.argv[1], json.loads(sys.argv[2])
store, told = f"{folder}/waves.zarr", {}
dist.init_process_group("gloo")
rank = dist.get_rank()
for name, options in cases.items():
    options["batch_size"] = [n // 2 for n in options["batch_size"]]
    place = f"{folder}/moving.zarr" if "time_steps" in options else store
    run = train_model(place, f"{folder}/two/{name}", **options)
    told[name] = [[epoch["training_error"] for epoch in run.history], run.training["processes"]]
    told[name].append(sum(parameter.detach().abs().sum().item() for parameter in run.model.parameters()))


class Stopped(Exception):
    pass


# Gone on with after an interruption, which comes to all ranks.
from mano_op.train.watched import Watched
read = Watched.__iter__
def stopped(self):
    if len(self.history) == 2:
        raise Stopped
    yield from read(self)
Watched.__iter__ = stopped
try:
    train_model(store, f"{folder}/two/resumed", **cases["accumulated"])
except Stopped:
    Watched.__iter__ = read
run = train_model(store, f"{folder}/two/resumed", resume=True, **cases["accumulated"])
told["resumed"] = [epoch["training_error"] for epoch in run.history]
again = train_model(store, f"{folder}/two/resumed", resume=True, **cases["accumulated"])
told["read"] = [epoch["training_error"] for epoch in again.history]

# The gradient of a step, in double precision.
told["group"] = dist.is_initialized()
torch.manual_seed(rank)
model = build_model("mano", {"in_channels": 2, "out_channels": 1, "reference_shape": [8, 8],
                             **cases["clipped"]["options"]}).double()
copy_from_first(model)
x = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
model(x[rank::2]).square().sum().backward()
sum_gradients(model.parameters())
summed = [parameter.grad.clone() for parameter in model.parameters()]
model.zero_grad()
model(x).square().sum().backward()
whole = [parameter.grad for parameter in model.parameters()]
scale = max(one.abs().max().item() for one in whole)
told["gradients"] = max((one - other).abs().max().item() for one, other in zip(summed, whole)) / scale
weight = torch.ones(2, dtype=torch.complex64, requires_grad=True)
unused = torch.ones(1, requires_grad=True)
((weight * (1 + rank)).conj() * 1j).real.sum().backward()
alone = weight.grad.clone() / (1 + rank)
sum_gradients([weight, unused])
told["complex"] = [(weight.grad - 3 * alone).abs().max().item(), unused.grad is None]
told["numbers"] = sum_numbers(rank + 1, 0.5)
dist.destroy_process_group()
with open(f"{folder}/told{rank}.json", "w") as file:
    json.dump(told, file)
"""


def torchrun(*command: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *command], env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    folder = tmp_path_factory.mktemp("torchrun")
    moving_wave_store(
        folder / "moving.zarr", [Grid.uniform((n,), periodic=True) for n in (8, 16)], {"train": 6}
    )
    return wave_store(folder / "waves.zarr", GRIDS, {"train": 12, "test": 5})


@pytest.fixture(scope="module")
def told(store: FieldStore) -> list[dict[str, Any]]:
    """What both ranks say."""
    folder = Path(store.path).parent
    (folder / "rank.py").write_text(RANK)
    cases = {name: MIXED | options for name, options in CASES.items()}
    done = torchrun(str(folder / "rank.py"), str(folder), json.dumps(cases))
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"told{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_train_as_one(
    name: str, store: FieldStore, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    moving = Path(store.path).parent / "moving.zarr"
    one = train_model(moving if "time_steps" in CASES[name] else store, tmp_path, **(MIXED | CASES[name]))
    two = load_run(Path(store.path).parent / "two" / name)
    for kind in ("training_error", "validation_error"):
        if kind in one.history[0]:
            errors = [[epoch[kind] for epoch in run.history] for run in (one, two)]
            assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    x = torch.randn(
        3, 2, *[8] * (1 if "time_steps" in CASES[name] else 2), generator=torch.Generator().manual_seed(0)
    )
    # Muon makes its steps orthogonal in bfloat16, where a last digit may round to another one.
    atol = 1e-2 if one.training["optimizer"] == "muon" else 2e-4
    torch.testing.assert_close(two.model(x), one.model(x), rtol=2e-3, atol=atol)
    assert two.training["samples"] == one.training["samples"]
    assert two.training["processes"] == 2 and "processes" not in one.training


def test_all_ranks_have_one_model(told: list[dict[str, Any]]) -> None:
    assert told[0] == told[1]
    assert told[0]["group"]  # which was there before, and is left
    assert [told[0][name][1] for name in CASES] == [2] * len(CASES)


def test_two_processes_go_on(store: FieldStore, told: list[dict[str, Any]]) -> None:
    assert told[0]["resumed"] == told[0]["accumulated"][0]
    assert told[0]["read"] == told[0]["resumed"]
    folder = Path(store.path).parent / "two"
    a, b = (load_run(folder / name) for name in ("accumulated", "resumed"))
    assert all(map(torch.equal, a.model.parameters(), b.model.parameters()))
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(
        ["README.md", "config.json", "model.safetensors", "run.json"] * (len(CASES) + 1)
    )


def test_the_gradient_is_that_of_the_whole_batch(told: list[dict[str, Any]]) -> None:
    """The sum, not the mean, to the last digits; complex ones too, and none where there is none."""
    assert told[0]["gradients"] < 1e-13
    assert told[0]["complex"] == [0.0, True]
    assert told[0]["numbers"] == [3.0, 1.0]


def test_the_command_is_one_training_and_speaks_once(store: FieldStore, tmp_path: Path) -> None:
    words = f"-m mano_op.cli train fields {store.path} {tmp_path}/two --resolution 8 16 --epochs 2"
    small = [word for name, value in SMALL.items() for word in ("--option", f"{name}={value}")]
    done = torchrun(*words.split(), "--validate", "test", "--batch-size", "3", *small, "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.strip()]
    options = MIXED | {"epochs": 2, "batch_size": 6, "validate": "test"}
    one, two = train_model(store, tmp_path / "one", **options), load_run(tmp_path / "two")
    errors = [[epoch["validation_error"] for epoch in run.history] for run in (one, two)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    best = one.training["best"]
    assert line.startswith(f"{tmp_path}/two: mano, ")
    assert line.endswith(f"validation error {best['validation_error']:.4f} of epoch {best['epoch']}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
