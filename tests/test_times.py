"""Times are compared as what they mean, whatever their units, types and last digits."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from mano_op.data.times import Times, common_times, times_of
from mano_op.errors import InputError

DAYS = np.datetime64("2000-01-01", "ns") + np.arange(6) * np.timedelta64(6, "h")
HOURS = 6.0 * np.arange(6)


def data(times, **attributes):
    return xr.Dataset({"u": ("time", np.arange(len(times)))}, {"time": ("time", times, attributes)})


def accumulated(steps):
    return np.cumsum(np.full(5 * steps + 1, 0.1 / steps))[::steps] - 0.1 / steps


@pytest.mark.parametrize(
    "other",
    [
        data(DAYS.astype("datetime64[s]")),
        data(HOURS, units="hours since 2000-01-01"),
        data(HOURS.astype(np.float32), units="hours since 2000-01-01 00:00:00"),
        data(HOURS * 60, units="minutes since 2000-01-01"),
        data((HOURS / 24 + 10957).astype(np.float32), units="days since 1970-01-01"),
        data((HOURS * 3600).astype(np.int64), units="seconds since 2000-01-01", calendar="gregorian"),
    ],
    ids=["seconds", "hours", "single", "minutes", "days in single", "integers"],
)
def test_dates_agree_in_any_units_and_type(other):
    times, units = times_of({32: data(DAYS), 16: other})
    assert (times, units.removesuffix(" 00:00:00")) == (HOURS.tolist(), "hours since 2000-01-01")
    reversed_times, _ = times_of({16: other, 32: data(DAYS)})
    np.testing.assert_allclose(np.diff(reversed_times) / reversed_times[1], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        data(HOURS, units="h"),
        data(HOURS * 60, units="minutes"),
        data(HOURS.astype(np.float32) / 24, units="days"),
        data((HOURS * 3600).astype("timedelta64[s]")),
    ],
    ids=["hours", "minutes", "days in single", "timedelta"],
)
def test_durations_agree_in_any_units_and_type(other):
    times, units = times_of({32: data(HOURS, units="hours"), 16: other})
    assert (times, units) == (HOURS.tolist(), "hours")


@pytest.mark.parametrize("other", [accumulated(10), (0.1 * np.arange(6)).astype(np.float32)])
def test_times_of_two_solvers_agree_but_for_their_last_digits(other):
    times, units = times_of({16: data(other), 32: data(accumulated(40))})
    assert units == "1" and np.allclose(times, 0.1 * np.arange(6), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (data(np.array([0.0, 0.1, 0.2, 0.35, 0.4, 0.5])), r"time 3 is 0\.3 at 32 and 0\.35 at 16"),
        (data(0.1 * np.arange(5)), r"32 has 6 .* and 16 5 .*; time 5 is 0\.5 at 32 and missing at 16"),
        (data(0.1 * np.arange(6), units="s"), "32 has 6 numbers in '1' and 16 6 durations"),
        (data(DAYS), "time 0 is 0 at 32 and 2000-01-01T00:00:00 at 16"),
        (data(0.1 * np.arange(600)), r"time 6 is missing at 32 and 0\.6 at 16"),
    ],
)
def test_first_time_that_differs_is_named(other, message):
    with pytest.raises(InputError, match=f"the times differ between resolutions: .*{message}") as caught:
        times_of({32: data(0.1 * np.arange(6)), 16: other})
    assert len(str(caught.value)) < 400


def test_date_that_differs_is_named_as_a_date():
    other = DAYS.copy()
    other[2] += np.timedelta64(1, "h")
    with pytest.raises(InputError, match="time 2 is 2000-01-01T12:00:00 at 32 and 2000-01-01T13:00:00 at 16"):
        times_of({32: data(DAYS), 16: data(other)})


def test_common_times_keep_rounded_ones():
    fine, coarse = data(accumulated(40)), data(np.append(accumulated(10)[1:], 0.6))
    kept = common_times({32: fine, 16: coarse})
    assert {key: kept[key]["u"].values.tolist() for key in kept} == {32: [1, 2, 3, 4, 5], 16: [0, 1, 2, 3, 4]}
    assert len(times_of(kept)[0]) == 5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (data(np.array(["2000-01-01", "NaT"], "datetime64[ns]")), "16: a time is missing"),
        (
            data(pd.period_range("2000", "2001", freq="Y")),
            "16: times of type period.*expected numbers, dates",
        ),
        (data(HOURS, units="hours since yesterday"), "times in 'hours since yesterday' are no dates"),
    ],
)
def test_missing_and_odd_times_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        times_of({16: other})


def test_times_of_a_pandas_type_are_numbers():
    assert times_of({16: data(pd.Index([1, 2], dtype="Int64"))}) == ([1.0, 2.0], "1")


def test_rounding_of_a_date_is_that_of_its_file():
    single = Times.of(16, xr.Variable("time", np.float32([56000.25]), {"units": "days since 1850-01-01"}))
    assert single.rounding == pytest.approx(86400 * np.spacing(np.float32(56000.25)))
    assert Times.of(16, xr.Variable("time", DAYS)).rounding < 1e-3
    dates = Times.of(8, xr.Variable("time", DAYS, {"units": "m"}))  # have units of their own
    assert (dates.numbers.tolist(), dates.units) == (HOURS.tolist(), "hours since 2000-01-01 00:00:00")
