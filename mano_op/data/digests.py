"""Digests of fields, which find equal fields of two samples."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mano_op.data.layout import Variable
from mano_op.data.store import FieldStore

_Place = tuple[int, int | None]  # the row of a sample, and a time of its
_CONSTANT = b""  # of a field that is one number, which says nothing of where it comes from


class Digests:
    """One digest for each field that was read: of every sample, and of every time where a variable varies.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [8], samples={"train": 2, "test": 1},
    ...                        progress=False)
    >>> digests = Digests(store)
    >>> for variable in store.variables:
    ...     digests.add("r8", variable, 0, store.read(8, variable.name)[[0, 1, 0]])
    >>> print(*digests.shared_fields())
    r8: samples 0 ('train') and 2 ('test') have the same fields; expected splits that share none: leave these
    samples out of one split, and make the store anew
    """

    def __init__(self, store: FieldStore) -> None:
        self._store = store
        self._fields: dict[tuple[str, str], dict[int, list[bytes]]] = {}

    def add(self, key: str, variable: Variable, row: int, values: NDArray[np.float32]) -> None:
        """Add fields of some rows of a resolution, from `row` on: all times of a row, or the next of them."""
        rows = self._fields.setdefault((key, variable.name), {})
        points = self._store.grids[key].n_dim
        for i, fields in enumerate(values, start=row):
            digests = [_digest(field) for field in fields.reshape(-1, *fields.shape[-points:])]
            rows.setdefault(i, []).extend(digests)

    def shared_fields(self) -> Iterator[str]:
        """Report resolutions at which samples of two splits share all fields, or those of two times.

        Two first times do not count: two flows from one state need not be one flow.
        """
        layout = self._store.layout
        for key in self._store.grids:
            samples = layout.samples(key)
            split_of = [split for split in layout.held[key] for _ in range(layout.splits[split])]
            pairs = self._equal_samples(key, split_of)
            if not pairs:
                continue
            first, second = (
                f"{samples[row]} ({split_of[row]!r})"
                + ("" if time is None else f" at time {layout.times[time]:g}")
                for row, time in min(pairs, key=lambda pair: pair[1][1] is not None)
            )
            n = len({(a[0], b[0]) for a, b in pairs})
            more = f", as have {n - 1} more pairs of two splits" if n > 1 else ""
            yield (
                f"{key}: samples {first} and {second} have the same fields{more}; expected splits that "
                "share none: leave these samples out of one split, and make the store anew"
            )

    def initial_fields(self) -> Iterator[str]:
        """Report steady inputs that are an output's first time in every sample, undeclared."""
        finest = next(reversed(self._store.grids))
        for name, output in self._store.layout.undeclared:
            steady, first = (
                [fields[0] for fields in self._fields[finest, field].values()] for field in (name, output)
            )
            if steady == first and any(steady):
                yield (
                    f"{name}: is {output} at the first time in every sample, but has no attribute "
                    f"initial_of, so each step is given where the field began; set initial_of={output!r} at "
                    "all resolutions"
                )

    def _equal_samples(self, key: str, split_of: list[str]) -> list[tuple[_Place, _Place]]:
        """Find rows of two splits that share all fields, or all that vary in time at two times."""
        variables, pairs = self._store.variables, []
        seen: dict[tuple[bool, tuple[bytes, ...]], _Place] = {}
        for row, time in product(range(len(split_of)), (None, *range(len(self._store.layout.times)))):
            span = slice(None) if time is None else slice(time, time + 1)
            names = [variable.name for variable in variables if variable.time or time is None]
            digests = tuple(digest for name in names for digest in self._fields[key, name][row][span])
            place = row, time
            first = seen.setdefault((time is None, digests), place) if any(digests) else place
            if split_of[first[0]] != split_of[row] and (first[1], time) != (0, 0):
                pairs.append((first, place))
        return pairs


def _digest(field: NDArray[np.float32]) -> bytes:
    if field.size and (field == field.flat[0]).all():
        return _CONSTANT
    return blake2b(np.ascontiguousarray(field).tobytes(), digest_size=16).digest()
