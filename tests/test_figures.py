"""Figures draw the numbers, in one style, and leave matplotlib as it was."""

import base64
import io
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import xarray as xr
from helpers import results_of
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from mano_op.grid import Grid
from mano_op.report.figures import (
    cost_and_error,
    error_by_resolution,
    error_distributions,
    spectra,
    training_history,
    transfer_matrix,
)
from mano_op.report.style import COLOURS, colours, data_uri, log_axis, style
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.sentences import percent
from mano_op.transfer.significance import DPU, summary

RNG = np.random.default_rng(0)
KEYS = ("r16", "r32", "r64")
N = 20
ERRORS = {
    model: {key: {name: RNG.uniform(0.05, 0.9, N) for name in PREDICTORS} for key in KEYS}
    for model in ("A", "B")
}
for of in ERRORS.values():
    of["r16"]["floor"] = np.zeros(N)
RESULTS = results_of(ERRORS)
JUDGED = summary(RESULTS)


def drawn(axes, colour, linestyle=None):
    """Data of the lines of a colour, and of one kind if given, as rows of coordinates."""
    return [
        np.array(line.get_data())
        for line in axes.lines
        if to_hex(line.get_color()) == colour.lower() and linestyle in (None, line.get_linestyle())
    ]


def per_cents(model, predictor="direct", keys=KEYS):
    """The mean errors of a model by resolution, of one predictor or of the best DPU."""
    names = DPU if predictor == "best DPU" else [predictor]
    return [100 * min(ERRORS[model][key][name].mean() for name in names) for key in keys]


@pytest.mark.parametrize("model", ["A", "B"])
def test_error_by_resolution_draws_direct_and_best_dpu_with_their_intervals(model):
    axes, colour = error_by_resolution(JUDGED, "u").axes[0], colours(ERRORS)[model]
    direct = per_cents(model)
    np.testing.assert_allclose(drawn(axes, colour, "-")[0], [[16, 32, 64], direct], rtol=1e-12)
    np.testing.assert_allclose(drawn(axes, colour, "--")[0][1], per_cents(model, "best DPU"), rtol=1e-12)
    bands = [band for band in axes.collections if to_hex(band.get_facecolor()[0]) == colour.lower()]
    heights = bands[0].get_paths()[0].get_extents()
    one = JUDGED.sel(model=model, variable="u", predictor="direct")
    ends = [100 * one["low"].values.min(), 100 * one["high"].values.max()]
    np.testing.assert_allclose([heights.ymin, heights.ymax], ends, rtol=1e-12)
    rings = {line.get_markeredgecolor(): line for line in axes.lines if line.get_markersize() > 10}
    np.testing.assert_allclose(rings[colour].get_data(), [[16], direct[:1]], rtol=1e-12)


def test_error_by_resolution_leaves_out_what_a_logarithm_cannot_show():
    axes = error_by_resolution(JUDGED, "u").axes[0]
    floors = [line for line in axes.lines if line.get_marker() == "."]
    assert len(floors) == 1  # the models share a training grid
    expected = [np.nan, *per_cents("A", "floor")[1:]]
    np.testing.assert_allclose(floors[0].get_ydata(), expected, rtol=1e-12)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32", "64"]


@pytest.mark.parametrize(
    ("floor", "bottom", "label"),
    [(0.02, (0, 2), "floor of DPU"), (1e-5, (0.999, 1.001), "floor of DPU, in part below the frame")],
)
def test_floor_far_below_leaves_the_frame_to_the_errors(floor, bottom, label):
    errors = {"A": {"r32": dict.fromkeys(PREDICTORS, np.full(N, 0.1)) | {"floor": np.full(N, floor)}}}
    figure = error_by_resolution(summary(results_of(errors)), "u")
    assert bottom[0] < figure.axes[0].get_ylim()[0] < bottom[1]
    assert label in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e9])
def test_figures_of_failures_alone_can_be_made(value):
    keys = ("r16", "r32") if value else ("r16",)
    results = results_of({"A": {key: dict.fromkeys(PREDICTORS, np.full(N, value)) for key in keys}})
    judged = summary(results, resamples=10)
    for figure in (
        error_by_resolution(judged, "u"),
        error_distributions(results, judged, "u"),
        cost_and_error(judged, "u"),
        transfer_matrix(judged, "u"),
    ):
        figure.draw_without_rendering()


def test_distributions_are_cumulative_and_end_below_one_where_errors_are_missing():
    errors = {model: {key: dict(of) for key, of in by_key.items()} for model, by_key in ERRORS.items()}
    errors["A"]["r64"]["direct"] = np.append(errors["A"]["r64"]["direct"][:-5], [np.nan] * 5)
    results = results_of(errors)
    figure = error_distributions(results, summary(results), "u")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(KEYS)
    for axes, key in zip(figure.axes, KEYS, strict=True):
        error, share = drawn(axes, COLOURS[0], "-")[0]
        finite = np.sort(errors["A"][key]["direct"][np.isfinite(errors["A"][key]["direct"])])
        drawn_error, drawn_share = error[np.isfinite(error)], share[np.isfinite(error)]
        np.testing.assert_allclose(drawn_error[1:], 100 * finite, rtol=1e-12)
        np.testing.assert_allclose(drawn_share, np.arange(finite.size + 1) / N, rtol=1e-12)
    assert drawn_share[-1] == pytest.approx(0.75)


