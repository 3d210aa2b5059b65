"""Models of fields that vary in time: trained on time steps, kept, and judged at other resolutions."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import moving_wave_store, store_of
from torch import nn

from mano_op.cli import main
from mano_op.data.check import check_store
from mano_op.data.dataset import FieldDataset, collate
from mano_op.data.layout import Variable
from mano_op.data.processor import FieldProcessor
from mano_op.data.write import write_fields
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.prediction import predict
from mano_op.problems import Burgers, FitzHughNagumo, NavierStokes, generate_fields
from mano_op.report import write_report
from mano_op.report.figures import error_by_step
from mano_op.runs import Run, load_run
from mano_op.train import train_model
from mano_op.transfer import Evidence, evaluate_transfer, summary
from mano_op.transfer.io import load_results

TIMES = (0.0, 0.5, 1.0, 1.5)
GRIDS = [Grid.uniform((n,), periodic=True) for n in (8, 12, 16)]
SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2}


def drift(samples, grid):
    """A wave that moves by its own speed and decays: u(t + 1/2) is not a multiple of u(t)."""
    x, t = grid.mesh[0], np.array(TIMES)[:, None]
    random = [np.random.default_rng(int(i)) for i in samples]
    draws = np.array([(one.uniform(0.1, 0.2), one.uniform()) for one in random])
    u = [np.exp(-t) * np.cos(2 * np.pi * (x - speed * t - phase)) for speed, phase in draws]
    return {"u0": np.stack(u)[:, 0], "u": np.stack(u)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    variables = [Variable("u0", "input", units="m"), Variable("u", "output", units="m", time=True)]
    path, splits = tmp_path_factory.mktemp("drift") / "drift.zarr", {"train": 12, "test": 4}
    return store_of(path, GRIDS, variables, drift, splits, chunk=4, times=TIMES, time_units="s")


def train(store, folder, **options):
    return train_model(
        store, folder, resolution=8, options=SMALL, epochs=2, batch_size=8, progress=False, **options
    )


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made and not rendered, which takes the longest."""
    monkeypatch.setattr("mano_op.report.page.data_uri", lambda figure, kind: f"data:image/{kind},")


def test_a_run_on_windows_is_judged_on_windows(store, tmp_path, unrendered):
    run = train(store, tmp_path / "run", time_steps=(2, 1))
    assert run.options["in_channels"] == 3 and run.options["out_channels"] == 1
    kept = load_run(tmp_path / "run")
    assert kept.times == {"time_steps": [2, 1]} and kept.processor.inputs == ("u0", "u@-1", "u@+0")
    evidence = Evidence()
    results = evaluate_transfer({"M": kept}, store, [8, 16], evidence=evidence, progress=False)
    assert results["variable"].values.tolist() == ["u@+1"] and results.sizes["sample"] == 8
    fields = drift(range(12, 16), GRIDS[2])
    direct = by_points(results).sel(resolution="r16", predictor="direct")[0]
    for i, (row, start) in enumerate((row, start) for row in range(4) for start in range(2)):
        known = fields["u"][row, start : start + 2]
        x = torch.from_numpy(np.concatenate([fields["u0"][row][None], known])[None]).float()
        data = run.processor.eval().preprocess({"x": x})
        predicted = run.processor.postprocess(run.model.eval()(data["x"]), data)[0][0, 0].detach().numpy()
        true = fields["u"][row, start + 2]
        expected = np.linalg.norm(predicted - true) / np.linalg.norm(true)
        assert direct[i] == pytest.approx(expected, rel=1e-4)
    report = write_report(tmp_path / "report", results, summary(results), evidence, title="Drift")
    assert "u@+1 at r16" in report.read_text()


def by_points(results):
    """Of the one run."""
    return results["error"].sel(metric="relative_l2_points")[0]


class LastKnown(nn.Module):
    """Predicts that nothing changes."""

    def forward(self, x):
        return x[:, -1:]


