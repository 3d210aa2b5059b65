"""Where each epoch's numbers go: functions, and TensorBoard and Weights & Biases as stand-ins."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import wave_store

from mano_op import Grid, InputError
from mano_op.data.store import FieldStore
from mano_op.runs import Run
from mano_op.train import train_model

SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    folder = tmp_path_factory.mktemp("logging")
    return wave_store(folder / "waves.zarr", [Grid.uniform((8, 8))], {"train": 6, "test": 2})


def train(store: FieldStore, out: Path, **options: Any) -> Run:
    settings = {"resolution": 8, "options": SMALL, "epochs": 3, "batch_size": 3, "progress": False}
    return train_model(store, out, **(settings | options))


class Writer:
    """What of TensorBoard's writer is used."""

    made: list["Writer"]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step = folder, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.flushed = self.closed = 0
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        assert not self.closed
        self.scalars.append((name, value, step))

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Writer.made = []
    return Writer


class Wandb(ModuleType):
    """What of Weights & Biases is used."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run: object = None
        self.calls: list[tuple[str, Any]] = []

    def init(self, **options: Any) -> None:
        self.run = options
        self.calls.append(("init", options))

    def log(self, metrics: dict[str, float]) -> None:
        assert self.run is not None
        self.calls.append(("log", metrics))

    def finish(self) -> None:
        self.run = None
        self.calls.append(("finish", None))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def expected(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in epoch.items() if name != "epoch"} for epoch in run.history]


def test_a_function_is_told_the_history_and_the_rate(store: FieldStore, tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    run = train(store, tmp_path, log=lambda *one: told.append(one), validate="test", learning_rate=0.02)
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    rates = [metrics["learning_rate"] for _, metrics in told]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.AdamW([torch.zeros(1)]), max_lr=0.02, total_steps=4, pct_start=0.5
    )
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        schedule.optimizer.step()
        schedule.step()
    assert [{k: v for k, v in metrics.items() if k != "learning_rate"} for _, metrics in told] == expected(
        run
    )
    assert set(told[0][1]) == {"training_error", "validation_error", "seconds", "learning_rate"}


def test_tensorboard_is_written_beside_the_run(
    store: FieldStore, tmp_path: Path, tensorboard: type[Writer]
) -> None:
    run = train(store, tmp_path / "run", log="tensorboard")
    [writer] = tensorboard.made
    assert (writer.folder, writer.purge_step) == (str(tmp_path / "run" / "tensorboard"), 1)
    assert (writer.flushed, writer.closed) == (3, 1)
    errors = [(value, step) for name, value, step in writer.scalars if name == "training_error"]
    assert errors == [(epoch["training_error"], epoch["epoch"]) for epoch in run.history]


def test_what_was_logged_of_epochs_that_are_trained_again_is_taken_back(
    store: FieldStore, tmp_path: Path, tensorboard: type[Writer]
) -> None:
    def stop(epoch: int, metrics: object) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, tmp_path, log=["tensorboard", stop], checkpoint_every=2)
    assert tensorboard.made[0].closed == 1
    train(store, tmp_path, log="tensorboard", resume=True)
    assert tensorboard.made[1].purge_step == 3
    assert {step for _, _, step in tensorboard.made[1].scalars} == {3}


def test_wandb_gets_a_run_of_its_own(store: FieldStore, tmp_path: Path, wandb: Wandb) -> None:
    run = train(store, tmp_path / "mine", log="wandb")
    (begun, options), *logged, (ended, _) = wandb.calls
    assert (begun, ended) == ("init", "finish")
    assert options["name"] == "mine"
    assert options["config"]["epochs"] == 3
    assert [metrics["epoch"] for _, metrics in logged] == [1, 2, 3]
    assert [metrics["training_error"] for _, metrics in logged] == [
        epoch["training_error"] for epoch in run.history
    ]


def test_wandb_goes_to_the_run_that_is_active(store: FieldStore, tmp_path: Path, wandb: Wandb) -> None:
    wandb.run = "the user's"
    train(store, tmp_path, log="wandb")
    assert [name for name, _ in wandb.calls] == ["log"] * 3
    assert wandb.run == "the user's"


def test_several_at_once(store: FieldStore, tmp_path: Path, wandb: Wandb, tensorboard: type[Writer]) -> None:
    told: list[int] = []
    train(store, tmp_path, log=["wandb", "tensorboard", lambda epoch, metrics: told.append(epoch)])
    assert told == [1, 2, 3]
    assert len(wandb.calls) == 5
    assert len(tensorboard.made[0].scalars) == 9


@pytest.mark.parametrize(
    ("missing", "log", "message"),
    [
        (
            "torch.utils.tensorboard",
            "tensorboard",
            r"log='tensorboard' needs TensorBoard .*pip install 'mano_op\[tensorboard\]'",
        ),
        ("wandb", "wandb", "log='wandb' needs Weights & Biases .*pip install wandb"),
        (None, "tensorbord", "log='tensorbord', expected tensorboard, wandb, or a function of the epoch"),
        (None, 3, "log=3, expected tensorboard, wandb, or a function"),
        (None, ["paper"], "log='paper', expected"),
    ],
)
def test_what_cannot_be_logged_to_is_refused_before_any_work(
    missing: str | None,
    log: Any,
    message: str,
    store: FieldStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        train(store, tmp_path / "run", log=log)
    assert list(tmp_path.iterdir()) == []
