"""How many samples make a chunk."""

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
    """The number of samples to a chunk that makes a chunk of a float32 field about `target_bytes`.

    Parameters
    ----------
    points : int
        Of one sample, at the finest level, and at all of its times.
    splits : mapping of str to int
    held : iterable of sequence of str
        The splits that each level holds; the chunk divides their `cuts`.
    target_bytes : int

    Examples
    --------
    >>> chunk_for(256 * 256, {"train": 1000})
    4
    >>> chunk_for(256 * 256, {"train": 9, "test": 5}, [["train", "test"], ["test"]])
    3
    """
    chunk = max(1, min(target_bytes // (4 * points), sum(splits.values())))
    common = math.gcd(*(cut for some in held for cut in cuts(splits, some)))
    return next(k for k in range(chunk, 0, -1) if common % k == 0)


def cuts(splits: Mapping[str, int], held: Sequence[str]) -> list[int]:
    """What a chunk must divide for a level that holds only some splits.

    Where splits are skipped, both the rows before and the samples left out must be whole chunks, or the
    end of one chunk of samples and the start of another would meet in one chunk of the array.

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