def run_of(model, channels, **training):
    unit = {"mean": 0.0, "std": 1.0}
    inputs, outputs = (dict.fromkeys(names, unit) for names in (channels.inputs, channels.outputs))
    return Run(model, FieldProcessor(inputs, outputs), "known", {}, {"resolution": "r8", **training})


@pytest.mark.parametrize("keys", [[16], [12]])
def test_baselines_are_those_of_the_same_times(store, keys):
    """One wave is within the band of 8 points, so interpolation is exact: DPU is direct, the floor 0."""
    channels = FieldDataset(store, 8, time_steps=(1, 1)).channels
    run = run_of(LastKnown(), channels, time_steps=[1, 1])
    errors = by_points(evaluate_transfer({"M": run}, store, keys, progress=False))[0, :, 0]
    true = drift(range(12, 16), GRIDS[2])["u"]
    change = [
        np.linalg.norm(true[row, t] - true[row, t + 1]) / np.linalg.norm(true[row, t + 1])
        for row in range(4)
        for t in range(3)
    ]
    np.testing.assert_allclose(errors.sel(predictor="direct"), change, rtol=1e-5)
    np.testing.assert_allclose(errors.sel(predictor="dpu_interpolation"), change, rtol=1e-4)
    np.testing.assert_allclose(errors.sel(predictor="floor"), 0, atol=1e-5)


def test_single_times_are_judged_as_outputs_of_their_own(store):
    data = FieldDataset(store, 8, at=[0.5, 1.5])

    class Exact(nn.Module):
        def forward(self, x):
            return torch.cat([x, x], dim=1)

    run = run_of(Exact(), data.channels, at=[0.5, 1.5])
    results = evaluate_transfer({"M": run}, store, [8], progress=False)
    assert results["variable"].values.tolist() == ["u@t=0.5", "u@t=1.5"]
    assert results["sample"].values.tolist() == [12, 13, 14, 15]
    fields = drift(range(12, 16), GRIDS[0])
    for v, time in enumerate((1, 3)):
        true = fields["u"][:, time]
        expected = np.linalg.norm(fields["u0"] - true, axis=1) / np.linalg.norm(true, axis=1)
        found = by_points(results).sel(predictor="direct").isel(variable=v).squeeze()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


class Decay(nn.Module):
    """Predicts that the last known field decays by a quarter."""

    def forward(self, x):
        return 0.75 * x[:, -1:]


class Straight(nn.Module):
    """Goes on as from the last but one known field to the last."""

    def forward(self, x):
        return 2 * x[:, -1:] - x[:, -2:-1]


@pytest.mark.parametrize(
    ("model", "steps_in", "steps"), [(Decay(), 1, 3), (Straight(), 2, 2), (Decay(), 2, 1)]
)
@pytest.mark.parametrize("key", [8, 12])
def test_a_rollout_starts_each_step_from_the_predictions_before(store, model, steps_in, steps, key):
    """Of one wave within the band of 8 points, so that by way of these nothing is lost."""
    run = run_of(model, FieldDataset(store, 8, time_steps=(steps_in, 1)).channels, time_steps=[steps_in, 1])
    results = evaluate_transfer({"M": run}, store, [key], rollout=steps, batch_size=3, progress=False)
    assert results["variable"].values.tolist() == [f"u@+{step}" for step in range(1, steps + 1)]
    starts = len(TIMES) - steps_in - steps + 1
    assert results["group"].values.tolist() == [row for row in range(12, 16) for _ in range(starts)]
    true = drift(range(12, 16), Grid.uniform((key,), periodic=True))["u"]
    for row, start in np.ndindex(4, starts):
        known = true[row, start : start + steps_in]
        for step in range(steps):
            later = 0.75 * known[-1] if isinstance(model, Decay) else 2 * known[-1] - known[-2]
            known = np.concatenate([known, later[None]])
            here = true[row, start + steps_in + step]
            expected = np.linalg.norm(later - here) / np.linalg.norm(here)
            errors = by_points(results)[0].isel(variable=step, sample=row * starts + start)
            assert errors.sel(predictor="direct").item() == pytest.approx(expected, rel=1e-4)
            assert errors.sel(predictor="dpu_interpolation").item() == pytest.approx(expected, rel=1e-3)
            assert errors.sel(predictor="floor").item() == pytest.approx(0, abs=1e-5)


