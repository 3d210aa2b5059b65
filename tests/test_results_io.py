"""Results go into files and come back the same."""

import numpy as np
import pytest
import xarray as xr
from helpers import results_of

from mano_op.errors import InputError
from mano_op.transfer.io import load_results, save_results
from mano_op.transfer.predictors import PREDICTORS
from mano_op.transfer.significance import summary
from mano_op.transfer.tables import json_text


def some():
    rng = np.random.default_rng(0)
    errors = {
        name: {key: {p: rng.uniform(0.1, 1, (2, 12)) for p in PREDICTORS} for key in ("r16", "r32")}
        for name in ("M @ r16", "M @ r16+r32", "a/b \u00e9 @ r16")
    }
    errors["M @ r16"]["r32"]["direct"][0, :2] = np.nan, np.inf
    return results_of(errors)


@pytest.mark.parametrize("name", ["results.nc", "results.zarr"])
@pytest.mark.parametrize("h5netcdf", [True, False])
def test_results_come_back(name, h5netcdf, tmp_path, monkeypatch):
    if h5netcdf:
        pytest.importorskip("h5netcdf")
    else:
        monkeypatch.setattr("mano_op.transfer.io.find_spec", lambda package: None)
    results = some()
    save_results(results, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = load_results(tmp_path / name)
    xr.testing.assert_identical(again, results)
    assert again.sel(model="M", train_resolution="r16", seed=1)["home"].item() == "r16"
    judged = summary(results)
    assert json_text(summary(again)) == json_text(judged)
    save_results(judged, tmp_path / f"judged_{name}")
    xr.testing.assert_identical(load_results(tmp_path / f"judged_{name}"), judged)
    with pytest.raises(InputError, match="is there already"):
        save_results(results, tmp_path / name)
    save_results(2 * results[["error"]], tmp_path / name, overwrite=True)
    np.testing.assert_array_equal(load_results(tmp_path / name)["error"], 2 * results["error"])


def test_what_is_no_file_of_results_is_refused(tmp_path, monkeypatch):
    for act in (lambda path: save_results(some(), path), load_results):
        with pytest.raises(InputError, match=r"ends in '.h5', expected .nc for NetCDF or .zarr"):
            act(tmp_path / "results.h5")
    with pytest.raises(InputError, match=r"there is no .*results.nc"):
        load_results(tmp_path / "results.nc")
    (tmp_path / "results.nc").write_bytes(b"\x89HDF...")
    monkeypatch.setattr("mano_op.transfer.io.find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"needs h5netcdf: pip install 'mano_op\[netcdf\]'"):
        load_results(tmp_path / "results.nc")
