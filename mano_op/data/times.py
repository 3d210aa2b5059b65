"""Times of labelled data sets: decoded, compared within rounding, and written as numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial import KDTree

from mano_op.data.guards import check_has
from mano_op.data.rounded import agree, tolerance_between, unit_in_the_last_place
from mano_op.errors import InputError, refusing

_Key = TypeVar("_Key")

# Names of the civil calendar in CF; dates of other calendars have no number of its days.
_CIVIL = ("standard", "gregorian", "proleptic_gregorian")

# Seconds of the units of durations that UDUNITS, CF and pandas have in common.
_SECONDS = {
    name: seconds
    for names, seconds in {
        "d day days": 86400.0,
        "h hr hrs hour hours": 3600.0,
        "min mins minute minutes": 60.0,
        "s sec secs second seconds": 1.0,
        "ms msec msecs millisecond milliseconds": 1e-3,
        "us microsecond microseconds": 1e-6,
        "ns nanosecond nanoseconds": 1e-9,
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Times:
    """Times of a data set.

    `numbers` in `units`, such as "days since 2000-01-01" or "1", are what a store has. `seconds` are to
    compare: durations, and dates since 1970; other numbers are as they are. Only times of one `measure` may
    be compared, "dates", "durations" or numbers of a unit. `rounding` is the error of `seconds`.
    """

    numbers: NDArray[np.float64]
    units: str
    seconds: NDArray[np.float64]
    measure: str
    rounding: float

    @classmethod
    def of(cls, where: object, times: xr.Variable) -> Times:
        """Decode a coordinate, or labels that are times.

        `where` names the data set in messages. Refused are missing times and calendars other than civil ones.

        Examples
        --------
        >>> hours = xr.Variable("time", [0.0, 6.0], {"units": "hours since 1970-01-02"})
        >>> Times.of(16, hours).seconds.tolist()
        [86400.0, 108000.0]
        """
        _check(where, times)
        units = str(times.attrs.get("units", ""))
        if times.dtype.kind in "iuf" and " since " in units:
            what = f"{where}: times in {units!r} are no dates"
            with refusing(what, "correct the attribute units", OverflowError, ValueError):
                times = xr.conventions.decode_cf_variable("time", times)
        if times.dtype.kind in "mM":  # whose units are their own, whatever an attribute says
            times = xr.Variable(times.dims, times.values, encoding=times.encoding)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the units of a file do not fit any more: others are taken
            encoded = xr.conventions.encode_cf_variable(times) if isinstance(times.dtype, np.dtype) else times
        units = str(encoded.attrs.get("units", "1"))
        numbers = encoded.values.astype(np.float64)
        step = _SECONDS.get(units.partition(" since ")[0])
        rounding = unit_in_the_last_place(encoded.values) * (step or 1.0)
        if times.dtype.kind == "M":
            seconds = (times.values - np.datetime64("1970-01-01")) / np.timedelta64(1, "s")
            return cls(numbers, units, seconds, "dates", rounding)
        if step is not None:
            return cls(numbers, units, numbers * step, "durations", rounding)
        return cls(numbers, units, numbers, f"numbers in {units!r}", rounding)

    def text(self, i: int) -> str:
        """Write a time with all of its digits."""
        if self.measure == "dates":
            return str(np.datetime64(round(self.seconds[i] * 1e3), "ms")).removesuffix(".000")
        return f"{self.numbers[i]:.9g}" + ("" if self.units == "1" else f" {self.units}")

    def agrees_with(self, other: Times) -> NDArray[np.bool_]:
        """Compare as many times, within rounding."""
        return agree(self.seconds, other.seconds, self.rounding + other.rounding)


def times_of(fields: Mapping[Any, xr.Dataset]) -> tuple[list[float], str]:
    """Return the times of data sets as numbers, and their units, if all agree within a fraction of the step.

    `InputError` names the first times that differ.
    """
    times_at: dict[Any, Times] = {}
    for resolution, data in fields.items():
        remedy = f"; assign the times: `data.assign_coords(time=...)`, {data.sizes['time']} of them"
        check_has(resolution, "coordinate", ["time"], data.coords, remedy)
        times_at[resolution] = Times.of(resolution, data["time"].variable)
    first, *others = times_at
    for other in others:
        if difference := _difference(times_at, first, other):
            raise InputError(
                f"the times differ between resolutions: {difference}. Keep those that all have: "
                "`write_fields(path, common_times(fields), ...)`, from mano_op.data.times"
            )
    best = min(times_at.values(), key=lambda times: times.rounding)
    return best.numbers.tolist(), best.units


def _difference(times_at: Mapping[Any, Times], first: Any, other: Any) -> str | None:
    """Describe the first time of two data sets that differs; None if all agree."""
    ours, theirs = times_at[first], times_at[other]
    sizes = len(ours.seconds), len(theirs.seconds)
    n = min(sizes) if ours.measure == theirs.measure else 0
    same = agree(ours.seconds[:n], theirs.seconds[:n], ours.rounding + theirs.rounding)
    if same.all() and n == max(sizes):
        return None
    i = int(np.argmin([*same, False]))
    time, its = (times.text(i) if i < len(times.seconds) else "missing" for times in (ours, theirs))
    counts = f"{first} has {sizes[0]} {ours.measure} and {other} {sizes[1]} {theirs.measure}"
    return f"{counts}; time {i} is {time} at {first} and {its} at {other}"


def common_times(fields: Mapping[_Key, xr.Dataset]) -> dict[_Key, xr.Dataset]:
    """Select the times that all data sets of `write_fields` have, within rounding; at least one.

    Examples
    --------
    >>> fine = xr.Dataset(coords={"time": [0.0, 0.1, 0.2, 0.3]})
    >>> coarse = xr.Dataset(coords={"time": [0.0, 0.2 + 1e-9]})
    >>> {n: data["time"].size for n, data in common_times({32: fine, 16: coarse}).items()}
    {32: 2, 16: 2}
    """
    times_at = {key: Times.of(key, data["time"].variable) for key, data in fields.items()}
    shortest = min(times_at.values(), key=lambda times: len(times.seconds))
    rows: dict[_Key, Any] = {}
    shared = np.ones(len(shortest.seconds), dtype=bool)
    for key, times in times_at.items():
        distances, rows[key] = KDTree(times.seconds[:, None]).query(shortest.seconds[:, None], p=1)
        rounding = times.rounding + shortest.rounding
        shared &= distances <= tolerance_between(times.seconds, shortest.seconds, rounding)
    if len({times.measure for times in times_at.values()}) > 1 or not shared.any():
        firsts = "; ".join(
            f"{key} has {times.measure}, {times.text(0)} first" for key, times in times_at.items()
        )
        raise InputError(f"no time is at all resolutions: {firsts}. Count them from one origin, in one unit")
    return {key: data.isel(time=rows[key][shared]) for key, data in fields.items()}


def _check(where: object, times: xr.Variable) -> None:
    """Refuse missing times, words, and dates of other calendars than civil ones."""
    date = times.values.flat[0] if times.dtype.kind == "O" and times.size else None
    stated = times.attrs.get("calendar", times.encoding.get("calendar", "standard"))
    calendar, problem = getattr(date, "calendar", stated), ""
    if bool(times.isnull().any()):
        problem = (
            "a time is missing (NaT or NaN): drop it, `data.isel(time=data['time'].notnull())`, or assign it"
        )
    elif times.dtype.kind not in "biufmM" and not hasattr(date, "calendar"):
        problem = (
            f"times of type {times.dtype}; expected numbers, dates or durations: convert dates in words, "
            "`data.assign_coords(time=data['time'].values.astype('datetime64[ns]'))`"
        )
    elif str(calendar).lower() not in _CIVIL:
        problem = (
            f"dates of the calendar {calendar!r}, which a store cannot hold; expected one of "
            f"{', '.join(_CIVIL)}. Give the times as numbers from the first on: "
            "`data.assign_coords(time=('time', days, {'units': 'days'}))`"
        )
    if problem:
        raise InputError(f"{where}: {problem}")
