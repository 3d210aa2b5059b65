"""Errors of models whose errors are known, on grids that nest and grids that do not."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import store_of
from scipy.interpolate import CubicSpline
from torch import nn

from mano_op.data.processor import FieldProcessor
from mano_op.data.store import Variable
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.runs import Run
from mano_op.transfer.evaluate import evaluate_transfer
from mano_op.transfer.evidence import Evidence
from mano_op.transfer.metrics import METRICS, all_metrics
from mano_op.transfer.predict import predict
from mano_op.transfer.predictors import PREDICTORS

N_TEST = 7
FIELDS = (Variable("a", "input"), Variable("u", "output"), Variable("v", "output"))
DPU = ["dpu_injection", "dpu_mean", "dpu_interpolation"]


def sines(samples, grid):
    """Zero on the boundary of the unit square; u = 2 a and v = -4 a, which float32 holds exactly."""
    y, x = grid.mesh
    a = np.stack(
        [
            sum(
                weight * np.sin(k * np.pi * y) * np.sin(np.pi * (k + i % 2) * x)
                for k, weight in enumerate(np.random.default_rng(int(i)).normal(size=4), start=1)
            )
            for i in samples
        ]
    ).astype(np.float32)
    return {"a": a, "u": 2 * a, "v": -4 * a}


class Pointwise(nn.Module):
    """A map of values; notes the sizes of the batches it was given."""

    def __init__(self, function):
        super().__init__()
        self.function, self.batches = function, []

    def forward(self, x):
        self.batches.append(len(x))
        return self.function(x)


def perfect(x):
    return torch.cat([2 * x, -4 * x], dim=1)


def run_of(function, *, trained="r8", inputs=("a",), outputs=("u", "v")):
    """A run of a model that works in physical units."""
    unit = {"mean": 0.0, "std": 1.0}
    processor = FieldProcessor(dict.fromkeys(inputs, unit), dict.fromkeys(outputs, unit))
    model = function if isinstance(function, nn.Module) else Pointwise(function)
    return Run(model, processor, "known", {}, {"resolution": trained})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    grids = [Grid.uniform((n, n)) for n in (8, 12, 16)]
    path = tmp_path_factory.mktemp("transfer") / "sines.zarr"
    return store_of(path, grids, FIELDS, sines, {"train": 4, "test": N_TEST})


def evaluate(function, store, resolutions=(8, 12, 16), *, trained="r8", **options):
    run = run_of(function, trained=trained)
    return evaluate_transfer({"M": run}, store, resolutions, progress=False, **options)


def errors(results, key, predictor, metric="relative_l2_points", model="M"):
    """Of every variable and sample, each point counted once unless another metric is asked for."""
    found = results["error"].sel(model=model, resolution=key, predictor=predictor, metric=metric)
    return found.squeeze("run").values


def fields(store, key, name):
    return store.read(key, name, store.layout.rows(key, "test")).astype(np.float64)


def test_results_are_labelled(store):
    results = evaluate(perfect, store, resolutions=[16, "r8"])
    sizes = {"run": 1, "resolution": 2, "predictor": 6, "metric": 9, "variable": 2, "sample": N_TEST}
    assert dict(results["error"].sizes) == sizes
    assert results["resolution"].values.tolist() == ["r8", "r16"]  # coarsest first, whatever was asked
    assert results["predictor"].values.tolist() == list(PREDICTORS)
    assert results["metric"].values.tolist() == list(METRICS)
    assert results["variable"].values.tolist() == ["u", "v"]
    assert results["sample"].values.tolist() == list(range(4, 4 + N_TEST))  # the store's numbers
    assert results["run"].values.tolist() == [("M", "r8", 0)]
    assert results["home"].values.tolist() == ["r8"]
    assert results["points"].values.tolist() == [64, 256]
    # The mismatch is the model's alone; everything else there is.
    np.testing.assert_array_equal(
        np.isfinite(results["error"].isel(variable=0, sample=0)),
        results["defined"].expand_dims(run=1),
    )
    assert results["defined"].sum() == 2 * (6 * 8 + 1)


def test_a_perfect_model_has_no_error_and_its_dpu_is_the_floor(store):
    results = evaluate(perfect, store)
    for key in ("r8", "r12", "r16"):
        assert (errors(results, key, "direct") == 0).all()
    for key in ("r8", "r16"):
        np.testing.assert_array_equal(errors(results, key, "dpu_injection"), errors(results, key, "floor"))
    assert (errors(results, "r8", "floor") == 0).all()
    assert errors(results, "r16", "floor").min() > 1e-3
    assert results["restriction"].values.tolist() == [["injection", "nearest", "injection"]]


def test_where_grids_do_not_nest_the_input_is_best_interpolated(store):
    results = evaluate(perfect, store, boundary={"u": None, "v": None})
    floor, u = errors(results, "r12", "floor"), fields(store, "r12", "u")
    coarse, fine = np.arange(8) / 8, np.arange(12) / 12
    down = CubicSpline(fine, CubicSpline(fine, u, axis=1)(coarse), axis=2)(coarse)
    up = CubicSpline(coarse, CubicSpline(coarse, down, axis=1)(fine), axis=2)(fine)
    np.testing.assert_allclose(errors(results, "r12", "dpu_interpolation")[0], relative(up, u), rtol=1e-4)
    assert errors(results, "r12", "dpu_interpolation").mean() < 1.1 * floor.mean()
    for worse in ("dpu_injection", "dpu_mean"):
        assert errors(results, "r12", worse).mean() > 1.2 * floor.mean()


def test_at_the_training_resolution_dpu_is_direct_inference(store):
    torch.manual_seed(0)
    results = evaluate(nn.Conv2d(1, 2, 3, padding=1), store)
    for predictor in DPU:
        np.testing.assert_array_equal(errors(results, "r8", predictor), errors(results, "r8", "direct"))
    assert (errors(results, "r16", "dpu_injection") != errors(results, "r16", "direct")).all()


def spline_up(coarse, n, *, ends=True):
    """The spline through fields on n/2 nodes of the unit square, and zeros at its far sides."""
    knots = np.arange(coarse.shape[-1]) / coarse.shape[-1]
    if ends:
        knots, coarse = np.append(knots, 1.0), np.pad(coarse, ((0, 0), (0, 1), (0, 1)))
    there = np.arange(n) / n
    return CubicSpline(knots, CubicSpline(knots, coarse, axis=1)(there), axis=2)(there)


def relative(predicted, true):
    return np.linalg.norm(predicted - true, axis=(1, 2)) / np.linalg.norm(true, axis=(1, 2))


def averaged(fine):
    """Means over the control volumes of every second node; the last volumes reach to the end."""
    n = fine.shape[-1]
    weights = np.zeros((n // 2, n))
    for j in range(1, n // 2 - 1):
        weights[j, 2 * j - 1 : 2 * j + 2] = 1 / 4, 1 / 2, 1 / 4
    weights[0, :2] = 1 / 2
    weights[-1, -3:] = 1 / 6, 2 / 6, 3 / 6
    return weights @ fine @ weights.T


def test_dpu_is_restriction_prediction_and_spline(store):
    results = evaluate(lambda x: torch.cat([x**2, torch.sin(x)], dim=1), store)
    fine, u, v = (fields(store, "r16", name) for name in ("a", "u", "v"))
    restricted = {"dpu_injection": fine[:, ::2, ::2], "dpu_mean": averaged(fine)}
    for predictor, coarse in restricted.items():
        expected = [relative(spline_up(coarse**2, 16), u), relative(spline_up(np.sin(coarse), 16), v)]
        np.testing.assert_allclose(errors(results, "r16", predictor), expected, rtol=2e-5)
    expected = [relative(spline_up(field[:, ::2, ::2], 16), field) for field in (u, v)]
    np.testing.assert_allclose(errors(results, "r16", "floor"), expected, rtol=1e-4)


def test_boundary_values_are_the_stores_unless_others_are_given(store):
    known, none = (
        evaluate(perfect, store, [16]),
        evaluate(perfect, store, [16], boundary={"u": None, "v": None}),
    )
    u = fields(store, "r16", "u")
    without = relative(spline_up(u[:, ::2, ::2], 16, ends=False), u)
    np.testing.assert_allclose(errors(none, "r16", "floor")[0], without, rtol=1e-4)
    assert errors(known, "r16", "floor").mean() < 0.7 * errors(none, "r16", "floor").mean()
    zeros = {"y": [0.0, 0.0], "x": [0.0, 0.0]}
    assert json.loads(known.attrs["boundary"]) == {"u": zeros, "v": zeros}
    assert json.loads(none.attrs["boundary"]) == {"u": {}, "v": {}}


def test_every_output_has_boundary_values_of_its_own(tmp_path):
    """u is 10 where v is 0, and known at one end only."""

    def shifted(samples, grid):
        a, u, _ = sines(samples, grid).values()
        return {"a": a, "u": 10 + u, "v": u}

    grids = [Grid.uniform((8, 8)), Grid.uniform((16, 16))]
    variables = [
        Variable("a", "input"),
        Variable("u", "output", boundary_value={"y": (None, 10.0)}),
        Variable("v", "output"),
    ]
    store = store_of(tmp_path / "s.zarr", grids, variables, shifted, {"train": 2, "test": 3}, ends=None)
    results = evaluate(perfect, store, [16], boundary={"v": 0.0})
    u, v = fields(store, "r16", "u"), fields(store, "r16", "v")
    knots, there = np.arange(8) / 8, np.arange(16) / 16
    closed = np.pad(u[:, ::2, ::2], ((0, 0), (0, 1), (0, 0)), constant_values=10.0)
    up = CubicSpline(knots, CubicSpline(np.append(knots, 1.0), closed, axis=1)(there), axis=2)(there)
    floor = errors(results, "r16", "floor")
    np.testing.assert_allclose(floor[0], relative(up, u), rtol=1e-3)
    np.testing.assert_allclose(floor[1], relative(spline_up(v[:, ::2, ::2], 16), v), rtol=1e-4)
    wrong = evaluate(perfect, store, [16], boundary={"u": 0.0, "v": 0.0})  # what "dirichlet" alone might mean
    assert errors(wrong, "r16", "floor")[0].min() > 2 * floor[0].max()


def test_the_floor_is_that_of_the_stores_coarse_fields_where_grids_do_not_nest(store):
    """From the stored 8 x 8 fields, not from those that interpolation makes of the 12 x 12 ones."""
    results = evaluate(perfect, store, [12])
    knots, there = np.append(np.arange(8) / 8, 1.0), np.arange(12) / 12
    for c, name in enumerate(("u", "v")):
        coarse = np.pad(fields(store, "r8", name), ((0, 0), (0, 1), (0, 1)))
        up = CubicSpline(knots, CubicSpline(knots, coarse, axis=1)(there), axis=2)(there)
        expected = relative(up, fields(store, "r12", name))
        np.testing.assert_allclose(errors(results, "r12", "floor")[c], expected, rtol=1e-4)


def test_the_mean_field_has_its_closed_form(store):
    results = evaluate(perfect, store)
    for key in ("r8", "r16"):
        for c, name in enumerate(("u", "v")):
            field, mean = fields(store, key, name), store.statistics[name]["mean"]
            expected = np.sqrt(((field - mean) ** 2).sum((1, 2)) / (field**2).sum((1, 2)))
            np.testing.assert_allclose(errors(results, key, "mean")[c], expected, rtol=1e-5)


def test_without_a_training_split_the_mean_is_the_processors(tmp_path):
    store = store_of(tmp_path / "s.zarr", [Grid.uniform((8, 8))], FIELDS, sines, {"test": 3})
    run = run_of(perfect)
    statistics = {"u": {"mean": 0.5, "std": 3.0}, "v": {"mean": -1.0, "std": 2.0}}
    processor = FieldProcessor({"a": {"mean": 0.0, "std": 1.0}}, statistics)
    run = Run(Pointwise(lambda x: torch.zeros(len(x), 2, 8, 8)), processor, "zero", {}, run.training)
    results = evaluate_transfer({"M": run}, store, [8], progress=False)
    # A network that says nothing predicts the processor's mean, in physical units.
    np.testing.assert_allclose(errors(results, "r8", "mean"), errors(results, "r8", "direct"), rtol=1e-6)
    field = store.read("r8", "u")
    expected = np.linalg.norm(field - 0.5, axis=(1, 2)) / np.linalg.norm(field, axis=(1, 2))
    np.testing.assert_allclose(errors(results, "r8", "mean")[0], expected, rtol=1e-5)


def test_coarser_grids_than_the_training_grid(store):
    results = evaluate(perfect, store, trained="r16")
    assert (errors(results, "r8", "direct") == 0).all()
    assert errors(results, "r8", "floor").max() < 1e-6  # through the shared points and back
    np.testing.assert_allclose(
        errors(results, "r8", "dpu_interpolation"), errors(results, "r8", "floor"), atol=1e-6
    )
    assert results["restriction"].sel(resolution="r8").item() == "nearest"


def test_periodic_fields_are_interpolated_by_their_waves(tmp_path):
    grids = [Grid.uniform((n,), periodic=True) for n in (8, 12)]

    def waves(samples, grid):
        a = np.stack([np.sin(2 * np.pi * (grid.mesh[0] * (1 + i % 3) + i)) for i in samples])
        return {"a": a, "u": 2 * a, "v": -4 * a}

    store = store_of(tmp_path / "waves.zarr", grids, FIELDS, waves, {"test": 6})
    results = evaluate(perfect, store, [12])
    assert errors(results, "r12", "floor").max() < 1e-6
    assert errors(results, "r12", "dpu_interpolation").max() < 1e-6
    assert errors(results, "r12", "dpu_injection").min() > 0.01


def test_predictions_that_are_not_finite_are_kept(store):
    def breaks_on_fine_grids(x):
        y = perfect(x)
        if len(x) == N_TEST and x.shape[-1] > 8:
            y[1, 0, 3, 3] = torch.nan
            y[4, 1, 0, 0] = torch.inf
        return y

    results = evaluate(breaks_on_fine_grids, store, [16])
    bad = ~np.isfinite(errors(results, "r16", "direct"))
    assert np.argwhere(bad).tolist() == [[0, 1], [1, 4]]
    assert np.isfinite(results["error"].sel(metric="relative_l2").drop_sel(predictor="direct")).all()


def test_results_do_not_depend_on_batches_and_memory_does(store):
    torch.manual_seed(1)
    network = nn.Conv2d(1, 2, 3, padding=1)
    model = Pointwise(network)
    ones, all_at_once = (evaluate(model, store, batch_size=size) for size in (1, 50))
    np.testing.assert_allclose(ones["error"], all_at_once["error"], rtol=1e-4, atol=1e-6)
    model.batches.clear()
    evaluate(model, store, batch_size=3)
    assert max(model.batches) == 3


def test_costs_are_counted_at_every_resolution(store):
    results = evaluate(nn.Conv2d(1, 2, 3, padding=1), store, [12, 16])
    flops = {n: 2 * 9 * 2 * n**2 for n in (8, 12, 16)}
    assert results["parameters"].item() == 9 * 2 + 2
    assert results["flops"].squeeze().values.tolist() == [flops[12], flops[16]]
    # What the convolution makes, and the copy of its input, padded.
    assert results["peak_bytes"].squeeze().values.tolist() == [4 * 2 * n**2 for n in (12, 16)]
    assert results["training_flops"].item() == flops[8]
    assert (results["seconds_per_sample"] > 0).all() and (results["seconds_per_sample"] < 10).all()


def test_several_models_share_floor_and_mean_where_they_share_a_grid(store):
    runs = {"A": run_of(perfect), "B": run_of(lambda x: 2 * perfect(x)), "C": run_of(perfect, trained="r12")}
    values = evaluate_transfer(runs, store, [16], progress=False)["error"].sel(metric="relative_l2")
    a, b, c = (values.sel(model=name).squeeze(drop=True) for name in "ABC")
    same = ["floor", "mean"]
    np.testing.assert_array_equal(a.sel(predictor=same), b.sel(predictor=same))
    np.testing.assert_array_equal(a.sel(predictor="mean"), c.sel(predictor="mean"))
    assert (c.sel(predictor="floor") < a.sel(predictor="floor")).all()
    np.testing.assert_allclose(b.sel(predictor="direct"), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "resolutions", "split", "message"),
    [
        ({}, [32], "test", "has no resolution 32; it has r8 (8 x 8), r12 (12 x 12), r16"),
        ({}, [], "test", "no resolutions; expected some of r8, r12, r16"),
        ({}, [16], "holdout", "r16 has no split 'holdout'; it has train, test"),
        ({"trained": "r64"}, [16], "test", "M was trained at r64, whose grid is needed"),
        ({"inputs": ("b",)}, [16], "test", "M has the inputs ('b',)"),
        ({"outputs": ("v", "u")}, [16], "test", "M has the outputs ('v', 'u')"),
        (
            {"function": lambda x: perfect(x)[..., :-1]},
            [16],
            "test",
            "M cannot predict at r16: its output has shape (1, 2, 16, 15)",
        ),
        ({"function": nn.Conv2d(3, 2, 1)}, [16], "test", "M cannot predict at r16: Given groups=1"),
    ],
)
def test_what_cannot_be_judged_is_refused(store, change, resolutions, split, message):
    run = run_of(**{"function": perfect, **change})
    with pytest.raises(InputError, match=re.escape(message)):
        evaluate_transfer({"M": run}, store, resolutions, split=split, progress=False)


def test_a_split_that_a_level_lacks_is_refused_before_any_prediction(tmp_path):
    coarse, fine = Grid.uniform((8, 8)), Grid.uniform((16, 16))
    store = store_of(
        tmp_path / "s.zarr", [coarse, fine], FIELDS, sines, {"train": 2, "test": 2}, held={coarse: ["train"]}
    )
    model = Pointwise(perfect)
    with pytest.raises(InputError, match="r8 has no split 'test'; it has train, while 'test' is at r16"):
        evaluate_transfer({"M": run_of(model)}, store, [8, 16], progress=False)
    assert model.batches == []
    # Its grid is all that the training level is needed for.
    assert (
        errors(evaluate_transfer({"M": run_of(model)}, store, [16], progress=False), "r16", "direct") == 0
    ).all()


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "no models to judge"),
        ({"M": []}, {}, "no models to judge"),
        ({"M": run_of(perfect)}, {"batch_size": 0}, "batch_size=0, expected a whole number"),
        ({"M": [nn.Identity()]}, {}, "M: Identity, expected a Run"),
        ({"M": run_of(perfect)}, {"boundary": {"y": 0.0}}, "expected values of outputs, which here are u, v"),
        (
            {"M": run_of(perfect)},
            {"boundary": {"u": {"z": 0.0}}},
            "axes that do not wrap, which here are y, x",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(store, models, options, message):
    with pytest.raises(InputError, match=message):
        evaluate_transfer(models, store, [8], progress=False, **options)


@pytest.mark.parametrize(("max_bytes", "n"), [(0, 1), (30_000, 2), (2**28, N_TEST)])
def test_evidence_keeps_the_fields_and_predictions_that_were_judged(store, max_bytes, n):
    """A sample has 11 fields (an input, two outputs, four predictions of both) of 64 and of 256 float32."""
    evidence = Evidence(max_bytes)
    results = evaluate(lambda x: torch.cat([x**2, -x], dim=1), store, evidence=evidence, batch_size=3)
    assert list(evidence.fields) == ["r8", "r16"]  # the home level and the finest
    for key, kept in evidence.fields.items():
        assert kept["sample"].values.tolist() == list(range(4, 4 + n))
        for name, field in (("a", kept["input"]), ("u", kept["truth"]), ("v", kept["truth"])):
            stored = store.read(key, name, store.layout.rows(key, "test"))[:n]
            np.testing.assert_array_equal(field.sel({field.dims[0]: name}), stored)
        off = (kept["prediction"] - kept["truth"]).astype(float)
        relative = np.sqrt((off**2).sum(("y", "x")) / (kept["truth"].astype(float) ** 2).sum(("y", "x")))
        judged = results["error"].sel(
            resolution=key, metric="relative_l2_points", predictor=kept["predictor"]
        )
        np.testing.assert_allclose(
            relative.squeeze("run"), judged.isel(sample=slice(n)).squeeze("run"), rtol=1e-5
        )


def test_predictions_are_in_physical_units():
    processor = FieldProcessor({"a": {"mean": 1.0, "std": 2.0}}, {"u": {"mean": 10.0, "std": 5.0}})
    run = Run(nn.Identity(), processor, "identity", {}, {"resolution": "r4"})
    x = torch.tensor([[[1.0, 3.0, 5.0, -1.0]]])
    assert predict(run.model, run.processor, x).tolist() == [[[10.0, 15.0, 20.0, 5.0]]]


def test_every_metric_is_of_the_fields(store):
    """What each metric makes of the prediction, which the model and the store are known for."""
    results = evaluate(lambda x: perfect(x) + 0.1 * x**2, store, [8, 16])
    for key, n in (("r8", 8), ("r16", 16)):
        a, u = (torch.from_numpy(fields(store, key, name)) for name in ("a", "u"))
        grids = Grid.uniform((n, n)), Grid.uniform((8, 8))
        expected = all_metrics((u + 0.1 * a**2)[:, None], u[:, None], *grids)[:, :, 0]
        for metric, values in zip(METRICS[:-1], expected, strict=False):
            found = errors(results, key, "direct", metric)[0]
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-7, err_msg=metric)
    # All modes of the training grid are below its own Nyquist wavenumber.
    assert errors(results, "r8", "direct", "spectral_high").max() < 1e-6


def test_the_mismatch_is_that_of_two_predictions_at_the_shared_points(store):
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    results = evaluate(network, store)
    assert (errors(results, "r8", "direct", "mismatch") == 0).all()
    a = torch.from_numpy(fields(store, "r16", "a")).float()[:, None]
    fine, coarse = network(a)[..., ::2, ::2].detach(), network(a[..., ::2, ::2]).detach()
    weights = torch.from_numpy(Grid.uniform((8, 8)).weights)
    expected = ((weights * (fine - coarse) ** 2).sum((2, 3)) / (weights * coarse**2).sum((2, 3))).sqrt().T
    np.testing.assert_allclose(errors(results, "r16", "direct", "mismatch"), expected, rtol=1e-5)
    pointwise = evaluate(perfect, store)
    for key in ("r8", "r16"):
        assert (errors(pointwise, key, "direct", "mismatch") == 0).all()
    # Where grids do not nest, both predictions are interpolated; for smooth fields they nearly agree.
    assert 0 < errors(pointwise, "r12", "direct", "mismatch").max() < 0.3
    assert np.isnan(errors(pointwise, "r16", "dpu_mean", "mismatch")).all()


def run_at(factor, resolution, **training):
    run = run_of(lambda x: factor * perfect(x))
    run.training.update(resolution=resolution, **training)
    return run


def test_runs_have_the_coordinates_model_training_resolution_and_seed(store):
    mixed = run_at(1.5, ["r16", "r8"], seed=4, samples={"r8": 30, "r16": 10})
    models = {
        "A": [run_at(1.3, "r16"), mixed, run_at(1.2, "r8", seed=1), run_at(1.1, "r8")],
        "B": run_at(1.4, 8, seed=1),
    }
    results = evaluate_transfer(models, store, [8, 16], progress=False)
    table = {
        ("A", "r8", 0): ("A (r8)", "r8", 64, 0.1),
        ("A", "r8", 1): ("A (r8)", "r8", 64, 0.2),
        ("A", "r8+r16", 4): ("A (r8+r16)", "r8", 64, 0.5),
        ("A", "r16", 0): ("A (r16)", "r16", 256, 0.3),
        ("B", "r8", 1): ("B (r8)", "r8", 64, 0.4),
    }
    assert results["run"].values.tolist() == list(table)  # models in their order, coarsest first
    direct = results["error"].sel(predictor="direct", metric="relative_l2", resolution="r16", variable="v")
    for (model, where, seed), (label, home, points, error) in table.items():
        run = results.sel(model=model, train_resolution=where, seed=seed)
        assert (run["label"], run["home"], run["home_points"]) == (label, home, points)
        np.testing.assert_allclose(
            direct.sel(model=model, train_resolution=where, seed=seed), error, rtol=1e-5
        )
    # By way of the home level: at 16 the model trained there has its direct prediction for DPU.
    errors = results["error"].sel(model="A", metric="relative_l2", resolution="r16", variable="u")
    same = errors.sel(train_resolution="r16", seed=0)
    np.testing.assert_array_equal(same.sel(predictor="dpu_injection"), same.sel(predictor="direct"))
    other = errors.sel(train_resolution="r8+r16", seed=4)
    assert (other.sel(predictor="dpu_injection") != other.sel(predictor="direct")).all()
    assert (same.sel(predictor="floor") == 0).all() and (other.sel(predictor="floor") > 0).all()


@pytest.mark.parametrize(
    ("training", "home"),
    [
        ({"resolution": ["r8", "r16"]}, "r16"),
        ({"resolution": ["r16", "r8"]}, "r16"),
        ({"resolution": ["r8", "r16"], "samples": {"r8": 9, "r16": 1}}, "r8"),
        ({"resolution": ["r8", "r12", "r16"], "samples": {"r8": 5, "r12": 9, "r16": 9}}, "r16"),
        ({"resolution": ["r8", "r64"], "samples": {"r8": 5, "r64": 4}}, "r8"),
    ],
)
def test_home_is_where_most_samples_were_and_the_finest_of_several(store, training, home):
    run = run_of(perfect)
    run.training.clear()
    run.training.update(training)
    results = evaluate_transfer({"M": run}, store, [8], progress=False)
    assert results["home"].item() == home
    assert results["train_resolution"].item() == "+".join(
        sorted(training["resolution"], key=lambda k: int(k[1:]))
    )


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([run_at(1, "r8"), run_at(2, "r8")], "run 0 of M and run 1 of M were both trained at r8 with seed 0"),
        (
            [
                run_at(1, ["r8", "r16"], samples={"r8": 9, "r16": 1}),
                run_at(1, ["r8", "r16"], samples={"r8": 1, "r16": 9}, seed=1),
            ],
            r"both trained at r8\+r16, but most samples were at r8 and at r16",
        ),
        (
            [run_at(1, ["r64", "r8"], samples={"r64": 9, "r8": 1})],
            "M was trained at r64, whose grid is needed",
        ),
        ([run_at(1, [])], r"trained at resolution=\[\] .* expected at least one level"),
        ([run_at(1, "r8", seed="x")], "seed='x', expected"),
        ([run_at(1, ["r8", "r16"], grid=["other", "another"])], "M was trained on the grid another, r16 of"),
    ],
)
def test_runs_that_have_no_place_of_their_own_are_refused(store, runs, message):
    with pytest.raises(InputError, match=message):
        evaluate_transfer({"M": runs}, store, [8], progress=False)


def test_odd_and_oblong_targets(tmp_path):
    grids = [Grid.uniform(shape, registration="cell") for shape in ((8, 8), (5, 9), (13, 7), (21, 16))]
    store = store_of(tmp_path / "odd.zarr", grids, FIELDS, sines, {"train": 2, "test": 3})
    results = evaluate(perfect, store, list(store.grids))
    assert results.sizes["resolution"] == 4
    for key in store.grids:
        assert (errors(results, key, "direct", "relative_l2") == 0).all()
        for metric in METRICS[:-1]:
            assert np.isfinite(errors(results, key, "dpu_interpolation", metric)).all()
