"""Errors of models and functions whose errors are known, on grids that nest and grids that do not."""

import json

import numpy as np
import pytest
import torch
from helpers import moving_wave_store, store_of
from scipy.interpolate import CubicSpline
from torch import nn

from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.store import Variable
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.models.mano import MANO
from mano_op.resample import interpolate, resample
from mano_op.runs import Run
from mano_op.transfer import Evidence, Trained, evaluate_transfer, summary
from mano_op.transfer.metrics import METRICS, all_metrics
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.runs import judged_runs

N_TEST = 12
FIELDS = (Variable("a", "input"), Variable("u", "output"), Variable("v", "output"))
DPU = ["dpu_injection", "dpu_mean", "dpu_interpolation"]
COARSE, FINE = Grid.uniform((8, 8)), Grid.uniform((16, 16))
OPEN = {"u": None, "v": None}  # no known boundary values


def sines(samples, grid):
    """Zero on the boundary of the unit square; u = 2 a and v = -4 a, which float32 holds exactly."""
    y, x = grid.mesh
    a = np.zeros((len(samples), *grid.shape))
    for row, i in enumerate(samples):
        for k, weight in enumerate(np.random.default_rng(int(i)).normal(size=4), start=1):
            a[row] += weight * np.sin(k * np.pi * y) * np.sin(np.pi * (k + i % 2) * x)
    a = a.astype(np.float32)
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


def run_of(function, *, inputs=("a",), outputs=("u", "v"), resolution="r8", **training):
    """A run of a model that works in physical units."""
    unit = {"mean": 0.0, "std": 1.0}
    processor = FieldProcessor(dict.fromkeys(inputs, unit), dict.fromkeys(outputs, unit))
    model = function if isinstance(function, nn.Module) else Pointwise(function)
    return Run(model, processor, "known", {}, {"resolution": resolution, **training})


def run_at(resolution, factor=1, **training):
    return run_of(lambda x: factor * perfect(x), resolution=resolution, **training)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    grids = [Grid.uniform((n, n)) for n in (8, 12, 16)]
    path = tmp_path_factory.mktemp("transfer") / "sines.zarr"
    return store_of(path, grids, FIELDS, sines, {"train": 4, "test": N_TEST})


def evaluate(judged, store, resolutions=(8, 12, 16), **options):
    """Judge models by their names, or one as "M"; a bare function or module is a run of it."""
    judged = run_of(judged) if callable(judged) else judged
    models = judged if isinstance(judged, dict) else {"M": judged}
    return evaluate_transfer(models, store, resolutions, progress=False, **options)


@pytest.fixture(scope="module")
def perfect_results(store):
    return evaluate(perfect, store)


@pytest.fixture(scope="module")
def convolution(store):
    """A network that looks at neighbours, and its results."""
    torch.manual_seed(0)
    network = nn.Conv2d(1, 2, 3, padding=1)
    return network, evaluate(network, store)


def errors(results, key, predictor, metric="relative_l2_points", model="M"):
    """Of every variable and sample, each point counted once unless another metric is asked for."""
    values = results["error"].sel(model=model, resolution=key, predictor=predictor, metric=metric)
    return values.squeeze("run").values


def fields(store, key, name):
    return store.read(key, name, store.layout.rows(key, "test")).astype(np.float64)


def relative(predicted, true):
    return np.linalg.norm(predicted - true, axis=(1, 2)) / np.linalg.norm(true, axis=(1, 2))


def spline(field, n, ends=(0.0, 0.0)):
    """The spline through fields on nodes of the unit square, and known values at its far sides or None."""
    for axis, end in enumerate(ends, start=1):
        knots = np.arange(field.shape[axis]) / field.shape[axis]
        if end is not None:
            knots = np.append(knots, 1.0)
            field = np.concatenate([field, np.full_like(field.take([0], axis), end)], axis)
        field = CubicSpline(knots, field, axis=axis)(np.arange(n) / n)
    return field


