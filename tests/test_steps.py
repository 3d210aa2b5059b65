"""Steps: of several batches, clipped, in several precisions; each against a loop that is written out."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import wave_store
from mano_op.train.steps import Steps
from neuralop import LpLoss, Trainer
from torch import nn

from mano_op import Grid, InputError
from mano_op.data.loaders import FieldLoaders, field_loaders
from mano_op.data.store import FieldStore
from mano_op.registry import build_model
from mano_op.runs import Run
from mano_op.train import train_model
from mano_op.train.optimizer import optimizer_and_schedule
from mano_op.train.precision import autocast_to, check_precision

SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    grids = [Grid.uniform((n, n), registration="cell") for n in (8, 16)]
    return wave_store(tmp_path_factory.mktemp("steps") / "waves.zarr", grids, {"train": 12, "test": 4})


def train(store: FieldStore, out: Path, **options: Any) -> Run:
    settings = {"resolution": 8, "options": SMALL, "epochs": 3, "batch_size": 5, "progress": False}
    return train_model(store, out, **(settings | options))


def prepared(run: Run, store: FieldStore, batch_size: int) -> tuple[nn.Module, FieldLoaders]:
    """What a run was trained from, made anew."""
    loaders = field_loaders(store, train=8, test=[], batch_size=batch_size, seed=0)
    torch.manual_seed(0)
    return build_model("mano", run.options), loaders


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_without_options_it_is_neuraloperators_trainer(
    optimizer: str, precision: str, store: FieldStore, tmp_path: Path
) -> None:
    """Called once, for all epochs; bfloat16 is what its switch for autocast means on a CPU."""
    run = train(store, tmp_path, optimizer=optimizer, precision=precision)
    model, loaders = prepared(run, store, 5)
    stepped, schedule = optimizer_and_schedule(optimizer, model, 1e-2, 1e-4, 3)
    trainer = Trainer(
        model=model, n_epochs=3, data_processor=loaders.processor, mixed_precision=precision == "bfloat16"
    )
    loss = LpLoss(d=2, measure=1.0)
    trainer.train(loaders.train, {}, stepped, schedule, training_loss=lambda out, y, **rest: loss(out, y))
    assert equal(run.model, model)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def written_out(
    run: Run,
    store: FieldStore,
    batch_size: int,
    step: Callable[[nn.Module, torch.optim.Optimizer, Iterator[torch.Tensor]], None],
    context: Callable[[], Any] = warnings.catch_warnings,
) -> nn.Module:
    """A loop over epochs; `step` is given the model, the optimiser and the losses of an epoch's batches."""
    model, loaders = prepared(run, store, batch_size)
    stepped, schedule = optimizer_and_schedule("adamw", model, 1e-2, 1e-4, 3)
    loss = LpLoss(d=2, measure=1.0)
    loaders.processor.train()

    def losses() -> Iterator[torch.Tensor]:
        for batch in loaders.train:
            sample = loaders.processor.preprocess(batch)
            with context():
                out = model(sample["x"])
            yield loss(out.float(), sample["y"])

    for _ in range(3):
        step(model, stepped, losses())
        schedule.step()
    return model


def test_a_clipped_step_is_torchs(store: FieldStore, tmp_path: Path) -> None:
    run, free = (train(store, tmp_path / str(clip), clip=clip) for clip in (0.3, None))
    norms = []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Iterator[torch.Tensor]) -> None:
        for loss in losses:
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
            optimizer.step()

    assert equal(run.model, written_out(run, store, 5, step))
    assert max(norms) > 0.3
    assert not equal(run.model, free.model)
    assert run.training["clip"] == 0.3 and "clip" not in free.training
    assert equal(train(store, tmp_path / "long", clip=1e9).model, free.model)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 3), (2, 4), (3, 2), (6, 5)])
def test_accumulated_batches_are_one_large_batch(
    batch_size: int, accumulate: int, store: FieldStore, tmp_path: Path
) -> None:
    """Up to rounding, also where an epoch's last step is of fewer."""
    few = train(store, tmp_path / "few", batch_size=batch_size, accumulate=accumulate)
    large = train(store, tmp_path / "large", batch_size=batch_size * accumulate)
    for one, other in zip(few.history, large.history, strict=True):
        assert one["training_error"] == pytest.approx(other["training_error"], rel=1e-5)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(few.model(x), large.model(x), rtol=1e-3, atol=1e-4)
    apart = train(store, tmp_path / "apart", batch_size=batch_size)
    assert apart.history[-1]["training_error"] != pytest.approx(large.history[-1]["training_error"], rel=1e-4)


