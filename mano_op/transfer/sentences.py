"""Verdicts and sentences on direct inference, as far as the intervals allow, and numbers in per cent."""

from __future__ import annotations

import itertools
import math

import xarray as xr

from mano_op.transfer.runs import PLUS

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


def verdict_of(judged: xr.Dataset, run: int, key: str, variable: str) -> tuple[str, str]:
    """Return the verdict and the sentence on a run of a summary at one resolution, for one variable."""
    judged = judged.sel(resolution=key, variable=variable, metric=judged.attrs["metric"])
    cell = judged.isel(run=run)
    who = f"{cell['label'].item()} at {key}"
    who += f", {variable}" if judged.attrs["n_variables"] > 1 else ""
    who += f", {int(cell['seeds'])} seeds" if int(cell["seeds"]) > 1 else ""
    if key == cell["home"].item():
        verdict, finding = _at_home(cell)
        where = "trained" if key == cell["train_resolution"].item() else "trained most"
        return verdict, f"{who}, where it was {where}: {finding}."
    verdict, finding = _away(cell)
    for other in itertools.chain(*trained_elsewhere(judged, cell)):
        finding += f"; trained on {other['train_resolution'].item()} it has error {_shown(other, 'direct')}"
    return verdict, f"{who}: {finding}."


def trained_elsewhere(judged: xr.Dataset, cell: xr.Dataset) -> tuple[list[xr.Dataset], list[xr.Dataset]]:
    """Return the other runs of a cell's model: at the cell's resolution alone, and on several together.

    `judged` has the resolution and the variable of the cell.
    """
    other = judged["train_resolution"].values != cell["train_resolution"].item()
    other &= judged["model"].values == cell["model"].item()
    runs = [judged.isel(run=i) for i in other.nonzero()[0].tolist()]
    there = [run for run in runs if run["train_resolution"] == cell["resolution"]]
    return there, [run for run in runs if PLUS in run["train_resolution"].item()]


def _at_home(cell: xr.Dataset) -> tuple[str, str]:
    """Verdict and finding at the home resolution, where only the mean field is a rival."""
    direct, mean = _shown(cell, "direct"), _shown(cell, "mean")
    if bad := int(cell["non_finite"].sel(predictor="direct")):
        return "not finite", f"{bad} of {_errors(cell)} errors are not finite"
    if too_few := _too_few(cell):
        return "few", f"error {direct}, that of predicting the mean field is {mean}; {too_few}"
    if beside := _no_better_than_mean(cell):
        return NO_BETTER, f"error {direct}, {beside}"
    if not _over_mean(cell):
        return "training", f"error {direct}; no difference to predicting the mean field ({mean}) can be told"
    return "training", f"error {direct}"


def _away(cell: xr.Dataset) -> tuple[str, str]:
    best = cell["best_dpu"].item()
    finer = cell["points"].item() > cell["home_points"].item()
    rival = "interpolating its own coarse prediction" if finer else "going by way of its training grid"
    how = _INPUT[best] if best != "dpu_injection" else _INPUT[cell["restriction"].item()]
    direct, dpu, mean = (_shown(cell, predictor) for predictor in ("direct", best, "mean"))
    bad = {predictor: int(cell["non_finite"].sel(predictor=predictor)) for predictor in ("direct", best)}
    if any(bad.values()):
        return "not finite", (
            f"errors are not finite in {bad['direct']} of {_errors(cell)} samples of direct inference and in "
            f"{bad[best]} of {rival}, so there is no comparison"
        )
    if too_few := _too_few(cell):
        return "few", (
            f"direct inference has error {direct}, {rival} {dpu} ({how}), predicting the mean field {mean}; "
            f"{too_few}"
        )
    if beside := _no_better_than_mean(cell):
        return NO_BETTER, f"direct inference ({direct}) is {beside}; {rival} has error {dpu} ({how})"
    verdict, rivals = "undecided", f"{rival} ({dpu}, {how})"
    skill = _sign(cell, "skill", _ROUNDING)  # more skill is less error
    if skill > 0 and not _over_mean(cell):
        return verdict, (
            f"direct inference ({direct}) has a smaller error than {rivals}, but no difference to predicting "
            f"the mean field ({mean}) can be told; that difference is {_margin(cell)}"
        )
    finding = f"no difference can be told between direct inference ({direct}) and {rivals}"
    if skill:
        verdict, words = ("improves", "improves on") if skill > 0 else ("worse", "is worse than")
        finding = f"direct inference ({direct}) {words} {rivals}"
    return verdict, f"{finding}; the skill is {_skill(cell)}"


def _errors(cell: xr.Dataset) -> int:
    return int(cell.attrs["samples"] * cell["seeds"])


def _too_few(cell: xr.Dataset) -> str:
    """The remark that there are too few samples for a verdict; empty if there are enough."""
    n = cell.attrs["independent"]
    return f"{n} sample{'s are' if n > 1 else ' is'} too few to tell a difference" if n < FEWEST else ""


def _no_better_than_mean(cell: xr.Dataset) -> str:
    """The comparison with the mean field of a direct error not below it, up to rounding; else empty."""
    if not cell["over_mean"] >= -_ROUNDING * cell["mean"].sel(predictor="mean"):
        return ""
    words = "worse" if _over_mean(cell) > 0 else "no better"
    mean = _shown(cell, "mean")
    return f"{words} than predicting the mean field ({mean}); the difference is {_margin(cell)}"


def _over_mean(cell: xr.Dataset) -> int:
    return _sign(cell, "over_mean", _ROUNDING * cell["mean"].sel(predictor="mean").item())


def _sign(cell: xr.Dataset, name: str, rounding: float) -> int:
    """-1 or 1 where the interval of a number lies below or above zero by more than rounding, else 0."""
    if cell[f"{name}_high"].item() < -rounding:
        return -1
    return int(cell[f"{name}_low"].item() > rounding)


def _margin(cell: xr.Dataset) -> str:
    return f"{interval_of(cell, 'over_mean', sign=True)} percentage points"


def _skill(cell: xr.Dataset) -> str:
    shown = interval_of(cell, "skill", sign=True).replace(" [", " % [", 1)
    if int(cell["seeds"]) == 1:
        return shown
    least, most = (percent(cell[f"skill_seed_{end}"].item(), sign=True) for end in ("low", "high"))
    return f"{shown}, from {least} to {most} % over the seeds"


def _shown(cell: xr.Dataset, predictor: str) -> str:
    return interval_of(cell.sel(predictor=predictor)).replace(" [", " % [", 1)


def interval_of(cell: xr.Dataset, name: str = "", *, sign: bool = False) -> str:
    """Format a number of a summary, by default the mean error, and its interval, in per cent.

    Examples
    --------
    >>> interval_of(xr.Dataset({"mean": 0.0931, "low": 0.089, "high": 0.0973}))
    '9.31 [8.90, 9.73]'
    """
    names = (name, f"{name}_low", f"{name}_high") if name else ("mean", "low", "high")
    value, low, high = (cell[n].item() for n in names)
    decimals = _decimals(value)
    middle, *bounds = (percent(number, decimals, sign=sign) for number in (value, low, high))
    return f"{middle} [{', '.join(bounds)}]" if math.isfinite(low) and math.isfinite(high) else middle


def percent(value: float, decimals: int | None = None, *, sign: bool = False) -> str:
    """Format a fraction in per cent, without the sign, to three digits or as many decimals as given.

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


def _decimals(value: float) -> int:
    """Decimals for three digits, at most four."""
    if not math.isfinite(value) or value == 0:
        return 2
    return min(4, max(0, 2 - math.floor(math.log10(abs(100 * value)))))
