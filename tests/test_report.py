"""The report: one page that holds what the numbers say, and the numbers beside it."""

import csv
import functools
import itertools
import json
import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import store_of
from markupsafe import escape
from matplotlib.figure import Figure
from torch import nn

from mano_op.data.processor import FieldProcessor
from mano_op.data.store import Variable
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.report import FILES, check_report_folder, write_report
from mano_op.report.panels import beside_dpu
from mano_op.report.style import data_uri
from mano_op.runs import Run
from mano_op.transfer import Evidence, Trained, evaluate_transfer, load_results, summary
from mano_op.transfer.tables import dpu_input, error_rows, notes

TITLE = "<script>alert('1')</script> & more"
MACHINE = {
    "loss": "h1",
    "machine": {"device": "cuda:1", "processor": "A <GPU>", "threads": 6, "versions": {"torch": "1.2.3"}},
}
UNIT = {"mean": 0.0, "std": 1.0}


class Off(nn.Module):
    """Off by a random map of the neighbourhood, and by a NaN on fine grids if asked."""

    def __init__(self, size, *, breaks=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.size, self.breaks = nn.Conv2d(1, 1, 3, padding=1), size, breaks

    def forward(self, x):
        y = 2 * x + self.size * self.conv(x)
        if self.breaks and x.shape[-1] > 8 and len(x) > 2:
            y[2, 0, 1, 1] = torch.nan
        return y


class Times(nn.Module):
    """All outputs by a factor off, the k-th of them k times the input, and by another on fine grids."""

    def __init__(self, factors, *, fine=1.0):
        super().__init__()
        self.factors, self.fine = factors, fine

    def forward(self, x):
        by = self.fine if x.shape[-1] > 8 else 1.0
        return torch.cat([by * factor * (k + 1) * x for k, factor in enumerate(self.factors)], dim=1)


def run_of(model, outputs=("u",), options=(), history=(), **training):
    processor = FieldProcessor({"a": UNIT}, dict.fromkeys(outputs, UNIT))
    return Run(model, processor, "off", dict(options), training, list(history))


def judge(folder, grids, models, outputs=("u",)):
    """Results, summary and evidence of models; each output is a multiple of the one input."""
    variables = [Variable("a", "input", long_name="a <b>")]
    variables += [Variable(name, "output", units="Pa") for name in outputs]

    def fields(samples, grid):
        phase = np.reshape(samples, (-1, *[1] * grid.n_dim)) / 3
        wave = np.prod(np.broadcast_arrays(*(np.sin(np.pi * x) for x in grid.mesh)), axis=0)
        a = wave * np.cos(3 * grid.mesh[-1] + phase) + 0.1 * wave * phase
        return {"a": a} | {name: (k + 1) * a for k, name in enumerate(outputs)}

    store = store_of(folder / "some.zarr", grids, variables, fields, {"train": 4, "test": 12})
    evidence = Evidence()
    results = evaluate_transfer(models, store, list(store.grids), evidence=evidence, progress=False)
    return results, summary(results), evidence


def judge_at(folder, shapes, models, outputs=("u",), *, trained="r8", registration="node"):
    """Results, summary and evidence of models trained at one resolution."""
    grids = [Grid.uniform(shape, registration=registration) for shape in shapes]
    runs = {name: run_of(model, outputs, resolution=trained) for name, model in models.items()}
    return judge(folder, grids, runs, outputs)


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are made and not rendered, which takes the longest: they have tests of their own."""
    monkeypatch.setattr("mano_op.report.page.data_uri", lambda figure, kind: f"data:image/{kind},")


@pytest.fixture
def undrawn(unrendered, monkeypatch):
    """Figures are not even made."""
    monkeypatch.setattr("mano_op.report.page.figures", Mock())
    monkeypatch.setattr("mano_op.report.page.sample_panels", Mock())


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Results, summary and evidence that no test changes, of two runs and a function."""
    history = [{"epoch": i + 1, "training_error": 0.5 / (i + 1), "seconds": 1.5} for i in range(4)]
    training = {"resolution": "r8", "epochs": 4, "seed": 17}
    models = {
        "good": run_of(Off(0.05), options={"size": 0.05}, history=history, **training, **MACHINE),
        "<i>bad</i>": run_of(Off(0.6, breaks=True), options={"size": 0.6}, **training),
        "function": Trained(lambda x: 1.9 * x, resolution=8),
    }
    return judge(tmp_path_factory.mktemp("report"), [Grid.uniform((n, n)) for n in (8, 16)], models)


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    """The path of the report, with an empty picture in place of each, and its text."""
    empty = functools.cache(lambda kind: data_uri(Figure(figsize=(1, 1)), kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mano_op.report.page.data_uri", lambda figure, kind: empty(kind))
        path = write_report(tmp_path_factory.mktemp("out") / "new" / "folder", *evaluation, title=TITLE)
    return path, path.read_text()


def test_page_has_every_number_of_the_table_and_every_sentence(evaluation, written):
    judged, text = evaluation[1], written[1].replace("&nbsp;", " ")
    for cell in itertools.chain(*error_rows(judged)):
        assert f">{escape(cell)}</t" in text
    verdicts = judged["verdict"].values.ravel()
    for sentence, verdict in zip(judged["sentence"].values.ravel(), verdicts, strict=True):
        assert f'<li class="{verdict.replace(" ", "-")}">{escape(sentence)}</li>' in text
    assert {"training", "not finite"} <= set(verdicts)
    warnings = [note for note in notes(judged) if note.startswith("Warning")]
    assert warnings == ["Warning: <i>bad</i> at r16, u: 1 of 12 errors of direct are not finite."]
    assert f'<p class="note">{escape(warnings[0])}</p>' in text
    assert "nan (1 not finite)" in text


def test_page_has_the_budget_of_each_model(written):
    text = re.sub(r"<[^>]+>", "|", written[1])
    rows = [re.sub(r"\|+", "|", line).strip("|") for line in text.splitlines()]
    flops = f"{2 * 9 * 64 / 1e6:.4g}"
    for row in (
        "architecture|off|off|a function, trained elsewhere",
        "options|size=0.05|size=0.6",
        "parameters|10|10|not known",
        f"MFLOP for a sample|{flops}|{flops}|not known",
        "resolution|r8|r8|r8",
        "epochs|4|4",
        "seed|17|17|0",
        "seconds of training|6",
        "last training loss|0.125 (relative H1 error of the normalised field)",
        "trained on device|cuda:1|not known",
        "trained on processor|A &lt;GPU&gt;|not known",
        "training threads|6|not known",
        "training software|versions (torch 1.2.3)|not known",
    ):
        assert row in rows
    assert "torch " + torch.__version__ in text
    assert "of good the relative H1 error of the normalised field, over the training samples" in text
    assert "training error" not in text


def test_page_is_whole_and_holds_no_code(written):
    text = re.sub(r'data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+"', 'picture"', written[1])
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "<script" not in text and "<i>" not in text and "a <b>" not in text
    assert f"<title>{escape(TITLE)}</title>" in text
    assert re.findall(r'src="([^"]*)"', text) == ["picture"] * 8
    assert text.count("<figcaption>") == 8
    assert len(text) < 30_000
    wide = text.count('<div class="wide numbers" tabindex="0">')
    assert wide == 2 + 8  # the tables of errors and the pictures scroll on a narrow screen, and say so
    assert "more to the right: scroll sideways" in text and '<meta name="viewport"' in text


@pytest.mark.usefixtures("undrawn")
def test_three_outputs_are_judged_and_shown_one_by_one(tmp_path):
    factors, outputs = (1.1, 1.2, 1.3), ("u", "v", "w")
    results, judged, evidence = judge_at(tmp_path, [(8, 8), (16, 16)], {"one": Times(factors)}, outputs)
    del evidence.store.attrs["title"]
    text = write_report(tmp_path / "out", results, judged, evidence, title="Some").read_text()
    assert f"one on {evidence.store.name}: 12 samples" in text
    for name, factor in zip("uvw", factors, strict=True):
        error = f"{100 * (factor - 1):.1f}"
        assert f"one at r16, {name}: " in text
        cells = ["one", "r8", "r16", name, f"{error} [{error},&nbsp;{error}]"]
        assert "</td><td>".join(cells) in text
        for key, size in (("r8", 8), ("r16", 16)):
            assert f"<h3>{name} at {key}, {size} \u00d7 {size} points" in text
    # Errors in three ways, spectra, and two resolutions; nothing that could be counted.
    assert text.count("<img") == 3 * (3 + 1 + 2)
    assert judged["verdict"].sel(resolution="r8").values.tolist() == [["training"] * 3]


@pytest.mark.usefixtures("unrendered")
def test_report_of_one_dimension_is_written(tmp_path):
    models = {"exact": Times((1.0,)), "off": Times((1.5,), fine=1.2)}
    results, judged, evidence = judge_at(tmp_path, [(8,), (16,)], models)
    text = write_report(tmp_path / "out", results, judged, evidence, title="Some").read_text()
    direct = judged["mean"].sel(predictor="direct", variable="u", metric="relative_l2")
    np.testing.assert_allclose(direct, [[0, 0], [0.5, 0.8]], atol=1e-6)
    assert judged["verdict"].sel(model="off", train_resolution="r8", resolution="r16").item() == "worse"
    assert "<h3>u at r8, 8 points (exact, off trained here)</h3>" in text
    assert "80.0 [80.0,&nbsp;80.0]" in text
    assert "share a scale" not in text


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize(
    ("value", "verdict", "shown"),
    [
        (np.nan, "not finite", "nan (12 not finite)"),
        (1e30, "no better than mean", "<td>1.10e+31</td></tr>"),  # the growth
    ],
)
def test_diverged_model_alone_has_a_report(tmp_path, value, verdict, shown):
    # Centres of cells, where the fields are not zero.
    models = {"only": Times((1.1,), fine=float(value))}
    results, judged, evidence = judge_at(tmp_path, [(8,), (16,)], models, registration="cell")
    text = write_report(tmp_path / "out", results, judged, evidence, title="Some").read_text()
    cell = judged.sel(resolution="r16", variable="u").isel(run=0)
    assert cell["verdict"].item() == verdict
    item = f'<li class="{verdict.replace(" ", "-")}">{escape(cell["sentence"].item())}</li>'
    assert item in text.replace("&nbsp;", " ")
    assert shown in text


@pytest.mark.parametrize("trained", ["r8", "r12"])
def test_coarse_prediction_shown_is_the_one_judged(tmp_path, trained):
    models, shapes = {"good": Off(0.05), "bad": Off(0.6)}, [(8, 8), (12, 12), (16, 16)]
    results, judged, evidence = judge_at(tmp_path, shapes, models, trained=trained)
    inputs = set()
    for key, kept in evidence.fields.items():
        shown = beside_dpu(kept, judged, key)
        assert shown["model"].values.tolist() == list(models)
        for model in models:
            at = {"model": model, "train_resolution": trained, "resolution": key, "variable": "u"}
            at["metric"] = "relative_l2"
            cell, fields = judged.sel(at), shown.sel(model=model, variable="u")
            assert fields["dpu_input"].item() == ("" if key == trained else dpu_input(cell))
            inputs.add(fields["dpu_input"].item())
            truth, off = (x.astype(float) for x in (fields["truth"], fields["dpu"] - fields["truth"]))
            weights = evidence.store.grids[key].weights
            error = np.sqrt((weights * off**2).sum(("y", "x")) / (weights * truth**2).sum(("y", "x")))
            expected = results["error"].sel(at).sel(predictor=cell["best_dpu"].item())
            np.testing.assert_allclose(error, expected.squeeze(), rtol=1e-4)
    assert len(inputs) == len(evidence.fields)
    assert "grids do not nest for good at" in notes(judged)[0]


def test_numbers_beside_the_page_are_the_results(evaluation, written):
    folder, (results, judged, _) = written[0].parent, evaluation
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    xr.testing.assert_identical(load_results(folder / "results.nc"), results)
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = np.array([float(row["error"]) for row in rows])
    defined = np.broadcast_to(results["defined"].values[..., None, None], results["error"].shape)
    np.testing.assert_array_equal(values, results["error"].values[defined])
    content = json.loads((folder / "results.json").read_text())
    sentences = [row["sentence"] for row in content["verdicts"]]
    assert sentences == judged["sentence"].values.ravel().tolist()


def test_report_is_replaced_only_if_asked_and_only_by_a_whole_one(evaluation, written, monkeypatch, tmp_path):
    folder = written[0].parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for refused in (check_report_folder, lambda folder: write_report(folder, *evaluation, title="again")):
        with pytest.raises(InputError, match=r"report.html, results.csv, results.json, results.nc already"):
            refused(folder)
    check_report_folder(folder, overwrite=True)
    check_report_folder(folder / "nowhere")

    def fails(*args):
        raise RuntimeError("no picture")

    monkeypatch.setattr("mano_op.report.page.data_uri", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        write_report(folder, *evaluation, title="again", overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.setattr("mano_op.report.page.page", lambda title, *rest: title)
    for title in ("first", "second"):
        assert write_report(tmp_path, *evaluation, title=title, overwrite=True).read_text() == title


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, j, e: (r, j, Evidence()), "evidence of nothing: give those of one evaluation"),
        (lambda r, j, e: (r.isel(run=[0]), j, e), "results of good at r8, r16, .* evidence of good, <i>bad"),
        (lambda r, j, e: (r.isel(resolution=[0]), j, e), "of .* at r8, a summary of .* at r8, r16 and"),
        (lambda r, j, e: (r, j.isel(resolution=[0]), e), r"a summary of .* at r8 and .* summary\(results\)"),
        (lambda r, j, e: (r, r, e), r"expected a summary: give summary\(results\)"),
    ],
)
def test_parts_of_different_evaluations_are_refused(evaluation, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        write_report(tmp_path / "a", *change(*evaluation), title="")
    assert not (tmp_path / "a").exists()
