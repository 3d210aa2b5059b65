# %% [markdown]
# # A resolution-transfer experiment
#
# Does a model that was trained on a coarse grid gain anything from being run on a finer one? A curve of
# errors does not answer this. The same model, run on its own grid and interpolated, costs less and is often
# as accurate. This experiment makes the comparison, from the fields to the one sentence that its numbers
# allow.
#
# It takes about two minutes on one CPU core: `python tutorials/3_a_resolution_transfer_experiment.py`

# %%
import json
import tempfile
from pathlib import Path

from mano_op import Mixed, generate_darcy, train_model
from mano_op.report import write_report
from mano_op.transfer import Evidence, evaluate_transfer, save_results, summary

folder = tempfile.TemporaryDirectory()
here = Path(folder.name)

# %% [markdown]
# ## One solution, several grids
#
# Every sample is one continuous permeability and one solution of $-\nabla \cdot (a \nabla u) = 1$, computed
# on 96 points a side and sampled at 16, 24 and 48, so resolutions differ in the sampling alone. The points
# of 16 are points of 48, and not all points of 24.
#
# Models are trained at 16, or at 16 and 48; the tests are the same samples at all three resolutions.

# %%
store = generate_darcy(
    here / "darcy.zarr", [16, 24, 48], samples={"train": 200, "test": 50}, solver_resolution=96, seed=4
)

# %% [markdown]
# ## The runs
#
# * MANO and FNO, trained at 16, from two seeds each: with one seed a model cannot be told from luck.
# * An FNO trained at 16 and 48 in one run, nine coarse samples to one fine one, to see what a few fine
#   samples are worth. Runs of one name stand beside each other, whatever they were trained on.
#
# The budgets are the same: as many passes over as many samples, each batch in one of the eight positions of
# the square, a symmetry of the problem. MANO is trained with Muon, FNO with AdamW: the defaults of each.

# %%
budget = {"epochs": 12, "batch_size": 8, "symmetries": ["transpose", "reflect"]}
mano = {"arch": "mano", "options": {"hidden_channels": 24}}
fno = {
    "arch": "fno",
    "options": {"n_modes": [8, 8], "hidden_channels": 24},
    "learning_rate": 5e-3,
}
runs = {
    "MANO": [train_model(store, here / f"mano{s}", resolution=16, seed=s, **mano, **budget) for s in (0, 1)],
    "FNO": [
        *(train_model(store, here / f"fno{s}", resolution=16, seed=s, **fno, **budget) for s in (0, 1)),
        train_model(store, here / "mixed", resolution=Mixed([16, 48], ratios=[0.9, 0.1]), **fno, **budget),
    ],
}

# %% [markdown]
# ## The evaluation
#
# `evaluate_transfer` takes runs, and any function from fields to fields: `Trained(function, resolution=16)`.
# It puts these errors beside each direct error:
#
# * `dpu_...`: down, predict, up; the input is restricted to 16, and the prediction there is interpolated by a
#   scheme that knows the registration and the boundary values;
# * `floor`: the true solution at 16, interpolated in the same way: no coarse prediction can do better;
# * `mean`: the mean of the training fields: a model that does not beat it has learned nothing.
#
# The result is an xarray data set with a name on every dimension. Its runs are selected by model, training
# resolution and seed.

# %%
evidence = Evidence()  # the fields that the report shows
results = evaluate_transfer(runs, store, [16, 24, 48], evidence=evidence)
mean = results["error"].sel(metric="relative_l2").mean("sample").squeeze("variable", drop=True)
print(
    mean.sel(
        model="FNO", train_resolution="r16", seed=0, predictor=["direct", "dpu_mean", "floor"]
    ).to_pandas()
)

# %% [markdown]
# The floor at 48 is well below the errors of these models, so interpolation is not what limits them here.
#
# The same data set has other metrics. The error splits, for one, into a part below the training grid's
# Nyquist wavenumber and a part above it, which no prediction at 16 carries. The squares of the parts add up
# to the square of the error.

# %%
split = results["error"].sel(metric=["spectral_low", "spectral_high"], resolution="r48", predictor="direct")
at_16 = split.sel(train_resolution="r16").mean("sample").squeeze("variable", drop=True)
print(at_16.groupby("model").mean().to_pandas())

# %% [markdown]
# ## The report
#
# One HTML file with pictures and an interval for every number, and the numbers beside it as NetCDF, CSV and
# JSON. `mano-op evaluate fields` makes the same from folders of runs. The results alone can be saved too.

# %%
judged = summary(results)
page = write_report(here / "report", results, judged, evidence, title="What does a finer grid give?")
save_results(results, here / "results.zarr")
print(
    page.name,
    f"{page.stat().st_size / 1e6:.1f} MB",
    *sorted(json.loads((page.parent / "results.json").read_text())),
)

# %% [markdown]
# ## The sentence
#
# `summary` compares the direct prediction with the best interpolated one, sample by sample, and resamples the
# tests for an interval. The skill is the share of the error that running on the fine grid removes. The
# sentence says "improves on interpolation" only if the whole interval lies above zero, and by how much. MANO
# gains from the finer input, but most of this gain reaches its coarse prediction too, which is made from the
# means of the finer input.

# %%
judged = judged.squeeze("variable", drop=True)
for model in ("MANO", "FNO"):
    cell = judged.sel(model=model, train_resolution="r16", resolution="r48")
    print(f"{model}: {cell['sentence'].item()}")

fine = judged.sel(train_resolution="r16", resolution="r48", metric="relative_l2")
growth, skill = fine["growth"].to_series(), fine["skill"].to_series()
print(f"\nAt 48 MANO's error is {growth['MANO']:.2f} times that at 16, FNO's {growth['FNO']:.2f} times.")
print(f"Run at 48, FNO is {-skill['FNO']:.0%} worse than its own prediction at 16, interpolated.")
assert growth["MANO"] < 1 < growth["FNO"]  # 0.86 and 1.9
assert fine["verdict"].sel(model="FNO") == "worse"
folder.cleanup()