def test_cost_and_error_follows_direct_inference_through_the_resolutions():
    axes = cost_and_error(JUDGED, "u").axes[0]
    expected = [JUDGED["flops"][1] / 1e6, per_cents("B")]
    np.testing.assert_allclose(drawn(axes, COLOURS[1], "-")[0], expected, rtol=1e-12)
    # DPU is at the cost of the training grid, for the two other resolutions.
    assert drawn(axes, COLOURS[1], "None")[0][0].tolist() == [1.0, 1.0]
    assert [text.get_text() for text in axes.texts] == [*KEYS, *KEYS]


def test_history_has_the_colour_of_its_model():
    history = [{"epoch": i, "training_error": 1 / i, "seconds": 2.0} for i in (1, 2, 4)]
    by_epoch, by_time = training_history({"A": [], "B": history}).axes
    (line,), (timed,) = drawn(by_epoch, COLOURS[1]), drawn(by_time, COLOURS[1])
    assert len(by_epoch.lines) == 1
    np.testing.assert_allclose(line, [[1, 2, 3], [1, 0.5, 0.25]])
    assert [tick for tick in by_epoch.get_xticks() if 1 <= tick <= 3] == [1, 2, 3]
    assert by_epoch.get_ylabel() == "training loss, of normalised fields"  # no error in per cent
    np.testing.assert_allclose(timed[0], [2, 4, 6])


def test_style_leaves_the_settings_of_matplotlib():
    before = dict(matplotlib.rcParams)
    figure = error_by_resolution(JUDGED, "u")
    data_uri(figure, "png")
    assert dict(matplotlib.rcParams) == before
    with style(axes_titlesize=5):
        assert matplotlib.rcParams["axes.titlesize"] == 5
    assert matplotlib.rcParams["axes.titlesize"] == before["axes.titlesize"]


def test_pictures_are_complete_and_repeatable():
    histories = {"$A$ and $B$": [{"training_error": 0.5, "seconds": 1.0}]}
    kind, content = data_uri(training_history(histories), "png", dpi=50).split(",")
    assert kind == "data:image/png;base64"
    pixels = imread(io.BytesIO(base64.b64decode(content)), format="png")
    assert pixels.shape[:2] == (160, 360)
    assert pixels[..., :3].std() > 0.05  # something is drawn
    first, again = (data_uri(training_history(histories), "svg") for _ in range(2))
    assert first == again
    root = ElementTree.fromstring(base64.b64decode(first.split(",")[1]))
    assert root.tag.endswith("svg")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 100, [1, 2, 5, 10, 20, 50, 100]),
        (8.2, 10.1, [8.5, 9, 9.5, 10]),
        (10, 10.02, [10, 10.005, 10.01, 10.015, 10.02]),
        (1, 1e30, [1e0, 1e6, 1e12, 1e18, 1e24, 1e30]),
    ],
)
def test_logarithmic_axis_has_numbers_however_short_or_long(low, high, expected):
    axes = Figure(figsize=(7, 4)).add_subplot()
    axes.plot([1, 2], [low, high])
    axes.set_ylim(low, high)
    log_axis(axes, "y")
    np.testing.assert_allclose([t for t in axes.get_yticks() if low <= t <= high], expected, rtol=1e-9)


def test_colours_start_again_after_the_last():
    assert list(colours(map(str, range(8))).values()) == [*COLOURS, *COLOURS[:2]]


def test_matrix_has_a_place_for_each_way_of_training():
    errors = {f"A @ {where}": ERRORS["A"] for where in ("r16", "r32", "r16+r32")} | {"B @ r16": ERRORS["B"]}
    figure = transfer_matrix(summary(results_of(errors)), "u")
    first, second = figure.axes[:2]
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["A", "B"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["r16", "r16+r32", "r32"]
    for axes, model in ((first, "A"), (second, "B")):
        np.testing.assert_allclose(axes.images[0].get_array()[0], per_cents(model), rtol=1e-12)
    assert np.ma.getmaskarray(second.images[0].get_array())[1:].all()
    texts = [text.get_text() for text in second.texts]
    direct, best = (percent(per_cents("B", name)[1] / 100) for name in ("direct", "best DPU"))
    assert texts[1] == f"{direct}\n({best})"
    assert "(" not in texts[0]  # at home, where both are one


def test_spectra_show_each_wave_and_the_training_nyquist():
    grid, coarse = (Grid.uniform((n,), periodic=True, names=["x"]) for n in (64, 16))
    x = 2 * np.pi * grid.points[0]
    rest = 0.1 * np.sin(20 * x) + 1e-3 * np.cos(5 * x)
    true, predicted = np.sin(3 * x) + rest, 0.5 * np.sin(3 * x) + rest
    by_model = ("model", "variable", "sample", "x")
    fields = xr.Dataset(
        {
            "truth": (by_model[1:], true[None, None]),
            "prediction": (by_model, predicted[None, None, None]),
            "dpu": (by_model, np.zeros((1, 1, 1, 64))),
            "dpu_input": (by_model[:2], [["mean"]]),
        },
        coords={"model": ["A"], "variable": ["u"], "sample": [0]},
    )
    left, right = spectra(fields, grid, "u", {"A": coarse}).axes
    truth = np.array(left.lines[0].get_data())
    np.testing.assert_allclose(truth[:, [2, 4, 19]], [[3, 5, 20], [0.5, 5e-7, 5e-3]], rtol=1e-9)
    assert drawn(left, COLOURS[0], "-")[0][1, 2] == pytest.approx(0.125)
    assert drawn(right, COLOURS[0], "-")[0][1, 2] == pytest.approx(0.25)
    # Of DPU nothing is predicted, and everything left.
    np.testing.assert_allclose(drawn(right, COLOURS[0], "--")[0][1, [2, 4, 19]], 1)
    assert [line.get_xdata()[0] for line in left.lines if line.get_xdata()[0] == 8] == [8]
