"""Inputs that are off in training, as in a rollout: noise, and the model's own steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import moving_wave_store
from neuralop import LpLoss, Trainer
from torch import Tensor, nn
from training import assert_same_run, interrupt, train_fields

from mano_op.data.loaders import Splits, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.runs import load_run
from mano_op.train.perturbation import PerturbedInputs

GRIDS = [Grid.uniform((n,), periodic=True) for n in (8, 16)]
SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2}
STATISTICS = {
    "force": {"mean": 3.0, "std": 2.0},
    "w@-1": {"mean": 1.0, "std": 0.5},
    "w@+0": {"mean": 1.0, "std": 0.5},
}
NEXT = {"w@+1": STATISTICS["w@+0"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    folder = tmp_path_factory.mktemp("perturbation")
    return moving_wave_store(folder / "waves.zarr", GRIDS, {"train": 6, "test": 3})


class Step(nn.Module):
    """A nonlinear step of a few parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 1, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor, **sample: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


def batch_of(n: int, times: int, seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    x = 1 + torch.randn((n, 3, 8), generator=drawn, dtype=torch.float64)
    return {"x": x, "y": 1 + torch.randn((n, times, 8), generator=drawn, dtype=torch.float64)}


def test_noise_is_normal_in_units_of_each_inputs_deviation() -> None:
    """Of 200,000 numbers: the mean within 4 standard errors, the deviation within a per cent."""
    batch = batch_of(4000, 1)
    batch["x"] = batch["x"].repeat(1, 1, 7)
    processor = FieldProcessor(STATISTICS, NEXT)
    noisy = PerturbedInputs(processor, nn.Identity(), noise=0.05).train()
    off = noisy.preprocess(batch)["x"] - processor.preprocess(batch)["x"]
    assert torch.equal(off[:, 0], torch.zeros_like(off[:, 0]))  # the force does not vary in time
    for channel in (1, 2):
        drawn = off[:, channel]
        assert abs(drawn.mean().item()) < 4 * 0.05 / np.sqrt(drawn.numel())
        assert drawn.std().item() == pytest.approx(0.05, rel=0.01)
        assert ((drawn / 0.05) ** 4).mean().item() == pytest.approx(3, rel=0.05)  # as of a normal one
    pairs = torch.corrcoef(
        torch.stack([off[:, 1, :-1].flatten(), off[:, 1, 1:].flatten(), off[:, 2, 1:].flatten()])
    )
    assert (pairs - torch.eye(3)).abs().max() < 0.01  # neither points nor channels go together
    again = noisy.preprocess(batch)["x"]
    assert not torch.isclose(again, off).all() and noisy.seen == 8000
    noisy.seen = 4000
    assert torch.equal(noisy.preprocess(batch)["x"], again)


def test_noise_is_off_in_evaluation_and_on_constant_inputs() -> None:
    batch = batch_of(5, 1)
    constant = {**STATISTICS, "w@-1": {"mean": 1.0, "std": 0.0}}
    processor = FieldProcessor(constant, NEXT)
    noisy = PerturbedInputs(processor, nn.Identity(), noise=0.5)
    exact = processor.train().preprocess(batch)
    given = noisy.train().preprocess(batch)
    assert [torch.equal(given["x"][:, i], exact["x"][:, i]) for i in range(3)] == [True, True, False]
    assert torch.equal(given["y"], exact["y"])
    exact = processor.eval().preprocess(batch)
    given = noisy.eval().preprocess(batch)
    assert all(torch.equal(given[name], exact[name]) for name in ("x", "y")) and noisy.seen == 5
    with pytest.raises(InputError, match="and no rollout: call eval"):
        noisy.train().preprocess(batch, step=0)


def by_hand(model: nn.Module, batch: dict[str, Tensor], steps: Tensor) -> Tensor:
    """The loss of each sample stepped on so many times, one by one and in units."""
    mean, std = ([STATISTICS[name][what] for name in STATISTICS] for what in ("mean", "std"))
    mean, std = (torch.tensor(one, dtype=torch.float64).view(-1, 1) for one in (mean, std))
    total = torch.zeros((), dtype=torch.float64)
    for x, y, d in zip(batch["x"], batch["y"], steps.tolist(), strict=True):
        with torch.no_grad():
            for _ in range(d):
                later = 0.5 * model(((x - mean) / std)[None])[0] + 1.0
                x = torch.cat([x[:1], x[2:], later])
        out = model(((x - mean) / std)[None])[0]
        total = total + (out - (y[d : d + 1] - 1.0) / 0.5).square().sum()
    return total


def test_loss_and_gradient_are_those_of_a_loop_by_hand() -> None:
    """In float64, through the steps that the Trainer makes."""
    torch.manual_seed(0)
    pushforward = 3
    model, batch = Step().double(), batch_of(24, 1 + pushforward)
    perturbed = PerturbedInputs(
        FieldProcessor(STATISTICS, NEXT).double(), model, pushforward=pushforward, seed=3
    ).train()
    sample = perturbed.preprocess(batch)
    out, sample = perturbed.postprocess(model(sample["x"]), sample)
    loss = (out - sample["y"]).square().sum()
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    # How often each was stepped on, read off its truth, which is another at each time.
    truth = (batch["y"] - 1.0) / 0.5
    steps = (truth - sample["y"]).abs().amax(dim=2).argmin(dim=1)
    assert sorted(set(steps.tolist())) == list(range(pushforward + 1))
    model.zero_grad()
    expected = by_hand(model, batch, steps)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(batch["x"], batch_of(24, 1 + pushforward)["x"])  # the caller's is not changed


def test_numbers_of_steps_are_drawn_evenly_and_other_inputs_follow() -> None:
    rows = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, coordinates: Tensor, scale: Tensor) -> Tensor:
            rows.append(coordinates.flatten().tolist())
            return x[:, -1:] + scale

    perturbed = PerturbedInputs(FieldProcessor(STATISTICS, NEXT), Recorder(), pushforward=2).train()
    batch = batch_of(3000, 3) | {"coordinates": torch.arange(3000.0).view(-1, 1), "scale": torch.tensor(1.0)}
    sample = perturbed.preprocess(batch)
    steps = ((batch["y"] - 1.0) / 0.5 - sample["y"]).abs().amax(dim=2).argmin(dim=1)
    assert torch.bincount(steps).tolist() == pytest.approx([1000] * 3, abs=4 * np.sqrt(3000 * 2 / 9))
    for step in (1, 2):  # coordinates follow their samples
        assert rows[step - 1] == torch.nonzero(steps >= step).flatten().tolist()
    torch.testing.assert_close(
        sample["x"][:, 2], (batch["x"][:, 2] - 1.0) / 0.5 + steps.view(-1, 1), rtol=1e-5, atol=1e-5
    )