@pytest.mark.parametrize("samples", [12, 10, 3])
def test_the_gradients_of_batches_add_up(samples: int) -> None:
    """In double precision and without an optimiser's memory: the same numbers to the last digits."""
    x = torch.randn(samples, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def trained(batch: int, accumulate: int) -> torch.Tensor:
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        batches = x.split(batch)
        optimizer = torch.optim.SGD([weight], lr=0.05)
        steps = Steps(optimizer, len(batches), accumulate=accumulate, clip=0.9)
        for _ in range(2):
            for some in batches:
                steps.zero_grad()
                (some @ weight).sin().square().sum().backward()
                steps.step()
        return weight.detach()

    torch.testing.assert_close(trained(2, 4), trained(8, 1), rtol=1e-13, atol=0)


def test_a_step_is_as_long_as_it_may_be() -> None:
    for gradient, clip, length in ((3.0, 2.0, 2.0), (3.0, 4.0, 3.0)):
        weight = torch.zeros(1, requires_grad=True)
        steps = Steps(torch.optim.SGD([weight], lr=1.0), 1, clip=clip)
        steps.zero_grad()
        (-gradient * weight).sum().backward()
        steps.step()
        assert weight.item() == pytest.approx(length, rel=1e-5)


def test_half_precision_is_scaled_as_torch_does_it(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path, precision="float16", clip=1.0)
    scaler, left_out = torch.amp.GradScaler("cpu"), []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Iterator[torch.Tensor]) -> None:
        for loss in losses:
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            before = [parameter.clone() for parameter in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            left_out.append(all(map(torch.equal, before, model.parameters())))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of")
        model = written_out(run, store, 5, step, lambda: torch.autocast("cpu", torch.float16))
    assert equal(run.model, model)
    assert not all(left_out)
    assert run.training["precision"] == "float16"
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_matrix_products_are_of_the_precision(
    precision: str, store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    linear = torch.nn.functional.linear

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = linear(*args, **kwargs)
        if torch.is_grad_enabled():  # in training, not in validation
            seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    before = torch.get_autocast_dtype("cpu")
    half = train(store, tmp_path / "half", precision=precision, epochs=2, validate="test")
    assert seen == {getattr(torch, precision)}
    assert torch.get_autocast_dtype("cpu") == before
    monkeypatch.undo()
    full = train(store, tmp_path / "full", epochs=2, validate="test")
    first = half.history[0]["training_error"]
    assert first != full.history[0]["training_error"]
    assert first == pytest.approx(full.history[0]["training_error"], rel=0.02)


def test_a_precision_that_torch_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds warn and go on in single precision, others raise."""

    class Warns:
        def __init__(self, *args: object) -> None:
            warnings.warn("In CPU autocast, but the target dtype is not supported", stacklevel=1)

        def __enter__(self) -> None: ...

        def __exit__(self, *args: object) -> None: ...

    class Raises(Warns):
        def __init__(self, *args: object) -> None:
            raise RuntimeError("Current CUDA Device does not support bfloat16")

    for stand_in, reason in ((Warns, "the target dtype is not supported"), (Raises, "does not support")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "autocast", stand_in)
            with pytest.raises(
                InputError, match=rf"precision='float16' cannot be had .*{reason}.*give precision='float32'"
            ):
                check_precision("float16", "cpu")
            check_precision("float32", "cpu")


def test_what_autocast_means_is_as_before_after_an_error() -> None:
    before = torch.get_autocast_dtype("cpu")
    with pytest.raises(KeyError), autocast_to("float16", "cpu"):
        assert torch.get_autocast_dtype("cpu") == torch.float16
        raise KeyError
    assert torch.get_autocast_dtype("cpu") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, r"clip=0\.0, expected a finite number, more than 0"),
        ({"clip": float("inf")}, "clip=inf, expected a finite number"),
        ({"accumulate": 0}, "accumulate=0, expected a whole number, at least 1"),
        ({"accumulate": 1.5}, r"accumulate=1\.5, expected a whole number"),
        ({"precision": "half"}, "precision='half', expected one of float32, bfloat16, float16"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1, expected a whole number, at least 0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    options: dict[str, Any], message: str, store: FieldStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(store, tmp_path / "run", **options)
    assert list(tmp_path.iterdir()) == []
