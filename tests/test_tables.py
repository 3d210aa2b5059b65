"""The numbers that leave: all of them, in full, and readable again."""

import csv
import json

import numpy as np
import pytest
from helpers import results_of

from mano_op.transfer.io import load_results, save_results
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.sentences import percent
from mano_op.transfer.significance import bootstrap_means, summary
from mano_op.transfer.tables import (
    COLUMNS,
    csv_text,
    json_text,
    metric_header,
    metric_rows,
    notes,
    table,
    to_csv,
    to_json,
)

RNG = np.random.default_rng(3)
N = 12


def some(**changes):
    """Errors of two models at two resolutions, no two alike."""
    errors = {
        model: {key: {name: RNG.uniform(0.01, 0.9, N) for name in PREDICTORS} for key in ("r16", "r32")}
        for model in ("MANO", "a|b")
    }
    for at_training in (errors["MANO"]["r16"], errors["a|b"]["r16"]):
        at_training |= dict.fromkeys(
            ("dpu_injection", "dpu_mean", "dpu_interpolation"), at_training["direct"]
        )
    errors["MANO"]["r32"].update(changes)
    return errors


def cells(line):
    return [cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")]


def test_csv_has_every_error_in_full(tmp_path):
    errors = some(direct=np.append(RNG.uniform(size=N - 2), [np.nan, np.inf]))
    to_csv(results_of(errors), tmp_path / "errors.csv")
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * 6 * N
    for row in rows:
        assert (row["train_resolution"], row["variable"]) == ("r16", "u")
        expected = errors[row["model"]][row["resolution"]][row["predictor"]][int(row["sample"]) - 100]
        np.testing.assert_equal(float(row["error"]), expected)
    assert not list(tmp_path.glob("*.partial"))


def test_json_has_the_summary(tmp_path):
    errors = some()
    to_json(summary(results_of(errors)), tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text())
    assert (content["samples"], content["split"]) == (N, "test")
    assert content["models"][0] == {
        "model": "MANO",
        "train_resolution": "r16",
        "home": "r16",
        "seeds": 1,
        "parameters": 1000,
        "training_flops": 1e6,
    }
    assert len(content["errors"]) == 2 * 2 * 6
    for row in content["errors"]:
        of = errors[row["model"]][row["resolution"]][row["predictor"]]
        assert row["mean"] == pytest.approx(of.mean(), rel=1e-14)
        bounds = np.quantile(bootstrap_means(of), [0.025, 0.975])
        np.testing.assert_allclose([row["low"], row["high"]], bounds, rtol=1e-12)
        assert row["non_finite"] == 0
    for row in content["comparisons"]:
        of = errors[row["model"]][row["resolution"]]
        best = min(("dpu_injection", "dpu_mean", "dpu_interpolation"), key=lambda name: of[name].mean())
        assert row["best_dpu"] == best
        assert row["difference"] == pytest.approx(of["direct"].mean() - of[best].mean(), abs=1e-14)
        assert row["over_mean"] == pytest.approx(of["direct"].mean() - of["mean"].mean(), abs=1e-14)
        bounds = np.quantile(bootstrap_means(of["direct"] - of["mean"]), [0.025, 0.975])
        np.testing.assert_allclose([row["over_mean_low"], row["over_mean_high"]], bounds, atol=1e-14)
        growth = of["direct"].mean() / errors[row["model"]]["r16"]["direct"].mean()
        assert row["growth"] == pytest.approx(growth, rel=1e-14)


def test_json_spells_out_what_is_not_finite(tmp_path):
    errors = some(direct=np.append(np.ones(N - 1), np.inf), dpu_mean=np.append(np.ones(N - 1), np.nan))
    to_json(summary(results_of(errors)), tmp_path / "summary.json")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    found = {
        row["predictor"]: (row["mean"], row["low"], row["non_finite"])
        for row in content["errors"]
        if (row["model"], row["resolution"]) == ("MANO", "r32")
    }
    assert found["direct"] == ("Infinity", "NaN", 1)
    assert found["dpu_mean"] == ("NaN", "NaN", 1)


def test_json_of_results_that_were_saved(tmp_path):
    results = results_of(some())
    save_results(results, tmp_path / "results.nc")
    to_json(summary(load_results(tmp_path / "results.nc")), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == json_text(summary(results))


def test_table_has_direct_inference_beside_what_it_has_to_beat():
    errors = {
        "MANO": {
            "r16": dict.fromkeys(PREDICTORS, np.full(N, 0.08))
            | {"floor": np.zeros(N), "mean": np.full(N, 0.6)},
            "r32": {
                "direct": np.full(N, 0.1),
                "dpu_injection": np.full(N, 0.09),
                "dpu_mean": np.full(N, 0.0768),
                "dpu_interpolation": np.full(N, 0.09),
                "floor": np.full(N, 0.0205),
                "mean": np.full(N, 0.6),
            },
        }
    }
    lines = table(summary(results_of(errors))).splitlines()
    assert cells(lines[0]) == [
        "model", "trained at", "resolution", "direct", "best DPU", "DPU's input", "skill", "floor",
        "mean field", "growth",
    ]  # fmt: skip
    assert cells(lines[2]) == [
        "MANO", "r16", "r16", "8.00 [8.00, 8.00]", "as direct", "", "", "0.00", "60.0", "1.00",
    ]  # fmt: skip
    assert cells(lines[3]) == [
        "MANO", "r16", "r32", "10.0 [10.0, 10.0]", "7.68 [7.68, 7.68]", "mean", "-30.2 [-30.2, -30.2]",
        "2.05", "60.0", "1.25",
    ]  # fmt: skip
    assert lines[5] == "Relative L2 error in %, mean over 12 samples of the split 'test' [95 % interval]."
    assert len({len(line) for line in lines[:4]}) == 1  # aligned


def test_names_do_not_break_the_table():
    lines = table(summary(results_of(some()))).splitlines()
    assert r"| a\|b " in lines[4]
    assert all(len(cells(line)) == 10 for line in lines[:6])


def test_table_and_notes_name_what_is_not_finite():
    errors = some(direct=np.append(np.ones(N - 3), [np.nan] * 3), dpu_mean=np.append(np.ones(N - 1), np.inf))
    text = table(summary(results_of(errors)))
    assert "nan (3 not finite)" in text
    assert "Warning: MANO at r32, u: 3 of 12 errors of direct are not finite." in text
    assert "Warning: MANO at r32, u: 1 of 12 errors of dpu_mean are not finite." in text
    assert text.count("Warning") == 2


def test_notes_name_grids_that_do_not_nest():
    results = results_of(some())
    assert notes(summary(results)) == []
    results["restriction"][0, 1] = "nearest"
    assert notes(summary(results)) == [
        "Note: the grids do not nest for MANO at r32: points of the training grid are missing there, and "
        "dpu_injection took the input at the nearest point instead."
    ]


def test_the_same_model_trained_elsewhere_has_its_columns():
    ones = dict.fromkeys(PREDICTORS, np.ones(N))
    results = results_of(
        {
            "M @ r16": {"r16": ones, "r32": ones | {"direct": np.full(N, 0.1)}},
            "M @ r32": {"r16": ones, "r32": ones | {"direct": np.full(N, 0.05)}},
            "M @ r16+r32": {
                "r16": ones | {"direct": np.full(N, 0.08)},
                "r32": ones | {"direct": np.full(N, 0.06)},
            },
        }
    )
    lines = table(summary(results)).splitlines()
    assert cells(lines[0])[6:] == [
        "skill", "trained there", "trained on several", "floor", "mean field", "growth",
    ]  # fmt: skip
    assert cells(lines[3])[:3] == ["M", "r16", "r32"]
    assert cells(lines[3])[7:9] == ["5.00 [5.00, 5.00]", "6.00 [6.00, 6.00]"]
    assert cells(lines[4])[7:9] == ["100 [100, 100]", "8.00 [8.00, 8.00]"]  # at 16, of the one trained at 32
    assert cells(lines[7])[7:9] == ["5.00 [5.00, 5.00]", ""]  # of that trained on both, at 32


def test_seeds_have_a_column_where_there_are_several():
    errors = some()
    errors["MANO"] = {
        key: {name: np.stack([of, of + 0.02]) for name, of in by.items()}
        for key, by in errors["MANO"].items()
    }
    del errors["a|b"]
    lines = table(summary(results_of(errors))).splitlines()
    assert cells(lines[0])[4] == "over seeds"
    direct = errors["MANO"]["r32"]["direct"].mean(axis=1)
    assert cells(lines[3])[4] == f"{percent(direct[0])} to {percent(direct[1])}, 2 seeds"


def test_the_table_of_metrics_has_direct_inference_and_the_best_dpu_by_each():
    judged = summary(results_of(some()))
    assert metric_header(judged) == ["model", "trained at", "resolution", "relative L2"]
    rows = metric_rows(judged)
    cell = judged.sel(
        model="MANO", resolution="r32", train_resolution="r16", variable="u", metric="relative_l2"
    )
    direct, best = (
        percent(cell["mean"].sel(predictor=name).item()) for name in ("direct", cell["best_dpu"].item())
    )
    assert rows[1] == ["MANO", "r16", "r32", f"{direct} / {best}"]
    assert "/" not in rows[0][3]


def test_what_there_cannot_be_is_left_out_of_the_csv():
    results = results_of(some())
    results["defined"][:, 1:] = False
    assert len(csv_text(results).splitlines()) == 1 + 2 * 2 * N
