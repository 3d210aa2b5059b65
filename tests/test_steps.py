"""Steps: of several batches, clipped, in several precisions; each against a loop that is written out."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from neuralop import LpLoss, Trainer
from torch import nn
from training import train_fields

from mano_op import InputError
from mano_op.data.loaders import FieldLoaders, field_loaders
from mano_op.data.store import FieldStore
from mano_op.registry import build_model
from mano_op.runs import Run
from mano_op.train.loop import _step
from mano_op.train.optimizer import optimizer_and_schedule
from mano_op.train.options import TrainOptions
from mano_op.train.precision import check_precision


def train(store: FieldStore, out: Path, **options: Any) -> Run:
    return train_fields(store, out, **({"epochs": 2, "optimizer": "adamw"} | options))


def prepared(run: Run, store: FieldStore) -> tuple[nn.Module, FieldLoaders]:
    """What a run was trained from, made anew."""
    loaders = field_loaders(store, train=8, test=[], batch_size=5, seed=0)
    torch.manual_seed(0)
    return build_model("mano", run.options), loaders


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "float32"), ("muon", "bfloat16")])
def test_plain_training_is_that_of_neuraloperators_trainer(
    optimizer: str, precision: str, fields: FieldStore, tmp_path: Path
) -> None:
    """bfloat16 is what its switch for autocast means on a CPU."""
    run = train(fields, tmp_path, optimizer=optimizer, precision=precision)
    model, loaders = prepared(run, fields)
    stepped, schedule = optimizer_and_schedule(optimizer, model, TrainOptions(), 2 * len(loaders.train))
    stepped.register_step_post_hook(lambda *_: schedule.step())
    trainer = Trainer(
        model=model, n_epochs=2, data_processor=loaders.processor, mixed_precision=precision == "bfloat16"
    )
    loss = LpLoss(d=2, measure=1.0)
    constant = torch.optim.lr_scheduler.ConstantLR(stepped, factor=1.0)
    trainer.train(loaders.train, {}, stepped, constant, training_loss=lambda out, y, **rest: loss(out, y))
    assert equal(run.model, model)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def written_out(
    run: Run,
    store: FieldStore,
    step: Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor], None],
    context: Callable[[], Any] = nullcontext,
) -> nn.Module:
    """A loop over epochs and batches; `step` is given the model, the optimiser and the loss of a batch."""
    model, loaders = prepared(run, store)
    optimizer, schedule = optimizer_and_schedule("adamw", model, TrainOptions(), 2 * len(loaders.train))
    loss = LpLoss(d=2, measure=1.0)
    loaders.processor.train()
    for _ in range(2):
        for batch in loaders.train:
            sample = loaders.processor.preprocess(batch)
            with context():
                out = model(sample["x"])
            optimizer.zero_grad()
            step(model, optimizer, loss(out.float(), sample["y"]))
            schedule.step()
    return model


def test_clipped_step_is_torchs(fields: FieldStore, tmp_path: Path) -> None:
    run, free = (train(fields, tmp_path / str(clip), clip=clip) for clip in (0.3, None))
    norms = []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
        optimizer.step()

    assert equal(run.model, written_out(run, fields, step))
    assert max(norms) > 0.3
    assert not equal(run.model, free.model)
    assert run.training["clip"] == 0.3 and "clip" not in free.training


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 3), (2, 4)])
def test_accumulated_batches_are_one_large_batch(
    batch_size: int, accumulate: int, fields: FieldStore, tmp_path: Path
) -> None:
    """Up to rounding; (2, 4) has fewer in an epoch's last step."""
    few = train(fields, tmp_path / "few", batch_size=batch_size, accumulate=accumulate)
    large = train(fields, tmp_path / "large", batch_size=batch_size * accumulate)
    for one, other in zip(few.history, large.history, strict=True):
        assert one["training_error"] == pytest.approx(other["training_error"], rel=1e-5)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(few.model(x), large.model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("samples", [12, 10, 3])
def test_gradients_of_batches_add_up(samples: int) -> None:
    """In double precision and without an optimiser's memory: the same clipped step to the last digits."""
    x = torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def stepped(batch: int) -> torch.Tensor:
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        state: Any = SimpleNamespace(
            optimizer=torch.optim.SGD([weight], lr=1.0), scaler=None, schedule=Mock()
        )
        for part in x.split(batch):
            (part @ weight).sin().square().sum().backward()
        _step(state, 0.9)
        return weight.detach()

    torch.testing.assert_close(stepped(2), stepped(samples), rtol=1e-13, atol=0)
    assert (stepped(2) - 1).norm().item() == pytest.approx(0.9, rel=1e-5)


def test_half_precision_is_scaled_as_torch_does_it(fields: FieldStore, tmp_path: Path) -> None:
    run = train(fields, tmp_path, precision="float16", clip=1.0)
    scaler, left_out = torch.amp.GradScaler("cpu"), []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = [parameter.clone() for parameter in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        left_out.append(all(map(torch.equal, before, model.parameters())))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of")
        model = written_out(run, fields, step, lambda: torch.autocast("cpu", torch.float16))
    assert equal(run.model, model)
    assert not all(left_out)
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_matrix_products_have_the_precision(
    precision: str, fields: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, not in validation."""
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    linear = torch.nn.functional.linear

    def recorded(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = linear(*args, **kwargs)
        dtypes[torch.is_grad_enabled()].add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    train(fields, tmp_path, precision=precision, epochs=1, validate="test")
    assert dtypes == {True: {getattr(torch, precision)}, False: {torch.float32}}


def test_precision_that_torch_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds warn and go on in single precision, others raise."""

    class Deprecated(torch.autocast):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            warnings.warn("which changes nothing here", FutureWarning, stacklevel=1)

    class Warns(nullcontext):  # type: ignore[type-arg]
        def __init__(self, *args: object) -> None:
            super().__init__()
            warnings.warn("In CPU autocast, but the target dtype is not supported", stacklevel=1)

    def raises(*args: object) -> None:
        raise RuntimeError("Current CUDA Device does not support bfloat16")

    for stand_in, reason in ((Warns, "the target dtype is not supported"), (raises, "does not support")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "autocast", stand_in)
            with pytest.raises(
                InputError,
                match=rf"precision='float16' is not available .*{reason}.*give precision='float32'",
            ):
                check_precision("float16", "cpu")
            check_precision("float32", "cpu")
    monkeypatch.setattr(torch, "autocast", Deprecated)
    check_precision("bfloat16", "cpu")
