# %% [markdown]
# # A resolution-transfer experiment
#
# Does a model that was trained on a coarse grid gain anything from being run on a finer one? A curve of
# errors does not answer that. The same coarse model, given the input at its own grid and its prediction
# interpolated, costs less and is often as good. This is an experiment that asks the question fairly, from
# the fields to the one sentence that its numbers allow.
#
# It takes about three minutes on two CPU cores: `python tutorials/3_a_resolution_transfer_experiment.py`

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
# Every sample is one continuous permeability and one solution of $-\nabla \cdot (a \nabla u) = 1$, found on
# 96 points a side and sampled at 16, 24 and 48: what differs between levels is the sampling alone. The
# levels are of all kinds: 48 has the points of 16 among its own, 24 has not.
#
# The training split is at 16 and 48, to train there; the tests are the same samples at all three.

# %%
store = generate_darcy(
    here / "darcy.zarr", [16, 24, 48], samples={"train": 400, "test": 50}, solver_resolution=96, seed=4
)

# %% [markdown]
# ## The runs
#
# * MANO and FNO, trained at 16, from two seeds each: with one seed nobody can tell a model from its luck.
# * An FNO trained at 16 and 48 in one run, nine coarse batches to one fine one: what a few fine samples
#   are worth. All runs of a name stand beside each other, whatever they were trained on.
#
# The budgets are the same: as many passes over as many samples, each batch in one of the eight positions of
# the square, which the equation does not tell apart. MANO's matrices like Muon, FNO's modes AdamW.

# %%
budget = {"epochs": 15, "batch_size": 20, "symmetries": ["transpose", "reflect"]}
mano = {
    "arch": "mano",
    "options": {"hidden_channels": 24, "n_layers": 3, "n_heads": 6},
    "optimizer": "muon",
}
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
# ## The judge
#
# `evaluate_transfer` takes runs, and any function from fields to fields: `Trained(function, resolution=16)`.
# It puts beside each direct error
#
# * `dpu_...`: down, predict, up; the input restricted to 16, predicted there, interpolated by a scheme
#   that knows where the points lie and what the boundary is;
# * `floor`: the true solution at 16, interpolated in the same way: no coarse prediction can do better;
# * `mean`: the mean of the training fields: who does not beat it, has learned nothing.
#
# What comes back is an xarray data set with a name on every dimension. Its runs are selected by model,
# training resolution and seed.

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
# The floor at 48 is well below the errors of these models: here interpolation is not what holds them back.
#
# An error can be had in other measures from the same data set. The error splits, for one, into what lies
# below the training grid's Nyquist wavenumber and what lies above, which no prediction at 16 carries. Their
# squares add up to the whole.

# %%
split = results["error"].sel(metric=["spectral_low", "spectral_high"], resolution="r48", predictor="direct")
at_16 = split.sel(train_resolution="r16").mean("sample").squeeze("variable", drop=True)
print(at_16.groupby("model").mean().to_pandas())

# %% [markdown]
# ## The report
#
# One HTML file that needs nothing else, with pictures and every number's interval, and the numbers beside
# it as NetCDF, CSV and JSON. `mano-op evaluate fields` makes the same from folders of runs. The results alone
# can be kept too, and read again years later.

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
# `summary` compares the direct prediction with the best of the interpolated ones, sample by sample, and
# resamples the tests for an interval. The skill is the share of the error that running on the fine grid
# takes away. The sentence says "improves on interpolation" only when the whole interval lies above zero,
# and it tells by how much: MANO gains from the finer input, but most of that gain reaches its coarse
# prediction too, which is made of the finer input's means.

# %%
judged = judged.squeeze("variable", drop=True)
for model in ("MANO", "FNO"):
    cell = judged.sel(model=model, train_resolution="r16", resolution="r48")
    print(f"{model}: {cell['sentence'].item()}")

at = judged.sel(train_resolution="r16", resolution="r48", metric="relative_l2")
growth, skill = at["growth"].to_series(), at["skill"].to_series()
print(f"\nAt 48 MANO's error is {growth['MANO']:.2f} times that at 16, FNO's {growth['FNO']:.2f} times.")
print(f"Run at 48, FNO is {-skill['FNO']:.0%} worse than its own prediction at 16, interpolated.")
assert growth["MANO"] < 1 < growth["FNO"]  # 0.88 and 2.2
assert at["verdict"].sel(model="FNO") == "worse"
folder.cleanup()
