"""Number of samples to a chunk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

TARGET_BYTES = 2**20


def chunk_for(
    points: int,
    splits: Mapping[str, int],
    held: Iterable[Sequence[str]] = (),
    *,
    target_bytes: int = TARGET_BYTES,
) -> int:
    """Return the samples to a chunk that make about `target_bytes` of float32, and divide all `cuts`.

    `points` counts a sample's at the finest resolution and all times; `held` has the splits of each
    resolution.

    Examples
    --------
    >>> chunk_for(256 * 256, {"train": 1000})
    4
    >>> chunk_for(256 * 256, {"train": 9, "test": 5}, [["train", "test"], ["test"]])
    3
    """
    chunk = max(1, min(target_bytes // (4 * points), sum(splits.values())))
    common = math.gcd(*(cut for names in held for cut in cuts(splits, names)))
    return next(k for k in range(chunk, 0, -1) if common % k == 0)


def cuts(splits: Mapping[str, int], held: Sequence[str]) -> list[int]:
    """Return what a chunk must divide for a resolution that holds only some splits.

    Both the rows before a skipped split and the samples skipped must be whole chunks, or two chunks of
    samples would meet in one chunk of the array.

    Examples
    --------
    >>> cuts({"train": 9, "hard": 6, "test": 5}, ["train", "test"])
    [9, 6]
    """
    numbers, rows, skipped, gap = [], 0, 0, False
    for split, size in splits.items():
        if split in held:
            numbers += [rows, skipped] if gap else []
            rows, gap = rows + size, False
        else:
            skipped, gap = skipped + size, True
    return numbers
