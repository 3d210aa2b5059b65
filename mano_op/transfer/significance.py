"""Means of errors, comparisons of predictors, and how far the samples decide them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.errors import InputError
from mano_op.transfer.runs import positions, run_coordinates
from mano_op.transfer.sentences import verdict_of

DPU = ("dpu_injection", "dpu_mean", "dpu_interpolation")
CONFIDENCE = 0.95
_TAILS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]


def bootstrap_means(
    errors: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Compute means over samples drawn with replacement, the same draws for every row.

    Parameters
    ----------
    errors : ndarray, shape (..., samples)
        A row with a NaN or an infinity has NaN for all its means.
    resamples : int
        Number of draws, each of as many samples as there are.
    seed : int

    Returns
    -------
    ndarray, shape (resamples, ...)
        Differences between its columns are paired: they compare models on the same draw of samples.
    """
    n = errors.shape[-1]
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(errors).all(axis=-1))
    rows = np.where(finite[..., None], errors, 0).reshape(-1, n)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, len(rows)))
    for start in range(0, resamples, 100):
        draws = rng.multinomial(n, np.full(n, 1 / n), size=min(100, resamples - start))
        means[start : start + 100] = draws @ rows.T / n
    return np.where(finite, means.reshape(resamples, *finite.shape), np.nan)


