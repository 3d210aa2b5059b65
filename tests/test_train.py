"""Training through neuraloperator's Trainer, on a store."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import store_of, wave_store, waves
from neuralop.losses import H1Loss, LpLoss

from mano_op import Grid, InputError
from mano_op.data.layout import Variable
from mano_op.data.loaders import field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.store import FieldStore
from mano_op.registry import build_model
from mano_op.runs import load_run
from mano_op.train import train_model

SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "n_levels": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FieldStore:
    grids = [Grid.uniform((n, n), registration="cell") for n in (8, 16)]
    return wave_store(tmp_path_factory.mktemp("train") / "waves.zarr", grids, {"train": 12, "test": 4})


def train(store: FieldStore, out: Path, **options: object):  # type: ignore[no-untyped-def]
    settings = {"resolution": 8, "options": SMALL, "epochs": 3, "batch_size": 4, "progress": False}
    return train_model(store, out, **(settings | options))  # type: ignore[arg-type]


def test_the_model_fits_the_store_and_is_kept(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path / "run")
    assert run.options == {
        "in_channels": 2,
        "out_channels": 1,
        "n_dim": 2,
        "registration": "cell",
        "periodic": [False, False],
        "reference_shape": [8, 8],
        "boundary_values": None,
        **SMALL,
    }
    kept = load_run(tmp_path / "run")
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(kept.model(x), run.model(x))
    assert kept.training["resolution"] == "r8"
    assert kept.history == run.history


def test_training_fits_the_fields(store: FieldStore, tmp_path: Path) -> None:
    history = train(store, tmp_path, epochs=25).history
    assert [epoch["epoch"] for epoch in history] == list(range(1, 26))
    assert history[-1]["training_error"] < 0.3 * history[0]["training_error"]


@pytest.mark.parametrize("loss", ["l2", "h1"])
def test_the_first_error_is_that_of_the_initial_model(loss: str, store: FieldStore, tmp_path: Path) -> None:
    """With all samples in one batch, the first epoch's error is that before any step was taken."""
    run = train(store, tmp_path, loss=loss, batch_size=12, epochs=1, seed=3)
    torch.manual_seed(3)
    model = build_model("mano", run.options)
    loaders = field_loaders(store, train=8, test=[], batch_size=12, seed=3)
    sample = loaders.processor.train().preprocess(next(iter(loaders.train)))
    norm = LpLoss(d=2, measure=1.0) if loss == "l2" else H1Loss(d=2, periodic_in_x=False, periodic_in_y=False)
    expected = norm(model(sample["x"]), sample["y"]) / 12
    assert run.history[0]["training_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_same_seed_gives_the_same_model(store: FieldStore, tmp_path: Path) -> None:
    first, second, other = (train(store, tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2)))
    same = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert first.history[-1]["training_error"] == second.history[-1]["training_error"]
    assert first.history[-1]["training_error"] != other.history[-1]["training_error"]


def test_fno_takes_the_same_call(store: FieldStore, tmp_path: Path) -> None:
    fno = {"n_modes": [4, 4], "hidden_channels": 8, "n_layers": 1}
    run = train(store, tmp_path, arch="fno", options=fno, epochs=30, learning_rate=2e-2)
    assert run.history[-1]["training_error"] < 0.5 * run.history[0]["training_error"]
    assert torch.equal(load_run(tmp_path).model(torch.ones(1, 2, 8, 8)), run.model(torch.ones(1, 2, 8, 8)))