def averaged(fine):
    """Means over the control volumes of every second node; the last volumes reach to the end."""
    n = fine.shape[-1]
    weights = np.zeros((n // 2, n))
    for j in range(1, n // 2 - 1):
        weights[j, 2 * j - 1 : 2 * j + 2] = 1 / 4, 1 / 2, 1 / 4
    weights[0, :2] = 1 / 2
    weights[-1, -3:] = 1 / 6, 2 / 6, 3 / 6
    return weights @ fine @ weights.T


def test_results_are_labelled(store):
    results = evaluate(perfect, store, [16, "r8"])
    sizes = {"run": 1, "resolution": 2, "predictor": 6, "metric": 9, "variable": 2, "sample": N_TEST}
    assert dict(results["error"].sizes) == sizes
    labels = {
        "resolution": ["r8", "r16"],  # coarsest first, whatever was asked
        "predictor": list(PREDICTORS),
        "metric": list(METRICS),
        "variable": ["u", "v"],
        "sample": list(range(4, 4 + N_TEST)),  # the store's numbers
        "run": [("M", "r8", 0)],
        "home": ["r8"],
        "points": [64, 256],
    }
    assert {name: results[name].values.tolist() for name in labels} == labels
    # The mismatch is the model's alone; everything else there is.
    finite = np.isfinite(results["error"].isel(variable=0, sample=0))
    np.testing.assert_array_equal(finite, results["defined"].expand_dims(run=1))
    assert results["defined"].sum() == 2 * (6 * 8 + 1)


def test_perfect_model_has_no_error_and_its_dpu_is_the_floor(perfect_results):
    for key in ("r8", "r12", "r16"):
        assert (errors(perfect_results, key, "direct") == 0).all()
    for key in ("r8", "r16"):
        floor = errors(perfect_results, key, "floor")
        np.testing.assert_array_equal(errors(perfect_results, key, "dpu_injection"), floor)
    assert (errors(perfect_results, "r8", "floor") == 0).all()
    assert errors(perfect_results, "r16", "floor").min() > 1e-3
    assert perfect_results["restriction"].values.tolist() == [["injection", "nearest", "injection"]]


def test_interpolated_input_is_the_best_where_grids_do_not_nest(store):
    results = evaluate(perfect, store, [12], boundary=OPEN)
    floor, *dpu = (errors(results, "r12", name).mean() for name in ("floor", *DPU))
    assert dpu[2] < 1.1 * floor < 1.2 * floor < min(dpu[:2])


def test_dpu_at_the_training_resolution_is_direct_inference(convolution):
    _, results = convolution
    for predictor in DPU:
        np.testing.assert_array_equal(errors(results, "r8", predictor), errors(results, "r8", "direct"))
    assert (errors(results, "r16", "dpu_injection") != errors(results, "r16", "direct")).all()


@pytest.mark.parametrize("end", [0.0, None])
@pytest.mark.parametrize("n", [12, 16])
def test_dpu_and_floor_are_restriction_prediction_and_spline(store, n, end):
    """By the store's boundary values, or by none; the floor is from the stored 8 x 8 fields on any grid."""
    key, ends = f"r{n}", (end, end)
    known = {} if end is None else {"y": [end, end], "x": [end, end]}
    boundary = OPEN if end is None else None
    results = evaluate(lambda x: torch.cat([x**2, torch.sin(x)], 1), store, [n], boundary=boundary)
    assert json.loads(results.attrs["boundary"]) == {"u": known, "v": known}
    a, u, v = (fields(store, key, name) for name in ("a", "u", "v"))
    shared = a[:, ::2, ::2]
    nested = {"dpu_injection": shared, "dpu_mean": averaged(a), "dpu_interpolation": shared}
    inputs = nested if n == 16 else {"dpu_interpolation": spline(a, 8, (None, None))}
    for predictor, x in inputs.items():
        expected = [relative(spline(x**2, n, ends), u), relative(spline(np.sin(x), n, ends), v)]
        np.testing.assert_allclose(errors(results, key, predictor), expected, rtol=2e-5)
    expected = [relative(spline(fields(store, "r8", name), n, ends), f) for name, f in (("u", u), ("v", v))]
    np.testing.assert_allclose(errors(results, key, "floor"), expected, rtol=1e-4)


def test_every_output_has_boundary_values_of_its_own(tmp_path):
    """u is 10 where v is 0, and known at one end only."""

    def shifted(samples, grid):
        a, u, _ = sines(samples, grid).values()
        return {"a": a, "u": 10 + u, "v": u}

    variables = (FIELDS[0], Variable("u", "output", boundary_value={"y": (None, 10.0)}), FIELDS[2])
    grids, splits = [COARSE, FINE], {"train": 2, "test": 3}
    store = store_of(tmp_path / "s.zarr", grids, variables, shifted, splits, ends=None)
    floor = errors(evaluate(perfect, store, [16], boundary={"v": 0.0}), "r16", "floor")
    u, v = fields(store, "r16", "u"), fields(store, "r16", "v")
    np.testing.assert_allclose(floor[0], relative(spline(u[:, ::2, ::2], 16, (10.0, None)), u), rtol=1e-3)
    np.testing.assert_allclose(floor[1], relative(spline(v[:, ::2, ::2], 16), v), rtol=1e-4)
    wrong = evaluate(perfect, store, [16], boundary={"u": 0.0, "v": 0.0})  # what "dirichlet" alone might mean
    assert errors(wrong, "r16", "floor")[0].min() > 2 * floor[0].max()


def test_mean_field_has_its_closed_form(store, perfect_results):
    for key in ("r8", "r16"):
        for c, name in enumerate(("u", "v")):
            field, mean = fields(store, key, name), store.statistics[name]["mean"]
            expected = relative(mean, field)
            np.testing.assert_allclose(errors(perfect_results, key, "mean")[c], expected, rtol=1e-5)


def test_mean_is_the_processors_without_a_training_split(tmp_path):
    store = store_of(tmp_path / "s.zarr", [COARSE], FIELDS, sines, {"test": 3})
    statistics = {"u": {"mean": 0.5, "std": 3.0}, "v": {"mean": -1.0, "std": 2.0}}
    processor = FieldProcessor({"a": {"mean": 0.0, "std": 1.0}}, statistics)
    zero = Pointwise(lambda x: torch.zeros(len(x), 2, 8, 8))
    results = evaluate(Run(zero, processor, "zero", {}, {"resolution": "r8"}), store, [8])
    # A network that says nothing predicts the processor's mean, in physical units.
    np.testing.assert_allclose(errors(results, "r8", "mean"), errors(results, "r8", "direct"), rtol=1e-6)
    field = store.read("r8", "u")
    np.testing.assert_allclose(errors(results, "r8", "mean")[0], relative(0.5, field), rtol=1e-5)
    with pytest.raises(InputError, match="has no split 'train', whose mean it has to beat"):
        evaluate(Trained(perfect, 8), store, [8])


def test_perfect_model_loses_nothing_on_coarser_grids(store):
    results = evaluate(run_at("r16"), store)
    assert (errors(results, "r8", "direct") == 0).all()
    floor = errors(results, "r8", "floor")
    assert floor.max() < 1e-6  # through the shared points and back
    np.testing.assert_allclose(errors(results, "r8", "dpu_interpolation"), floor, atol=1e-6)
    assert results["restriction"].sel(resolution="r8").item() == "nearest"


def test_periodic_fields_are_interpolated_by_their_waves(tmp_path):
    grids = [Grid.uniform((n,), periodic=True) for n in (8, 12)]

    def waves(samples, grid):
        a = np.stack([np.sin(2 * np.pi * (grid.mesh[0] * (1 + i % 3) + i)) for i in samples])
        return {"a": a, "u": 2 * a, "v": -4 * a}

    results = evaluate(perfect, store_of(tmp_path / "w.zarr", grids, FIELDS, waves, {"test": 6}), [12])
    for predictor in ("floor", "dpu_interpolation"):
        assert errors(results, "r12", predictor).max() < 1e-6
    assert errors(results, "r12", "dpu_injection").min() > 0.01


def test_predictions_that_are_not_finite_are_kept(store):
    def breaks_on_fine_grids(x):
        y = perfect(x)
        if len(x) == N_TEST and x.shape[-1] > 8:
            y[1, 0, 3, 3], y[4, 1, 0, 0] = torch.nan, torch.inf
        return y

    results = evaluate(breaks_on_fine_grids, store, [16])
    assert np.argwhere(~np.isfinite(errors(results, "r16", "direct"))).tolist() == [[0, 1], [1, 4]]
    assert np.isfinite(results["error"].sel(metric="relative_l2").drop_sel(predictor="direct")).all()


def test_batches_bound_memory_and_change_no_result(store, convolution):
    network, results = convolution
    model = Pointwise(network)
    np.testing.assert_allclose(
        evaluate(model, store, batch_size=5)["error"], results["error"], rtol=1e-4, atol=1e-6
    )
    assert max(model.batches) == 5


def test_costs_are_counted_at_every_resolution(convolution):
    _, results = convolution
    assert results["parameters"].item() == 9 * 2 + 2
    assert results["flops"].squeeze().values.tolist() == [2 * 9 * 2 * n**2 for n in (8, 12, 16)]
    # What the convolution makes, and the copy of its input, padded.
    assert results["peak_bytes"].squeeze().values.tolist() == [4 * 2 * n**2 for n in (8, 12, 16)]
    assert results["training_flops"].item() == 2 * 9 * 2 * 8**2
    assert (results["seconds_per_sample"] > 0).all() and (results["seconds_per_sample"] < 10).all()


def test_models_share_floor_and_mean_where_they_share_a_grid(store):
    results = evaluate({"A": run_at("r8"), "B": run_at("r8", 2), "C": run_at("r12")}, store, [16])
    values = results["error"].sel(metric="relative_l2")
    a, b, c = (values.sel(model=name).squeeze(drop=True) for name in "ABC")
    same = ["floor", "mean"]
    np.testing.assert_array_equal(a.sel(predictor=same), b.sel(predictor=same))
    np.testing.assert_array_equal(a.sel(predictor="mean"), c.sel(predictor="mean"))
    assert (c.sel(predictor="floor") < a.sel(predictor="floor")).all()
    np.testing.assert_allclose(b.sel(predictor="direct"), 1.0, rtol=1e-6)


def mixed(first, second, **training):
    """A run trained at r8 and r16, with so many samples of each."""
    return run_at(["r8", "r16"], samples={"r8": first, "r16": second}, **training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolutions": [32]}, r"no resolution 32; it has r8 \(8 x 8\), r12 \(12 x 12\), r16"),
        ({"resolutions": []}, "no resolutions; expected some of r8, r12, r16"),
        ({"resolutions": 8}, r"resolutions=8, expected a list of them, such as \[8\]"),
        ({"split": "holdout"}, "r16 has no split 'holdout'; it has train, test"),
        ({"batch_size": 0}, "batch_size=0, expected a whole number"),
        ({"boundary": {"y": 0.0}}, "expected values of outputs, which here are u, v"),
        ({"boundary": {"u": {"z": 0.0}}}, "axes that do not wrap, which here are y, x"),
    ],
)
def test_arguments_that_do_not_fit_the_store_are_refused(store, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(perfect, store, **{"resolutions": [16], **options})


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({}, "no models to judge"),
        ([nn.Identity()], r"M: Identity\(\), expected a Run of fields"),
        (
            {"M": perfect},
            r"M: <function perfect .*>, expected a Run .* or Trained\(function, resolution=.*\)",
        ),
        (run_of(perfect, inputs=("b",)), r"M has the inputs \('b',\)"),
        (run_of(perfect, outputs=("v", "u")), r"M has the outputs \('v', 'u'\)"),
        (lambda x: perfect(x)[..., 1:], r"M cannot predict at r16: .* float32 of shape \(1, 2, 16, 15\)"),
        (nn.Conv2d(3, 2, 1), "M cannot predict at r16: Given groups=1"),
        (Trained(lambda x: x, 8), r"at r16: its output is .* \(1, 1, 16, 16\), expected .* \(1, 2, 16, 16\)"),
        # Right for the single sample that is tried.
        (Trained(lambda x: perfect(x)[:1], 8), r"M cannot predict at r16: .* \(1, .*, .* \(12, 2, 16, 16\)"),
        (Trained(lambda x: None, 8), "its output is NoneType, expected a tensor or array of real numbers of"),
        (Trained(lambda x: 1j * perfect(x), 8), "its output is complex64 of shape"),
        (Trained(lambda x: x.numpy().nothing, 8), "cannot predict at r16: 'numpy.ndarray' object has no"),
        (Trained(perfect, 8, time_steps=(1, 1)), "nothing in the store varies in time"),
        (Trained(perfect, 64), "M was trained at 64, whose grid is needed"),
        (run_at("r64"), "M was trained at r64, whose grid is needed"),
        (run_at(["r64", "r8"], samples={"r64": 9, "r8": 1}), "M was trained at r64, whose grid is needed"),
        (run_at(["r8", "r16"], grid=["other", "another"]), "M was trained on the grid another, r16 of"),
        (run_at(["r8", "r16"], grid=["other"]), r"M was trained on the grid \['other'\], r16 of"),
        (run_at([]), r"trained at resolution=\[\] .* expected at least one resolution"),
        (run_at("r8", seed="x"), "seed='x', expected"),
        ([run_at("r8"), run_at("r8", 2)], "run 0 of M and run 1 of M were both trained at r8 with seed 0"),
        ([mixed(9, 1), mixed(1, 9, seed=1)], r"both trained at r8\+r16, but most .* at r8 and at r16"),
    ],
)
def test_models_that_cannot_be_judged_are_refused(store, judged, message):
    with pytest.raises(InputError, match=message):
        evaluate(judged, store, [16])


@pytest.mark.parametrize("models", [[run_at("r8")], 5, run_at("r8"), None])
def test_models_without_names_are_refused(store, models):
    with pytest.raises(InputError, match=r"no models to judge in .*; expected runs by name"):
        evaluate_transfer(models, store, [8])


def test_split_that_a_resolution_lacks_is_refused_before_any_prediction(tmp_path):
    splits, held = {"train": 2, "test": 2}, {COARSE: ["train"]}
    store = store_of(tmp_path / "s.zarr", [COARSE, FINE], FIELDS, sines, splits, held=held)
    model = Pointwise(perfect)
    with pytest.raises(InputError, match="r8 has no split 'test'; it has train, while 'test' is at r16"):
        evaluate(model, store, [8, 16])
    assert model.batches == []
    # Its grid is all that the training resolution is needed for.
    assert (errors(evaluate(model, store, [16]), "r16", "direct") == 0).all()


@pytest.mark.parametrize(("max_bytes", "n"), [(0, 1), (2**28, N_TEST)])
def test_evidence_keeps_the_fields_and_predictions_that_were_judged(store, max_bytes, n):
    evidence = Evidence(max_bytes)
    results = evaluate(lambda x: torch.cat([x**2, -x], dim=1), store, evidence=evidence, batch_size=3)
    assert list(evidence.fields) == ["r8", "r16"]  # the home resolution and the finest
    for key, kept in evidence.fields.items():
        assert kept["sample"].values.tolist() == list(range(4, 4 + n))
        for name, field in (("a", kept["input"]), ("u", kept["truth"]), ("v", kept["truth"])):
            np.testing.assert_array_equal(field.sel({field.dims[0]: name}), fields(store, key, name)[:n])
        off = (kept["prediction"] - kept["truth"]).astype(float)
        size = np.sqrt((off**2).sum(("y", "x")) / (kept["truth"].astype(float) ** 2).sum(("y", "x")))
        at = {"resolution": key, "metric": "relative_l2_points", "predictor": kept["predictor"]}
        np.testing.assert_allclose(size, results["error"].sel(at).isel(sample=slice(n)), rtol=1e-5)


def test_every_metric_is_of_the_fields(store):
    """What each metric makes of the prediction, which the model and the store are known for."""
    results = evaluate(lambda x: perfect(x) + 0.1 * x**2, store, [8, 16])
    for key, grid in (("r8", COARSE), ("r16", FINE)):
        a, u = (torch.from_numpy(fields(store, key, name)) for name in ("a", "u"))
        expected = all_metrics((u + 0.1 * a**2)[:, None], u[:, None], grid, COARSE)[:, :, 0]
        for metric, values in zip(METRICS[:-1], expected, strict=False):
            judged = errors(results, key, "direct", metric)[0]
            np.testing.assert_allclose(judged, values, rtol=1e-4, atol=1e-7, err_msg=metric)
    # All modes of the training grid are below its own Nyquist wavenumber.
    assert errors(results, "r8", "direct", "spectral_high").max() < 1e-6


def test_mismatch_is_that_of_two_predictions_at_the_shared_points(store, convolution, perfect_results):
    network, results = convolution
    assert (errors(results, "r8", "direct", "mismatch") == 0).all()
    a = torch.from_numpy(fields(store, "r16", "a")).float()[:, None]
    fine, coarse = network(a)[..., ::2, ::2].detach(), network(a[..., ::2, ::2]).detach()
    weights = torch.from_numpy(COARSE.weights)
    expected = ((weights * (fine - coarse) ** 2).sum((2, 3)) / (weights * coarse**2).sum((2, 3))).sqrt().T
    np.testing.assert_allclose(errors(results, "r16", "direct", "mismatch"), expected, rtol=1e-5)
    for key in ("r8", "r16"):
        assert (errors(perfect_results, key, "direct", "mismatch") == 0).all()
    # Where grids do not nest, both predictions are interpolated; for smooth fields they nearly agree.
    assert 0 < errors(perfect_results, "r12", "direct", "mismatch").max() < 0.3
    assert np.isnan(errors(perfect_results, "r16", "dpu_mean", "mismatch")).all()


def test_runs_have_the_coordinates_model_training_resolution_and_seed(store):
    both = run_at(["r16", "r8"], 1.5, seed=4, samples={"r8": 30, "r16": 10})
    models = {
        "A": [run_at("r16", 1.3), both, run_at("r8", 1.2, seed=1), run_at("r8", 1.1)],
        "B": run_at(8, 1.4, seed=1),
    }
    results = evaluate(models, store, [8, 16])
    table = {
        ("A", "r8", 0): ("A (r8)", "r8", 64, 0.1),
        ("A", "r8", 1): ("A (r8)", "r8", 64, 0.2),
        ("A", "r8+r16", 4): ("A (r8+r16)", "r8", 64, 0.5),
        ("A", "r16", 0): ("A (r16)", "r16", 256, 0.3),
        ("B", "r8", 1): ("B (r8)", "r8", 64, 0.4),
    }
    assert results["run"].values.tolist() == list(table)  # models in their order, coarsest first
    for (model, where, seed), (label, home, points, error) in table.items():
        run = results.sel(model=model, train_resolution=where, seed=seed)
        assert (run["label"], run["home"], run["home_points"]) == (label, home, points)
        at = {"predictor": "direct", "metric": "relative_l2", "resolution": "r16", "variable": "v"}
        np.testing.assert_allclose(run["error"].sel(at), error, rtol=1e-5)
    # The label is that of a model and training resolution, so that means by it are over the seeds.
    seeds = results["error"].sel(model="A", train_resolution="r8").mean("seed")
    mean = results["error"].groupby("label").mean().sel(label="A (r8)")
    np.testing.assert_allclose(mean.transpose(*seeds.dims), seeds, rtol=1e-12)
    # By way of the home resolution: at 16 the model trained there has its direct prediction for DPU.
    values = results["error"].sel(model="A", metric="relative_l2", resolution="r16", variable="u")
    same = values.sel(train_resolution="r16", seed=0)
    np.testing.assert_array_equal(same.sel(predictor="dpu_injection"), same.sel(predictor="direct"))
    other = values.sel(train_resolution="r8+r16", seed=4)
    assert (other.sel(predictor="dpu_injection") != other.sel(predictor="direct")).all()
    assert (same.sel(predictor="floor") == 0).all() and (other.sel(predictor="floor") > 0).all()


@pytest.mark.parametrize(
    ("resolutions", "samples", "home"),
    [
        ("r8+r16", None, "r16"),
        ("r16+r8", None, "r16"),
        ("r8+r16", (9, 1), "r8"),
        ("r8+r12+r16", (5, 9, 9), "r16"),
        ("r8+r64", (5, 4), "r8"),
    ],
)
def test_home_is_where_most_samples_were_and_the_finest_of_several(store, resolutions, samples, home):
    keys = resolutions.split("+")
    training = {} if samples is None else {"samples": dict(zip(keys, samples, strict=True))}
    (run,) = judged_runs({"M": run_at(keys, **training)}, store)
    assert run.home == home
    assert run.train_resolution == "+".join(sorted(keys, key=lambda k: int(k[1:])))


def test_odd_and_oblong_targets(tmp_path):
    shapes = (8, 8), (5, 9), (13, 7), (21, 16)
    grids = [Grid.uniform(shape, registration="cell") for shape in shapes]
    store = store_of(tmp_path / "odd.zarr", grids, FIELDS, sines, {"train": 2, "test": 3})
    results = evaluate(perfect, store, list(store.grids))
    assert results.sizes["resolution"] == 4
    for key in store.grids:
        assert (errors(results, key, "direct", "relative_l2") == 0).all()
        for metric in METRICS[:-1]:
            assert np.isfinite(errors(results, key, "dpu_interpolation", metric)).all()


def biased(x):
    """Off by a tenth, and by more where there is a bump."""
    return 1.1 * perfect(x) + 0.01 * torch.cat([x**2, x**2], dim=1)


def interpolating(end):
    """Solve on the home grid, on whatever grid the input is, and interpolate with known ends or none."""

    def function(x):
        if x.shape[-1] == 8:
            return biased(x)
        return interpolate(biased(resample(x, FINE, COARSE, "injection")), COARSE, FINE, end)

    return function


@pytest.mark.parametrize(
    ("function", "verdict", "words"),
    [
        (interpolating(0.0), "undecided", "no difference can be told between direct inference ("),
        (interpolating(None), "worse", "is worse than interpolating its own coarse prediction ("),
        (lambda x: 0.5 + 0 * perfect(x), "no better than mean", "is worse than predicting"),
        (biased, "improves", "improves on interpolating its own coarse prediction ("),
    ],
)
def test_functions_have_the_verdict_that_they_deserve(store, function, verdict, words):
    results = evaluate(Trained(function, resolution=8), store, (8, 16))
    cell = summary(results).sel(model="M", train_resolution="r8", resolution="r16", variable="u")
    assert cell["verdict"].item() == verdict
    assert words in cell["sentence"].item()
    if verdict == "undecided":  # it is DPU, to the last bit
        assert (errors(results, "r16", "direct") == errors(results, "r16", "dpu_injection")).all()
        assert errors(results, "r16", "direct", "mismatch").max() < 1e-15


def test_functions_and_modules_have_inputs_and_outputs_in_physical_units(store):
    module = nn.Sequential(Pointwise(perfect), nn.Dropout(0.9)).train()  # is evaluated without dropout
    models = {
        "arrays": Trained(lambda x: perfect(x).numpy()[..., ::1], resolution="r8"),
        "function": Trained(perfect, resolution="r8"),
        "module": [
            Trained(module, resolution=FINE),
            Trained(nn.Conv2d(1, 2, 1), resolution=Mixed([8, 16]), seed=3),
        ],
    }
    evidence = Evidence()
    results = evaluate(models, store, [8, 16], evidence=evidence)
    runs = [("arrays", "r8", 0), ("function", "r8", 0), ("module", "r16", 0), ("module", "r8+r16", 3)]
    assert results["run"].values.tolist() == runs
    assert (results["error"].sel(predictor="direct", metric="relative_l2")[:3] == 0).all()
    assert results["parameters"].isnull().values.tolist() == [True, True, True, False]
    assert results["parameters"][-1] == 4 and results["flops"][-1, 0] == 2 * 2 * 64
    assert evidence.fields["r8"]["input"].dtype == "float32"


def test_functions_step_on_in_time(tmp_path):
    grids = [Grid.uniform((n,), periodic=True) for n in (8, 16)]
    store = moving_wave_store(tmp_path / "w.zarr", grids, {"train": 2, "test": 3})
    assert store.inputs == ("force",)
    decay = Trained(lambda x: 0.9 * x[:, 1:], resolution=8, time_steps=(1, 1))
    results = evaluate({"decay": decay}, store, [16], rollout=2)
    assert results["variable"].values.tolist() == ["w@+1", "w@+2"]


def test_models_that_step_from_averages_are_told_their_error(tmp_path):
    grids = [Grid.uniform((n,), periodic=True) for n in (8, 16)]
    store = moving_wave_store(tmp_path / "w.zarr", grids, {"train": 2, "test": 3})
    options = {"n_dim": 1, "n_layers": 1, "hidden_channels": 8, "periodic": True, "reference_shape": [8]}
    models = {
        way: Trained(MANO(2, 1, restriction=way, **options), resolution=8, time_steps=(1, 1))
        for way in ("average", "sample")
    }
    averaging = evaluate(models, store, [8, 16])["averaging"]
    # Means over two of sixteen spacings, a quarter, a half and a quarter, of waves over the domain.
    assert averaging.sel(model="average").values.ravel() == pytest.approx([0, np.sin(np.pi / 16) ** 2])
    assert averaging.sel(model="sample").isnull().all()