def test_draws_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with 12, batches of 4, two processes with every other sample."""
    batch, drawn = batch_of(12, 3), {"noise": 0.1, "pushforward": 2, "seed": 5}
    model = Step().double()

    def perturbed() -> PerturbedInputs:
        return PerturbedInputs(FieldProcessor(STATISTICS, NEXT).double(), model, **drawn).train()

    whole, small = perturbed().preprocess(batch), perturbed()
    parts = [small.preprocess({k: v[i : i + 4] for k, v in batch.items()}) for i in (0, 4, 8)]
    for name in ("x", "y"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    for rank in (0, 1):
        monkeypatch.setattr("mano_op.train.perturbation.ranks", lambda rank=rank: (2, rank))
        two = perturbed()
        mine = {k: v[rank::2] for k, v in batch.items()}
        parts = [two.preprocess({k: v[i : i + 3] for k, v in mine.items()}) for i in (0, 3)]
        for name in ("x", "y"):
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name][rank::2])
        assert two.seen == 12


def train(store: FieldStore, out: Path, **options: Any) -> Any:
    return train_fields(
        store, out, **({"time_steps": (1, 1), "options": SMALL, "epochs": 2, "batch_size": 6} | options)
    )


def test_neuraloperators_trainer_takes_perturbed_inputs(store: FieldStore) -> None:
    """In training it is given what is off, in evaluation what is true, one step out and in a rollout."""
    loaders = field_loaders(
        store, train=8, test=[8], batch_size=5, time_steps=(2, 1), pushforward=2, rollout=3, test_batch_size=4
    )
    assert loaders.processor.outputs == ("w@+1",)
    batch = next(iter(loaders.train))
    assert batch["y"].shape == (5, 3, 8) and len(loaders.train.dataset) == 6 * 2
    model = Step()
    perturbed = PerturbedInputs(loaders.processor, model, noise=0.1, pushforward=2)
    trainer = Trainer(model=model, n_epochs=2, data_processor=perturbed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    loss = LpLoss(d=1, p=2)
    before = model.conv.weight.detach().clone()
    trainer.train(
        loaders.train, loaders.test, optimizer, schedule, training_loss=loss, eval_modes={8: "autoregression"}
    )
    assert perturbed.seen == 24 and not torch.equal(before, model.conv.weight)
    exact = Trainer(model=model, n_epochs=1, data_processor=loaders.processor)
    rollouts = [
        float(one.evaluate({"l2": loss}, loaders.test[8], "r", mode="autoregression")["r_l2"])
        for one in (trainer, exact)
    ]
    assert rollouts[0] == rollouts[1] and perturbed.seen == 24


def test_held_out_samples_are_one_step_out(store: FieldStore) -> None:
    loaders = field_loaders(
        store,
        train=8,
        test=[8, 16],
        batch_size=5,
        time_steps=(1, 1),
        pushforward=1,
        splits=Splits(hold_out=0.5),
    )
    assert [next(iter(loaders.test[n]))["y"].shape[1:] for n in (8, 16)] == [(1, 8), (1, 16)]
    assert next(iter(loaders.train))["y"].shape[1:] == (2, 8)
    assert [len(one.dataset) for one in (loaders.train, *loaders.test.values())] == [12, 15, 15]


def test_resumed_training_equals_uninterrupted_one(store: FieldStore, tmp_path: Path) -> None:
    options = {"noise": 0.1, "pushforward": 1, "resolution": Mixed([8, 16]), "accumulate": 2, "epochs": 2}
    options |= {"symmetries": ["reflect"], "validate": 0.34}
    whole = train(store, tmp_path / "whole", **options)
    interrupt(train, store, tmp_path / "run", 1, **options)
    assert_same_run(train(store, tmp_path / "run", resume=True, **options), whole)


def test_run_says_how_it_was_perturbed_and_predicts_exactly(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run", noise=0.1, pushforward=1, validate="test")
    kept = load_run(tmp_path / "run")
    assert (kept.training["noise"], kept.training["pushforward"]) == (0.1, 1)
    assert kept.training["samples"] == 6 * 4  # of six times each, without the last two
    assert "pushforward" in (tmp_path / "run" / "README.md").read_text()
    assert isinstance(run.processor, FieldProcessor) and not run.processor.training
    # Validation is of one step from true inputs: that of the model as it is kept.
    batch = next(iter(field_loaders(store, train=8, test=[8], batch_size=15, time_steps=(1, 1)).test[8]))
    data = run.processor.train().preprocess(batch)
    with torch.no_grad():
        error = LpLoss(d=1, p=2)(run.model(data["x"]), data["y"]).item() / 15
    assert run.training["best"]["validation_error"] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pushforward": 5}, r"=5 with time_steps=\(1, 1\) needs 7 times, the store has 6: give at most 4"),
        ({"pushforward": 1, "time_steps": (1, 2)}, r"time_steps=\(1, 2\); expected fields that vary in time"),
        ({"pushforward": 1, "time_steps": None, "at": [0.2]}, "time_steps=None; expected fields that vary"),
        (
            {"noise": 0.1, "time_steps": None, "at": [0.2]},
            "inputs force, none of which varies in time: it is",
        ),
    ],
)
def test_perturbations_that_do_not_fit_the_fields_are_refused(
    options: dict[str, Any], message: str, store: FieldStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(store, tmp_path / "run", **options)
    assert not any(tmp_path.iterdir())


def test_inputs_that_a_step_does_not_make_are_refused(store: FieldStore) -> None:
    driven = {**STATISTICS, "wind@+0": STATISTICS["force"]}
    with pytest.raises(
        InputError, match=r"pushforward=1 needs what a rollout needs: .*of all variables that"
    ):
        PerturbedInputs(FieldProcessor(driven, NEXT), nn.Identity(), pushforward=1)
    perturbed = PerturbedInputs(FieldProcessor(STATISTICS, NEXT), nn.Identity(), pushforward=2).train()
    with pytest.raises(
        InputError, match=r"expected 3 channels, w@\+1 of 3 times: field_loaders\(\.\.\., pushf"
    ):
        perturbed.preprocess(batch_of(2, 1))
    for options in ({"noise": -0.1}, {"noise": float("nan")}, {"pushforward": 1.5}, {"seed": -1}):
        with pytest.raises(InputError, match=r"=\S+, expected a (finite|whole) number"):
            PerturbedInputs(FieldProcessor(STATISTICS, NEXT), nn.Identity(), **options)
    with pytest.raises(InputError, match=r"pushforward=-1, expected a whole number"):
        field_loaders(store, train=8, test=[], batch_size=2, time_steps=(1, 1), pushforward=-1)
