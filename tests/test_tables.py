"""The numbers that leave: all of them, in full, and readable again."""

import csv
import json

import numpy as np
import pytest
import xarray as xr
from helpers import results_of

from mano_op.errors import InputError
from mano_op.transfer.io import load_results, save_results
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.sentences import percent
from mano_op.transfer.significance import DPU, bootstrap_means, summary
from mano_op.transfer.tables import COLUMNS, metric_rows, notes, table, to_csv, to_json

RNG = np.random.default_rng(3)
N = 12


def random_errors(**changes):
    """Errors of two models at two resolutions, no two alike; those of MANO at 32 with changes."""
    errors = {
        model: {key: {name: RNG.uniform(0.01, 0.9, N) for name in PREDICTORS} for key in ("r16", "r32")}
        for model in ("MANO", "a|b")
    }
    for by_key in errors.values():
        by_key["r16"] |= dict.fromkeys(DPU, by_key["r16"]["direct"])
    errors["MANO"]["r32"].update(changes)
    return errors


def ends_in(*values):
    return np.append(np.ones(N - len(values)), values)


RESULTS = results_of(random_errors())
JUDGED = summary(RESULTS)


def lines_of(errors):
    """The lines of the table, split into cells, with the notes."""
    lines = table(summary(results_of(errors))).splitlines()
    return [[cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")] for line in lines]


def test_csv_has_every_error_that_exists_in_full(tmp_path):
    errors = random_errors(direct=ends_in(0.25, np.nan, np.inf))
    results = results_of(errors)
    to_csv(results, tmp_path / "errors.csv")
    with open(tmp_path / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * 6 * N
    for row in rows:
        assert (row["train_resolution"], row["variable"]) == ("r16", "u")
        expected = errors[row["model"]][row["resolution"]][row["predictor"]][int(row["sample"]) - 100]
        np.testing.assert_equal(float(row["error"]), expected)
    results["defined"][:, 1:] = False
    to_csv(results, tmp_path / "errors.csv")
    assert len((tmp_path / "errors.csv").read_text().splitlines()) == 1 + 2 * 2 * N


def test_json_has_the_summary(tmp_path):
    errors = random_errors()
    to_json(summary(results_of(errors)), tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text())
    assert (content["samples"], content["split"]) == (N, "test")
    model = {"model": "MANO", "train_resolution": "r16", "home": "r16", "seeds": 1}
    assert content["models"][0] == {**model, "parameters": 1000, "training_flops": 1e6}
    assert len(content["errors"]) == 2 * 2 * 6
    for row in content["errors"]:
        of = errors[row["model"]][row["resolution"]][row["predictor"]]
        assert row["mean"] == pytest.approx(of.mean(), rel=1e-14)
        bounds = np.quantile(bootstrap_means(of), [0.025, 0.975])
        np.testing.assert_allclose([row["low"], row["high"]], bounds, rtol=1e-12)
        assert row["non_finite"] == 0
    for row in content["comparisons"]:
        of = errors[row["model"]][row["resolution"]]
        assert row["best_dpu"] == min(DPU, key=lambda name: of[name].mean())
        for name, rival in (("difference", row["best_dpu"]), ("over_mean", "mean")):
            assert row[name] == pytest.approx(of["direct"].mean() - of[rival].mean(), abs=1e-14)
        bounds = np.quantile(bootstrap_means(of["direct"] - of["mean"]), [0.025, 0.975])
        np.testing.assert_allclose([row["over_mean_low"], row["over_mean_high"]], bounds, atol=1e-14)
        growth = of["direct"].mean() / errors[row["model"]]["r16"]["direct"].mean()
        assert row["growth"] == pytest.approx(growth, rel=1e-14)


def test_json_spells_out_what_is_not_finite(tmp_path):
    errors = random_errors(direct=ends_in(np.inf), dpu_mean=ends_in(np.nan))

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    to_json(summary(results_of(errors)), tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    numbers = {
        row["predictor"]: (row["mean"], row["low"], row["non_finite"])
        for row in content["errors"]
        if (row["model"], row["resolution"]) == ("MANO", "r32")
    }
    assert numbers["direct"] == ("Infinity", "NaN", 1)
    assert numbers["dpu_mean"] == ("NaN", "NaN", 1)


def test_table_has_direct_inference_beside_what_it_has_to_beat():
    at_32 = {
        "direct": 0.1, "dpu_injection": 0.09, "dpu_mean": 0.0768, "dpu_interpolation": 0.09, "floor": 0.0205,
        "mean": 0.6,
    }  # fmt: skip
    at_16 = dict.fromkeys(PREDICTORS, 0.08) | {"floor": 0.0, "mean": 0.6}
    errors = {
        key: {name: np.full(N, error) for name, error in by_name.items()}
        for key, by_name in (("r16", at_16), ("r32", at_32))
    }
    header, _, first, second, _, about = lines_of({"MANO": errors})
    assert header == [
        "model", "trained at", "resolution", "direct", "best DPU", "DPU's input", "skill", "floor",
        "mean field", "growth",
    ]  # fmt: skip
    assert first == [
        "MANO", "r16", "r16", "8.00 [8.00, 8.00]", "as direct", "", "", "0.00", "60.0", "1.00",
    ]  # fmt: skip
    assert second == [
        "MANO", "r16", "r32", "10.0 [10.0, 10.0]", "7.68 [7.68, 7.68]", "mean", "-30.2 [-30.2, -30.2]",
        "2.05", "60.0", "1.25",
    ]  # fmt: skip
    assert about == ["Relative L2 error in %, mean over 12 samples of the split 'test' [95 % interval]."]


def test_table_is_aligned_and_not_broken_by_names():
    lines = table(JUDGED).splitlines()[:6]
    assert r"| a\|b " in lines[4]
    assert len({len(line) for line in lines}) == 1
    assert {line.replace(r"\|", "").count("|") for line in lines} == {11}


def test_results_in_place_of_their_summary_are_refused(tmp_path):
    for write in (table, lambda results: to_json(results, tmp_path / "a.json")):
        with pytest.raises(
            InputError, match=r"without verdicts; expected a summary: give summary\(results\)"
        ):
            write(RESULTS)


def test_table_and_notes_name_what_is_not_finite():
    errors = random_errors(direct=ends_in(np.nan, np.nan, np.nan), dpu_mean=ends_in(np.inf))
    text = table(summary(results_of(errors)))
    assert "nan (3 not finite)" in text
    assert "Warning: MANO at r32, u: 3 of 12 errors of direct are not finite." in text
    assert "Warning: MANO at r32, u: 1 of 12 errors of dpu_mean are not finite." in text
    assert text.count("Warning") == 2


def test_notes_name_grids_that_do_not_nest():
    assert notes(JUDGED) == []
    judged = JUDGED.copy(deep=True)
    judged["restriction"][0, 1] = "nearest"
    assert notes(judged) == [
        "Note: the grids do not nest for MANO at r32: points of the training grid are missing there, and "
        "dpu_injection took the input at the nearest point instead."
    ]


def test_notes_say_what_averages_of_a_state_leave_out():
    judged = JUDGED.copy(deep=True)
    error = judged["mean"].sel(predictor="direct", metric=judged.attrs["metric"]).values[0, 1].item()
    judged["averaging"][0, 1] = error / 20
    assert notes(judged) == []
    judged["averaging"][0, 1] = error / 5
    [note] = notes(judged)
    assert note.startswith("Note: MANO at r32, u: it steps from averages of the finer input")
    assert f"which are {100 * error / 5:.3g} % off" in note


def test_same_model_trained_elsewhere_has_its_columns():
    ones = dict.fromkeys(PREDICTORS, np.ones(N))
    direct = {"M @ r16": (1.0, 0.1), "M @ r32": (1.0, 0.05), "M @ r16+r32": (0.08, 0.06)}
    errors = {
        name: {f"r{16 * k}": ones | {"direct": np.full(N, error)} for k, error in enumerate(by_key, start=1)}
        for name, by_key in direct.items()
    }
    lines = lines_of(errors)
    columns = ["skill", "trained there", "trained on several", "floor", "mean field", "growth"]
    assert lines[0][6:] == columns
    assert lines[3][:3] == ["M", "r16", "r32"]
    assert lines[3][7:9] == ["5.00 [5.00, 5.00]", "6.00 [6.00, 6.00]"]
    assert lines[4][7:9] == ["100 [100, 100]", "8.00 [8.00, 8.00]"]  # at 16, of the one trained at 32
    assert lines[7][7:9] == ["5.00 [5.00, 5.00]", ""]  # of that trained on both, at 32


def test_seeds_have_a_column_where_there_are_several():
    errors = {
        key: {name: np.stack([of, of + 0.02]) for name, of in by_name.items()}
        for key, by_name in random_errors()["MANO"].items()
    }
    lines = lines_of({"MANO": errors})
    least, most = map(percent, errors["r32"]["direct"].mean(axis=1))
    assert [lines[0][4], lines[3][4]] == ["over seeds", f"{least} to {most}, 2 seeds"]


def test_table_of_metrics_has_direct_inference_and_the_best_dpu_by_each():
    columns, *rows = metric_rows(JUDGED)
    assert columns == ["model", "trained at", "resolution", "relative L2"]
    at_32 = JUDGED.isel(run=0).sel(resolution="r32", variable="u", metric="relative_l2")
    predictors = ("direct", at_32["best_dpu"].item())
    direct, best = (percent(at_32["mean"].sel(predictor=name).item()) for name in predictors)
    assert rows[1] == ["MANO", "r16", "r32", f"{direct} / {best}"]
    assert "/" not in rows[0][3]


@pytest.fixture(scope="module")
def seeded():
    """Results of two seeds, with failures and a name that is no file name, and their summary."""
    errors = {
        name: {key: {p: RNG.uniform(0.1, 1, (2, N)) for p in PREDICTORS} for key in ("r16", "r32")}
        for name in ("M @ r16", "M @ r16+r32", "a/b \u00e9 @ r16")
    }
    errors["M @ r16"]["r32"]["direct"][0, :2] = np.nan, np.inf
    results = results_of(errors)
    return results, summary(results)


@pytest.mark.parametrize(
    ("name", "h5netcdf"), [("results.nc", True), ("results.nc", False), ("results.zarr", False)]
)
def test_results_come_back_from_files(seeded, name, h5netcdf, tmp_path, monkeypatch):
    if h5netcdf:
        pytest.importorskip("h5netcdf")
    else:
        monkeypatch.setattr("mano_op.transfer.io.find_spec", lambda package: None)
    results, judged = seeded
    save_results(results, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = load_results(tmp_path / name)
    xr.testing.assert_identical(again, results)
    assert again.sel(model="M", train_resolution="r16", seed=1)["home"].item() == "r16"
    save_results(judged, tmp_path / f"judged_{name}")
    xr.testing.assert_identical(load_results(tmp_path / f"judged_{name}"), judged)
    with pytest.raises(InputError, match="is there already"):
        save_results(results, tmp_path / name)
    save_results(2 * results[["error"]], tmp_path / name, overwrite=True)
    np.testing.assert_array_equal(load_results(tmp_path / name)["error"], 2 * results["error"])


def test_files_of_no_results_are_refused(tmp_path, monkeypatch):
    for act in (lambda path: save_results(RESULTS, path), load_results):
        with pytest.raises(InputError, match=r"ends in '.h5', expected .nc for NetCDF or .zarr"):
            act(tmp_path / "results.h5")
    with pytest.raises(InputError, match=r"there is no .*results.nc"):
        load_results(tmp_path / "results.nc")
    (tmp_path / "results.nc").write_bytes(b"\x89HDF...")
    monkeypatch.setattr("mano_op.transfer.io.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"needs h5netcdf: pip install 'mano_op\[netcdf\]'"):
        load_results(tmp_path / "results.nc")