def test_no_warning_but_neuraloperators_own(store: FieldStore, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(store, tmp_path, epochs=1)


def test_the_rate_rises_and_falls_to_nearly_zero(
    store: FieldStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = torch.optim.AdamW.step

    def watch(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    train(store, tmp_path, epochs=9, batch_size=12, learning_rate=1e-2)
    assert len(rates) == 9
    assert rates[2] == pytest.approx(1e-2)  # a fifth of the way
    assert (np.diff(rates[:3]) > 0).all()
    assert (np.diff(rates[2:]) < 0).all()
    assert rates[0] < 1e-3
    assert rates[-1] < 1e-3


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7])
def test_any_number_of_epochs(epochs: int, store: FieldStore, tmp_path: Path) -> None:
    history = train(store, tmp_path, epochs=epochs).history
    assert len(history) == epochs
    assert all(np.isfinite(epoch["training_error"]) for epoch in history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 32}, r"no resolution 32; it has r8 \(8 x 8\), r16 \(16 x 16\)"),
        ({"resolution": Mixed([8, 8])}, r"expected at least one resolution, and each of them once"),
        (
            {"resolution": {"resolutions": [8, 16], "ratios": [1.0]}},
            "expected a list, one for each resolution",
        ),
        ({"arch": "mono"}, "there is no model 'mono'"),
        ({"options": {"hiden_channels": 8}}, "no option hiden_channels"),
        ({"loss": "l3"}, "loss='l3', expected 'l2' or 'h1'"),
        ({"epochs": 0}, "epochs=0, expected a whole number, at least 1"),
        ({"epochs": 2.5}, "epochs=2.5, expected a whole number"),
        ({"batch_size": True}, "batch_size=True, expected a whole number"),
        ({"seed": -1}, "seed=-1, expected a whole number, at least 0"),
        ({"seed": 2**63}, "seed=9223372036854775808, expected less than"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0, expected a finite number, more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan, expected a finite number"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1, expected a finite number, 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay=inf, expected a finite number"),
        ({"device": "nowhere"}, "device='nowhere' cannot be used here"),
        ({"device": "meta"}, "device='meta' cannot be used here"),
        ({"arch": "fno", "options": {}}, "fno needs more options, .*'n_modes'"),
        (
            {"arch": "fno", "options": {"n_modes": [4], "hidden_channels": 8}},
            "fno with .*'n_modes': \\[4\\].* cannot take an input",
        ),
        (
            {"arch": "fno", "options": {"n_modes": [4, 4], "hidden_channels": "x"}},
            "fno cannot be built with .*'hidden_channels': 'x'",
        ),
        ({"options": {"n_heads": 3, "hidden_channels": 8}}, "n_heads=3"),
        (
            {"options": {"in_channels": 1}},
            "option in_channels=1, but the fields of .* at r8 have in_channels=2",
        ),
        ({"options": {"registration": "node"}}, "option registration='node', but .* registration='cell'"),
        ({"options": {"periodic": True}}, r"option periodic=True, but .* periodic=\[False, False\]"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    options: dict[str, object], message: str, store: FieldStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(store, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_replaced_unasked(store: FieldStore, tmp_path: Path) -> None:
    first = train(store, tmp_path, epochs=1)
    with pytest.raises(InputError, match="holds a run already"):
        train(store, tmp_path, epochs=1, seed=5)
    assert load_run(tmp_path).training["seed"] == first.training["seed"]
    train(store, tmp_path, epochs=1, seed=5, overwrite=True)
    assert load_run(tmp_path).training["seed"] == 5


def test_options_that_say_what_the_fields_say_are_taken(store: FieldStore, tmp_path: Path) -> None:
    said = {"in_channels": 2, "periodic": False, "registration": "cell", **SMALL}
    run = train(store, tmp_path, options=said, epochs=1)
    assert run.options["periodic"] == [False, False]


def test_a_model_that_changes_the_grid_is_refused(store: FieldStore, tmp_path: Path) -> None:
    finer = {"n_modes": [4, 4], "hidden_channels": 8, "n_layers": 1, "resolution_scaling_factor": [2]}
    with pytest.raises(InputError, match=r"output of shape \(1, 1, 16, 16\) .* expected \(1, 1, 8, 8\)"):
        train(store, tmp_path / "run", arch="fno", options=finer)
    assert not (tmp_path / "run").exists()


def test_training_that_diverges_stops_and_keeps_what_was_there(store: FieldStore, tmp_path: Path) -> None:
    before = train(store, tmp_path, epochs=1)
    with pytest.raises(InputError, match=r"mano at r8: the loss is \w+ in epoch \d of 3, .* has diverged"):
        train(store, tmp_path, learning_rate=1e30, overwrite=True)
    assert load_run(tmp_path).history == before.history


def test_the_error_is_the_mean_over_samples_and_channels(tmp_path: Path) -> None:
    """Two outputs that are the same field have the error of one, when the model treats them alike."""
    grid = Grid.uniform((8, 6), registration="cell")

    def fields(samples: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
        found = waves(samples, grid)
        return {"a": found["a"], "u": found["u"], "v": 3 * found["u"] + 1}

    variables = [Variable("a", "input"), Variable("u", "output"), Variable("v", "output")]
    store = store_of(tmp_path / "two.zarr", [grid], variables, fields, {"train": 6})
    run = train(store, tmp_path / "run", resolution=(8, 6), batch_size=6, epochs=1, seed=3)
    torch.manual_seed(3)
    model = build_model("mano", run.options)
    loaders = field_loaders(store, train=(8, 6), test=[], batch_size=6, seed=3)
    sample = loaders.processor.train().preprocess(next(iter(loaders.train)))
    error = model(sample["x"]) - sample["y"]
    expected = (error.flatten(2).norm(dim=-1) / sample["y"].flatten(2).norm(dim=-1)).mean()
    assert run.history[0]["training_error"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_says_what_it_was_trained_with(store: FieldStore, tmp_path: Path) -> None:
    found = train(store, tmp_path, epochs=1).training["machine"]
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__


def test_a_run_is_not_judged_on_another_registration(store: FieldStore, tmp_path: Path) -> None:
    from mano_op import evaluate_transfer

    run = train(store, tmp_path / "run", epochs=1)
    grids = [Grid.uniform((n, n), registration="node") for n in (8, 16)]
    nodes = wave_store(tmp_path / "nodes.zarr", grids, {"train": 4, "test": 4})
    with pytest.raises(InputError, match=r"was trained on the grid .* cell .* is .* node"):
        evaluate_transfer({"m": run}, nodes, [8], progress=False)


def test_mixed_registrations_are_refused(tmp_path: Path) -> None:
    from mano_op.grid import Axis

    mixed = Grid((Axis("y", 8, registration="cell"), Axis("x", 8)))
    store = wave_store(tmp_path / "mixed.zarr", [mixed], {"train": 4, "test": 4})
    with pytest.raises(InputError, match="MANO takes one for all axes"):
        train(store, tmp_path / "run")


def test_options_that_cannot_be_kept_are_refused_before_training(store: FieldStore, tmp_path: Path) -> None:
    options = {"n_modes": [4, 4], "hidden_channels": 8, "non_linearity": torch.relu}
    with pytest.raises(InputError, match="cannot be kept with the run"):
        train(store, tmp_path / "run", arch="fno", options=options)
    assert not (tmp_path / "run").exists()


def test_levels_are_mixed_and_said(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path, resolution=Mixed([16, 8], ratios=[0.25, 0.75], batch_size=[2, 3]), epochs=2)
    assert run.training["resolution"] == ["r16", "r8"]
    assert run.training["ratios"] == [0.25, 0.75]
    assert run.training["samples"] == {"r16": 4, "r8": 12}
    assert run.training["grid"] == [str(store.grids["r16"]), str(store.grids["r8"])]
    assert run.training["batch_size"] == [2, 3]
    assert run.options["reference_shape"] == [8, 8]  # most samples are there
    assert load_run(tmp_path).training == run.training
    even = train(store, tmp_path / "even", resolution=Mixed([8, 16]), epochs=1)
    assert even.training["samples"] == {"r8": 12, "r16": 12}
    assert even.options["reference_shape"] == [16, 16]  # the finest of several
    assert "ratios" not in even.training
    asked = {**SMALL, "reference_shape": [8, 8]}
    given = train(store, tmp_path / "given", resolution=Mixed([8, 16]), epochs=1, options=asked)
    assert given.options["reference_shape"] == [8, 8]


@pytest.mark.parametrize("loss", ["l2", "h1"])
def test_each_level_has_the_loss_of_its_own_spacing(loss: str, store: FieldStore, tmp_path: Path) -> None:
    """With a rate at which no step changes anything, the error is the mean over both levels."""
    settings = {"batch_size": 12, "epochs": 1, "learning_rate": 1e-30}
    run = train(store, tmp_path, resolution=Mixed([8, 16]), loss=loss, **settings)
    total = 0.0
    for n in (8, 16):
        loader = field_loaders(store, train=n, test=[], batch_size=12).train
        processor = field_loaders(store, train=8, test=[], batch_size=12).processor.train()
        sample = processor.preprocess(next(iter(loader)))
        wraps = {"periodic_in_x": False, "periodic_in_y": False}
        norm = LpLoss(d=2, measure=1.0) if loss == "l2" else H1Loss(d=2, **wraps)
        with torch.no_grad():
            total += norm(run.model.eval()(sample["x"]), sample["y"]).item()
    assert run.history[0]["training_error"] == pytest.approx(total / 24, rel=1e-4)


def test_a_list_of_one_is_a_level_like_any(store: FieldStore, tmp_path: Path) -> None:
    run = train(store, tmp_path, resolution=Mixed([8]), epochs=1)
    assert run.training["resolution"] == ["r8"]
    assert run.training["samples"] == {"r8": 12}
