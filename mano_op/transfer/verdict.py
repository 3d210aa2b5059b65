"""What the errors of `mano_op.transfer.evaluate` allow to say, and with what certainty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.errors import InputError

DPU = ("dpu_injection", "dpu_mean", "dpu_interpolation")
CONFIDENCE = 0.95
# A percentile interval of fewer samples is far too narrow.
FEWEST = 10

_INPUT = {
    "injection": "input at the shared points",
    "nearest": "input at the nearest points",
    "dpu_mean": "input averaged",
    "dpu_interpolation": "input interpolated",
}


def bootstrap_means(
    errors: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Means over samples drawn with replacement, the same draws for every row.

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


def summary(results: xr.Dataset, *, resamples: int = 2000, seed: int = 0) -> xr.Dataset:
    r"""Means with intervals, growth, and a verdict on direct inference for each model and resolution.

    Intervals are 95 % percentile intervals of a bootstrap over the samples. They say how far the test
    samples decide a comparison of these very models; nothing of models from another seed.

    Direct inference is compared with the best of the DPU predictors, by the bootstrap of the paired
    difference of their mean errors. It "improves" where the interval lies below 0, is "worse" where
    it lies above, and "undecided" otherwise. Other verdicts are "training" at the training resolution,
    where the two are one prediction, "few" below 10 samples, and "not finite". The best DPU is picked
    on the same samples, so what luck there is in it is on its side.

    Parameters
    ----------
    results : Dataset
        From `mano_op.transfer.evaluate.evaluate_transfer`.
    resamples : int
        Of the bootstrap.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Dataset
        ``mean``, ``low``, ``high`` and ``non_finite``, the number of errors that are not, by model,
        resolution, predictor and variable. By model, resolution and variable: ``growth``, the direct error
        over the one at the training resolution, NaN if that was not judged; ``best_dpu``; ``difference``,
        ``difference_low``, ``difference_high``, direct minus best DPU; ``verdict``; ``sentence``. Costs are
        those of `results`.
    """
    order = ("model", "resolution", "predictor", "variable")
    errors = results["relative_l2"].transpose(*order, "sample").values
    if errors.shape[-1] == 0:
        raise InputError("the results hold no sample; expected at least one")
    predictors = results["predictor"].values.tolist()
    with np.errstate(invalid="ignore", divide="ignore"):  # infinities: they stay visible as inf and NaN
        means = errors.mean(axis=-1)
        draws = bootstrap_means(errors, resamples=resamples, seed=seed)
        low, high = np.quantile(draws, _tails(), axis=0)
        trained = results["resolution"].values == results["training_resolution"].values[:, None]
        direct = predictors.index("direct")
        at_training = np.where(trained[..., None], means[:, :, direct], 0).sum(axis=1, keepdims=True)
        growth = np.where(trained.any(axis=1)[:, None, None], means[:, :, direct] / at_training, np.nan)

        dpu = np.array([predictors.index(predictor) for predictor in DPU])
        of_dpu = means[:, :, dpu]
        best = dpu[np.where(np.isnan(of_dpu), np.inf, of_dpu).argmin(axis=2)]
        at_best = best[:, :, None]
        difference = means[:, :, direct] - np.take_along_axis(means, at_best, axis=2)[:, :, 0]
        drawn = draws[:, :, :, direct] - np.take_along_axis(draws, at_best[None], axis=3)[:, :, :, 0]
        difference_low, difference_high = np.quantile(drawn, _tails(), axis=0)

    pair = ("model", "resolution", "variable")
    made = results.drop_dims("sample").assign(
        mean=(order, means),
        low=(order, low),
        high=(order, high),
        non_finite=(order, (~np.isfinite(errors)).sum(axis=-1)),
        growth=(pair, growth),
        best_dpu=(pair, np.array(predictors)[best]),
        difference=(pair, difference),
        difference_low=(pair, difference_low),
        difference_high=(pair, difference_high),
    )
    made.attrs = {
        **results.attrs,
        "samples": errors.shape[-1],
        "variables": errors.shape[-2],
        "interval": f"{100 * CONFIDENCE:g} % percentile bootstrap over samples, {resamples} draws, "
        f"seed {seed}",
    }
    places = itertools.product(*(made[name].values for name in pair))
    judged = [_judge(made.sel(dict(zip(pair, place, strict=True))), made.attrs) for place in places]
    verdicts, sentences = np.array(judged).T.reshape(2, *growth.shape)
    return made.assign(verdict=(pair, verdicts), sentence=(pair, sentences))


def percent(value: float, decimals: int | None = None, *, sign: bool = False) -> str:
    """A fraction in per cent, without the sign for it, to three digits or as many decimals as given.

    Examples
    --------
    >>> percent(0.0931), percent(1.0), percent(0.0931, 1), percent(0.0163, sign=True), percent(float("nan"))
    ('9.31', '100', '9.3', '+1.63', 'nan')
    """
    if not math.isfinite(value):
        return str(float(value))
    decimals = _decimals(value) if decimals is None else decimals
    return f"{100 * value:{'+' if sign else ''}.{decimals}f}"


def with_interval(value: float, low: float, high: float, *, sign: bool = False) -> str:
    """A fraction in per cent with its interval, all to the same decimals.

    Examples
    --------
    >>> with_interval(0.0931, 0.089, 0.0973)
    '9.31 [8.90, 9.73]'
    """
    decimals = _decimals(value)
    if not (math.isfinite(low) and math.isfinite(high)):
        return percent(value, decimals, sign=sign)
    bounds = ", ".join(percent(bound, decimals, sign=sign) for bound in (low, high))
    return f"{percent(value, decimals, sign=sign)} [{bounds}]"


def _decimals(value: float) -> int:
    """So many that three digits show, but no more than four."""
    if not math.isfinite(value) or value == 0:
        return 2
    return min(4, max(0, 2 - math.floor(math.log10(abs(100 * value)))))


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def _judge(cell: xr.Dataset, about: Mapping[Any, Any]) -> tuple[str, str]:
    """Verdict and sentence on one model at one resolution, for one variable."""
    who = f"{cell['model'].item()} at {cell['resolution'].item()}"
    if about["variables"] > 1:
        who += f", {cell['variable'].item()}"
    best = cell["best_dpu"].item()
    direct, dpu = (_shown(cell.sel(predictor=predictor)) for predictor in ("direct", best))
    bad = {predictor: int(cell["non_finite"].sel(predictor=predictor)) for predictor in ("direct", best)}
    n = about["samples"]
    if cell["resolution"].item() == cell["training_resolution"].item():
        if bad["direct"]:
            return "not finite", f"{who}, where it was trained: {bad['direct']} of {n} errors are not finite."
        return "training", f"{who}, where it was trained: error {direct}."
    finer = cell["points"].item() > cell["training_points"].item()
    rival = "interpolating its own coarse prediction" if finer else "going by way of its training grid"
    how = _INPUT[best] if best != "dpu_injection" else _INPUT[cell["restriction"].item()]
    if any(bad.values()):
        return "not finite", (
            f"{who}: errors are not finite in {bad['direct']} of {n} samples of direct inference and in "
            f"{bad[best]} of {rival}, so there is no comparison."
        )
    if n < FEWEST:
        return "few", (
            f"{who}: direct inference has error {direct}, {rival} {dpu} ({how}); {n} samples are too few "
            "to tell a difference."
        )
    low, high = cell["difference_low"].item(), cell["difference_high"].item()
    margin = with_interval(cell["difference"].item(), low, high, sign=True)
    if high < 0:
        verdict, text = "improves", f"direct inference ({direct}) improves on {rival} ({dpu}, {how})"
    elif low > 0:
        verdict, text = "worse", f"direct inference ({direct}) is worse than {rival} ({dpu}, {how})"
    else:
        verdict = "undecided"
        text = f"no difference can be told between direct inference ({direct}) and {rival} ({dpu}, {how})"
    return verdict, f"{who}: {text}; the difference is {margin} percentage points."


def _shown(cell: xr.Dataset) -> str:
    return with_interval(cell["mean"].item(), cell["low"].item(), cell["high"].item()).replace(
        " [", " % [", 1
    )
