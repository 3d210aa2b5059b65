"""Cache of the chunks of a resolution that were read last."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mano_op.data.store import FieldStore


class ChunkCache:
    """Read rows of a resolution by whole chunks, and keep those that were used last, within `budget` bytes.

    Decompressing a chunk costs far more than copying from it. With less than a chunk, none is kept.
    """

    def __init__(self, store: FieldStore, key: str, budget: int) -> None:
        self._store, self._key, self._budget = store, key, budget
        self._kept: dict[tuple[str, int], NDArray[np.float32]] = {}  # in the order of their last use
        self._sizes = {v.name: 4 * math.prod(store.layout.shape(key, v)) for v in store.layout.variables}

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read a variable in some rows, given in increasing order; as `FieldStore.read`."""
        length = self._store.layout.chunk
        if length * self._sizes[name] > self._budget:
            return self._store.read(self._key, name, rows)
        owners = rows // length
        numbers = np.unique(owners).tolist()
        fresh = self._fetch(name, [chunk for chunk in numbers if (name, chunk) not in self._kept])
        chunks = {i: fresh[i] if i in fresh else self._kept.pop((name, i)) for i in numbers}
        self._kept |= {(name, chunk): values for chunk, values in chunks.items()}
        held = sum(values.nbytes for values in self._kept.values())
        while held > self._budget:
            held -= self._kept.pop(next(iter(self._kept))).nbytes
        return np.concatenate([values[rows[owners == i] - i * length] for i, values in chunks.items()])

    def _fetch(self, name: str, chunks: list[int]) -> dict[int, NDArray[np.float32]]:
        if not chunks:
            return {}
        length, n = self._store.layout.chunk, len(self._store.layout.samples(self._key))
        rows = [np.arange(chunk * length, min((chunk + 1) * length, n)) for chunk in chunks]
        values = self._store.read(self._key, name, np.concatenate(rows))
        pieces = np.split(values, np.cumsum([len(numbers) for numbers in rows])[:-1])
        return {chunk: piece.copy() for chunk, piece in zip(chunks, pieces, strict=True)}
