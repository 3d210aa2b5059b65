"""What the errors of `mano_op.transfer.evaluate` allow to say, and with what certainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mano_op.errors import InputError
from mano_op.transfer.series import PLUS, Series, series_of

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


def summary(
    results: xr.Dataset, *, metric: str = "relative_l2", resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    r"""Means with intervals, growth, skill, and a verdict on direct inference wherever a model was judged.

    With several seeds the error of a sample is the mean over the seeds. Intervals are 95 % percentile
    intervals of a bootstrap over the samples. They say how far the test samples decide a comparison of
    these very models; what another seed would do, only the spread over the seeds can tell, which is beside.

    Direct inference is compared with the best of the DPU predictors and with the mean field, by the
    bootstrap of the paired differences of their mean errors. Where results have a ``group`` (sample), whole
    groups are drawn: windows of one flow are not independent samples. The best DPU is picked on the same
    samples, so what luck there is in it is on its side. With e the mean errors,

    .. math:: \text{skill} = 1 - e_\text{direct} / e_\text{best DPU}, \qquad
        \text{growth} = e_\text{direct} / e_\text{direct at home}

    The first verdict that applies is given:

    =====================  ==========================================================================
    verdict                where
    =====================  ==========================================================================
    "not finite"           an error of direct inference or of the best DPU is NaN or infinite
    "few"                  there are fewer than 10 independent samples
    "no better than mean"  the direct error is not below that of the mean field, up to rounding
    "training"             at the home level, where direct inference and DPU are one prediction
    "worse"                the interval of the skill lies below 0
    "improves"             it lies above 0, and that of direct minus mean field below 0
    "undecided"            everywhere else
    =====================  ==========================================================================

    Parameters
    ----------
    results : Dataset
        From `mano_op.transfer.evaluate.evaluate_transfer`.
    metric : str
        By which the verdicts and sentences are; everything else is there for each.
    resamples : int
        Of the bootstrap.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Dataset
        By model, train_resolution, resolution, predictor, metric and variable ``mean``, ``low``, ``high``,
        the mean error and its interval; ``seed_low``, ``seed_high``, the smallest and the largest mean of a
        seed; ``non_finite``, the number of errors that are not. Without the predictor: ``growth``, with
        ``_low`` and ``_high``, NaN if the home level was not judged; ``best_dpu``; ``skill``, ``skill_low``,
        ``skill_high`` and
        ``skill_seed_low``, ``skill_seed_high``; ``difference``, direct minus best DPU, and ``over_mean``,
        direct minus mean field, with ``_low`` and ``_high``. Without the metric too: ``verdict``,
        ``sentence``. By model and train_resolution: ``seeds``, how many there are. Costs are those of
        `results`, means over the seeds. Where a model was not trained numbers are NaN, and texts empty.

    Raises
    ------
    InputError
        If there is no sample, or no such metric, or groups differ in size.
    """
    metrics = results["metric"].values.tolist()
    if metric not in metrics:
        raise InputError(f"metric={metric!r}, expected one of {', '.join(metrics)}")
    if results.sizes["sample"] == 0:
        raise InputError("the results hold no sample; expected at least one")
    every = series_of(results)
    parts = [
        xr.concat(
            [_numbers(one.of(results), name, resamples, seed) for name in metrics], "metric", join="exact"
        )
        for one in every
    ]
    made = _dense(parts, every, results)
    independent = len(np.unique(groups_of(results)))
    made.attrs = {
        **results.attrs,
        "metric": metric,
        "samples": results.sizes["sample"],
        "independent": independent,
        "variables": results.sizes["variable"],
        "interval": f"{100 * CONFIDENCE:g} % percentile bootstrap over "
        f"{'samples' if independent == results.sizes['sample'] else f'{independent} groups of samples'}, "
        f"{resamples} draws, seed {seed}",
    }
    places = ("model", "train_resolution", "resolution", "variable")
    verdicts, sentences = (np.full([made.sizes[name] for name in places], "", dtype=object) for _ in range(2))
    of_metric = made.sel(metric=metric)
    for one in every:
        at = (
            made.get_index("model").get_loc(one.model),
            made.get_index("train_resolution").get_loc(one.train_resolution),
        )
        for r, key in enumerate(made["resolution"].values.tolist()):
            for v, variable in enumerate(made["variable"].values.tolist()):
                found = _judge(of_metric, one, key, variable, made.attrs)
                verdicts[(*at, r, v)], sentences[(*at, r, v)] = found
    return made.assign(verdict=(places, verdicts.astype(str)), sentence=(places, sentences.astype(str)))


def _numbers(one: xr.Dataset, metric: str, resamples: int, seed: int) -> xr.Dataset:
    """All of a summary but its words, for one series and metric."""
    one = one.isel(seed=np.flatnonzero(one["present"].values))
    order = ("resolution", "predictor", "variable")
    by_seed = one["error"].sel(metric=metric).transpose("seed", *order, "sample").values
    predictors = one["predictor"].values.tolist()
    with np.errstate(invalid="ignore", divide="ignore"):  # infinities: they stay visible as inf and NaN
        errors = by_seed.mean(axis=0)
        means, seeds = errors.mean(axis=-1), by_seed.mean(axis=-1)
        draws = bootstrap_means(_by_group(errors, groups_of(one)), resamples=resamples, seed=seed)
        low, high = np.quantile(draws, _tails(), axis=0)
        direct = predictors.index("direct")
        trained = one["resolution"].values == one["home"].item()
        growth, grown = np.full_like(means[:, direct], np.nan), np.full_like(draws[:, :, direct], np.nan)
        if trained.any():
            growth = means[:, direct] / means[trained, direct]
            grown = draws[:, :, direct] / draws[:, trained, direct]
        growths = [growth, *np.quantile(grown, _tails(), axis=0)]

        dpu = np.array([predictors.index(predictor) for predictor in DPU])
        of_dpu = means[:, dpu]
        best = dpu[np.where(np.isnan(of_dpu), np.inf, of_dpu).argmin(axis=1)]
        at = best[:, None]
        skill = 1 - means[:, direct] / np.take_along_axis(means, at, axis=1)[:, 0]
        drawn = 1 - draws[:, :, direct] / np.take_along_axis(draws, at[None], axis=2)[:, :, 0]
        seeded = 1 - seeds[:, :, direct] / np.take_along_axis(seeds, at[None], axis=2)[:, :, 0]
        skills = [skill, *np.quantile(drawn, _tails(), axis=0), seeded.min(axis=0), seeded.max(axis=0)]
        over_dpu = _over(means, draws, direct, best)
        over_mean = _over(means, draws, direct, np.full_like(best, predictors.index("mean")))
    defined = one["defined"].sel(metric=metric).transpose("resolution", "predictor").values[:, :, None]
    pair = ("resolution", "variable")
    made = xr.Dataset(
        {
            "mean": (order, means),
            "low": (order, low),
            "high": (order, high),
            "seed_low": (order, seeds.min(axis=0)),
            "seed_high": (order, seeds.max(axis=0)),
            "non_finite": (order, defined * (~np.isfinite(by_seed)).sum(axis=(0, -1))),
            "best_dpu": (pair, np.array(predictors)[best]),
        }
    )
    for end, values in zip(("", "_low", "_high", "_seed_low", "_seed_high"), skills, strict=True):
        made[f"skill{end}"] = pair, values
    for name, compared in (("growth", growths), ("difference", over_dpu), ("over_mean", over_mean)):
        for end, values in zip(("", "_low", "_high"), compared, strict=True):
            made[f"{name}{end}"] = pair, values
    return made


def groups_of(results: xr.Dataset) -> NDArray[np.int64]:
    """Which of the samples belong together; each is a group of its own if the results do not say."""
    groups = results["group"].values if "group" in results.coords else np.arange(results.sizes["sample"])
    return np.asarray(groups)


def _by_group(errors: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of each group, whose sizes are equal, along the last axis."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(set(sizes.tolist())) > 1:
        raise InputError(f"groups of {sorted(set(sizes.tolist()))} samples; expected all of one size")
    order = np.argsort(index, kind="stable")
    means: NDArray[np.float64] = errors[..., order].reshape(*errors.shape[:-1], len(sizes), -1).mean(axis=-1)
    return means


def _dense(parts: list[xr.Dataset], every: list[Series], results: xr.Dataset) -> xr.Dataset:
    """The numbers of all series, side by side, with what the results say of them."""
    labels = {name: results[name].values for name in ("model", "train_resolution")}
    present = results["present"]
    costs = ["parameters", "training_flops", "flops", "peak_bytes", "seconds_per_sample"]
    made = results.drop_dims(["sample", "seed"]).assign(
        {
            "seeds": present.sum("seed"),
            **{name: results[name].where(present).mean("seed", keep_attrs=True) for name in costs},
        }
    )
    sizes = tuple(map(len, labels.values()))
    for name, first in parts[0].data_vars.items():
        blank: Any = "" if first.dtype.kind == "U" else 0 if first.dtype.kind in "iu" else np.nan
        values = np.full((*sizes, *first.shape), blank, dtype=object if blank == "" else first.dtype)
        for one, part in zip(every, parts, strict=True):
            m, t = (
                int(np.flatnonzero(labels[dim] == label)[0])
                for dim, label in (("model", one.model), ("train_resolution", one.train_resolution))
            )
            values[m, t] = part[name].values
        dims = ("model", "train_resolution", *first.dims)
        order = [
            d
            for d in ("model", "train_resolution", "resolution", "predictor", "metric", "variable")
            if d in dims
        ]
        made[name] = xr.DataArray(values.astype(str) if blank == "" else values, dims=dims).transpose(*order)
    return made


def _over(
    means: NDArray[np.float64], draws: NDArray[np.float64], direct: int, rival: NDArray[np.intp]
) -> NDArray[np.float64]:
    """How far the direct error is above that of a rival, with the ends of the interval: first axis.

    `rival` has the rival's place among the predictors for each resolution and variable.
    """
    at = rival[:, None]
    difference = means[:, direct] - np.take_along_axis(means, at, axis=1)[:, 0]
    drawn = draws[:, :, direct] - np.take_along_axis(draws, at[None], axis=2)[:, :, 0]
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
    value = round(value, decimals + 2) + 0.0 if abs(value) < 1 else value  # no minus before a zero
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


def _judge(
    judged: xr.Dataset, one: Series, key: str, variable: str, about: Mapping[Any, Any]
) -> tuple[str, str]:
    """Verdict and sentence on one series at one resolution, for one variable."""
    cell = one.of(judged).sel(resolution=key, variable=variable)
    seeds = int(cell["seeds"])
    who = f"{one.label} at {key}" + (f", {variable}" if about["variables"] > 1 else "")
    who += f", {seeds} seeds" if seeds > 1 else ""
    n = about["samples"] * seeds
    if key == cell["home"].item():
        verdict, found = _at_training(cell, n, about["independent"])
        where = "trained" if key == one.train_resolution else "trained most"
        return verdict, f"{who}, where it was {where}: {found}."
    verdict, found = _away(cell, n, about["independent"])
    return verdict, f"{who}: {found}{_trained_elsewhere(judged, one, key, variable)}."


def _at_training(cell: xr.Dataset, n: int, samples: int) -> tuple[str, str]:
    """Verdict and finding at the home level, where only the mean field is a rival."""
    if bad := int(cell["non_finite"].sel(predictor="direct")):
        return "not finite", f"{bad} of {n} errors are not finite"
    direct, mean = _shown(cell, "direct"), _shown(cell, "mean")
    if _not_below_mean(cell):
        return NO_BETTER, f"error {direct}, {_beside_mean(cell, samples)}"
    if samples >= FEWEST and not _decided(cell, "over_mean", _rounding_of(cell, "mean")):
        return "training", f"error {direct}; no difference to predicting the mean field ({mean}) can be told"
    return "training", f"error {direct}"


def _away(cell: xr.Dataset, n: int, samples: int) -> tuple[str, str]:
    """Verdict and finding at another level than home."""
    best = cell["best_dpu"].item()
    finer = cell["points"].item() > cell["home_points"].item()
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
        found = f"direct inference ({direct}) is {_beside_mean(cell, samples)}"
        return NO_BETTER, f"{found}; {rival} has error {dpu} ({how})"
    if samples < FEWEST:
        return "few", (
            f"direct inference has error {direct}, {rival} {dpu} ({how}); {samples} samples are too few to "
            "tell a difference"
        )
    margin = f"the skill is {_skill(cell)}"
    # More skill is less error.
    match -_decided(cell, "skill", _ROUNDING), _decided(cell, "over_mean", _rounding_of(cell, "mean")):
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


def trained_there(judged: xr.Dataset, one: Series, key: str) -> Series | None:
    """The same model trained at a level alone, if it was, and `one` is another."""
    return next(
        (
            other
            for other in series_of(judged)
            if other.model == one.model and other.train_resolution == key != one.train_resolution
        ),
        None,
    )


def trained_on_several(judged: xr.Dataset, one: Series) -> list[Series]:
    """The same model trained on several levels together, in every way that is not `one`."""
    return [
        other
        for other in series_of(judged)
        if other.model == one.model and PLUS in other.train_resolution and other != one
    ]


def _trained_elsewhere(judged: xr.Dataset, one: Series, key: str, variable: str) -> str:
    """What the same model does there if it was trained there, or on several levels."""
    there = trained_there(judged, one, key)
    others = [*([there] if there else []), *trained_on_several(judged, one)]
    found = [
        f"trained on {other.train_resolution} it has error "
        f"{_shown(other.of(judged).sel(resolution=key, variable=variable), 'direct')}"
        for other in others
    ]
    return "".join(f"; {one}" for one in found)


def _not_below_mean(cell: xr.Dataset) -> bool:
    """Whether the direct error is not below that of the mean field, up to rounding."""
    return bool(cell["over_mean"] >= -_rounding_of(cell, "mean"))


def _beside_mean(cell: xr.Dataset, samples: int) -> str:
    """What may be said of direct inference whose error is not below that of the mean field."""
    worse = samples >= FEWEST and _decided(cell, "over_mean", _rounding_of(cell, "mean")) > 0
    return (
        f"{'worse' if worse else 'no better'} than predicting the mean field ({_shown(cell, 'mean')}); the "
        f"difference is {_margin(cell, 'over_mean')}"
    )


def _rounding_of(cell: xr.Dataset, predictor: str) -> float:
    """How large a difference to the error of a predictor can come of rounding."""
    return float(_ROUNDING * cell["mean"].sel(predictor=predictor).item())


def _decided(cell: xr.Dataset, name: str, rounding: float) -> int:
    """-1 or 1 where the interval of a number lies below or above zero by more than rounding, else 0."""
    if cell[f"{name}_high"].item() < -rounding:
        return -1
    return int(cell[f"{name}_low"].item() > rounding)


def _margin(cell: xr.Dataset, difference: str) -> str:
    value, low, high = (cell[f"{difference}{end}"].item() for end in ("", "_low", "_high"))
    return f"{with_interval(value, low, high, sign=True)} percentage points"


def _skill(cell: xr.Dataset) -> str:
    value, low, high = (cell[f"skill{end}"].item() for end in ("", "_low", "_high"))
    shown = with_interval(value, low, high, sign=True).replace(" [", " % [", 1)
    if int(cell["seeds"]) == 1:
        return shown
    least, most = (percent(cell[f"skill_seed_{end}"].item(), sign=True) for end in ("low", "high"))
    return f"{shown}, from {least} to {most} % over the seeds"


def _shown(cell: xr.Dataset, predictor: str) -> str:
    one = cell.sel(predictor=predictor)
    shown = with_interval(one["mean"].item(), one["low"].item(), one["high"].item())
    return shown.replace(" [", " % [", 1)
