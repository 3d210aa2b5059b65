"""Digests of fields, which find equal fields of two samples."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mano_op.data.layout import Variable
from mano_op.data.store import FieldStore

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
        for key in self._store.grids:
            pairs = [*self._equal_samples(key), *self._equal_states(key)]
            if not pairs:
                continue
            samples, split_of = self._store.layout.samples(key), self._splits(key)
            text = []
            for row, time in pairs[0]:
                at = "" if time is None else f" at time {self._store.layout.times[time]:g}"
                text.append(f"{samples[row]} ({split_of[row]!r}){at}")
            n = len({(first[0], second[0]) for first, second in pairs})
            more = f", as have {n - 1} more pairs of two splits" if n > 1 else ""
            yield (
                f"{key}: samples {text[0]} and {text[1]} have the same fields{more}; expected splits that "
                "share none: leave these samples out of one split, and make the store anew"
            )

    def initial_fields(self) -> Iterator[str]:
        """Report steady inputs that are an output's first time in every sample, undeclared."""
        key = next(reversed(self._store.grids))
        outputs = [v.name for v in self._store.variables if v.time and v.role == "output"]
        for variable in self._store.variables:
            if variable.role != "input" or variable.time or variable.initial_of is not None:
                continue
            steady = [fields[0] for fields in self._fields[key, variable.name].values()]
            for output in outputs:
                if steady == [fields[0] for fields in self._fields[key, output].values()] and any(steady):
                    yield (
                        f"{variable.name}: is {output} at the first time in every sample, but has no "
                        "attribute initial_of, so each step is given where the field began; set "
                        f"initial_of={output!r} at all resolutions"
                    )

    def _splits(self, key: str) -> list[str]:
        layout = self._store.layout
        return [split for split in layout.held[key] for _ in range(layout.splits[split])]

    def _equal_samples(self, key: str) -> Iterator[tuple[tuple[int, None], tuple[int, None]]]:
        names, split_of = [variable.name for variable in self._store.variables], self._splits(key)
        first: dict[tuple[bytes, ...], int] = {}
        for row in range(len(split_of)):
            digests = tuple(digest for name in names for digest in self._fields[key, name][row])
            other = first.setdefault(digests, row) if any(digests) else row
            if split_of[other] != split_of[row]:
                yield (other, None), (row, None)

    def _equal_states(self, key: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        names = [variable.name for variable in self._store.variables if variable.time]
        split_of = self._splits(key)
        seen: dict[tuple[bytes, ...], tuple[int, int]] = {}
        for row in range(len(split_of)) if names else ():
            for time in range(len(self._store.layout.times)):
                state = tuple(self._fields[key, name][row][time] for name in names)
                other = seen.setdefault(state, (row, time)) if any(state) else (row, time)
                if split_of[other[0]] != split_of[row] and (other[1], time) != (0, 0):
                    yield other, (row, time)


def _digest(field: NDArray[np.float32]) -> bytes:
    if field.size and (field == field.flat[0]).all():
        return _CONSTANT
    return blake2b(np.ascontiguousarray(field).tobytes(), digest_size=16).digest()
