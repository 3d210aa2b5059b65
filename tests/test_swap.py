"""The benchmark of equal seconds: it trains, chooses, judges, and goes on where it was stopped."""

import dataclasses
import json

import pytest
import swap
import swap_figure
from harness import RESULTS, read_results


@pytest.fixture
def small(monkeypatch):
    """A setting of a few small fields."""
    setting = dataclasses.replace(
        swap.SETTINGS["burgers_fronts"], n=8, samples=swap._samples(16, 10), seconds=0.2
    )
    fno = dataclasses.replace(swap.MODELS["FNO"], choices={"modes": [2, 4], "rate": [5e-3]})
    monkeypatch.setattr(swap, "SETTINGS", {"fronts": setting})
    monkeypatch.setattr(swap, "MODELS", swap.MODELS | {"FNO": fno})


def test_every_model_is_judged_at_both_grids_and_trained_once(small, tmp_path, monkeypatch):
    out = tmp_path / "swap.json"
    monkeypatch.setattr("sys.argv", ["swap.py", "--work", str(tmp_path), "--out", str(out)])
    swap.main()
    models = json.loads(out.read_text())["settings"]["fronts"]
    assert set(models) == set(swap.MODELS)
    for about in models.values():
        [run] = about["runs"].values()
        assert run["errors"]["r8 direct"] == run["errors"]["r8 dpu_mean"] > 0 < run["errors"]["r16 direct"]
    tried = models["FNO"]["tried"]
    best = min(tried, key=lambda trial: trial["held out"])
    assert len(tried) == 2 and models["FNO"]["options"] == best["options"]
    swap.main()
    assert json.loads(out.read_text())["settings"]["fronts"] == models


def test_the_figure_and_the_tables_have_every_setting(tmp_path):
    report = read_results(RESULTS / "swap.json")
    swap_figure.draw(report, tmp_path / "swap.png")
    assert (tmp_path / "swap.png").read_bytes()[:4] == b"\x89PNG"
    errors, budgets = (table.splitlines()[2:] for table in swap_figure.tables(report).split("\n\n"))
    assert len(errors) == len(budgets) == len(swap.SETTINGS)
    mano, fno = (report["settings"]["poisson"][model]["runs"] for model in ("MANO", "FNO"))
    means = [
        sum(run["errors"]["r16 direct"] for key, run in runs.items() if key.startswith("1 "))
        / sum(key.startswith("1 ") for key in runs)
        for runs in (mano, fno)
    ]
    [row] = [line for line in errors if "Poisson" in line]
    assert [cell.strip() for cell in row.split("|")][3:6] == [
        f"{means[0]:.3g}", f"{means[1]:.3g}", f"{means[0] / means[1]:.2f}",
    ]  # fmt: skip
