"""Predictions of labelled fields: their values, labels and pieces, and what is refused before any is made."""

import tracemalloc

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from mano_op import Grid, InputError, Run, Trained, generate_darcy, train_model
from mano_op.cli import main
from mano_op.data.processor import FieldProcessor
from mano_op.data.record import FieldRecord
from mano_op.prediction import predict_fields, write_dataset

UNIT = {"mean": 0.0, "std": 1.0}
GRID = Grid.uniform((8, 6), registration="cell", domain=[(0.0, 4.0), (0.0, 3.0)], periodic=[False, True])
VARIABLE = {"units": "m", "long_name": "height", "reference": 0.0, "boundary_value": None}
LABELS = {name: {"units": "km", "long_name": name} for name in GRID.names}


def record(**changes):
    variables = {"a": VARIABLE, "b": VARIABLE | {"units": "K"}, "u": VARIABLE | changes}
    return FieldRecord(GRID, LABELS, variables, "hours since 2000-01-01", 6.0)


def fields(n=5, grid=GRID):
    rng = np.random.default_rng(0)
    axes = dict(zip(grid.names, grid.points, strict=True))
    dims = ("run", *grid.names)
    return xr.Dataset(
        {
            "a": (dims, rng.normal(size=(n, *grid.shape)).astype("f4"), {"units": "m"}),
            "b": (grid.names, rng.normal(size=grid.shape).astype("f4"), {"units": "K"}),
        },
        {**axes, "run": [f"run {i}" for i in range(n)], "viscosity": ("run", np.arange(float(n)))},
        {"institution": "here", "history": "made"},
    )


class Sum(nn.Module):
    """a + 2 b."""

    def forward(self, x):
        return x[:, :1] + 2 * x[:, 1:2]


def predicted(data, network=None, **options):
    processor = FieldProcessor({"a": UNIT, "b": UNIT}, {"u": UNIT})
    return predict_fields(network or Sum(), processor, options.pop("record", record()), data, **options)


def test_predictions_have_the_labels_of_their_inputs_and_the_units_of_the_training():
    data = fields()
    out = predicted(data, who="a sum")
    xr.testing.assert_allclose(out["u"], (data["a"] + 2 * data["b"]).transpose(*data["a"].dims))
    assert out["u"].dtype == "float32" and out["u"].attrs == {"units": "m", "long_name": "height"}
    assert out["run"].equals(data["run"]) and out["viscosity"].equals(data["viscosity"])
    assert out["x"].equals(data["x"]) and out["x"].attrs == LABELS["x"]
    assert out.attrs["institution"] == "here" and out.attrs["Conventions"] == "CF-1.11"
    first, last = out.attrs["history"].split("\n")
    assert first == "made" and last.endswith("predicted by a sum")


def test_profiles_and_fields_of_no_sample_are_the_same_along_what_they_lack():
    data = fields().assign(b=lambda data: data["b"].isel(x=0, drop=True))
    out = predicted(data)
    xr.testing.assert_allclose(out["u"], (data["a"] + 2 * data["b"]).transpose(*data["a"].dims))


def test_axes_that_decrease_stay_as_they_are():
    data = fields()
    turned = data.isel(y=slice(None, None, -1))
    out = predicted(turned)
    xr.testing.assert_identical(out.drop_attrs(), predicted(data).isel(y=slice(None, None, -1)).drop_attrs())
    assert out["y"].equals(turned["y"])


@pytest.mark.parametrize("chunks", [{"run": 1}, {"run": 3}, {"run": 2, "y": 3}])
def test_pieces_of_dask_change_no_bit(chunks):
    torch.manual_seed(0)
    network, data = nn.Conv2d(2, 1, 3, padding=1), fields()
    whole, lazy = predicted(data, network), predicted(data.chunk(chunks), network)
    assert lazy["u"].chunks is not None
    assert np.array_equal(lazy["u"].values, whole["u"].values)


def test_batches_are_predicted_at_once():
    sizes = []

    class Counting(Sum):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    xr.testing.assert_allclose(predicted(fields(), Counting(), batch_size=2), predicted(fields()))
    assert sizes == [2, 2, 1]


