"""Labels of samples, compared within a data set and between resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.times import Times
from mano_op.errors import InputError


def splits_held(fields: Mapping[Any, xr.Dataset], splits: Mapping[str, int]) -> dict[Any, list[str]]:
    """Return the splits that each data set holds, if all hold the same samples in one order.

    A coordinate "sample" of integers numbers the samples of whole splits; any other one labels them, each
    once. `InputError` names the first two places of a label that is repeated, or differs.

    Examples
    --------
    >>> days = np.datetime64("2000-01-01", "ns") + np.arange(3) * np.timedelta64(1, "D")
    >>> fine, coarse = (xr.Dataset(coords={"sample": labels}) for labels in (days, days[2:]))
    >>> splits_held({64: fine, 32: coarse}, {"train": 2, "test": 1})
    {64: ['train', 'test'], 32: ['test']}
    """
    total = sum(splits.values())
    labels = {key: _labels(key, data) for key, data in fields.items()}
    numbers = {key: _numbers(data, labels[key], splits) for key, data in fields.items()}
    whole = [key for key, data in fields.items() if labels[key] is not None and data.sizes["sample"] == total]
    for key in fields:
        if whole and labels[key] is not None and key != whole[0]:
            numbers[key] = _matched(key, labels, whole[0], fields)
    held = {}
    for key, data in fields.items():
        row_numbers = numbers[key]
        held[key] = _whole_splits(row_numbers, splits) if row_numbers is not None else []
        if not held[key]:
            n, told = data.sizes["sample"], "" if labels[key] is None else f", {_ends(labels[key])},"
            raise InputError(
                f"{key}: {n} samples{told} are not whole splits of {dict(splits)}; number them from 0 to "
                f"{total - 1} in the order of the splits, `data.assign_coords(sample=...)`, where a data set "
                "holds only some of them"
            )
        if "split" in data.coords:
            expected = np.repeat(np.array(list(splits), dtype=object), list(splits.values()))[row_numbers]
            if not np.array_equal(data["split"].values.astype(object), expected):
                raise InputError(
                    f"{key}: the coordinate 'split' says otherwise than splits={dict(splits)}: correct one, "
                    "or leave the coordinate out, `data.drop_vars('split')`"
                )
    return held


def check_distinct(where: str, labels: Sequence[tuple[str, pd.Index]], remedy: str) -> None:
    """Refuse a label that is there twice, in one part, such as a file, or in two."""
    joined = labels[0][1].append([part for _, part in labels[1:]])
    if not joined.has_duplicates:
        return
    second = int(np.argmax(joined.duplicated()))
    first = int(np.argmax(joined == joined[second]))
    raise InputError(
        f"{where}: {_place(labels, first)} and {_place(labels, second)} are both {_text(joined[first])}; "
        f"expected each sample once: {remedy}"
    )


def _place(labels: Sequence[tuple[str, pd.Index]], row: int) -> str:
    for name, part in labels:
        if row < len(part):
            return f"sample {row}" + (f" of {name}" if name else "")
        row -= len(part)
    raise IndexError(row)


def _text(label: Any) -> str:
    return repr(label) if isinstance(label, str) else str(label)


def _ends(labels: pd.Index) -> str:
    return f"{_text(labels[0])} to {_text(labels[-1])}"


def _labels(key: Any, data: xr.Dataset) -> pd.Index | None:
    """Return the labels of a data set's samples, each of them once, if it has any."""
    if "sample" not in data.coords:
        return None
    labels = pd.Index(data["sample"].values)
    if labels.hasnans:
        raise InputError(
            f"{key}: sample {int(np.argmax(labels.isna()))} has no label (NaN or NaT): assign one, or leave "
            "all out, `data.drop_vars('sample')`"
        )
    check_distinct(str(key), [("", labels)], "`data.drop_duplicates('sample')`")
    return labels


def _numbers(
    data: xr.Dataset, labels: pd.Index | None, splits: Mapping[str, int]
) -> NDArray[np.int64] | None:
    """Return the numbers of a data set's samples among all, where it says or needs not say them."""
    n, total = data.sizes["sample"], sum(splits.values())
    if labels is not None and labels.dtype.kind in "iu":
        given = labels.to_numpy().astype(np.int64)
        if _whole_splits(given, splits):
            return given
        if given.min() >= 0 and given.max() < total:  # numbers, of parts of splits or in another order
            return None
    return np.arange(n) if n == total else None


def _whole_splits(numbers: NDArray[np.int64], splits: Mapping[str, int]) -> list[str]:
    """Return the splits whose numbers these are, whole and in order; none otherwise."""
    split_of = np.repeat(np.array(list(splits), dtype=object), list(splits.values()))
    held = [split for split in splits if np.isin(np.flatnonzero(split_of == split), numbers).any()]
    return held if np.array_equal(numbers, np.flatnonzero(np.isin(split_of, held))) else []


def _matched(
    key: Any, labels: Mapping[Any, pd.Index | None], whole: Any, fields: Mapping[Any, xr.Dataset]
) -> NDArray[np.int64]:
    """Return the numbers of samples by their labels in the data set that has all samples."""
    given, expected = labels[key], labels[whole]
    assert given is not None and expected is not None
    if len(given) == len(expected) and _are_same_times(key, whole, fields):
        return np.arange(len(given))
    numbers = expected.get_indexer(given)
    if (missing := numbers < 0).any():
        first = int(np.argmax(missing))
        raise InputError(
            f"sample {first} at {key} is {_text(given[first])}, which no sample at {whole} is, "
            f"{_ends(expected)}; expected the same samples at all resolutions: label them alike, "
            "`data.assign_coords(sample=...)`"
        )
    if (np.diff(numbers) <= 0).any():
        first = int(np.argmax(np.diff(numbers) <= 0)) + 1
        raise InputError(
            f"sample {first} at {key} is {_text(given[first])}, which is sample {numbers[first]} at {whole}, "
            f"after {_text(given[first - 1])}, sample {numbers[first - 1]} there; expected one order at all "
            f"resolutions: `fields[{key!r}].sel(sample=fields[{whole!r}]['sample'])`"
        )
    return np.asarray(numbers, dtype=np.int64)


def _are_same_times(key: Any, whole: Any, fields: Mapping[Any, xr.Dataset]) -> bool:
    given, expected = (fields[name]["sample"].variable for name in (key, whole))
    if given.dtype.kind not in "Mmf" or expected.dtype.kind not in "Mmf":
        return False
    ours, theirs = Times.of(key, given), Times.of(whole, expected)
    return ours.measure == theirs.measure and bool(ours.agrees_with(theirs).all())