def test_a_rollout_agrees_with_the_trainers(store):
    """Steps by the processor's own protocol, as neuraloperator's Trainer takes them."""
    run = run_of(Straight(), FieldDataset(store, 8, time_steps=(2, 1)).channels, time_steps=[2, 1])
    data = FieldDataset(store, 16, "test", time_steps=(2, 2))
    batch = collate(data.__getitems__(range(4)))
    outputs, step = [], 0
    while (sample := run.processor.eval().preprocess(batch, step=step)) is not None:
        outputs.append(run.processor.postprocess(run.model(sample["x"]), sample, step=step)[0])
        step += 1
    predicted = predict(run.model, run.processor, batch["x"], steps=2)
    torch.testing.assert_close(predicted, torch.cat(outputs, dim=1))
    evidence = Evidence()
    evaluate_transfer({"M": run}, store, [16], rollout=2, evidence=evidence, progress=False)
    assert evidence.fields["r16"]["variable"].values.tolist() == ["u@+1", "u@+2"]
    direct = evidence.fields["r16"]["prediction"].sel(predictor="direct", variable="u@+2")[0]
    np.testing.assert_allclose(direct[3], outputs[1][3, 0])


def test_errors_of_a_rollout_are_drawn_by_step(store):
    channels = FieldDataset(store, 8, time_steps=(1, 1)).channels
    models = {"Decay": Decay(), "Last": LastKnown()}
    runs = {name: run_of(model, channels, time_steps=[1, 1]) for name, model in models.items()}
    results = evaluate_transfer(runs, store, [8, 16], rollout=3, progress=False)
    for axes, key in zip(error_by_step(summary(results), "u").axes, ["r8", "r16"], strict=True):
        drawn = {tuple(np.round(line.get_ydata(), 9)) for line in axes.lines}
        at = {"resolution": key, "predictor": "direct", "metric": "relative_l2"}
        for errors in results["error"].sel(at):
            assert tuple(np.round(100 * errors.mean("sample").squeeze(), 9).values) in drawn
        assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]