def test_predictions_are_interpolated_to_another_grid():
    def waves(grid):
        y, x = np.meshgrid(*grid.points, indexing="ij")
        field = y * (4 - y) * np.sin(2 * np.pi * x / 3)
        return xr.Dataset(
            {"a": (grid.names, field), "b": (grid.names, 0 * field)},
            dict(zip(grid.names, grid.points, strict=True)),
        )

    fine = Grid.uniform(
        (16, 18), registration="cell", domain=[(0.0, 4.0), (0.0, 3.0)], periodic=[False, True]
    )
    out = predicted(waves(GRID), shape=(16, 18), record=record(boundary_value=0.0))
    expected = waves(fine)
    np.testing.assert_allclose(out["u"], expected["a"], atol=1e-5)
    assert out["x"].values.tolist() == expected["x"].values.tolist() and out["x"].attrs == LABELS["x"]


def test_a_reference_is_subtracted_and_added():
    data = fields().assign(a=lambda data: data["a"].astype("f8") + 1e5)
    about = record(reference=3e5)
    about.variables["a"] = VARIABLE | {"reference": 1e5}
    out = predicted(data, record=about)["u"]
    np.testing.assert_allclose(out - 3e5, predicted(fields())["u"], atol=1e-6)


# Steps in time.


def steps(times, n=2, known=1, **options):
    """Predict by a network that halves the last known field."""
    w = np.random.default_rng(1).normal(size=(n, len(times), *GRID.shape))
    time = times if isinstance(times, xr.Variable) else xr.Variable("time", times)
    axes = dict(zip(GRID.names, GRID.points, strict=True))
    data = xr.Dataset({"u": (("run", "time", *GRID.names), w)}, {**axes, "time": time})
    labels = [f"u@{k:+d}" for k in range(1 - known, 1)]
    processor = FieldProcessor(dict.fromkeys(labels, UNIT), {"u@+1": UNIT})

    class Half(nn.Module):
        def forward(self, x):
            return x[:, -1:] / 2

    return predict_fields(Half(), processor, record(), data, **options)["u"], w


@pytest.mark.parametrize("known", [1, 2])
def test_a_rollout_goes_on_from_the_last_times(known):
    days = np.datetime64("2001-03-01", "ns") + np.arange(3) * np.timedelta64(6, "h")
    out, w = steps(days, known=known, steps=3)
    assert out.dims == ("run", "time", *GRID.names)
    np.testing.assert_allclose(out, w[:, -1:] * 0.5 ** np.arange(1, 4)[:, None, None], rtol=1e-6)
    assert out["time"].values.astype("datetime64[h]").astype(str).tolist() == [
        "2001-03-01T18", "2001-03-02T00", "2001-03-02T06",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "units", "later"),
    [
        ([3.0], "days since 1990-01-01", [3.25, 3.5]),
        ([0, 360], "minutes", [720.0, 1080.0]),
    ],
)
def test_times_are_in_the_units_of_the_data(times, units, later):
    out, _ = steps(xr.Variable("time", times, {"units": units}), steps=2)
    assert out["time"].values.tolist() == later and out["time"].attrs == {"units": units}


@pytest.mark.parametrize(
    ("times", "known", "message"),
    [
        (
            xr.Variable("time", [0.0, 7.0], {"units": "hours"}),
            2,
            r"are 25200 apart, the model steps by 21600",
        ),
        (xr.Variable("time", [0.0, 6.0]), 2, r"times are numbers in '1', those of the training dates"),
        (xr.Variable("time", [0.0], {"units": "hours"}), 2, r"has 1 times, expected 2 or more"),
    ],
)
def test_times_that_do_not_fit_are_refused(times, known, message):
    with pytest.raises(InputError, match=message):
        steps(times, known=known)


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.drop_vars("b"), "has no variable b, which the model takes; it has a: rename"),
        (lambda data: data.rename(x="lon"), "has no dimension 'x'"),
        (lambda data: data.drop_vars("x"), "the coordinate of axis 'x' is missing"),
        (lambda data: data.assign_coords(x=data["x"] + 0.25), "registration='node' would fit|x is 0.5"),
        (
            lambda data: data.assign(a=data["a"].assign_attrs(units="cm")),
            "a is in 'cm', the model was .* 'm'",
        ),
        (lambda data: data.assign(b=1.0), r"b has dimensions \(\), none of the axes y, x; expected a field"),
        (lambda data: data.assign(b=data["b"].expand_dims(time=2)), "b has times, and the model takes one"),
        (lambda data: data.where(data["run"] != "run 3"), "a has values that are not finite"),
    ],
)
def test_data_that_do_not_fit_the_training_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        predicted(change(fields()))


# Files.


