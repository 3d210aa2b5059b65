"""Panels show the fields where they are, on scales that are shared."""

import itertools

import numpy as np
import pytest
import xarray as xr
from matplotlib.transforms import Bbox

from mano_op.grid import Grid
from mano_op.report.panels import sample_panels
from mano_op.transfer.sentences import percent

NAMES = {"a": "a", "b": "b [m]", "u": "u [Pa]"}


def random_fields(grid, *, inputs=("a",), models=("A", "B"), ways=("mean", "nearest", "injection"), n=2):
    rng, axes = np.random.default_rng(1), grid.names

    def random(*names):
        sizes = {"model": len(models), "input_variable": len(inputs), "variable": 1, "sample": n}
        shape = (*(sizes[name] for name in names), *grid.shape)
        return (*names, *axes), rng.normal(size=shape).astype(np.float32)

    return xr.Dataset(
        {
            "input": random("input_variable", "sample"),
            "truth": random("variable", "sample"),
            "prediction": random("model", "variable", "sample"),
            "dpu": random("model", "variable", "sample"),
            "dpu_input": (("model", "variable"), [[way] for way in ways[: len(models)]]),
        },
        {"model": list(models), "input_variable": list(inputs), "variable": ["u"], "sample": np.arange(n)}
        | dict(zip(axes, grid.points, strict=True)),
    )


def drawn(fields, grid, names=NAMES):
    """The images of each sample, by the title of their panel; an error's is that of the field to its left."""
    captions = ["one", "two"][: fields.sizes["sample"]]
    images = []
    for part in sample_panels(fields, grid, "u", captions, names).subfigs:
        image, field = {}, ""
        for axes in part.axes:
            title = " ".join(axes.get_title(loc="left").split())
            if axes.images and title:
                field = f"{field} {title}" if title.startswith("|error|") else title
                image[field] = axes.images[0]
        images.append(image)
    return images


def size(predicted, truth):
    return f"{percent(np.linalg.norm(predicted - truth, axis=None) / np.linalg.norm(truth))} %"


@pytest.mark.parametrize("registration", ["node", "cell"])
def test_each_field_is_drawn_about_its_points(registration):
    grid = Grid.uniform((4, 8), registration=registration, domain=[(0, 1), (-1, 3)])
    fields = random_fields(grid)
    for i, shown in enumerate(drawn(fields, grid)):
        sample = fields.isel(sample=i, variable=0)
        for name, values in (
            ("a", sample["input"][0]),
            ("truth: u [Pa]", sample["truth"]),
            ("B direct", sample["prediction"][1]),
            ("A DPU (mean)", sample["dpu"][0]),
            ("B DPU (nearest)", sample["dpu"][1]),
        ):
            np.testing.assert_array_equal(shown[name].get_array(), values)
        left, right, bottom, top = shown["A direct"].get_extent()
        np.testing.assert_allclose(left + (np.arange(8) + 0.5) / 8 * (right - left), grid.points[1])
        np.testing.assert_allclose(bottom + (np.arange(4) + 0.5) / 4 * (top - bottom), grid.points[0])
        assert shown["A direct"].origin == "lower"


def test_scales_are_those_of_the_truth_and_the_largest_errors():
    grid = Grid.uniform((5, 5))
    fields = random_fields(grid)
    for i, shown in enumerate(drawn(fields, grid)):
        sample = fields.isel(sample=i, variable=0)
        truth = sample["truth"].values
        both = zip(sample["prediction"].values, sample["dpu"].values, strict=True)
        names = ("A direct", "A DPU (mean)", "B direct", "B DPU (nearest)")
        predicted = dict(zip(names, itertools.chain(*both), strict=True))
        for name in ("truth: u [Pa]", *predicted):
            assert shown[name].get_clim() == (truth.min(), truth.max())
        largest = max(np.abs(values - truth).max() for values in predicted.values())
        for name, values in predicted.items():
            image = shown[f"{name} |error| {size(values, truth)}"]
            np.testing.assert_allclose(image.get_array(), np.abs(values - truth), rtol=1e-6)
            assert image.get_clim() == (0, pytest.approx(min(largest, np.ptp(truth)), rel=1e-6))


@pytest.mark.parametrize(
    ("ways", "titles"),
    [
        (("", "mean"), ["truth: u [Pa]", "A direct", "a", "B direct", "B DPU (mean)"]),
        (("", ""), ["truth: u [Pa]", "A direct", "a", "B direct"]),
    ],
)
def test_dpu_has_no_panel_of_its_own_where_a_model_was_trained(ways, titles):
    grid = Grid.uniform((4, 4))
    (shown,) = drawn(random_fields(grid, ways=ways, n=1), grid)
    assert [name for name in shown if "error" not in name] == titles


