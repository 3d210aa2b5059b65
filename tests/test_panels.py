"""Panels show the fields where they are, on scales that are shared."""

import numpy as np
import pytest
import xarray as xr

from mano_op.grid import Grid
from mano_op.report.panels import sample_panels

NAMES = {"a": "a", "b": "b [m]", "u": "u [Pa]"}


def some(grid, *, inputs=("a",), models=("A", "B"), n=2):
    rng = np.random.default_rng(1)

    def random(*names):
        return rng.normal(size=(*names, n, *grid.shape)).astype(np.float32)

    axes = grid.names
    return xr.Dataset(
        {
            "input": (("input_variable", "sample", *axes), random(len(inputs))),
            "truth": (("variable", "sample", *axes), random(1)),
            "prediction": (("model", "variable", "sample", *axes), random(len(models), 1)),
        },
        coords={
            "model": list(models),
            "input_variable": list(inputs),
            "variable": ["u"],
            "sample": np.arange(n),
            **dict(zip(axes, grid.points, strict=True)),
        },
    )


def images(figure):
    """Those of each sample, by the title of their panel."""
    return [
        {
            axes.get_title(loc="left"): axes.images[0]
            for axes in part.axes
            if axes.images and axes.get_title(loc="left")
        }
        for part in figure.subfigs
    ]


@pytest.mark.parametrize("registration", ["node", "cell"])
def test_each_field_is_drawn_about_its_points(registration):
    grid = Grid.uniform((4, 8), registration=registration, domain=[(0, 1), (-1, 3)])
    fields = some(grid)
    for i, shown in enumerate(images(sample_panels(fields, grid, "u", ["one", "two"], NAMES))):
        sample = fields.isel(sample=i, variable=0)
        np.testing.assert_array_equal(shown["a"].get_array(), sample["input"][0])
        np.testing.assert_array_equal(shown["truth: u [Pa]"].get_array(), sample["truth"])
        np.testing.assert_array_equal(shown["B"].get_array(), sample["prediction"][1])
        left, right, bottom, top = shown["A"].get_extent()
        np.testing.assert_allclose(left + (np.arange(8) + 0.5) / 8 * (right - left), grid.points[1])
        np.testing.assert_allclose(bottom + (np.arange(4) + 0.5) / 4 * (top - bottom), grid.points[0])
        assert shown["A"].origin == "lower"


def test_scales_are_the_truths_and_the_largest_errors():
    grid = Grid.uniform((5, 5))
    fields = some(grid)
    for i, shown in enumerate(images(sample_panels(fields, grid, "u", ["one", "two"], NAMES))):
        sample = fields.isel(sample=i, variable=0)
        truth = sample["truth"].values
        for name in ("truth: u [Pa]", "A", "B"):
            assert shown[name].get_clim() == (truth.min(), truth.max())
        errors = np.abs(sample["prediction"].values - truth)
        sizes = [100 * np.linalg.norm(error) / np.linalg.norm(truth) for error in errors]
        for error, size in zip(errors, sizes, strict=True):
            image = shown[f"|error|, {size:.0f} %" if size >= 100 else f"|error|, {size:.1f} %"]
            np.testing.assert_allclose(image.get_array(), error, rtol=1e-6)
            assert image.get_clim() == (0, pytest.approx(min(errors.max(), np.ptp(truth)), rel=1e-6))


def test_a_prediction_that_is_not_finite_shows_as_such():
    grid = Grid.uniform((4, 4))
    fields = some(grid, models=("A",), n=1)
    fields["prediction"][0, 0, 0, 2, 1] = np.nan
    (shown,) = images(sample_panels(fields, grid, "u", ["one"], NAMES))
    rgba = shown["A"].to_rgba(np.ma.masked_invalid(shown["A"].get_array()))
    np.testing.assert_allclose(rgba[2, 1], [1, 1 / 3, 1 / 3, 1])
    assert "|error|, nan %" in shown
    assert np.isfinite(shown["|error|, nan %"].get_clim()).all()


@pytest.mark.parametrize("n_inputs", [1, 2, 3])
def test_every_input_has_a_panel(n_inputs):
    grid = Grid.uniform((3, 3))
    inputs = ("a", "b", "c")[:n_inputs]
    fields = some(grid, inputs=inputs, n=1)
    (shown,) = images(sample_panels(fields, grid, "u", ["one"], {name: name for name in "abcu"}))
    for k, name in enumerate(inputs):
        np.testing.assert_array_equal(shown[name].get_array(), fields["input"][k, 0])


def test_of_three_dimensions_the_middle_is_shown():
    grid = Grid.uniform((6, 4, 4))
    fields = some(grid, n=1)
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    (shown,) = images(figure)
    np.testing.assert_array_equal(shown["truth: u [Pa]"].get_array(), fields["truth"][0, 0, 3])
    assert figure.subfigs[0].get_suptitle() == "one, z = 0.5"


def test_one_dimension_is_lines():
    grid = Grid.uniform((7,), registration="cell")
    fields = some(grid, n=1)
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    top, below, errors = figure.subfigs[0].axes
    truth, prediction = fields["truth"][0, 0].values, fields["prediction"][:, 0, 0].values
    for line, values in zip(top.lines, [truth, *prediction], strict=True):
        np.testing.assert_array_equal(
            np.column_stack(line.get_data()), np.column_stack([grid.points[0], values])
        )
    np.testing.assert_array_equal(below.lines[0].get_ydata(), fields["input"][0, 0])
    np.testing.assert_allclose([line.get_ydata() for line in errors.lines], np.abs(prediction - truth))