def opened(path):
    return xr.open_dataset(path, **({"engine": "zarr", "consolidated": False} if path.is_dir() else {}))


@pytest.mark.parametrize("name", ["out.nc", "out.zarr"])
def test_files_of_predictions_are_read_as_they_were_written(name, tmp_path):
    out = predicted(fields().chunk(run=2))
    write_dataset(out, tmp_path / name, progress=False)
    with opened(tmp_path / name) as read:
        xr.testing.assert_identical(read.load(), out.compute())
    with pytest.raises(InputError, match="is there already"):
        write_dataset(out, tmp_path / name)
    write_dataset(out.isel(run=slice(2)), tmp_path / name, overwrite=True, progress=False)
    with opened(tmp_path / name) as read:
        assert read.sizes["run"] == 2 and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out.nc", "out.zarr"])
def test_predictions_that_end_early_leave_what_was_there(name, tmp_path):
    write_dataset(predicted(fields().chunk(run=2)), tmp_path / name, progress=False)
    broken = fields().where(lambda data: data["run"] != "run 4").chunk(run=1)
    with pytest.raises(InputError, match="not finite"):
        write_dataset(predicted(broken), tmp_path / name, overwrite=True, progress=False)
    with opened(tmp_path / name) as read:
        xr.testing.assert_allclose(read.load(), predicted(fields()))


def test_memory_does_not_grow_with_the_file(tmp_path):
    domain = [(0.0, 4.0), (0.0, 3.0)]
    grid = Grid.uniform((128, 96), registration="cell", domain=domain, periodic=[False, True])

    def peak(n):
        data = fields(n, grid).chunk(run=4).drop_vars("run")
        data.to_zarr(tmp_path / f"{n}.zarr", consolidated=False)
        lazy = xr.open_zarr(tmp_path / f"{n}.zarr", consolidated=False)
        tracemalloc.start()
        write_dataset(predicted(lazy), tmp_path / f"{n}_out.zarr", progress=False)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(4)
    assert peak(200) < peak(20) + 200 * 128 * 96 * 4 / 5  # a fifth of what is written


# Runs, functions and the command.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prediction")
    store = generate_darcy(folder / "d.zarr", [8, 16], samples={"train": 6, "test": 3}, progress=False)
    small = {"hidden_channels": 8, "n_layers": 2, "n_heads": 2}
    return store, train_model(store, folder / "run", resolution=8, options=small, epochs=1, progress=False)


def test_runs_and_functions_predict_data_sets(trained):
    store, run = trained
    data = store.dataset(16)
    out = run.predict(data, batch_size=9)
    expected = run.predict(store.read(16, "permeability")[:, None]).numpy()[:, 0]
    np.testing.assert_allclose(out["pressure"], expected, rtol=1e-5, atol=1e-8)
    assert "mano of 15,577 parameters, trained at r8 of 'Darcy flow'" in out.attrs["history"]
    double = Trained(lambda x: 2 * x, resolution=8).predict(data, store)
    assert np.array_equal(double["pressure"], 2 * store.read(16, "permeability"))


def test_runs_without_a_record_say_what_they_predict(trained):
    _, run = trained
    old = Run(run.model, run.processor, run.arch, run.options, {"task": "fields"}, [])
    with pytest.raises(InputError, match="predicts arrays, not data sets: train it anew"):
        old.predict(fields())


def test_the_command_predicts_files_and_stores(trained, tmp_path, capsys):
    store, run = trained
    run.save(tmp_path / "run")
    test = store.dataset(16).isel(sample=slice(6, None))[["permeability"]]
    test.drop_vars("split").drop_attrs().to_netcdf(tmp_path / "in.nc")
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "in.nc"), str(tmp_path / "out.nc"), "--quiet"]
    assert main(words) == 0
    assert "pressure {'sample': 3, 'y': 16, 'x': 16}" in capsys.readouterr().out
    of_store = ["predict", str(tmp_path / "run"), str(store.path), str(tmp_path / "out.zarr"), "--quiet"]
    assert main([*of_store, "--resolution", "16", "--split", "test", "--grid", "24"]) == 0
    with opened(tmp_path / "out.nc") as file, opened(tmp_path / "out.zarr") as zarr:
        np.testing.assert_array_equal(file["pressure"], run.predict(test)["pressure"])
        assert zarr["pressure"].sizes == {"sample": 3, "y": 24, "x": 24}
    assert main(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*of_store, "--overwrite"]) == 2 and "expected one of r8, r16" in capsys.readouterr().err
