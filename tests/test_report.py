"""The report: one page that holds what the numbers say, and the numbers beside it."""

import csv
import json
import re
from html import escape, unescape

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import store_of
from torch import nn

from mano_op.data.processor import FieldProcessor
from mano_op.data.store import Variable
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.report.page import definitions, figure, heading, html_table, page, paragraph, points
from mano_op.report.write import FILES, check_report_folder, write_report
from mano_op.runs import Run
from mano_op.transfer.evaluate import evaluate_transfer
from mano_op.transfer.tables import header, notes, table_rows
from mano_op.transfer.verdict import summary

TITLE = "<script>alert('1')</script> & more"
UNIT = {"mean": 0.0, "std": 1.0}


def bumps(samples, grid):
    y, x = grid.mesh
    a = np.stack(
        [np.sin(np.pi * y) * np.sin((1 + i % 3) * np.pi * x) + 0.1 * y * (1 - y) * i for i in samples]
    )
    return {"a": a, "u": 2 * a}


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


@pytest.fixture(scope="module")
def judged_store(tmp_path_factory):
    """A store, runs and results that no test changes."""
    grids = [Grid.uniform((n, n)) for n in (8, 16)]
    variables = [Variable("a", "input", long_name="a <b>"), Variable("u", "output", units="Pa")]
    path = tmp_path_factory.mktemp("report") / "bumps.zarr"
    store = store_of(path, grids, variables, bumps, {"train": 4, "test": 12})
    history = [{"epoch": i + 1, "training_error": 0.5 / (i + 1), "seconds": 1.5} for i in range(4)]
    models = {"good": Off(0.05), "<i>bad</i>": Off(0.6, breaks=True)}
    runs = {
        name: Run(
            model,
            FieldProcessor({"a": UNIT}, {"u": UNIT}),
            "off",
            {"size": model.size},
            {"resolution": "r8", "epochs": 4, "seed": 17},
            history if name == "good" else [],
        )
        for name, model in models.items()
    }
    return store, runs, evaluate_transfer(runs, store, [8, 16], progress=False)


@pytest.fixture(scope="module")
def written(judged_store, tmp_path_factory):
    """The report of all that, and its text."""
    store, runs, results = judged_store
    path = write_report(tmp_path_factory.mktemp("out") / "new" / "folder", results, runs, store, title=TITLE)
    return path, path.read_text()


def test_the_page_has_every_number_of_the_table_and_every_sentence(judged_store, written):
    judged = summary(judged_store[2])
    for cell in [*header(judged), *(cell for row in table_rows(judged) for cell in row)]:
        assert f">{escape(cell)}</t" in written[1]
    for sentence, verdict in zip(
        judged["sentence"].values.ravel(), judged["verdict"].values.ravel(), strict=True
    ):
        kind = verdict.replace(" ", "-")
        assert f'<li class="{kind}">{escape(sentence)}</li>' in written[1]
    assert {"training", "not finite"} <= set(judged["verdict"].values.ravel())


def test_the_page_has_the_budget_of_each_model(written):
    text = re.sub(r"<[^>]+>", "|", written[1])
    rows = [re.sub(r"\|+", "|", line).strip("|") for line in text.splitlines()]
    flops = f"{2 * 9 * 64 / 1e6:.4g}"
    for row in (
        "architecture|off|off",
        "options|size=0.05|size=0.6",
        "parameters|10|10",
        f"MFLOP for a sample|{flops}|{flops}",
        "epochs|4|4",
        "seed|17|17",
        "seconds of training|6",
        "last training error|12.5 %",
    ):
        assert row in rows
    assert "torch " + torch.__version__ in text


def test_failures_are_shown(judged_store, written):
    judged = summary(judged_store[2])
    warnings = [note for note in notes(judged) if note.startswith("Warning")]
    assert warnings == ["Warning: <i>bad</i> at r16, u: 1 of 12 errors of direct are not finite."]
    assert f'<p class="note">{escape(warnings[0])}</p>' in written[1]
    assert "nan (1 not finite)" in written[1]


def test_the_page_is_whole_and_holds_no_code(written):
    text = re.sub(r'data:image/(png|svg\+xml);base64,[A-Za-z0-9+/=]+"', 'picture"', written[1])
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert "<script" not in text and "<i>" not in text and "a <b>" not in text
    assert f"<title>{escape(TITLE)}</title>" in text
    assert re.findall(r'src="([^"]*)"', text) == ["picture"] * 6
    assert text.count("<figcaption>") == 6
    assert '<meta name="viewport"' in text
    assert len(text) < 30_000 < len(written[1])


def test_the_numbers_beside_the_page_are_the_results(judged_store, written):
    folder, results = written[0].parent, judged_store[2]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    with xr.open_dataset(folder / "results.nc", engine="scipy") as saved:
        xr.testing.assert_equal(saved, results)
        assert saved.attrs["split"] == "test"
        assert saved["relative_l2"].attrs["long_name"] == "relative L2 error"
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = np.array([float(row["relative_l2"]) for row in rows])
    np.testing.assert_array_equal(values, results["relative_l2"].values.ravel())
    content = json.loads((folder / "results.json").read_text())
    sentences = [row["sentence"] for row in content["comparisons"]]
    assert sentences == summary(results)["sentence"].values.ravel().tolist()
    assert all(escape(sentence) in written[1] for sentence in sentences)


def test_a_report_is_replaced_only_if_asked(judged_store, written, monkeypatch, tmp_path):
    store, runs, results = judged_store
    folder = written[0].parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for refused in (
        lambda: check_report_folder(folder),
        lambda: write_report(folder, results, runs, store, title="again"),
    ):
        with pytest.raises(
            InputError, match=r"report\.html, results\.csv, results\.json, results\.nc already"
        ):
            refused()
    check_report_folder(folder, overwrite=True)
    check_report_folder(folder / "nowhere")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    monkeypatch.setattr("mano_op.report.write._page", lambda title, *rest: title)
    for title in ("first", "second"):
        path = write_report(tmp_path, results, runs, store, title=title, overwrite=True)
        assert path.read_text() == title


def test_a_failure_on_the_way_leaves_the_old_report(judged_store, written, monkeypatch):
    store, runs, results = judged_store
    folder = written[0].parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fails(*args):
        raise RuntimeError("no picture")

    monkeypatch.setattr("mano_op.report.sections.error_by_resolution", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        write_report(folder, results, runs, store, title="again", overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_runs_and_store_must_be_those_of_the_results(judged_store, tmp_path):
    store, runs, results = judged_store
    with pytest.raises(InputError, match="results of <i>bad</i>, but runs of good only"):
        write_report(tmp_path / "a", results, {"good": runs["good"]}, store, title="")
    other = results.assign_coords(resolution=["r8", "r99"])
    with pytest.raises(InputError, match=r"results for u at r8, r99, but .* has u at r8, r16"):
        write_report(tmp_path / "a", other, runs, store, title="")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "make",
    [
        heading,
        paragraph,
        lambda text: paragraph("", kind=text),
        lambda text: points([(text, "worse")]),
        lambda text: definitions({text: text}),
        lambda text: html_table([text], [[text]]),
        lambda text: figure("data:,", text),
        lambda text: page(text, []),
    ],
)
def test_whatever_is_given_is_text(make):
    nasty = """</td><script src="x">'&amp;$title"""
    made = make(nasty)
    assert "<script" not in made
    assert nasty.replace(" ", "-") in unescape(made).replace(" ", "-")
