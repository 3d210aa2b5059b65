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
# Predictions are in single precision: a difference of this share of an error, or less, is rounding.
_ROUNDING = 1e-6
NO_BETTER = "no better than mean"

_INPUT = {
    "injection": "input at the shared points",
    "nearest": "input at the nearest points, as the grids do not nest",
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

    Direct inference is compared with the best of the DPU predictors and with the mean field, by the
    bootstrap of the paired differences of their mean errors. The best DPU is picked on the same samples,
    so what luck there is in it is on its side. The first verdict that applies is given:

    =====================  ==========================================================================
    verdict                where
    =====================  ==========================================================================
    "not finite"           an error of direct inference or of the best DPU is NaN or infinite
    "few"                  there are fewer than 10 samples
    "no better than mean"  the direct error is not below that of the mean field, up to rounding
    "training"             at the training resolution, where direct inference and DPU are one prediction
    "worse"                the interval of direct minus best DPU lies above 0
    "improves"             it lies below 0, and so does that of direct minus mean field
    "undecided"            everywhere else
    =====================  ==========================================================================

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
        ``difference_low``, ``difference_high``, direct minus best DPU; ``over_mean``, ``over_mean_low``,
        ``over_mean_high``, direct minus mean field; ``verdict``; ``sentence``. Costs are those of `results`.
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
        over_dpu = _over(means, draws, direct, best)
        over_mean = _over(means, draws, direct, np.full_like(best, predictors.index("mean")))

    pair = ("model", "resolution", "variable")
    made = results.drop_dims("sample").assign(
        mean=(order, means),
        low=(order, low),
        high=(order, high),
        non_finite=(order, (~np.isfinite(errors)).sum(axis=-1)),
        growth=(pair, growth),
        best_dpu=(pair, np.array(predictors)[best]),
    )
    for name, compared in (("difference", over_dpu), ("over_mean", over_mean)):
        for end, values in zip(("", "_low", "_high"), compared, strict=True):
            made[f"{name}{end}"] = pair, values
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


def _over(
    means: NDArray[np.float64], draws: NDArray[np.float64], direct: int, rival: NDArray[np.intp]
) -> NDArray[np.float64]:
    """How far the direct error is above that of a rival, with the ends of the interval: first axis.

    `rival` has the rival's place among the predictors for each model, resolution and variable.
    """
    at = rival[:, :, None]
    difference = means[:, :, direct] - np.take_along_axis(means, at, axis=2)[:, :, 0]
    drawn = draws[:, :, :, direct] - np.take_along_axis(draws, at[None], axis=3)[:, :, :, 0]
    return np.stack([difference, *np.quantile(drawn, _tails(), axis=0)])


def percent(value: float, decimals: int | None = None, *, sign: bool = False) -> str:
    """A fraction in per cent, without the sign for it, to three digits or as many decimals as given.

    From a million on it has an exponent: such errors are those of models that have diverged.

    Examples
    --------
    >>> percent(0.0931), percent(1.0), percent(0.0931, 1), percent(0.0163, sign=True), percent(float("nan"))
    ('9.31', '100', '9.3', '+1.63', 'nan')
    >>> percent(1.1e30)
    '1.10e+32'
    """
    if not math.isfinite(value):
        return str(float(value))
    decimals = _decimals(value) if decimals is None else decimals
    form = ".2e" if abs(value) >= 1e4 else f".{decimals}f"
    return f"{100 * value:{'+' if sign else ''}{form}}"


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
    if cell["resolution"].item() == cell["training_resolution"].item():
        verdict, found = _at_training(cell, about["samples"])
        return verdict, f"{who}, where it was trained: {found}."
    verdict, found = _away(cell, about["samples"])
    return verdict, f"{who}: {found}."


def _at_training(cell: xr.Dataset, n: int) -> tuple[str, str]:
    """Verdict and finding at the training resolution, where only the mean field is a rival."""
    if bad := int(cell["non_finite"].sel(predictor="direct")):
        return "not finite", f"{bad} of {n} errors are not finite"
    direct, mean = _shown(cell, "direct"), _shown(cell, "mean")
    if _not_below_mean(cell):
        return NO_BETTER, f"error {direct}, {_beside_mean(cell, n)}"
    if n >= FEWEST and not _decided(cell, "over_mean", "mean"):
        return "training", f"error {direct}; no difference to predicting the mean field ({mean}) can be told"
    return "training", f"error {direct}"


def _away(cell: xr.Dataset, n: int) -> tuple[str, str]:
    """Verdict and finding at another resolution than the one trained at."""
    best = cell["best_dpu"].item()
    finer = cell["points"].item() > cell["training_points"].item()
    rival = "interpolating its own coarse prediction" if finer else "going by way of its training grid"
    how = _INPUT[best] if best != "dpu_injection" else _INPUT[cell["restriction"].item()]
    direct, dpu, mean = (_shown(cell, predictor) for predictor in ("direct", best, "mean"))
    bad = {predictor: int(cell["non_finite"].sel(predictor=predictor)) for predictor in ("direct", best)}
    if any(bad.values()):
        return "not finite", (
            f"errors are not finite in {bad['direct']} of {n} samples of direct inference and in "
            f"{bad[best]} of {rival}, so there is no comparison"
        )
    if _not_below_mean(cell):
        found = f"direct inference ({direct}) is {_beside_mean(cell, n)}"
        return NO_BETTER, f"{found}; {rival} has error {dpu} ({how})"
    if n < FEWEST:
        return "few", (
            f"direct inference has error {direct}, {rival} {dpu} ({how}); {n} samples are too few to tell a "
            "difference"
        )
    margin = f"the difference is {_margin(cell, 'difference')}"
    match _decided(cell, "difference", best), _decided(cell, "over_mean", "mean"):
        case -1, -1:
            return "improves", f"direct inference ({direct}) improves on {rival} ({dpu}, {how}); {margin}"
        case -1, _:
            return "undecided", (
                f"direct inference ({direct}) has a smaller error than {rival} ({dpu}, {how}), but no "
                f"difference to predicting the mean field ({mean}) can be told; that difference is "
                f"{_margin(cell, 'over_mean')}"
            )
        case 1, _:
            return "worse", f"direct inference ({direct}) is worse than {rival} ({dpu}, {how}); {margin}"
    return "undecided", (
        f"no difference can be told between direct inference ({direct}) and {rival} ({dpu}, {how}); {margin}"
    )


def _not_below_mean(cell: xr.Dataset) -> bool:
    """Whether the direct error is not below that of the mean field, up to rounding."""
    return bool(cell["over_mean"] >= -_ROUNDING * cell["mean"].sel(predictor="mean"))


def _beside_mean(cell: xr.Dataset, n: int) -> str:
    """What may be said of direct inference whose error is not below that of the mean field."""
    worse = n >= FEWEST and _decided(cell, "over_mean", "mean") > 0
    return (
        f"{'worse' if worse else 'no better'} than predicting the mean field ({_shown(cell, 'mean')}); the "
        f"difference is {_margin(cell, 'over_mean')}"
    )


def _decided(cell: xr.Dataset, difference: str, rival: str) -> int:
    """-1 or 1 where the interval of a difference lies below or above zero by more than rounding, else 0."""
    rounding = _ROUNDING * cell["mean"].sel(predictor=rival).item()
    if cell[f"{difference}_high"].item() < -rounding:
        return -1
    return int(cell[f"{difference}_low"].item() > rounding)


def _margin(cell: xr.Dataset, difference: str) -> str:
    value, low, high = (cell[f"{difference}{end}"].item() for end in ("", "_low", "_high"))
    return f"{with_interval(value, low, high, sign=True)} percentage points"


def _shown(cell: xr.Dataset, predictor: str) -> str:
    one = cell.sel(predictor=predictor)
    shown = with_interval(one["mean"].item(), one["low"].item(), one["high"].item())
    return shown.replace(" [", " % [", 1)