def test_command_line_reports_a_rollout_by_step(store, tmp_path, capsys, unrendered):
    train(store, tmp_path / "run", time_steps=(1, 1))
    command = ["evaluate", "fields", str(store.path), str(tmp_path / "run"), "--quiet"]
    command += ["--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main([*command, "--rollout", "3", "--resolution", "8", "16"]) == 0
    assert "u@+3" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Rollout" in page and "u@+3 at r16" in page and "error of u by step" in page
    results = load_results(tmp_path / "out" / "results.nc")
    assert results["variable"].values.tolist() == ["u@+1", "u@+2", "u@+3"]
    assert main([*command, "--rollout", "4", "--overwrite"]) == 2
    assert "spans 5 times, the store has 4" in capsys.readouterr().err


def test_what_cannot_be_rolled_out_is_refused(store):
    ahead = run_of(LastKnown(), FieldDataset(store, 8, time_steps=(1, 2)).channels, time_steps=[1, 2])
    steady = run_of(LastKnown(), FieldDataset(store, 8, at=[0.5]).channels, at=[0.5])
    for run in (ahead, steady):
        with pytest.raises(InputError, match="expected one step out"):
            evaluate_transfer({"M": run}, store, [8], rollout=2, progress=False)
    for wrong in (0, 1.5):
        with pytest.raises(InputError, match="rollout="):
            evaluate_transfer({"M": ahead}, store, [8], rollout=wrong, progress=False)


def test_time_steps_that_do_not_fit_the_times_are_refused(store):
    channels = FieldDataset(store, 8, time_steps=(1, 1)).channels
    one = run_of(LastKnown(), channels, time_steps=[1, 1])
    other = run_of(LastKnown(), channels, at=[0.5])
    with pytest.raises(InputError, match="models for different times"):
        evaluate_transfer({"one": one, "other": other}, store, [8], progress=False)
    wrong = run_of(LastKnown(), channels, time_steps=[1, 1], units={"u": "cm"})
    with pytest.raises(InputError, match=r"was trained on u in cm, .* has it in m: convert"):
        evaluate_transfer({"M": wrong}, store, [8], progress=False)


def test_the_command_line_trains_on_windows(store, tmp_path, capsys):
    small = [word for name, value in SMALL.items() for word in ("--option", f"{name}={value}")]
    command = ["train", "fields", str(store.path), str(tmp_path / "run"), "--resolution", "8", *small]
    command += ["--epochs", "1"]
    assert main([*command, "--time-steps", "2", "1", "--quiet"]) == 0
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert description["training"]["time_steps"] == [2, 1]
    assert main([*command, "--overwrite", "--at", "0.5", "--quiet"]) == 0
    assert main([*command, "--overwrite", "--quiet"]) == 2
    assert "so expected one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "steady"),
    [
        (NavierStokes(final_time=0.5, n_steps=2, n_modes=5), ("initial_vorticity",)),
        (Burgers(final_time=0.1, n_steps=2, n_modes=5), ("initial",)),
        (FitzHughNagumo(final_time=0.1, n_steps=2, n_modes=5), ("initial_activator", "initial_inhibitor")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_step_is_given_the_field_and_not_where_it_began(tmp_path, problem, steady):
    store = generate_fields(tmp_path / "a.zarr", problem, [16], samples={"train": 2}, progress=False)
    stepping, predicting = (
        FieldDataset(store, 16, time_steps=(1, 1)),
        FieldDataset(store, 16, at=[store.layout.times[-1]]),
    )
    assert stepping.inputs == tuple(f"{name}@+0" for name in store.outputs)
    assert predicting.inputs == steady
    for i, name in enumerate(store.outputs):
        first = store.read(16, name)[0, 0]
        np.testing.assert_array_equal(stepping[0]["x"][i], first)
        np.testing.assert_array_equal(predicting[0]["x"][i], first)


def test_parameters_stay_inputs_of_every_step(tmp_path):
    grid = Grid.uniform((16,), periodic=True)
    store = moving_wave_store(tmp_path / "a.zarr", [grid], {"train": 2})
    assert FieldDataset(store, 16, time_steps=(1, 1)).inputs == ("force", "w@+0")


def test_an_initial_field_is_asked_for_and_either_answer_is_kept(tmp_path):
    grid, times = Grid.uniform((8,), periodic=True), np.arange(3.0)
    w = np.sin(2 * np.pi * (grid.points[0] - 0.1 * times[:, None] + 0.2 * np.arange(4)[:, None, None]))
    data = xr.Dataset(
        {"w0": (("sample", "x"), w[:, 0]), "w": (("sample", "time", "x"), w)},
        {"x": grid.points[0], "time": times},
    )
    options = {"inputs": ["w0"], "outputs": ["w"], "splits": {"train": 4}, "registration": "node"}
    options |= {"boundary_conditions": {"x": "periodic"}, "domain": {"x": (0.0, 1.0)}, "progress": False}
    with pytest.raises(InputError, match="w0 is w at the first time: give initial="):
        write_fields(tmp_path / "a.zarr", {8: data}, **options)
    assert not any(tmp_path.iterdir())
    for initial, inputs in (({"w0": "w"}, ("w@+0",)), ({}, ("w0", "w@+0"))):
        store = write_fields(tmp_path / "a.zarr", {8: data}, initial=initial, overwrite=True, **options)
        assert FieldDataset(store, 8, time_steps=(1, 1)).inputs == inputs
        assert FieldDataset(store, 8, at=[2.0]).inputs == ("w0",)
        assert check_store(store.path, progress=False) == []
    for initial, message in (
        ({"w": "w"}, r"'w': initial_of='w'; expected, of a steady input"),
        ({"v": "w"}, r"initial of v; expected some of w0, w"),
    ):
        with pytest.raises(InputError, match=message):
            write_fields(tmp_path / "b.zarr", {8: data}, initial=initial, **options)
