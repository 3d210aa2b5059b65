"""Two processes that torchrun starts train the model that one process trains with the whole batches."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import moving_wave_store, wave_store
from training import FILES, FNO, GRIDS, SMALL, tenth_of_digits, train_fields, train_images

from mano_op import Grid
from mano_op.cli import main
from mano_op.registry import build_model
from mano_op.runs import Run, load_run
from mano_op.train import loop
from mano_op.train.checkpoint import Progress
from mano_op.train.distributed import copy_from_first, sum_gradients, sum_numbers
from mano_op.train.task import Task

STAGES = {"patch_size": 1, "embed_dim": 8, "depths": [1, 1], "n_heads": [2, 2], "window": 4}


def mixed(*batch_size: int) -> dict[str, Any]:
    return {"resolution": {"resolutions": [8, 16], "batch_size": list(batch_size)}, "epochs": 3}


# Data and options, each with the batches of one process; two have half of each.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("waves", {**mixed(6, 4), "clip": 0.5, "validate": "test"}),
    "accumulated": (
        "waves",
        {**mixed(4, 2), "accumulate": 2, "optimizer": "muon", "symmetries": ["reflect"], "validate": 0.34},
    ),
    "fno": ("waves", {**mixed(12, 6), **FNO, "clip": 1.0}),
    # The samples divide, so that each is perturbed as in one process.
    "perturbed": (
        "moving",
        {
            **mixed(6, 4),
            "options": SMALL | {"n_levels": 1},
            "optimizer": "adamw",
            "time_steps": [1, 1],
            "noise": 0.1,
            "pushforward": 1,
        },
    ),
    "images": (
        "digits",
        {
            "arch": "mano_classifier",
            "options": STAGES,
            "epochs": 3,
            "batch_size": 16,
            "accumulate": 2,
            "augmentation": {"shift": 1, "crop": 0.6, "mixup": 0.4},
            "label_smoothing": 0.1,
            "validate": "test",
        },
    ),
}
# What `torchrun` does, from one process that has imported everything, which its ranks need not do again.
LAUNCH = """
import json, sys
import torch, torch._dynamo
torch.set_num_threads(1)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from test_torchrun import rank
import mano_op.models.mano, mano_op.vision.training

config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=0, start_method="fork",
    run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
)
elastic_launch(config, rank)(sys.argv[1])
"""


def rank(folder: str) -> None:
    """Train all cases in one process of two, and write what it has seen."""
    seen: dict[str, Any] = {}
    assert main(command(folder)) == 0  # which makes the process group
    number, group = dist.get_rank(), dist.group.WORLD
    for name, (data, options) in CASES.items():
        run = train(folder, f"two/{name}", data, **halved(options))
        parameters = sum(parameter.detach().abs().sum().item() for parameter in run.model.parameters())
        errors = [epoch["training_error"] for epoch in run.history]
        seen[name] = [errors, run.training["processes"], parameters]

    data, options = CASES["accumulated"]
    train_epoch = loop._train_epoch

    def train_two(task: Task, state: Progress, epoch: int, bar: object) -> dict[str, float]:
        if epoch == 3:  # on all ranks
            raise KeyboardInterrupt
        return train_epoch(task, state, epoch, bar)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_train_epoch", train_two)
        train(folder, "two/resumed", data, **halved(options))
    for name in ("resumed", "read"):
        run = train(folder, "two/resumed", data, resume=True, **halved(options))
        seen[name] = [epoch["training_error"] for epoch in run.history]

    # The gradient of a step, in double precision.
    seen["group"] = dist.group.WORLD is group
    torch.manual_seed(number)
    channels = {"in_channels": 2, "out_channels": 1}
    model = build_model("mano", {**channels, "reference_shape": [8, 8], **SMALL}).double()
    copy_from_first(model)
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model(x[number::2]).square().sum().backward()
    sum_gradients(model.parameters())
    summed = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    whole = [parameter.grad for parameter in model.parameters()]
    scale = max(gradient.abs().max().item() for gradient in whole)
    pairs = zip(summed, whole, strict=True)
    seen["gradients"] = max((one - other).abs().max().item() for one, other in pairs) / scale
    weight = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    unused = torch.ones(1, requires_grad=True)
    ((weight * (1 + number)).conj() * 1j).real.sum().backward()
    alone = weight.grad.clone() / (1 + number)
    sum_gradients([weight, unused])
    seen["complex"] = [(weight.grad - 3 * alone).abs().max().item(), unused.grad is None]
    seen["numbers"] = sum_numbers(number + 1, 0.5)
    dist.destroy_process_group()
    Path(folder, f"rank{number}.json").write_text(json.dumps(seen))


def train(folder: Path | str, out: str, data: str, **options: Any) -> Run:
    """Train on the data of a folder."""
    place = Path(folder)
    if data == "digits":
        return train_images(tenth_of_digits(), place / out, **options)
    return train_fields(place / f"{data}.zarr", place / out, **options)


def halved(options: dict[str, Any]) -> dict[str, Any]:
    """The options of each of two processes."""
    half = copy.deepcopy(options)
    place = half if "batch_size" in half else half["resolution"]
    size = place["batch_size"]
    place["batch_size"] = [n // 2 for n in size] if isinstance(size, list) else size // 2
    return half


def command(folder: Path | str) -> list[str]:
    words = f"train fields {folder}/waves.zarr {folder}/command --resolution 8 16 --epochs 2 --quiet"
    small = [word for name, value in SMALL.items() for word in ("--option", f"{name}={value}")]
    return [*words.split(), "--validate", "test", "--batch-size", "3", *small]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With both stores."""
    folder = tmp_path_factory.mktemp("torchrun")
    periodic = [Grid.uniform((n,), periodic=True) for n in (8, 16)]
    moving_wave_store(folder / "moving.zarr", periodic, {"train": 6})
    wave_store(folder / "waves.zarr", GRIDS, {"train": 12, "test": 5})
    return folder


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What two processes print that train all cases."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seen(folder: Path, output: str) -> list[dict[str, Any]]:
    """What both ranks have seen."""
    return [json.loads((folder / f"rank{number}.json").read_text()) for number in range(2)]


