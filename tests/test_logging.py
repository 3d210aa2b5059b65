"""Where each epoch's numbers go: functions, and TensorBoard and Weights & Biases as stand-ins."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
from training import train_fields as train

from mano_op import InputError
from mano_op.data.loaders import field_loaders
from mano_op.data.store import FieldStore
from mano_op.runs import Run
from mano_op.train.optimizer import warm_up_and_cosine


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The class of TensorBoard's writer."""
    module = ModuleType("torch.utils.tensorboard")
    writer = module.SummaryWriter = MagicMock()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return writer


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    module = MagicMock(run=None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def errors(run: Run) -> list[tuple[int, float]]:
    return [(int(epoch["epoch"]), epoch["training_error"]) for epoch in run.history]


def test_function_gets_the_history_and_the_rate(fields: FieldStore, tmp_path: Path) -> None:
    calls: list[tuple[int, dict[str, float]]] = []
    options = {"epochs": 3, "validate": "test", "learning_rate": 0.02}
    run = train(fields, tmp_path, log=lambda *call: calls.append(call), **options)
    batches = len(field_loaders(fields, train=8, test=[], batch_size=5).train)
    factor = warm_up_and_cosine(3 * batches)
    for (epoch, numbers), entry in zip(calls, run.history, strict=True):
        assert numbers.pop("learning_rate") == pytest.approx(0.02 * factor((epoch - 1) * batches), rel=1e-12)
        assert {"epoch": epoch, **numbers} == entry
    assert set(calls[0][1]) == {"training_error", "validation_error", "seconds"}


def test_tensorboard_is_written_beside_the_run_each_epoch_once(
    fields: FieldStore, tmp_path: Path, tensorboard: MagicMock
) -> None:
    """Also where epochs are trained again after an interruption."""

    def stop(epoch: int, numbers: object) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(fields, tmp_path, log=["tensorboard", stop], checkpoint_every=2)
    tensorboard.assert_called_once_with(str(tmp_path / "tensorboard"), purge_step=1)
    assert tensorboard.return_value.close.call_count == 1
    tensorboard.reset_mock()
    run = train(fields, tmp_path, log="tensorboard", resume=True)
    tensorboard.assert_called_once_with(str(tmp_path / "tensorboard"), purge_step=3)
    writer = tensorboard.return_value
    scalars = [call.args for call in writer.add_scalar.call_args_list]
    assert [(step, value) for name, value, step in scalars if name == "training_error"] == errors(run)[2:]
    assert (writer.flush.call_count, writer.close.call_count) == (2, 1)


@pytest.mark.parametrize("active", [None, "the user's"])
def test_wandb_gets_a_run_of_its_own_or_the_active_one(
    active: str | None, fields: FieldStore, tmp_path: Path, wandb: MagicMock
) -> None:
    wandb.run, epochs = active, []
    log = ["wandb", lambda epoch, numbers: epochs.append(epoch)]
    run = train(fields, tmp_path / "mine", log=log)
    logged = [call.args[0] for call in wandb.log.call_args_list]
    assert [(numbers["epoch"], numbers["training_error"]) for numbers in logged] == errors(run)
    assert epochs == [1, 2, 3, 4]
    if active:
        wandb.init.assert_not_called()
        wandb.finish.assert_not_called()
    else:
        options = wandb.init.call_args.kwargs
        assert (options["name"], options["config"]["epochs"]) == ("mine", 4)
        wandb.finish.assert_called_once_with()


@pytest.mark.parametrize(
    ("module", "log", "message"),
    [
        ("torch.utils.tensorboard", "tensorboard", r"log='tensorboard' needs .*'mano_op\[tensorboard\]'"),
        ("wandb", "wandb", "log='wandb' needs a package .*pip install wandb"),
    ],
)
def test_missing_packages_are_met_before_any_work(
    module: str, log: Any, message: str, fields: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        train(fields, tmp_path / "run", log=log)
    assert list(tmp_path.iterdir()) == []


def test_missing_key_of_wandb_is_met_before_any_epoch(
    fields: FieldStore, tmp_path: Path, wandb: MagicMock
) -> None:
    wandb.Error = type("UsageError", (Exception,), {})
    wandb.init.side_effect = wandb.Error("No API key configured")
    with pytest.raises(
        InputError, match=r"\(UsageError: No API key configured\); log in by `wandb login`, or set .*offline"
    ):
        train(fields, tmp_path / "run", log="wandb")
    assert list((tmp_path / "run").iterdir()) == []
