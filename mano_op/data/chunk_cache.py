"""Cache of the chunks of a resolution that were read last."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from mano_op.data.store import FieldStore


class ChunkCache:
    """Read rows of a resolution by whole chunks, and keep those that were used last, within `budget` bytes.

    Decompressing a chunk costs far more than copying from it. With less than a chunk, none is kept.
    """

    def __init__(self, store: FieldStore, key: str, budget: int) -> None:
        self._store, self._key, self._budget = store, key, budget
        self._kept: OrderedDict[tuple[str, int], NDArray[np.float32]] = OrderedDict()
        self._held = 0

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read a variable in some rows, given in increasing order; as `FieldStore.read`."""
        length = self._store.layout.chunk
        if self._bytes(name) > self._budget:
            return self._store.read(self._key, name, rows)
        owners = rows // length
        chunks = np.unique(owners)
        missing = [int(chunk) for chunk in chunks if (name, int(chunk)) not in self._kept]
        fresh = self._fetch(name, missing)
        values = np.empty((len(rows), *self._shape(name)), dtype=np.float32)
        for chunk in chunks.tolist():
            mine = owners == chunk
            whole = fresh[chunk] if chunk in fresh else self._kept[name, chunk]
            values[mine] = whole[rows[mine] - chunk * length]
        for chunk in chunks.tolist():
            self._keep(name, chunk, fresh.get(chunk))
        return values

    def _fetch(self, name: str, chunks: list[int]) -> dict[int, NDArray[np.float32]]:
        """Read chunks of the store at once."""
        if not chunks:
            return {}
        length, n = self._store.layout.chunk, len(self._store.layout.samples(self._key))
        rows = [np.arange(chunk * length, min((chunk + 1) * length, n)) for chunk in chunks]
        values = self._store.read(self._key, name, np.concatenate(rows))
        pieces = np.split(values, np.cumsum([len(numbers) for numbers in rows])[:-1])
        return {chunk: piece.copy() for chunk, piece in zip(chunks, pieces, strict=True)}

    def _keep(self, name: str, chunk: int, values: NDArray[np.float32] | None) -> None:
        """Note that a chunk was used, and forget those that were not for longest."""
        if values is not None:
            self._kept[name, chunk] = values
            self._held += values.nbytes
        if (name, chunk) in self._kept:
            self._kept.move_to_end((name, chunk))
        while self._held > self._budget:
            _, oldest = self._kept.popitem(last=False)
            self._held -= oldest.nbytes

    def _shape(self, name: str) -> tuple[int, ...]:
        layout = self._store.layout
        return layout.shape(self._key, next(v for v in layout.variables if v.name == name))

    def _bytes(self, name: str) -> int:
        return 4 * self._store.layout.chunk * int(np.prod(self._shape(name)))
