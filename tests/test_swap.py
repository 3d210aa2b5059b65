"""The benchmark of equal seconds: it trains, chooses, judges, and goes on where it was stopped."""

import dataclasses
import json

import pytest
import swap


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
