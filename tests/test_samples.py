"""Samples are one and the same at every resolution, and none is there twice."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from mano_op.data.samples import check_distinct, splits_held
from mano_op.errors import InputError

SPLITS = {"train": 3, "test": 2}
DATES = np.datetime64("2000-01-01", "ns") + np.arange(5) * np.timedelta64(1, "D")
LABELS = {
    "dates": DATES,
    "words": np.array(["a", "b", "c", "d", "e"]),
    "floats": np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
    "numbers from 1": np.arange(1, 6),
    "numbers": np.arange(5),
}


def data(labels=None, n=5):
    coords = {} if labels is None else {"sample": labels}
    return xr.Dataset({"u": ("sample", np.arange(n if labels is None else len(labels)))}, coords)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_resolution_with_some_splits_is_matched_by_its_labels(labels):
    both = ["train", "test"]
    assert splits_held({64: data(labels)}, SPLITS) == {64: both}
    assert splits_held({64: data(labels), 32: data(labels)}, SPLITS) == {64: both, 32: both}
    assert splits_held({32: data(labels[3:]), 64: data(labels)}, SPLITS) == {32: ["test"], 64: both}
    assert splits_held({32: data(labels[:3]), 64: data(labels)}, SPLITS) == {32: ["train"], 64: both}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_repeated_label_is_refused_with_both_places(labels):
    twice = labels.copy()
    twice[4] = twice[1]
    with pytest.raises(InputError, match=r"64: sample 1 and sample 4 are both .*; expected each sample once"):
        splits_held({64: data(twice)}, SPLITS)


@pytest.mark.parametrize("labels", [v for k, v in LABELS.items() if k != "numbers"])
def test_other_labels_or_order_at_a_resolution_are_refused_with_two_places(labels):
    swapped = labels[[0, 2, 1, 3, 4]]
    with pytest.raises(
        InputError, match=r"sample 2 at 32 is .*, which is sample 1 at 64, after .*, sample 2"
    ):
        splits_held({64: data(labels), 32: data(swapped)}, SPLITS)
    other = labels.copy()
    other[2] = (
        np.datetime64("2001-01-01") if labels.dtype.kind == "M" else ("z" if labels.dtype.kind == "U" else 99)
    )
    with pytest.raises(InputError, match=r"sample 2 at 32 is .*, which no sample at 64 is"):
        splits_held({64: data(labels), 32: data(other)}, SPLITS)


def test_numbers_out_of_order_are_refused():
    for labels in ([1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [2, 3, 4], [0, 1]):
        with pytest.raises(InputError, match=r"are not whole splits of .*number them from 0 to 4"):
            splits_held({64: data(np.array(labels))}, SPLITS)


def test_dates_that_differ_by_rounding_are_equal_labels():
    single = DATES + np.array([0, 1, -1, 2, 0], "timedelta64[s]")
    assert splits_held({64: data(DATES), 32: data(single)}, SPLITS)[32] == ["train", "test"]
    late = DATES + np.array([0, 0, 0, 0, 2], "timedelta64[h]")
    with pytest.raises(InputError, match="sample 4 at 32 is 2000-01-05 02:00:00, which no sample at 64 is"):
        splits_held({64: data(DATES), 32: data(late)}, SPLITS)


def test_samples_without_labels_are_in_the_order_of_the_splits():
    assert splits_held({64: data()}, SPLITS) == {64: ["train", "test"]}
    with pytest.raises(InputError, match="64: 4 samples are not whole splits"):
        splits_held({64: data(n=4)}, SPLITS)
    with pytest.raises(InputError, match=r"64: sample 1 has no label \(NaN or NaT\)"):
        splits_held({64: data(np.array([0.0, np.nan, 2.0, 3.0, 4.0]))}, SPLITS)


def test_repeated_label_is_named_with_its_files():
    first, second = pd.Index([0, 1, 2]), pd.Index([2, 3])
    with pytest.raises(
        InputError, match=r"16: sample 2 of a\.nc and sample 0 of b\.nc are both 2; .*: leave"
    ):
        check_distinct("16", [("a.nc", first), ("b.nc", second)], "leave one out")
    check_distinct("16", [("a.nc", first), ("b.nc", second[1:])], "leave one out")