@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_train_as_one(name: str, folder: Path, seen: list[dict[str, Any]]) -> None:
    data, options = CASES[name]
    one, two = train(folder, f"one/{name}", data, **options), load_run(folder / "two" / name)
    for kind in ("training_error", "validation_error"):
        errors = [[epoch[kind] for epoch in run.history if kind in epoch] for run in (one, two)]
        assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    shape = {"waves": (3, 2, 8, 8), "moving": (3, 2, 8), "digits": (3, 1, 8, 8)}[data]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Muon makes its steps orthogonal in bfloat16, where a last digit may round to another one.
    atol = 1e-2 if one.training.get("optimizer") == "muon" else 2e-4
    torch.testing.assert_close(two.model(x), one.model(x), rtol=2e-3, atol=atol)
    assert two.training["samples"] == one.training["samples"]
    assert two.training["processes"] == 2 and "processes" not in one.training


def test_all_ranks_have_one_model(seen: list[dict[str, Any]]) -> None:
    assert seen[0] == seen[1]
    assert seen[0]["group"]  # that of the first training, and left
    assert [seen[0][name][1] for name in CASES] == [2] * len(CASES)


def test_two_processes_continue(folder: Path, seen: list[dict[str, Any]]) -> None:
    assert seen[0]["read"] == seen[0]["resumed"] == seen[0]["accumulated"][0]
    a, b = (load_run(folder / "two" / name) for name in ("accumulated", "resumed"))
    assert all(map(torch.equal, a.model.parameters(), b.model.parameters()))
    written = sorted(path.name for path in (folder / "two").rglob("*") if path.is_file())
    assert written == sorted(FILES * (len(CASES) + 1))


def test_gradient_is_that_of_the_whole_batch(seen: list[dict[str, Any]]) -> None:
    """The sum, not the mean, to the last digits; complex ones too, and none where there is none."""
    assert seen[0]["gradients"] < 1e-13
    assert seen[0]["complex"] == [0.0, True]
    assert seen[0]["numbers"] == [3.0, 1.0]


def test_command_is_one_training_and_speaks_once(folder: Path, output: str) -> None:
    [line] = [line for line in output.splitlines() if line.strip()]
    options = {"resolution": {"resolutions": [8, 16]}, "epochs": 2, "batch_size": 6, "validate": "test"}
    one = train_fields(folder / "waves.zarr", folder / "one" / "command", **options)
    two = load_run(folder / "command")
    errors = [[epoch["validation_error"] for epoch in run.history] for run in (one, two)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-4)
    best = one.training["best"]
    assert line.startswith(f"{folder}/command: mano, ")
    assert line.endswith(f"validation error {best['validation_error']:.4f} of epoch {best['epoch']}")
