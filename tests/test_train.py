"""Training on the fields of a store: the loss, the model that fits the store, mixtures of resolutions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import store_of, wave_store, waves
from neuralop.losses import H1Loss, LpLoss
from training import FNO, SMALL
from training import train_fields as train

from mano_op import Grid, InputError, evaluate_transfer
from mano_op.data.layout import Variable
from mano_op.data.loaders import field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.grid import Axis
from mano_op.registry import build_model
from mano_op.runs import load_run
from mano_op.train.optimizer import warm_up_and_cosine


def test_model_fits_the_store_and_is_kept(fields: FieldStore, tmp_path: Path) -> None:
    run = train(fields, tmp_path / "run", epochs=1)
    expected = {
        "in_channels": 2,
        "out_channels": 1,
        "n_dim": 2,
        "registration": "cell",
        "periodic": [False, False],
        "reference_shape": [8, 8],
        "boundary_values": None,
        "restriction": "average",
        **SMALL,
    }
    assert run.options == expected
    assert (run.training["machine"]["device"], run.training["task"]) == ("cpu", "fields")
    assert run.training["machine"]["versions"]["torch"] == torch.__version__
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(load_run(tmp_path / "run").predict(x), run.predict(x))
    # Options that say what the fields say are taken.
    said = {"in_channels": 2, "periodic": False, "registration": "cell", **SMALL}
    assert train(fields, tmp_path / "said", options=said, epochs=1).options == expected


@pytest.mark.parametrize("options", [{"epochs": 40}, {**FNO, "epochs": 30, "learning_rate": 2e-2}])
def test_training_fits_the_fields(options: dict[str, Any], fields: FieldStore, tmp_path: Path) -> None:
    history = train(fields, tmp_path, batch_size=4, **options).history
    assert [epoch["epoch"] for epoch in history] == list(range(1, options["epochs"] + 1))
    assert history[-1]["training_error"] < 0.5 * history[0]["training_error"]


def norm_of(loss: str) -> Any:
    """neuraloperator's loss on a grid that does not wrap."""
    return LpLoss(d=2, measure=1.0) if loss == "l2" else H1Loss(d=2, periodic_in_x=False, periodic_in_y=False)