def summary(
    results: xr.Dataset, *, metric: str = "relative_l2", resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    r"""Means with intervals, growth, skill, and a verdict on direct inference for every run and resolution.

    Runs that differ in the seed alone are one run of the summary: the error of a sample is the mean over the
    seeds. Intervals are 95 % percentile intervals of a bootstrap over the samples, or over each whole
    ``group`` (sample): windows of one flow are not independent. They say how far the test samples decide a
    comparison of these very models; only the spread over the seeds says what another seed would do.

    Direct inference is compared with the best of the DPU predictors and with the mean field, by the
    bootstrap of the paired differences of their mean errors. The best DPU is picked on the same samples, so
    any luck in the choice favours DPU. With e the mean errors,

    .. math:: \text{skill} = 1 - e_\text{direct} / e_\text{best DPU}, \qquad
        \text{growth} = e_\text{direct} / e_\text{direct at home}

    The first verdict that applies is given:

    =====================  ==========================================================================
    verdict                where
    =====================  ==========================================================================
    "not finite"           an error of direct inference or of the best DPU is NaN or infinite
    "few"                  there are fewer than 10 independent samples
    "no better than mean"  the direct error is not below that of the mean field, up to rounding
    "training"             at the home resolution, where direct inference and DPU are one prediction
    "worse"                the interval of the skill lies below 0
    "improves"             it lies above 0, and that of direct minus mean field below 0
    "undecided"            everywhere else
    =====================  ==========================================================================

    Parameters
    ----------
    results : Dataset
        From `mano_op.transfer.evaluate.evaluate_transfer`.
    metric : str
        Of the verdicts and sentences; the numbers are of every metric.
    resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Dataset
        ``run`` is indexed by ``model`` and ``train_resolution``. By run, resolution, predictor, metric and
        variable: ``mean``, ``low``, ``high``, the mean error and its interval; ``seed_low``, ``seed_high``,
        the smallest and the largest mean of a seed; ``non_finite``, the number of errors that are not.
        Without the predictor: ``growth``, NaN if the home resolution was not judged, ``skill``,
        ``difference``, direct minus best DPU, and ``over_mean``, direct minus mean field, each with ``_low``
        and ``_high``; ``skill_seed_low``, ``skill_seed_high``; ``best_dpu``. Without the metric too:
        ``verdict``, ``sentence``. By run: ``seeds``, their number, and the costs, means over the seeds.

    Raises
    ------
    InputError
        If there is no sample, or no such metric, or groups differ in size.
    """
    metrics = results["metric"].values.tolist()
    if metric not in metrics or results.sizes["sample"] == 0:
        raise InputError(
            f"metric={metric!r} of {results.sizes['sample']} samples, expected one of {', '.join(metrics)} "
            "and at least one sample"
        )
    seeds = positions(results)
    groups = np.asarray(results.coords.get("group", np.arange(results.sizes["sample"])))
    parts = [_numbers(results.isel(run=at), groups, resamples, seed) for at in seeds.values()]
    joined = xr.concat(parts, "run", data_vars="all", coords="minimal", compat="equals", join="exact")
    first = results.isel(run=[at[0] for at in seeds.values()])
    independent = len(np.unique(groups))
    drawn = "samples" if independent == results.sizes["sample"] else f"{independent} groups of samples"
    homes = {name: ("run", first[name].values) for name in ("home", "home_points")}
    judged = joined.assign_coords(run_coordinates(list(seeds))).assign_coords(homes)
    judged = judged.assign_attrs(
        results.attrs,
        metric=metric,
        samples=results.sizes["sample"],
        independent=independent,
        n_variables=results.sizes["variable"],  # scipy writes no attribute "variables"
        interval=f"{100 * CONFIDENCE:g} % percentile bootstrap over {drawn}, {resamples} draws, seed {seed}",
    )
    cells = ("run", "resolution", "variable")
    shape = [judged.sizes[dim] for dim in cells]
    places = itertools.product(range(shape[0]), *(judged[dim].values for dim in cells[1:]))
    words = np.array([verdict_of(judged, *place) for place in places]).reshape(*shape, 2)
    return judged.assign(verdict=(cells, words[..., 0]), sentence=(cells, words[..., 1]))


def _numbers(seeds: xr.Dataset, groups: NDArray[np.int64], resamples: int, seed: int) -> xr.Dataset:
    """The numbers of one run of the summary, from the results of its seeds."""
    order = ("resolution", "predictor", "metric", "variable")
    errors = seeds["error"].transpose("run", *order, "sample")
    with np.errstate(invalid="ignore", divide="ignore"):  # infinities: they stay visible as inf and NaN
        by_seed = errors.mean("sample", skipna=False)
        errors = errors.mean("run", skipna=False)
        mean = errors.mean("sample", skipna=False)
        means = bootstrap_means(_by_group(errors.values, groups), resamples=resamples, seed=seed)
        draws = mean.expand_dims(draw=resamples).copy(data=means)
        dpu = mean.sel(predictor=list(DPU))
        best = dpu["predictor"][dpu.fillna(np.inf).argmin("predictor")].drop_vars("predictor")

        def by(e: xr.DataArray, predictor: Any) -> xr.DataArray:
            return e.sel(predictor=predictor).drop_vars("predictor")

        def skill(e: xr.DataArray) -> xr.DataArray:
            return 1 - by(e, "direct") / by(e, best)

        def growth(e: xr.DataArray) -> xr.DataArray:
            direct = by(e, "direct")  # NaN where the home resolution was not judged
            return direct / direct.reindex(resolution=seeds["home"].values[:1]).isel(resolution=0, drop=True)

        numbers = {
            "seed_low": by_seed.min("run", skipna=False),
            "seed_high": by_seed.max("run", skipna=False),
            "non_finite": (seeds["defined"] & ~np.isfinite(seeds["error"])).sum(("run", "sample")),
            "best_dpu": best,
            "skill_seed_low": skill(by_seed).min("run", skipna=False),
            "skill_seed_high": skill(by_seed).max("run", skipna=False),
        }
        for name, number in (
            ("mean", lambda e: e),
            ("skill", skill),
            ("growth", growth),
            ("difference", lambda e: by(e, "direct") - by(e, best)),
            ("over_mean", lambda e: by(e, "direct") - by(e, "mean")),
        ):
            numbers[name], prefix = number(mean), "" if name == "mean" else f"{name}_"
            ends = np.quantile(number(draws).transpose("draw", ...).values, _TAILS, axis=0)
            for end, values in zip(("low", "high"), ends, strict=True):
                numbers[f"{prefix}{end}"] = numbers[name].copy(data=values)
    costs = ["parameters", "training_flops", "flops", "peak_bytes", "seconds_per_sample", "averaging"]
    return xr.Dataset(
        {
            **{name: array.drop_attrs(deep=False) for name, array in numbers.items()},
            **{name: seeds[name].mean("run", skipna=False, keep_attrs=True) for name in costs},
            "restriction": seeds["restriction"][0].reset_coords(drop=True),
            "defined": seeds["defined"],
            "seeds": seeds.sizes["run"],
        }
    )


def _by_group(errors: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of each group, whose sizes are equal, along the last axis."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(set(sizes.tolist())) > 1:
        raise InputError(f"groups of {sorted(set(sizes.tolist()))} samples; expected all of one size")
    order = np.argsort(index, kind="stable")
    means: NDArray[np.float64] = errors[..., order].reshape(*errors.shape[:-1], len(sizes), -1).mean(axis=-1)
    return means
