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

    A coordinate "sample" of integers numbers the samples of whole splits; other coordinates label them, each
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
    labelled = [key for key in fields if labels[key] is not None]
    whole = next((key for key in labelled if fields[key].sizes["sample"] == total), None)
    split_of, held = _split_of(splits), {}
    for key, data in fields.items():
        if whole is None or key == whole or key not in labelled:
            rows = _numbers(data, labels[key], splits)
        else:
            rows = _matched(key, whole, fields)
        held[key] = _whole_splits(rows, splits)
        if not held[key]:
            ends = f", {_ends(labels[key])}," if key in labelled else ""
            raise InputError(
                f"{key}: {data.sizes['sample']} samples{ends} are not whole splits of {dict(splits)}; number "
                f"them from 0 to {total - 1} in the order of the splits, `data.assign_coords(sample=...)`, "
                "where a data set holds only some of them"
            )
        if "split" in data.coords and not np.array_equal(data["split"].values.astype(object), split_of[rows]):
            raise InputError(
                f"{key}: the coordinate 'split' contradicts splits={dict(splits)}: correct one, or "
                "leave the coordinate out, `data.drop_vars('split')`"
            )
    return held


def check_distinct(where: str, labels: Sequence[tuple[str, pd.Index]], remedy: str) -> None:
    """Refuse a label that is there twice, in one part, such as a file, or in two."""
    joined = labels[0][1].append([part for _, part in labels[1:]])
    if joined.has_duplicates:
        places = [
            f"sample {i}{f' of {name}' if name else ''}" for name, part in labels for i in range(len(part))
        ]
        second = int(np.argmax(joined.duplicated()))
        first = int(np.argmax(joined == joined[second]))
        raise InputError(
            f"{where}: {places[first]} and {places[second]} are both {_text(joined[first])}; expected each "
            f"sample once: {remedy}"
        )


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


def _numbers(data: xr.Dataset, labels: pd.Index | None, splits: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the numbers of a data set's samples among all; none if neither labels nor size tell them."""
    n, total = data.sizes["sample"], sum(splits.values())
    if labels is not None and labels.dtype.kind in "iu":
        numbers = labels.to_numpy().astype(np.int64)
        # Numbers of parts of splits, or in another order, are refused.
        if _whole_splits(numbers, splits) or (numbers.min() >= 0 and numbers.max() < total):
            return numbers
    return np.arange(n if n == total else 0)


def _split_of(splits: Mapping[str, int]) -> NDArray[np.object_]:
    return np.repeat(np.array(list(splits), dtype=object), list(splits.values()))


def _whole_splits(numbers: NDArray[np.int64], splits: Mapping[str, int]) -> list[str]:
    """Return the splits whose numbers these are, whole and in order; none otherwise."""
    split_of = _split_of(splits)
    held = [split for split in splits if np.isin(np.flatnonzero(split_of == split), numbers).any()]
    return held if np.array_equal(numbers, np.flatnonzero(np.isin(split_of, held))) else []


def _matched(key: Any, whole: Any, fields: Mapping[Any, xr.Dataset]) -> NDArray[np.int64]:
    """Return the numbers of samples by their labels in the data set that has all samples."""
    labels, expected = (pd.Index(fields[name]["sample"].values) for name in (key, whole))
    if len(labels) == len(expected) and _are_same_times(key, whole, fields):
        return np.arange(len(labels))
    numbers = np.asarray(expected.get_indexer(labels), dtype=np.int64)
    wrong = (numbers < 0) | (np.diff(numbers, prepend=-1) <= 0)
    if not wrong.any():
        return numbers
    i = int(np.argmax(wrong))
    problem = (
        f"which no sample at {whole} is, {_ends(expected)}; expected the same samples at all "
        "resolutions: label them alike, `data.assign_coords(sample=...)`"
    )
    if numbers[i] >= 0:
        problem = (
            f"which is sample {numbers[i]} at {whole}, after {_text(labels[i - 1])}, sample "
            f"{numbers[i - 1]} there; expected one order at all resolutions: "
            f"`fields[{key!r}].sel(sample=fields[{whole!r}]['sample'])`"
        )
    raise InputError(f"sample {i} at {key} is {_text(labels[i])}, {problem}")


def _are_same_times(key: Any, whole: Any, fields: Mapping[Any, xr.Dataset]) -> bool:
    variables = [fields[name]["sample"].variable for name in (key, whole)]
    if any(labels.dtype.kind not in "Mmf" for labels in variables):
        return False
    ours, theirs = map(Times.of, (key, whole), variables)
    return ours.measure == theirs.measure and bool(ours.agrees_with(theirs).all())