def test_error_is_the_mean_over_samples_and_channels(tmp_path: Path) -> None:
    """Of the initial model, where all samples are in one batch."""

    def fields(samples: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
        wave = waves(samples, grid)
        return {"a": wave["a"], "u": wave["u"], "v": 3 * wave["u"] + 1}

    variables = [Variable("a", "input"), Variable("u", "output"), Variable("v", "output")]
    grid = Grid.uniform((8, 6), registration="cell")
    store = store_of(tmp_path / "two.zarr", [grid], variables, fields, {"train": 6})
    run = train(store, tmp_path / "run", resolution=(8, 6), batch_size=6, epochs=1, seed=3)
    loaders = field_loaders(store, train=(8, 6), test=[], batch_size=6, seed=3)
    sample = loaders.processor.train().preprocess(next(iter(loaders.train)))
    torch.manual_seed(3)
    error = build_model("mano", run.options)(sample["x"]) - sample["y"]
    expected = (error.flatten(2).norm(dim=-1) / sample["y"].flatten(2).norm(dim=-1)).mean()
    assert run.history[0]["training_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_seed_gives_the_model(fields: FieldStore, tmp_path: Path) -> None:
    seeds = enumerate((1, 1, 2))
    first, second, other = (train(fields, tmp_path / str(i), seed=seed, epochs=1) for i, seed in seeds)
    assert all(map(torch.equal, first.model.parameters(), second.model.parameters()))
    assert first.errors == second.errors != other.errors


@pytest.mark.parametrize("epochs", [1, 2, 9])
def test_rate_follows_its_schedule_from_step_to_step(epochs: int, fields: FieldStore, tmp_path: Path) -> None:
    rates: list[float] = []
    train(
        fields,
        tmp_path,
        epochs=epochs,
        learning_rate=1e-2,
        log=lambda epoch, numbers: rates.append(numbers["learning_rate"]),
    )
    batches = len(field_loaders(fields, train=8, test=[], batch_size=5).train)
    factor = warm_up_and_cosine(epochs * batches)
    assert rates == pytest.approx([1e-2 * factor(epoch * batches) for epoch in range(epochs)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 32}, r"no resolution 32; it has r8 \(8 x 8\), r16 \(16 x 16\)"),
        ({"resolution": Mixed([8, 8])}, r"expected at least one resolution, and each of them once"),
        ({"arch": "mono"}, "there is no model 'mono'"),
        ({"options": {"hiden_channels": 8}}, "no option 'hiden_channels'"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
        ({"device": "meta"}, "device='meta' cannot be used here"),
        ({"arch": "fno", "options": {}}, "fno needs n_modes, hidden_channels: give options="),
        (
            {"arch": "fno", "options": {"n_modes": [4], "hidden_channels": 8}},
            r"fno with .*'n_modes': \[4\].* fails \(.* for an input",
        ),
        (
            {"arch": "fno", "options": {"n_modes": [4, 4], "hidden_channels": "x"}},
            "fno cannot be built with .*'hidden_channels': 'x'",
        ),
        (
            {"arch": "fno", "options": {**FNO["options"], "resolution_scaling_factor": [2]}},  # type: ignore[dict-item]
            r"output of shape \(1, 1, 16, 16\) .* expected an output of shape \(1, 1, 8, 8\)",
        ),
        (
            {"arch": "fno", "options": {**FNO["options"], "non_linearity": torch.relu}},  # type: ignore[dict-item]
            "cannot be kept in run.json",
        ),
        ({"options": "n_heads=3"}, "options='n_heads=3', expected a mapping"),
        ({"options": {"n_heads": 3, "hidden_channels": 8}}, "n_heads=3"),
        (
            {"options": {"in_channels": 1}},
            "option in_channels=1, but the fields of .* at r8 have in_channels=2",
        ),
        ({"options": {"registration": "node"}}, "option registration='node', but .* registration='cell'"),
        ({"options": {"periodic": True}}, r"option periodic=True, but .* periodic=\[False, False\]"),
        ({"validate": "valid"}, "r8 has no split 'valid'; it has train, validation, test"),
        ({"validate": "test", "validate_resolution": 32}, "has no resolution 32"),
        ({"validate": 0.01}, r"validate=0\.01 of 12 samples is 0; .* give 0\.0833 to 0\.917"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    options: dict[str, Any], message: str, fields: FieldStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(fields, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_stores_of_other_registrations_are_refused(fields: FieldStore, tmp_path: Path) -> None:
    nodes = wave_store(tmp_path / "nodes.zarr", [Grid.uniform((8, 8))], {"train": 4, "test": 4})
    run = train(fields, tmp_path / "run", epochs=1)
    with pytest.raises(InputError, match=r"was trained on the grid .* cell .* is .* node"):
        evaluate_transfer({"m": run}, nodes, [8], progress=False)
    both = Grid((Axis("y", 8, registration="cell"), Axis("x", 8)))
    store = wave_store(tmp_path / "mixed.zarr", [both], {"train": 4, "test": 4})
    with pytest.raises(InputError, match="MANO takes one for all axes"):
        train(store, tmp_path / "none")


@pytest.mark.parametrize(
    ("mixture", "samples", "home"),
    [
        (Mixed([16, 8], ratios=[0.25, 0.75], batch_size=[2, 3]), {"r16": 4, "r8": 12}, 8),  # most samples
        (Mixed([8, 16]), {"r8": 12, "r16": 12}, 16),  # the finest of several
        (Mixed([8]), {"r8": 12}, 8),
    ],
)
def test_mixture_of_resolutions_is_recorded(
    mixture: Mixed, samples: dict[str, int], home: int, fields: FieldStore, tmp_path: Path
) -> None:
    run = train(fields, tmp_path / "run", resolution=mixture, epochs=1)
    training = load_run(tmp_path / "run").training
    assert training == run.training
    keys = [f"r{n}" for n in mixture.resolutions]
    asked = {"ratios": mixture.ratios, "batch_size": mixture.batch_size}
    given = {name: list(values) for name, values in asked.items() if values is not None}
    assert training["resolution"] == {"resolutions": keys, **given}
    assert run.resolutions == tuple(keys)
    assert training["samples"] == samples
    assert training["grid"] == [str(fields.grids[key]) for key in keys]
    assert run.options["reference_shape"] == [home, home]
    asked_for = {**SMALL, "reference_shape": [12, 12]}
    given_run = train(fields, tmp_path / "given", resolution=mixture, epochs=1, options=asked_for)
    assert given_run.options["reference_shape"] == [12, 12]


@pytest.mark.parametrize("loss", ["l2", "h1"])
def test_each_resolution_has_the_loss_of_its_own_spacing(
    loss: str, fields: FieldStore, tmp_path: Path
) -> None:
    """With a rate at which no step changes anything, the error is the mean over both resolutions."""
    settings = {"batch_size": 12, "epochs": 1, "learning_rate": 1e-30}
    run = train(fields, tmp_path, resolution=Mixed([8, 16]), loss=loss, **settings)
    processor, total = field_loaders(fields, train=8, test=[], batch_size=12).processor.train(), 0.0
    for n in (8, 16):
        sample = processor.preprocess(
            next(iter(field_loaders(fields, train=n, test=[], batch_size=12).train))
        )
        with torch.no_grad():
            total += norm_of(loss)(run.model.eval()(sample["x"]), sample["y"]).item()
    assert run.history[0]["training_error"] == pytest.approx(total / 24, rel=1e-4)