@pytest.mark.parametrize(
    ("scale", "models"),
    [(1e-7, ("A",)), (12_345.0, ("A much longer name than fits", "B"))],
)
def test_panels_cut_off_no_text(scale, models):
    grid = Grid.uniform((16, 16))
    fields = random_fields(grid, models=models, inputs=("a", "b"), n=1)
    fields = fields.assign({name: 1000 + 0.1 * scale * fields[name] for name in ("input", "truth")})
    fields = fields.assign({name: 1000 + scale * fields[name] for name in ("prediction", "dpu")})
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    figure.draw_without_rendering()
    (part,) = figure.subfigs
    drawn = Bbox.union([axes.get_tightbbox() for axes in part.axes if axes.get_visible()])
    assert part.bbox.x0 <= drawn.x0 and drawn.x1 <= part.bbox.x1
    assert part.bbox.y0 <= drawn.y0 and drawn.y1 <= part.bbox.y1


def test_colour_bars_have_whole_numbers_also_where_fields_differ_little():
    grid = Grid.uniform((5, 5))
    fields = random_fields(grid, n=1)
    fields["truth"][:] = 101_325 + np.linspace(0, 3, 25).reshape(5, 5)
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    figure.draw_without_rendering()
    (bar,) = [axes for axes in figure.subfigs[0].axes if axes.get_ylabel() == "u [Pa]"]
    labels = [label.get_text() for label in bar.get_yticklabels()]
    np.testing.assert_allclose([float(label) for label in labels], bar.get_yticks(), rtol=1e-9)
    assert len(set(labels)) == len(labels) > 2
    assert bar.yaxis.get_offset_text().get_text() == ""


def test_points_that_are_not_finite_are_red():
    grid = Grid.uniform((4, 4))
    fields = random_fields(grid, models=("A",), n=1)
    fields["prediction"][0, 0, 0, 2, 1] = np.nan
    (shown,) = drawn(fields, grid)
    image = shown["A direct"]
    rgba = image.to_rgba(np.ma.masked_invalid(image.get_array()))
    np.testing.assert_allclose(rgba[2, 1], [1, 1 / 3, 1 / 3, 1])
    assert np.isfinite(shown["A direct |error| nan %"].get_clim()).all()


@pytest.mark.parametrize(
    ("shape", "value"),
    [((6,), np.nan), ((6,), 1e30), ((4, 4), -np.inf), ((4, 4), 1e30)],
)
def test_predictions_of_a_diverged_model_can_be_drawn(shape, value):
    grid = Grid.uniform(shape)
    fields = random_fields(grid, models=("A",), n=1)
    for name in ("prediction", "dpu"):
        fields[name][:] = value
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    figure.draw_without_rendering()
    if len(shape) == 1:
        named = figure.subfigs[0].axes[0].get_legend().get_texts()[1].get_text()
    else:
        truth, (shown,) = fields["truth"].values, drawn(fields, grid)
        (named,) = [name for name in shown if name.startswith("A direct |error|")]
        assert shown["A direct"].get_clim() == (truth.min(), truth.max())
    error = np.linalg.norm(np.full(shape, np.float32(value), float) - fields["truth"].values[0, 0])
    error /= np.linalg.norm(fields["truth"].values.astype(float))
    assert named.endswith(f" {percent(error)} %")


@pytest.mark.parametrize("inputs", ["ab", "abc"])
def test_every_input_has_a_panel(inputs):
    grid = Grid.uniform((3, 3))
    fields = random_fields(grid, inputs=inputs, n=1)
    (shown,) = drawn(fields, grid, {name: name for name in "abcu"})
    for k, name in enumerate(inputs):
        np.testing.assert_array_equal(shown[name].get_array(), fields["input"][k, 0])


def test_fields_of_three_dimensions_are_shown_in_the_middle():
    grid = Grid.uniform((6, 4, 4))
    fields = random_fields(grid, n=1)
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    (shown,) = drawn(fields, grid)
    np.testing.assert_array_equal(shown["truth: u [Pa]"].get_array(), fields["truth"][0, 0, 3])
    assert figure.subfigs[0].get_suptitle() == "one, z = 0.5"


def test_fields_of_one_dimension_are_lines():
    grid = Grid.uniform((7,), registration="cell")
    fields = random_fields(grid, n=1)
    figure = sample_panels(fields, grid, "u", ["one"], NAMES)
    top, below, errors = figure.subfigs[0].axes
    truth, prediction = fields["truth"][0, 0].values, fields["prediction"][:, 0, 0].values
    lines = list(itertools.chain(*zip(prediction, fields["dpu"][:, 0, 0].values, strict=True)))
    for line, values in zip(top.lines, [truth, *lines], strict=True):
        np.testing.assert_array_equal(line.get_data(), [grid.points[0], values])
    np.testing.assert_array_equal(below.lines[0].get_ydata(), fields["input"][0, 0])
    np.testing.assert_allclose([line.get_ydata() for line in errors.lines], np.abs(lines - truth))
    names = ("A, direct", "A, DPU (mean)", "B, direct", "B, DPU (nearest)")
    assert [text.get_text() for text in top.get_legend().get_texts()] == [
        "truth",
        *(f"{name}: {size(values, truth)}" for name, values in zip(names, lines, strict=True)),
    ]
